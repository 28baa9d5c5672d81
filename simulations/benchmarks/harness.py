"""Ratios that another program on the machine cannot easily bend: paired, order turned, median.

Both sides of a comparison run once in every repetition, right after one another, and the side
that runs first changes from one repetition to the next. The figure is the median of the ratios
within repetitions, with quartiles and with the medians of either order beside it: a machine
that slows down over time, or a second run that finds warm files, shows as a difference of the two.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from silotune.errors import SilotuneError
from simulations.benchmarks.usage import Watch

__all__ = [
    "BenchmarkError",
    "NotInstalledError",
    "Pairs",
    "Ratio",
    "Sample",
    "machine",
    "paired",
    "run_module",
    "sample_call",
    "save",
]


class BenchmarkError(SilotuneError):
    """A benchmark cannot be run, or a program that it ran failed."""


class NotInstalledError(BenchmarkError):
    """A rival is not there; its row is left out."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one run cost."""

    wall: float
    """Seconds."""
    cpu: float
    """Processor seconds, of all processes of the run."""
    peak: float
    """Largest memory of all processes together, MiB; 0 where it was not measured."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Median and quartiles of the ratios within repetitions."""

    median: float
    low: float
    high: float
    first_before: float
    """Median of the repetitions in which the numerator ran first; NaN for none."""
    first_after: float
    repeats: int


@dataclass(frozen=True, slots=True)
class Pairs:
    """Samples of two sides, the i-th of each from the same repetition.

    >>> slow, fast = Sample(3.0, 3.0, 0.0), Sample(1.0, 2.0, 0.0)
    >>> Pairs((slow, slow), (fast, fast)).ratio("wall").median
    3.0
    """

    first: tuple[Sample, ...]
    second: tuple[Sample, ...]

    def ratio(self, field: str) -> Ratio:
        """Return first over second for ``field`` of `Sample`."""
        ratios = [
            getattr(a, field) / getattr(b, field)
            for a, b in zip(self.first, self.second, strict=True)
        ]
        quartiles = statistics.quantiles(ratios, n=4, method="inclusive") if ratios[1:] else ratios
        return Ratio(
            median=statistics.median(ratios),
            low=quartiles[0],
            high=quartiles[-1],
            first_before=_median(ratios[::2]),
            first_after=_median(ratios[1::2]),
            repeats=len(ratios),
        )


def paired(first: Callable[[], Sample], second: Callable[[], Sample], repeats: int) -> Pairs:
    """Run both sides ``repeats`` times; ``first`` goes first in even repetitions.

    Raises:
        BenchmarkError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise BenchmarkError(f"repeats is {repeats}; it must be at least 1.")
    samples: tuple[list[Sample], list[Sample]] = ([], [])
    for repeat in range(repeats):
        for side in (0, 1) if repeat % 2 == 0 else (1, 0):
            samples[side].append((first, second)[side]())
    return Pairs(tuple(samples[0]), tuple(samples[1]))


def sample_call(function: Callable[[], object]) -> Sample:
    """Return what one call cost in this process; its memory is not measured."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return Sample(time.perf_counter() - wall, time.process_time() - cpu, 0.0)


def run_module(
    module: str,
    arguments: Sequence[str],
    *,
    log: Path,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
    timeout: float = 4 * 3600,
) -> Sample:
    """Run ``python -m module`` as a process of its own and return what it and its children cost.

    Args:
        module: dotted name.
        arguments: of its command line.
        log: file for what it prints.
        python: interpreter.
        environment: added to this process's.
        timeout: seconds after which it is ended.

    Raises:
        BenchmarkError: it failed or took too long; with the end of its log.
    """
    command = [python, "-m", module, *arguments]
    # One thread a process, as the worker processes of both sides have; Ray sets it itself.
    added = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **_QUIET}
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        began = time.perf_counter()
        process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **added, **(environment or {})},
        )
        with Watch(process.pid) as watch:
            try:
                code = process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                code = process.wait()
            wall = time.perf_counter() - began
    if code:
        end = log.read_text(encoding="utf-8", errors="replace")[-2000:]
        raise BenchmarkError(f"{' '.join(command)}: exit code {code}. End of {log}:\n{end}")
    return Sample(wall, watch.cpu, watch.peak)


# Neither side reports to anybody while it is timed.
_QUIET = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_OFFLINE": "1",
}


def machine() -> dict[str, Any]:
    """Return what a reader needs to judge a figure: processor, cores, load, versions."""
    from importlib.metadata import version

    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "")
    names = ("flwr", "torch", "transformers", "peft", "opacus", "ray", "numpy")
    return {
        "processor": model or platform.machine(),
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
    }


def save(folder: Path, name: str, result: Mapping[str, Any]) -> Path:
    """Write ``result`` and the machine as ``folder/name.json``; dataclasses become objects."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    text = json.dumps({"name": name, "machine": machine(), **result}, indent=2, default=_plain)
    path.write_text(text + "\n", encoding="utf-8")
    return path


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else asdict(value)


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")
