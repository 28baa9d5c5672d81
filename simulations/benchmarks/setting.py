"""One piece of work for all sides of a comparison: merchants, examples, LoRA, steps, privacy."""

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from privacy.accounting import calibrate_noise
from silotune.config import config, from_mapping
from silotune.federation import Federation, Job, read_federation
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples
from silotune.tasks.registry import read_task
from simulations.benchmarks.harness import BenchmarkError
from simulations.scenario import Scenario

__all__ = [
    "Plan",
    "Setting",
    "by_size",
    "limited",
    "make_setting",
    "plan",
    "read_setting",
    "taking_part",
    "write_setting",
]

JOB = "private"
"""Name of the one job in the federation file of a setting."""


@config
class Setting:
    """What the processes of all sides read. Written as setting.json into `folder`."""

    folder: str
    """Of this comparison: federation file, state, adapters."""
    epsilon: float
    """Budget over all rounds: of a user for silotune, of an example for the stock recipe."""
    workers: int = 2
    """Worker processes, one thread each."""
    engine: str = "pool"
    """Of silotune's side: 'pool', 'flower' (Ray), or 'inline' in tests."""
    learning_rate: float = 5e-3
    """Of AdamW in the stock recipe and in plain training."""

    @property
    def federation_path(self) -> Path:
        """Federation file, with one private job."""
        return Path(self.folder) / "federation.json"

    @property
    def federation(self) -> Federation:
        """The federation, read from its file."""
        return read_federation(self.federation_path)

    @property
    def job(self) -> Job:
        """The private job."""
        return self.federation.jobs[0]

    def cold(self) -> None:
        """Remove what an earlier run has left: caches of the silos, ledgers, rounds, adapters."""
        for silo in self.federation.silos:
            shutil.rmtree(Path(silo) / "cache", ignore_errors=True)
        self.forget()

    def forget(self) -> None:
        """Remove ledgers, rounds and NVFlare's workspace; the silos' caches stay."""
        federation = self.federation
        shutil.rmtree(federation.state, ignore_errors=True)
        # Ledgers are made below it.
        Path(federation.state).mkdir(parents=True)
        shutil.rmtree(Path(self.folder) / "nvflare", ignore_errors=True)


@config
class Plan:
    """How often the stock recipe steps, so that it sees as many examples as silotune does."""

    loader_batches: int
    """Batches of an epoch; Opacus samples each example with one over this."""
    batch_size: int
    """For the DataLoader that Opacus replaces."""
    steps: int
    """In a round."""
    expected: float
    """Examples that silotune is expected to see in a round."""

    @property
    def rate(self) -> float:
        """Chance of an example to be in a batch."""
        return 1 / self.loader_batches


def plan(examples: Examples, job: Job) -> Plan:
    """Return the plan for one merchant's training ``examples``.

    silotune draws users with a rate and takes at most so many examples of each; the expected
    number in a round is ``steps * rate * sum(min(examples of user, cap))``.
    """
    ask = job.private or {}
    rows = examples.rows(test=False)
    counts = np.unique(examples.user_E[rows], return_counts=True)[1]
    seen = float(np.minimum(counts, int(ask["examples_per_user"])).sum())
    in_step = float(ask["sampling_rate"]) * seen
    expected = int(ask["steps"]) * in_step
    near = max(1, round(len(rows) / in_step))
    # The loader's length decides the rate, in whole batches: the best of the nearest lengths.
    candidates = [_of(max(1, near + k), len(rows), expected) for k in (0, -1, 1)]
    return min(candidates, key=lambda p: abs(p.steps * p.rate * len(rows) - expected))


def _of(batches: int, rows: int, expected: float) -> Plan:
    size = math.ceil(rows / batches)
    batches = math.ceil(rows / size)
    steps = max(1, round(expected * batches / rows))
    return Plan(loader_batches=batches, batch_size=size, steps=steps, expected=expected)


def taking_part(silos: Sequence[SiloFolder], scenario: Scenario) -> list[SiloFolder]:
    """Return the silos that have enough users, and both labels on both sides of the split.

    The same rule as `silotune simulate` has.
    """
    chosen = []
    for silo in silos:
        examples = scenario.task.build(silo)
        train, test = examples.rows(test=False), examples.rows(test=True)
        both = all(len(set(examples.label_EK[r, 0].tolist())) == 2 for r in (train, test))
        if both and len(set(examples.user_E[train].tolist())) >= scenario.data.minimum_users:
            chosen.append(silo)
    if not chosen:
        raise BenchmarkError(f"scenario '{scenario.name}': no merchant has enough users.")
    return chosen


def make_setting(
    scenario: Scenario,
    silos: Sequence[SiloFolder],
    folder: Path,
    *,
    rounds: int = 5,
    engine: str = "pool",
    workers: int | None = None,
    learning_rate: float = 5e-3,
) -> Setting:
    """Write the federation file with the first private job of ``scenario``, and the setting.

    The silos' caches are removed by timed runs: they must be the benchmark's own copies.
    """
    private = scenario.privacy
    epsilon = private.epsilons[0]
    sigma = calibrate_noise(
        epsilon,
        delta=private.delta,
        sampling_rate=private.sampling_rate,
        steps=rounds * private.steps,
    )
    job = Job(
        name=JOB,
        rounds=rounds,
        server_momentum=private.server_momentum,
        private={
            "clip_norm": private.clip_norm,
            "noise_multiplier": sigma,
            "sampling_rate": private.sampling_rate,
            "examples_per_user": private.examples_per_user,
            "steps": private.steps,
            "learning_rate": private.learning_rates[0],
            "mechanism": private.mechanism,
        },
        epsilon=epsilon,
    )
    folder = folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    federation = Federation(
        # Only training is timed: no more test rows than a score takes.
        task=read_task({**asdict(scenario.task), "test_visits": 1}, where="task"),
        models={"text": scenario.model},
        jobs=(job,),
        # Longest first, as `silotune simulate` has them.
        silos=tuple(str(s.path.resolve()) for s in by_size(silos)),
        state=str(folder / "state"),
        delta=private.delta,
    )
    setting = Setting(
        folder=str(folder),
        epsilon=epsilon,
        workers=workers or scenario.workers,
        engine=engine,
        learning_rate=learning_rate,
    )
    federation.save(setting.federation_path)
    write_setting(setting)
    return setting


def by_size(silos: Sequence[SiloFolder]) -> list[SiloFolder]:
    """Return ``silos``, the one with most events first."""
    return sorted(silos, key=_size, reverse=True)


def _size(silo: SiloFolder) -> int:
    return sum(file.stat().st_size for file in silo.path.glob("events*"))


def write_setting(setting: Setting) -> Path:
    """Write ``setting`` into its folder."""
    path = Path(setting.folder) / "setting.json"
    path.write_text(json.dumps(asdict(setting), indent=2), encoding="utf-8")
    return path


def read_setting(path: Path) -> Setting:
    """Read what `write_setting` wrote. Raises ConfigError."""
    return from_mapping(Setting, json.loads(path.read_text(encoding="utf-8")), where=str(path))


def limited(setting: Setting, folder: Path, merchants: int) -> Setting:
    """Return the same setting with the first ``merchants`` only, in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    federation = setting.federation
    small = replace(setting, folder=str(folder.resolve()))
    replace(
        federation, silos=federation.silos[:merchants], state=str(folder.resolve() / "state")
    ).save(small.federation_path)
    write_setting(small)
    return small
