"""A process that serves the silos of a simulation, and keeps what it has loaded."""

from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from client.prefix_choice import note_choice
from client.prepared import PreparedExamples, Work, load_or_prepare
from client.silo import Silo
from privacy.accounting import release_epsilon
from privacy.metrics import MetricsPlan
from privacy.policy import Policy
from privacy.randomness import RandomSource, SecureSource, SeededSource
from silotune.config import from_mapping
from silotune.federation import Federation, Job, build_model, read_federation
from silotune.models.text_model import TextModel
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.names import names_in
from silotune.tasks.registry import AnyTask
from silotune.tasks.several import SeveralTasks

__all__ = ["Worker", "ledger_of", "worker_for"]


@dataclass
class Worker:
    """What one process has loaded for a federation file; it loads nothing twice."""

    federation: Federation
    written: bytes = b""
    """The file that it was read from, as it was."""
    models: dict[tuple[str, str], TextModel] = field(default_factory=dict)
    """By name and task."""
    work: Work = field(default_factory=Work)
    """What this worker has had to load and compute so far."""
    keep_bytes: int = 1 << 29
    """Of prepared examples; others are let go, and mapped again when needed. What a thousand silos
    need is then what a few need."""
    _data: OrderedDict[tuple[Path, str, str], PreparedExamples] = field(default_factory=OrderedDict)

    def model(self, name: str, job: Job | None = None) -> TextModel:
        """Return model ``name`` for the task of ``job``, None for that of the federation.

        Raises:
            ConfigError: it is not configured.
        """
        task = self._task(job)
        key = (name, task.name)
        if key not in self.models:
            self.models[key] = build_model(self.federation.models, name, task)
            self.work.models_loaded += 1
        return self.models[key]

    def data(self, folder: SiloFolder, model: str, job: Job | None = None) -> PreparedExamples:
        """Return the prepared examples of the silo in ``folder``; other arguments as `model`."""
        task = self._task(job)
        key = (folder.path, model, task.name)
        if key not in self._data:
            data = load_or_prepare(
                folder,
                task,
                self.model(model, job),
                passes=self._passes(model, task.name),
                work=self.work,
            )
            if data.choice is not None:
                note_choice(f"{folder.info.name}, model '{model}'", data.choice, self.log)
            self._data[key] = data
            while len(self._data) > 1 and self._kept() > self.keep_bytes:
                # Rounds go over the silos in a circle: what was used last is needed last. Letting
                # the oldest go would let everything go just before its turn.
                del self._data[list(self._data)[-2]]
        self._data.move_to_end(key)
        return self._data[key]

    def _kept(self) -> int:
        return sum(data.nbytes for data in self._data.values())

    def _task(self, job: Job | None) -> AnyTask | SeveralTasks:
        return self.federation.task if job is None else self.federation.task_of(job)

    def silo(self, index: int, job: Job, round_: int) -> Silo:
        """Return the silo that node ``index`` stands for, with its budget for ``job``."""
        folder = SiloFolder.open(Path(self.federation.silos[index]))
        name = folder.info.name
        return Silo(
            name,
            self.data(folder, job.model, job),
            task=self._task(job).name,
            nominal_users=folder.info.nominal_users,
            ledger=ledger_of(self.federation, job, name),
            policy=self._policy(job),
            source=self._source(index, round_),
            server="simulation",
        )

    @property
    def log(self) -> Path:
        """The silos' own log; in a simulation one for all."""
        return Path(self.federation.state) / "silos.log"

    def _passes(self, model: str, task: str) -> float:
        """Return how often the jobs will go over a silo's examples; scoring is one pass more."""
        passes = 1.0
        for job in self.federation.jobs:
            if job.model == model and self._task(job).name == task:
                ask = job.private or job.plain or {}
                sampled = float(ask.get("steps", 1)) * float(ask.get("sampling_rate", 1))
                passes += job.rounds * float(ask.get("epochs", sampled))
        return passes

    def _policy(self, job: Job) -> Policy:
        # The merchants of a simulation allow what its scenario plans, and no more.
        ask = {k: v for k, v in (job.private or {}).items() if not isinstance(v, str)}
        limits: dict[str, Any] = {
            "noise_multiplier_min": ask.get("noise_multiplier"),
            "clip_norm_max": ask.get("clip_norm"),
            "sampling_rate_max": ask.get("sampling_rate"),
            "steps_max": ask.get("steps") and int(ask["steps"]),
            "examples_per_user_max": ask.get("examples_per_user") and int(ask["examples_per_user"]),
        }
        return Policy(
            # No private job: next to nothing is allowed.
            epsilon=job.epsilon or 1e-6,
            delta=self.federation.delta,
            base_digests=(self.model(job.model, job).base_digest,),
            servers=("simulation",),
            tasks=names_in(self._task(job).name),
            metrics=self._metrics(job),
            plain_training=job.plain is not None,
            seeded_noise=self.federation.noise_seed is not None,
            **{name: value for name, value in limits.items() if value},
        )

    def _metrics(self, job: Job) -> dict[str, float]:
        if job.metrics is None:
            return {}
        plan = from_mapping(MetricsPlan, job.metrics, where=f"job '{job.name}': metrics")
        return dict.fromkeys(plan.names, release_epsilon(plan.event, self.federation.delta))

    def _source(self, index: int, round_: int) -> RandomSource:
        seed = self.federation.noise_seed
        return SecureSource() if seed is None else SeededSource((seed, index, round_))


def ledger_of(federation: Federation, job: Job, silo: str) -> Path:
    """Return the file of the ledger that pays for ``job`` at the silo of that name."""
    return Path(federation.state) / "ledgers" / (job.account or job.name) / f"{silo}.db"


_workers: dict[Path, Worker] = {}


def worker_for(federation: Path) -> Worker:
    """Return this process's worker for a federation file; it reads the file when that changed.

    What the worker has loaded stays, unless a task, a model or what a job learns is another one.
    """
    path = federation.resolve()
    written = path.read_bytes() if path.exists() else b""
    known = _workers.get(path)
    if known is not None and known.written == written:
        return known
    settings = read_federation(path)
    torch.set_num_threads(settings.threads)
    same = known is not None and _loaded_for(known.federation) == _loaded_for(settings)
    worker = known if known is not None and same else Worker(settings)
    worker.federation, worker.written = settings, written
    _workers[path] = worker
    return worker


def _loaded_for(federation: Federation) -> tuple[Any, ...]:
    learned = {(job.name, job.task) for job in federation.jobs if job.task is not None}
    return federation.task, federation.tasks, federation.models, learned
