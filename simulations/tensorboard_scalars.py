"""A run's curves for TensorBoard, written without torch."""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

# tensorboard publishes no type information.
from tensorboard.compat.proto.event_pb2 import Event  # type: ignore[import-untyped]
from tensorboard.compat.proto.summary_pb2 import Summary as Scalars  # type: ignore[import-untyped]
from tensorboard.summary.writer.event_file_writer import (  # type: ignore[import-untyped]
    EventFileWriter,
)

from simulations.aggregate import epsilons_of, rounds_of, summarise
from simulations.arm_labels import in_order
from simulations.judged import MainMetric
from simulations.records import ROUND_METRICS, Record
from simulations.run_folder import RunFolder

__all__ = ["write_tensorboard"]

FOLDER = "tensorboard"
_ROUND_SCALARS = (*ROUND_METRICS, "seconds", "bytes_up", "bytes_down", "replies", "failures")

_Scalar = tuple[str, int, float]
"""Tag, step and value. A step is the number of rounds done."""


def write_tensorboard(run: RunFolder) -> Path:
    """Write all curves and final figures into the run's folder, in place of what was there.

    A run of TensorBoard is an arm and a seed, ``federated-eps8/seed-0``; what is over all seeds,
    an arm. Show it with ``tensorboard --logdir RUN/tensorboard``.

    Raises:
        ConfigError: a file of the run is damaged; names it and the line.
    """
    records, folder = run.records(), run.path / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    time = run.info.started.timestamp()
    for name, scalars in _by_folder(records, run.info.main):
        _write(folder / name, scalars, time)
    return folder


def _by_folder(records: Sequence[Record], main: MainMetric) -> Iterator[tuple[str, list[_Scalar]]]:
    summary, rounds, spent = summarise(records, main), rounds_of(records), epsilons_of(records)
    for arm in in_order([*summary.scores, *rounds, *spent]):
        folder = _folder_name(arm.name)
        seeds: dict[int, list[_Scalar]] = {}
        for (seed, round_), record in rounds.get(arm.name, {}).items():
            scalars = seeds.setdefault(seed, [])
            scalars += [(f"round/{k}", round_ + 1, record[k]) for k in _measured(record, main)]
        for seed, scalars in seeds.items():
            yield f"{folder}/seed-{seed}", scalars
        largest = _largest(spent.get(arm.name, {}))
        overall = [("privacy/epsilon", round_ + 1, value) for round_, value in largest.items()]
        figures = {metric: summary.figure(arm.name, metric) for metric in main.names}
        overall += [(f"test/{metric}", 0, f.mean) for metric, f in figures.items() if f]
        yield folder, overall


def _measured(record: Record, main: MainMetric) -> list[str]:
    keys = dict.fromkeys((main.key, *_ROUND_SCALARS))
    return [key for key in keys if record.get(key) is not None]


def _largest(merchants: Mapping[str, Mapping[int, float]]) -> dict[int, float]:
    """Return the largest ε of a merchant by round."""
    found: dict[int, float] = {}
    for rounds in merchants.values():
        for round_, value in rounds.items():
            found[round_] = max(value, found.get(round_, 0.0))
    return dict(sorted(found.items()))


def _folder_name(arm: str) -> str:
    # An arm's name is any text; a folder's must not lead out of the run.
    return re.sub(r"[^A-Za-z0-9+=_-]", "_", arm) or "_"


def _write(folder: Path, scalars: Sequence[_Scalar], time: float) -> None:
    writer = EventFileWriter(str(folder))
    for tag, step, value in scalars:
        scalar = Scalars(value=[Scalars.Value(tag=tag, simple_value=value)])
        writer.add_event(Event(wall_time=time, step=step, summary=scalar))
    writer.close()
