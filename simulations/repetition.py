"""One repetition of a comparison: its arms, from simple methods to local adapters."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from threadpoolctl import threadpool_limits
from torch import Tensor

from client.worker import Worker, ledger_of
from privacy.accounting import GaussianEvent, epsilon_spent
from privacy.ledger import Ledger, events_of
from server.run_store import RunStore
from silotune.federation import Federation, Job, build_model
from silotune.models.text_model import TextModel
from silotune.tasks.base import Examples
from silotune.tasks.registry import AnyTask
from silotune.tasks.several import SeveralTasks
from simulations.apart import parts_of_test
from simulations.baselines import METHODS
from simulations.baselines_text import TEXT_METHODS
from simulations.pool import SiloPool, score, train_alone, train_pooled, with_texts
from simulations.preparation import Merchants
from simulations.private_metrics import records_of
from simulations.records import ROUND_METRICS
from simulations.run_folder import RunFolder
from simulations.scenario import Scenario
from simulations.several import by_simple_method, export_tasks

__all__ = ["Repetition", "Stage"]

Stage = Callable[[str], AbstractContextManager[Callable[..., None]]]
"""Opens a stage by its name; the inner call reports (done, total, detail)."""

_T = TypeVar("_T")
_Scores = Mapping[str, NDArray[np.floating]]


class Repetition:
    """All arms of one seed; each result goes into the run folder as it is there.

    Args:
        folder: where scores go, and which arms it already holds.
        scenario: training parameters.
        seed: of this repetition.
        merchants: those that take part.
        model: with text, its adapter at the start.
        pool: worker processes.
        stage: opens a stage of the progress display.
    """

    def __init__(
        self,
        folder: RunFolder,
        scenario: Scenario,
        seed: int,
        merchants: Merchants,
        model: TextModel,
        pool: SiloPool,
        stage: Stage,
    ) -> None:
        self.folder, self.scenario, self.seed = folder, scenario, seed
        self.merchants, self.model = merchants, model
        self._pool, self._stage = pool, stage
        self._start_D = model.adapter()
        done: dict[str, int] = {}
        for record in folder.records():
            if record["kind"] == "score" and record["seed"] == seed:
                done[record["arm"]] = done.get(record["arm"], 0) + 1
        self._done = {arm for arm, count in done.items() if count >= len(merchants.data)}

    def simple_methods(self) -> None:
        """What the task says a merchant would use instead."""
        task, examples = self.scenario.task, list(self.merchants.data.values())
        missing = [arm for arm in task.simple_methods if arm not in self._done]
        if not missing:
            return
        with self._stage("simple methods") as progress:
            if not TEXT_METHODS.keys().isdisjoint(missing):
                folders = self.merchants.folders.values()
                examples = self._pool.each([(with_texts, (f,)) for f in folders], lambda *_: None)
            calls = [(_simple_method, (task, arm, examples)) for arm in missing]
            # Tasks name the plain ones first.
            results = self._pool.each(calls, progress, cost=range(len(calls)))
            for arm, found in zip(missing, results, strict=True):
                self._record(arm, self._named(found))

    def without_federation(self) -> None:
        """Each merchant alone, and all pooled."""
        local = self.scenario.local
        folders = list(self.merchants.folders.values())
        if {"local-only", "pooled"} <= self._done and self._own_path.exists():
            return
        # The pooled arm first: it is the longest, and the others fill the time beside it.
        pooled = (
            train_pooled,
            (
                folders,
                self._start_D,
                replace(local.optimizer, learning_rate=local.pooled_rate),
                local.pooled_epochs,
                self.seed,
            ),
        )
        with self._stage("each alone, and all pooled") as progress:
            alone = [
                (train_alone, (f, self._start_D, local.optimizer, local.epochs, self._order(i)))
                for i, f in enumerate(folders)
            ]
            cost = [len(folders) * max(self._cost), *self._cost]
            pooled_D, *results = self._pool.each([pooled, *alone], progress, cost=cost)
            own = self._named([adapter_D for adapter_D, _ in results])
            # Before the scores: where they are, the adapters are.
            self._own_path.parent.mkdir(parents=True, exist_ok=True)
            part = self._own_path.with_suffix(".part")
            save_file(own, part)
            part.replace(self._own_path)
            self._record("local-only", self._named([logits for _, logits in results]))
            self._record("pooled", self._scores("text", pooled_D, folders=self.merchants.folders))

    def federated(self, federation: Federation) -> None:
        """Quality of every job after its rounds, and with a local adapter on top."""
        numeric = build_model(federation.models, "numeric", federation.task)
        for job in federation.jobs:
            model = self.model if job.model == "text" else numeric
            store = RunStore(Path(federation.state) / "rounds" / job.name, model.layout.digest)
            last_D = store.load(job.rounds - 1)
            if job.name not in self._done:
                with self._stage(f"quality of {job.name}") as progress:
                    self._curve(job, store, progress)
                    scores = self._scores(job.model, last_D, folders=self.merchants.folders)
                    # Before the scores: where they are, nothing of the job is missing.
                    self._private_metrics(job, store, scores)
                    self._record(job.name, scores)
                if job.private is not None:
                    self._privacy(job, federation)
                folder = self.folder.path / "adapters" / f"{job.name}-seed{self.seed}"
                export_tasks(model, last_D, federation.task, folder)
            if job.model == "text" and f"{job.name}+local" not in self._done:
                self._local_adapters(job, last_D)

    def _local_adapters(self, job: Job, last_D: Tensor) -> None:
        local = self.scenario.local
        settings = replace(local.optimizer, learning_rate=local.after_rate)
        own = load_file(self._own_path)
        private = self.scenario.privacy
        shares = dict(zip(private.epsilons, private.own_shares, strict=False))
        share = local.own_share if job.epsilon is None else shares[job.epsilon]
        with self._stage(f"local adapters after {job.name}") as progress:
            calls = [
                (
                    train_alone,
                    (
                        folder,
                        last_D,
                        settings,
                        local.after_epochs,
                        self._order(i),
                        own[name],
                        share,
                    ),
                )
                for i, (name, folder) in enumerate(self.merchants.folders.items())
            ]
            results = self._pool.each(calls, progress, cost=self._cost)
            self._record(f"{job.name}+local", self._named([logits for _, logits in results]))

    def _curve(self, job: Job, store: RunStore, progress: Callable[..., None]) -> None:
        # A fixed sample of merchants: the curve is for looking, the final table for judging.
        names = list(self.merchants.folders)
        names = names[:: max(1, len(names) // self.scenario.curve_merchants)]
        folders = {n: self.merchants.folders[n] for n in names}
        main = self.scenario.task.objective.main
        for record in store.records():
            scores = self._scores(job.model, store.load(record["round"]), folders=folders)
            figures = [self._quality(name, s) for name, s in scores.items()]
            self.folder.append(
                {
                    "kind": "round",
                    "seed": self.seed,
                    "arm": job.name,
                    **record,
                    **{
                        metric: float(np.mean([f[metric] for f in figures]))
                        for metric in dict.fromkeys((main, *ROUND_METRICS))
                        if metric in figures[0]
                    },
                    "merchants": names,
                }
            )
            progress(record["round"] + 1, job.rounds)

    def _private_metrics(self, job: Job, store: RunStore, scores: _Scores) -> None:
        last = job.rounds - 1
        stored = store.metrics(last)
        if stored is None:
            return
        silos = [(self.merchants.data[n], s) for n, s in scores.items()]
        of_job = {"kind": "private-metrics", "seed": self.seed, "arm": job.name, "round": last}
        for figure in records_of(stored, silos):
            self.folder.append({**of_job, **figure})

    def _privacy(self, job: Job, federation: Federation) -> None:
        for name in self.merchants.folders:
            with Ledger(ledger_of(federation, job, name)) as ledger:
                reserved = [e for e in ledger.entries if e.kind == "reserve"]
            rounds = sorted({int(e.body["what"]["round"]) for e in reserved})
            for round_ in rounds:
                # With the metrics of the round, where there were any.
                until = [e for e in reserved if int(e.body["what"]["round"]) <= round_]
                self.folder.append(
                    {
                        "kind": "privacy",
                        "seed": self.seed,
                        "arm": job.name,
                        "merchant": name,
                        "round": round_,
                        "epsilon": _spent(events_of(until), federation.delta),
                        "delta": federation.delta,
                    }
                )

    def _scores(self, model: str, adapter_D: Tensor, *, folders: Mapping[str, object]) -> _Scores:
        calls = [(score, (folder, model, adapter_D)) for folder in folders.values()]
        logits = self._pool.each(calls, lambda *_: None)
        return dict(zip(folders, logits, strict=True))

    @property
    def _cost(self) -> list[int]:
        return [self.merchants.cost(name) for name in self.merchants.folders]

    def _named(self, values: Sequence[_T]) -> dict[str, _T]:
        return dict(zip(self.merchants.folders, values, strict=True))

    @property
    def _own_path(self) -> Path:
        return self.folder.path / "state" / f"seed-{self.seed}" / "alone.safetensors"

    def _order(self, index: int) -> int:
        return 1000 * self.seed + index

    def _record(self, arm: str, scores: _Scores) -> None:
        if arm in self._done:
            return
        for name, logits in scores.items():
            figures = self._quality(name, logits)
            self.folder.append(
                {"kind": "score", "seed": self.seed, "arm": arm, "merchant": name, **figures}
            )
            for part in parts_of_test(self.scenario.task, self.merchants.data[name], logits):
                self.folder.append(
                    {"kind": "part", "seed": self.seed, "arm": arm, "merchant": name, **part}
                )
        labels_EK = np.concatenate([self._labels(name) for name in scores])
        bins = self.scenario.task.objective.calibration(
            labels_EK, np.concatenate(list(scores.values()))
        )
        if bins:
            self.folder.append(
                {"kind": "calibration", "seed": self.seed, "arm": arm}
                | {"bins": [list(b) for b in bins]}
            )

    def _quality(self, name: str, logits: NDArray[np.floating]) -> dict[str, float]:
        examples = self.merchants.data[name]
        return examples.objective.quality(
            self._labels(name), logits, examples.visit_E[examples.test_E]
        )

    def _labels(self, name: str) -> NDArray[np.float32]:
        examples = self.merchants.data[name]
        labels_EK: NDArray[np.float32] = examples.label_EK[examples.test_E]
        return labels_EK


def _simple_method(
    worker: Worker, task: AnyTask | SeveralTasks, arm: str, examples: list[Examples]
) -> list[NDArray[np.float64]]:
    del worker
    # Small products gain nothing from threads, and spin where a processor is taken.
    with threadpool_limits(1):
        return list(by_simple_method(task, METHODS[arm], examples))


@lru_cache(maxsize=4096)
def _spent(events: tuple[GaussianEvent, ...], delta: float) -> float:
    # Merchants with one plan have one history.
    return epsilon_spent(events, delta=delta)
