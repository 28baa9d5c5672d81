"""Run a scenario: every arm on the same merchants, the same examples and the same split."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from silotune.federation import Federation, Job, build_model
from silotune.models.text_model import TextModel
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples
from simulations.apart import WEEKS
from simulations.continuing import continued_federation, newer_scenario, records_of_weeks
from simulations.flower_engine import run_flower
from simulations.forgetting import BEFORE
from simulations.inline_engine import run_inline
from simulations.judged import main_of
from simulations.pool import SiloPool
from simulations.pool_engine import run_pool
from simulations.preparation import (
    Merchants,
    make_silos,
    prepare_merchants,
    refuse_delta,
    seeded_model,
    seeded_task,
)
from simulations.private_metrics import noise_for
from simulations.progress import Stages
from simulations.repetition import Repetition
from simulations.run_folder import RunFolder
from simulations.scenario import Scenario

__all__ = ["Comparison"]


class Comparison:
    """One scenario on its way into a run folder. `run` may be called again after a stop.

    Args:
        scenario: what to compare.
        run: where results and adapters go.
        data: where silo folders are made and kept.
        stages: shows progress.
    """

    def __init__(self, scenario: Scenario, run: RunFolder, data: Path, stages: Stages) -> None:
        self.scenario, self.folder, self.data_folder, self.stages = scenario, run, data, stages
        self._timings: dict[str, float] = dict(run.info.timings)
        self._label = ""

    def run(self) -> None:
        """Run every seed. An arm whose scores are in the folder already is not run again."""
        # The work is in worker processes; this one must not take a processor from them.
        torch.set_num_threads(1)
        with self._stage("data") as progress:
            silos = make_silos(self.scenario.data, self.data_folder, progress)
        for silo in silos:
            refuse_delta(silo, self.scenario)
        for seed in range(self.scenario.seeds):
            self._label = f"seed {seed + 1}/{self.scenario.seeds} · " * (self.scenario.seeds > 1)
            self._repeat(seed, silos)
        self.folder.describe(timings=self._timings)

    def _repeat(self, seed: int, silos: list[SiloFolder]) -> None:
        federation = self._federation(seed, silos)
        path = Path(federation.state) / "federation.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        federation.save(path)
        with SiloPool(path, self.scenario.workers) as pool:
            model = build_model(federation.models, "text", federation.task)
            with self._stage("examples and frozen layers") as progress:
                merchants = prepare_merchants(silos, self.scenario, pool, progress)
            if seed == 0:
                self._describe(merchants)
            repetition = Repetition(
                self.folder, self.scenario, seed, merchants, model, pool, self._stage
            )
            repetition.simple_methods()
            repetition.without_federation()
            # Messages are handed out in the order of the nodes: the longest training first.
            largest = sorted(merchants.folders, key=merchants.cost, reverse=True)
            taking_part = tuple(str(merchants.folders[n].path.resolve()) for n in largest)
            federation = replace(federation, silos=taking_part)
            federation.save(path)
            self._federate(federation, pool)
            repetition.federated(federation)
            if self.scenario.continued is not None:
                self._continue(seed, federation, pool, merchants, model)

    def _continue(
        self,
        seed: int,
        federation: Federation,
        pool: SiloPool,
        merchants: Merchants,
        model: TextModel,
    ) -> None:
        weeks = self.scenario.continued
        job = next(j for j in federation.jobs if j.name == BEFORE)
        if weeks is None or any(
            r["kind"] == "part" and r["by"] == WEEKS and r["seed"] == seed
            for r in self.folder.records()
        ):
            return
        newer = continued_federation(federation, weeks, job)
        path = Path(newer.state) / "federation.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        newer.save(path)
        with SiloPool(path, self.scenario.workers) as newer_pool:
            with self._stage("newer weeks: examples") as progress:
                silos = list(merchants.folders.values())
                on_newer = prepare_merchants(
                    silos, newer_scenario(self.scenario, weeks), newer_pool, progress
                )
            # A merchant that is too small on the newer weeks takes no part in them.
            taking_part = {str(f.path.resolve()) for f in on_newer.folders.values()}
            newer = replace(newer, silos=tuple(s for s in newer.silos if s in taking_part))
            newer.save(path)
            self._federate(newer, newer_pool)
            with self._stage("older and newer weeks") as progress:
                # Whole or not: a run that goes on does not count half of it.
                found = list(
                    records_of_weeks(
                        (federation, newer),
                        (pool, newer_pool),
                        (merchants, on_newer),
                        model,
                        progress,
                    )
                )
        for record in found:
            self.folder.append({"kind": "part", "seed": seed} | record)

    def _federation(self, seed: int, silos: list[SiloFolder]) -> Federation:
        text = seeded_model(self.scenario, seed)
        seeded = self.scenario.privacy.noise == "seeded"
        return Federation(
            task=seeded_task(self.scenario, seed),
            models={"text": text, "numeric": replace(text, use_text=False)},
            jobs=self._jobs,
            silos=tuple(str(s.path.resolve()) for s in silos),
            state=str((self.folder.path / "state" / f"seed-{seed}").resolve()),
            delta=self.scenario.privacy.delta,
            noise_seed=seed if seeded else None,
        )

    @cached_property
    def _jobs(self) -> tuple[Job, ...]:
        plain, private = self.scenario.federated, self.scenario.privacy
        ask: dict[str, float | str] = {
            "epochs": plain.epochs,
            "learning_rate": plain.optimizer.learning_rate,
            "optimizer": plain.optimizer.optimizer,
            "batch_size": plain.optimizer.batch_size,
        }
        jobs = [
            Job(
                name=name,
                model=model,
                rounds=plain.rounds,
                server_momentum=plain.server_momentum,
                plain=ask,
                encoding=self.scenario.encoding,
            )
            for name, model in (("federated", "text"), ("numeric-federated", "numeric"))
        ]
        for epsilon, text_rate in zip(private.epsilons, private.learning_rates, strict=False):
            histograms = self.scenario.task.objective.private_histograms
            told = private if histograms else replace(private, metrics_share=0.0)
            sigma, metrics = noise_for(epsilon, told)
            for prefix, model, rate in (
                ("federated", "text", text_rate),
                ("numeric", "numeric", private.numeric_learning_rate),
            ):
                request: dict[str, float | str] = {
                    "clip_norm": private.clip_norm,
                    "noise_multiplier": sigma,
                    "sampling_rate": private.sampling_rate,
                    "examples_per_user": private.examples_per_user,
                    "steps": private.steps,
                    "learning_rate": rate,
                    "mechanism": private.mechanism,
                }
                jobs.append(
                    Job(
                        name=f"{prefix}-eps{epsilon:g}",
                        model=model,
                        rounds=private.rounds,
                        server_momentum=private.server_momentum,
                        private=request,
                        epsilon=epsilon,
                        encoding=self.scenario.encoding,
                        metrics=metrics,
                    )
                )
        return tuple(jobs)

    def _federate(self, federation: Federation, pool: SiloPool) -> None:
        nodes = len(federation.silos)
        total = nodes * sum(job.rounds for job in federation.jobs)
        with self._stage("federated rounds") as progress:
            rounds = {job.name: job.rounds for job in federation.jobs}
            before = dict(zip(rounds, np.cumsum([0, *rounds.values()])[:-1].tolist(), strict=True))

            def on_reply(job: str, round_: int, replies: int) -> None:
                done = nodes * (before[job] + round_) + replies
                progress(done, total, f"{job}, round {round_ + 1}/{rounds[job]}")

            match self.scenario.engine:
                case "pool":
                    run_pool(nodes, pool, on_reply)
                case "flower":
                    workers = self.scenario.workers
                    run_flower(pool.federation, nodes, workers=workers, on_reply=on_reply)
                case "inline":
                    run_inline(pool.federation, nodes, on_reply)

    def _describe(self, merchants: Merchants) -> None:
        seeded = self.scenario.privacy.noise == "seeded"
        self.folder.describe(
            merchants=[
                {
                    "name": name,
                    "nominal_users": merchants.folders[name].info.nominal_users,
                    "train_examples": len(examples.rows(test=False)),
                    "test_examples": len(examples.rows(test=True)),
                    "test_positives": self._positives(examples),
                }
                for name, examples in merchants.data.items()
            ],
            main=asdict(main_of(self.scenario.task.objective)),
            excluded=[{"name": n, "reason": r} for n, r in merchants.excluded.items()],
            private=not seeded,
            privacy_note="noise is seeded: this run repeats exactly and is not private"
            if seeded
            else "noise and sampling come from the operating system's cryptographic source",
        )

        # A run that goes on has said so before.
        said = {r["message"] for r in self.folder.records() if r["kind"] == "event"}
        if self._unmeasured and self._unmeasured not in said:
            self.folder.append({"kind": "event", "message": self._unmeasured})

    def _positives(self, examples: Examples) -> int | None:
        yes_or_no = self.scenario.task.objective.private_histograms
        return int(examples.label_EK[examples.test_E].sum()) if yes_or_no else None

    @property
    def _unmeasured(self) -> str:
        """Say why the run has no private metrics where it could be expected to."""
        task, private = self.scenario.task, self.scenario.privacy
        if task.objective.private_histograms or not (private.epsilons and private.metrics_share):
            return ""
        return (
            "No private metrics: they are histograms of yes-or-no outcomes, which "
            f"'{task.name}' has not. Training has the whole ε."
        )

    @contextmanager
    def _stage(self, name: str) -> Iterator[Callable[..., None]]:
        began = time.monotonic()
        with self.stages.stage(self._label + name) as progress:
            yield progress
        self._timings[name] = self._timings.get(name, 0.0) + time.monotonic() - began
