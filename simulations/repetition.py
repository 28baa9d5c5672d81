"""One repetition of a comparison: its arms, from simple methods to local adapters."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from client.prepared import PreparedExamples, load_or_prepare
from privacy.accounting import GaussianEvent, epsilon_spent
from privacy.ledger import Ledger
from server.run_store import RunStore
from silotune.federation import Federation, Job, build_model
from silotune.models.export import export_adapter
from silotune.models.text_model import TextModel
from silotune.tasks.metrics import calibration_bins, quality
from simulations.arms import Scores, score_adapters, train_each, train_pooled
from simulations.baselines import logistic, popularity
from simulations.preparation import Merchants
from simulations.run_folder import RunFolder
from simulations.scenario import Scenario

__all__ = ["Repetition", "Stage"]

Stage = Callable[[str], AbstractContextManager[Callable[..., None]]]
"""Opens a stage by its name; the inner call reports (done, total, detail)."""

Data = Mapping[str, PreparedExamples]


class Repetition:
    """All arms of one seed; each result goes into the run folder as it is there.

    Args:
        folder: where scores go, and which arms it already holds.
        scenario: training parameters.
        seed: of this repetition.
        merchants: prepared examples.
        model: with text, its adapter at the start.
        stage: opens a stage of the progress display.
    """

    def __init__(
        self,
        folder: RunFolder,
        scenario: Scenario,
        seed: int,
        merchants: Merchants,
        model: TextModel,
        stage: Stage,
    ) -> None:
        self.folder, self.scenario, self.seed, self._stage = folder, scenario, seed, stage
        self.merchants, self.model = merchants, model
        self.data, self.start_D = merchants.data, model.adapter()
        done: dict[str, int] = {}
        for record in folder.records():
            if record["kind"] == "score" and record["seed"] == seed:
                done[record["arm"]] = done.get(record["arm"], 0) + 1
        self._done = {arm for arm, count in done.items() if count == len(self.data)}

    def simple_methods(self) -> None:
        """Popularity, and logistic regression on the relation features."""
        examples = [p.examples for p in self.data.values()]
        with self._stage("simple methods") as progress:
            self._record("popularity", dict(zip(self.data, map(popularity, examples), strict=True)))
            progress(1, 3)
            for arm, pooled in (("logistic-local", False), ("logistic-pooled", True)):
                logits = logistic(examples, pooled=pooled)
                self._record(arm, dict(zip(self.data, logits, strict=True)))
                progress(2 + pooled, 3)

    def without_federation(self) -> None:
        """Each merchant alone, and all pooled."""
        local = self.scenario.local
        if "local-only" not in self._done:
            with self._stage("each merchant alone") as progress:
                adapters = train_each(
                    self.model,
                    self.data,
                    self.start_D,
                    local.optimizer,
                    epochs=local.epochs,
                    seed=self.seed,
                    on_merchant=self._counter(progress),
                )
                self._score("local-only", adapters)
        if "pooled" not in self._done:
            with self._stage("all pooled") as progress:
                adapter_D = train_pooled(
                    self.model,
                    self.data,
                    self.start_D,
                    local.optimizer,
                    epochs=local.pooled_epochs,
                    seed=self.seed,
                    on_step=progress,
                )
                self._score("pooled", adapter_D)

    def federated(self, federation: Federation) -> None:
        """Quality of every job after its rounds, and with a local adapter on top."""
        numeric = build_model(federation.models, "numeric", federation.task)
        numeric_data = {
            name: load_or_prepare(folder, federation.task, numeric)
            for name, folder in self.merchants.folders.items()
        }
        for job in federation.jobs:
            text = job.model == "text"
            model, data = (self.model, self.data) if text else (numeric, numeric_data)
            store = RunStore(Path(federation.state) / "rounds" / job.name, model.layout.digest)
            if job.name not in self._done:
                with self._stage(f"quality of {job.name}") as progress:
                    self._curve(job, store, model, data, progress)
                    last_D = store.load(job.rounds - 1)
                    self._score(job.name, last_D, model, data)
                    export_adapter(
                        model,
                        self.folder.path / "adapters" / f"{job.name}-seed{self.seed}",
                        numeric_names=federation.task.numeric_names,
                    )
                if job.private is not None:
                    self._privacy(job, federation)
            if text and f"{job.name}+local" not in self._done:
                self._local_adapters(job, store)

    def _local_adapters(self, job: Job, store: RunStore) -> None:
        local = self.scenario.local
        with self._stage(f"local adapters after {job.name}") as progress:
            adapters = train_each(
                self.model,
                self.data,
                store.load(job.rounds - 1),
                replace(local.optimizer, learning_rate=local.after_rate),
                epochs=local.after_epochs,
                seed=self.seed,
                on_merchant=self._counter(progress),
            )
            self._score(f"{job.name}+local", adapters)

    def _curve(
        self,
        job: Job,
        store: RunStore,
        model: TextModel,
        data: Data,
        progress: Callable[..., None],
    ) -> None:
        # A fixed sample of merchants: the curve is for looking, the final table for judging.
        some = dict(list(data.items())[:: max(1, len(data) // self.scenario.curve_merchants)])
        for record in store.records():
            round_ = record["round"]
            scores = score_adapters(model, some, store.load(round_))
            figures = [self._quality(name, s) for name, s in scores.items()]
            self.folder.append(
                {
                    "kind": "round",
                    "seed": self.seed,
                    "arm": job.name,
                    **record,
                    "auc": float(np.mean([f["auc"] for f in figures])),
                    "log_loss": float(np.mean([f["log_loss"] for f in figures])),
                }
            )
            progress(round_ + 1, job.rounds)

    def _privacy(self, job: Job, federation: Federation) -> None:
        for name in self.data:
            ledger = Ledger(Path(federation.state) / "ledgers" / job.name / f"{name}.db")
            events = ledger.events()
            for index in range(len(events)):
                self.folder.append(
                    {
                        "kind": "privacy",
                        "seed": self.seed,
                        "arm": job.name,
                        "merchant": name,
                        "round": index,
                        "epsilon": _spent(events[: index + 1], federation.delta),
                        "delta": federation.delta,
                    }
                )

    def _score(
        self,
        arm: str,
        adapters: Tensor | Mapping[str, Tensor],
        model: TextModel | None = None,
        data: Data | None = None,
    ) -> None:
        scores = score_adapters(model or self.model, data or self.data, adapters)
        self._record(arm, scores)

    def _record(self, arm: str, scores: Scores) -> None:
        if arm in self._done:
            return
        for name, logits in scores.items():
            self.folder.append(
                {
                    "kind": "score",
                    "seed": self.seed,
                    "arm": arm,
                    "merchant": name,
                    **self._quality(name, logits),
                }
            )
        labels = np.concatenate([self._labels(name) for name in scores])
        bins = calibration_bins(labels, np.concatenate(list(scores.values())))
        self.folder.append(
            {"kind": "calibration", "seed": self.seed, "arm": arm, "bins": [list(b) for b in bins]}
        )

    def _quality(self, name: str, logits: NDArray[np.floating]) -> dict[str, float]:
        examples = self.data[name].examples
        return quality(self._labels(name), logits, examples.visit_E[examples.test_E])

    def _labels(self, name: str) -> NDArray[np.float32]:
        examples = self.data[name].examples
        labels: NDArray[np.float32] = examples.label_EK[examples.test_E, 0]
        return labels

    def _counter(self, progress: Callable[..., None]) -> Callable[[str], None]:
        names = list(self.data)
        return lambda name: progress(names.index(name), len(names), name)


@lru_cache(maxsize=4096)
def _spent(events: tuple[GaussianEvent, ...], delta: float) -> float:
    # Merchants with one plan have one history.
    return epsilon_spent(events, delta=delta)
