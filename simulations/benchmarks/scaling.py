"""Time and memory over size: merchants, users of a merchant, adapter, workers.

Every point is a process of its own, so that its memory is its own; ``python -m
simulations.benchmarks.scaling POINT`` is what it runs. Each axis is a function with a limit; the
small form of each takes seconds. An exponent is the slope of a straight line through the
logarithms: 1 is linear, 0 does not grow.
"""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from silotune.federation import Federation, Job
from silotune.models.adapter import LoraSettings
from silotune.models.text_model import ModelConfig
from silotune.tables.silo_folder import list_silos
from silotune.tables.synthetic import SyntheticConfig, generate
from silotune.tasks.registry import read_task
from simulations.benchmarks.harness import run_module
from simulations.benchmarks.setting import JOB, Setting, write_setting

__all__ = [
    "Curve",
    "adapter_curve",
    "exponent",
    "merchants_curve",
    "steps_to",
    "users_curve",
    "workers_curve",
]


@dataclass(frozen=True, slots=True)
class Curve:
    """Measured points of one axis."""

    name: str
    axis: str
    """What grows, with its unit."""
    sizes: tuple[float, ...]
    seconds: Mapping[str, tuple[float, ...]]
    """By stage."""
    memory: tuple[float, ...]
    """Peak of the process with its workers, MiB."""

    def exponents(self) -> dict[str, float]:
        """Exponent of every stage over the last factor of ten, where constants weigh least."""
        within = [i for i, size in enumerate(self.sizes) if size >= self.sizes[-1] / 10.001]
        start = min(within[0], max(0, len(self.sizes) - 2))
        return {
            stage: exponent(self.sizes[start:], values[start:])
            for stage, values in self.seconds.items()
            if len(self.sizes) > 1
        }


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the least-squares slope of log ``values`` over log ``sizes``.

    >>> round(exponent([1, 10, 100], [3, 30, 300]), 6)
    1.0
    """
    return float(np.polyfit(np.log(sizes), np.log(np.maximum(values, 1e-9)), 1)[0])


def steps_to(first: float, limit: float, *, each: float = math.sqrt(10)) -> list[float]:
    """Return sizes from ``first`` to ``limit``, growing by about ``each``, the limit last.

    >>> steps_to(1, 100)
    [1, 3, 10, 32, 100]
    """
    count = max(0, math.ceil(math.log(limit / first) / math.log(each) - 1e-9))
    sizes = [first * each**i for i in range(count)]
    whole = first >= 1
    return [round(s) if whole else round(s, 3) for s in [*sizes, limit]]


def merchants_curve(
    folder: Path, limit: int = 1000, *, users: int = 24, engine: str = "pool"
) -> Curve:
    """Preparation and two private rounds of 1 to ``limit`` merchants on two workers."""
    silos = _synthetic(folder, limit, users)
    points = []
    for size in steps_to(1, limit):
        setting = _setting(folder / f"at-{size:g}", silos[: int(size)], engine=engine)
        setting.cold()
        points.append(_point("job", {"setting": str(write_setting(setting))}, folder, size))
    return _curve("merchants", "merchants", points)


def users_curve(folder: Path, limit: int = 100_000, *, text: bool = True) -> Curve:
    """One merchant of 10 to ``limit`` users: examples from tables, preparation, one private round.

    A text's stored activations take about 45 KB: 100,000 users would fill 40 GB, so the curve
    with text ends earlier, and the one without shows that tables and rounds go on.
    """
    points = []
    for size in steps_to(10, limit):
        silos = _synthetic(folder / f"users-{size:g}", 1, int(size))
        setting = _setting(folder / f"at-{size:g}", silos, engine="inline", text=text, rounds=1)
        setting.cold()
        points.append(_point("job", {"setting": str(write_setting(setting))}, folder, size))
    return _curve("users" if text else "users-numeric", "users of the merchant", points)


def adapter_curve(folder: Path, limit: float = 50.0, *, replies: int = 16) -> Curve:
    """Messages and aggregation of ``replies`` updates of 0.1 to ``limit`` MB."""
    points = [
        _point("adapter", {"bytes": size * 1e6, "replies": replies}, folder, size)
        for size in steps_to(0.1, limit)
    ]
    return _curve("adapter", "adapter, MB", points)


def workers_curve(
    folder: Path, limit: int = 2, *, merchants: int = 16, users: int = 120, engine: str = "pool"
) -> Curve:
    """The same merchants on 1 to ``limit`` workers; the caches are made anew each time."""
    silos = _synthetic(folder, merchants, users)
    points = []
    for size in range(1, limit + 1):
        setting = _setting(folder / f"at-{size:g}", silos, engine=engine, workers=size)
        setting.cold()
        points.append(_point("job", {"setting": str(write_setting(setting))}, folder, size))
    return _curve("workers", "workers", points)


def _point(
    kind: str, what: Mapping[str, Any], folder: Path, size: float
) -> tuple[float, dict[str, float], float]:
    out = folder / f"{kind}-{size:g}.json"
    arguments = [kind, json.dumps(what), str(out)]
    sample = run_module(
        "simulations.benchmarks.scaling", arguments, log=folder / f"{kind}-{size:g}.log"
    )
    raw = json.loads(out.read_text(encoding="utf-8"))
    stages, peak = raw["seconds"], max(sample.peak, raw["peak"])
    return size, {**stages, "whole process": sample.wall}, peak


def _curve(name: str, axis: str, points: list[tuple[float, dict[str, float], float]]) -> Curve:
    stages = points[0][1]
    return Curve(
        name=name,
        axis=axis,
        sizes=tuple(size for size, *_ in points),
        seconds={s: tuple(p[1][s] for p in points) for s in stages},
        memory=tuple(memory for *_, memory in points),
    )


def _synthetic(folder: Path, merchants: int, users: int) -> list[str]:
    """Make or reuse synthetic silos; making them is never part of a time."""
    path = folder / f"silos-{merchants}x{users}"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        generate(
            SyntheticConfig(merchants=merchants, users_per_merchant=users, weeks=20, seed=3), path
        )
    return [str(s.path.resolve()) for s in list_silos(path)]


def _setting(
    folder: Path,
    silos: Sequence[str],
    *,
    engine: str,
    text: bool = True,
    rounds: int = 2,
    workers: int = 2,
) -> Setting:
    folder.mkdir(parents=True, exist_ok=True)
    spelled_out = {
        "first": datetime.fromisoformat("2024-01-22"),
        "split": datetime.fromisoformat("2024-04-15"),
        "last": datetime.fromisoformat("2024-05-20"),
        "category_level": 2,
        "train_visits": 1,
        "test_visits": 1,
    }
    task = read_task(spelled_out, where="task")
    private: dict[str, float | str] = {
        "clip_norm": 2.0,
        "noise_multiplier": 1.0,
        "sampling_rate": 0.25,
        "examples_per_user": 8,
        "steps": 4,
        "learning_rate": 0.5,
    }
    model = ModelConfig(lora=LoraSettings(rank=4, top_layers=1), use_text=text)
    setting = Setting(folder=str(folder.resolve()), epsilon=50.0, workers=workers, engine=engine)
    federation = Federation(
        task=task,
        # The pool prepares for "text"; a model without text keeps the name.
        models={"text": model},
        jobs=(Job(name=JOB, rounds=rounds, private=private, epsilon=setting.epsilon),),
        silos=tuple(silos),
        state=str(folder.resolve() / "state"),
        # Below one over the users of every size.
        delta=1e-6,
    )
    federation.save(setting.federation_path)
    return setting


def _job_point(what: Mapping[str, Any]) -> dict[str, float]:
    from server.run_store import RunStore
    from silotune.federation import build_model
    from simulations.benchmarks.ours import prepare_all, rounds, workers_of
    from simulations.benchmarks.setting import read_setting

    setting = read_setting(Path(what["setting"]))
    began = time.monotonic()
    with workers_of(setting) as pool:
        prepare_all(setting, pool)
        prepared = time.monotonic() - began
        rounds(setting, pool)
    federation, job = setting.federation, setting.job
    model = build_model(federation.models, job.model, federation.task)
    store = RunStore(Path(federation.state) / "rounds" / job.name, model.layout.digest)
    took = [r["seconds"] for r in store.records()]
    return {"preparation": prepared, "last round": took[-1]}


def _adapter_point(what: Mapping[str, Any]) -> dict[str, float]:
    import torch
    from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
    from flwr.proto.recorddict_pb2 import RecordDict as Proto

    from server.aggregation import StreamingMean
    from silotune.messages import read_reply, reply

    size, replies = int(what["bytes"]) // 4, int(what["replies"])
    torch.set_num_threads(1)
    update_D, mean = torch.randn(size), StreamingMean(size)
    times = {"message": 0.0, "aggregation": 0.0}
    for _ in range(replies):
        began = time.perf_counter()
        sent = recorddict_to_proto(reply(update_D, "update")).SerializeToString()
        content = recorddict_from_proto(Proto.FromString(sent))
        got_D = read_reply(content, size, "update")
        middle = time.perf_counter()
        mean.add(got_D)
        times["message"] += (middle - began) / replies
        times["aggregation"] += (time.perf_counter() - middle) / replies
    mean.value()
    return times


def main() -> None:
    """Measure one point: KIND, JSON, OUT."""
    kind, what, out = sys.argv[1:4]
    points = {"job": _job_point, "adapter": _adapter_point}
    seconds = points[kind](json.loads(what))
    # VmHWM: exact for this process; the workers' share comes from the outside.
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) / 1024
    Path(out).write_text(json.dumps({"seconds": seconds, "peak": peak}), encoding="utf-8")


if __name__ == "__main__":
    main()
