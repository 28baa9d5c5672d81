"""The adapters that a merchant was sent: the newest of each run, in the silo's ``adapters/``.

A request carries the aggregate of the rounds before it. A run that asks for metrics after its
last round so leaves its final adapter with every merchant; of another run a merchant holds the
aggregate before the last round, and gets the final one from the aggregator.
"""

import contextlib
import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save
from torch import Tensor

from privacy.durable import write_whole
from silotune.errors import ModelError
from silotune.messages import MetricsRequest, TrainRequest
from silotune.models.stored import about_of
from silotune.tasks.names import names_in

__all__ = ["KeptAdapter", "keep_adapter", "kept_adapters"]

_FOLDER = "adapters"
_MOST = 16
"""Runs whose adapters are kept, those used last: an aggregator may ask in any run's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KeptAdapter:
    """The newest adapter of a run that this merchant was sent."""

    path: Path
    job: str
    task: str
    """Its name, or those of all that share the adapter (`silotune.tasks.names`)."""
    rounds: int
    """Done when it came out."""


def keep_adapter(silo: Path, what: TrainRequest | MetricsRequest, adapter_D: Tensor) -> None:
    """Write the adapter of a request that was answered into ``silo``; a full disk stops nothing.

    Args:
        silo: the silo's folder.
        what: the request. A first round carries no aggregate, and leaves nothing.
        adapter_D: of the request, float32, of the agreed layout.
    """
    rounds = what.round + isinstance(what, MetricsRequest)
    if not rounds:
        return
    about = {
        "job": what.job,
        "task": what.task,
        "rounds": str(rounds),
        "base_digest": what.base_digest,
        "layout": what.layout_digest,
    }
    content = save({"flat": adapter_D.detach().cpu().contiguous()}, about)
    with contextlib.suppress(OSError):
        folder = silo / _FOLDER
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / _name(what.job)
        write_whole(path, content)
        found = sorted(folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime)
        for old in found[:-_MOST]:
            old.unlink(missing_ok=True)


def kept_adapters(silo: Path, task: str) -> list[KeptAdapter]:
    """Return what ``silo`` holds of runs of ``task``, alone or with others, the newest last.

    Raises:
        ModelError: a file is damaged.
    """
    found = []
    for path in sorted((silo / _FOLDER).glob("*.safetensors"), key=os.path.getmtime):
        about = about_of(path)
        trained = str(about.get("task"))
        if task not in names_in(trained):
            continue
        try:
            rounds = int(about["rounds"])
        except (KeyError, ValueError):
            raise ModelError(f"{path}: does not say of which round it is. Delete it.") from None
        found.append(KeptAdapter(path=path, job=about.get("job", ""), task=trained, rounds=rounds))
    return found


def _name(job: str) -> str:
    # A job's name is any text that an aggregator sends; a file's must not lead elsewhere.
    digest = hashlib.sha256(job.encode()).hexdigest()[:8]
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', job)[:48]}-{digest}.safetensors"
