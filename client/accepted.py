"""Runs that a merchant has accepted: files in ``runs/`` whose digests the policy lists.

A run file says to the last number what an aggregator will ask. A request that is not of an
accepted run is refused whole, so what the merchant has read is the most that is ever asked.
"""

import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from privacy.entries import Entry
from privacy.policy import ANY_RUN, Policy
from silotune.config import config, from_mapping
from silotune.errors import ConfigError, PolicyError
from silotune.federation import Job
from silotune.messages import MetricsRequest, TrainRequest
from silotune.models.text_model import ModelConfig
from silotune.tasks.several import OneOrSeveral

__all__ = ["AcceptedRun", "check_run", "load_accepted", "read_run", "refuse_backwards"]

_PARTS = ("task", "model", "job")


@config
class AcceptedRun:
    """What a run file says that concerns merchants; its other keys are not read."""

    task: OneOrSeveral
    model: ModelConfig = ModelConfig()
    job: Job


def read_run(path: Path) -> tuple[AcceptedRun, str]:
    """Read an aggregator's run file; return it and its digest.

    The digest is SHA-256, hexadecimal, over the tables task, model and job as they are written:
    spaces, comments and the aggregator's own keys do not count.

    Raises:
        ConfigError: it is no run file.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML ({error}).") from error
    part = {key: value for key, value in raw.items() if key in _PARTS}
    text = json.dumps(part, sort_keys=True, separators=(",", ":"), default=str)
    return from_mapping(AcceptedRun, part, where=str(path)), hashlib.sha256(
        text.encode()
    ).hexdigest()


def load_accepted(folder: Path, policy: Policy) -> dict[str, AcceptedRun] | None:
    """Return the runs in ``folder/runs`` that ``policy`` lists, by job. None: it lists any.

    Raises:
        ConfigError: a file is wrong, or a run that the policy lists is not there.
    """
    if ANY_RUN in policy.runs:
        return None
    read = [read_run(p) for p in sorted((folder / "runs").glob("*.toml"))]
    found = {digest: run for run, digest in read}
    missing = [digest for digest in policy.runs if digest not in found]
    if missing:
        raise ConfigError(
            f"{folder / 'policy.toml'}: runs lists {missing[0][:16]}…, and no file in "
            f"{folder / 'runs'} has that digest. Put the run file there again as it was."
        )
    return {found[d].job.name: found[d] for d in policy.runs}


def check_run(
    what: TrainRequest | MetricsRequest, accepted: Mapping[str, AcceptedRun] | None
) -> None:
    """Raise PolicyError unless ``what`` is a request of an accepted run, to the last number.

    Args:
        what: asked.
        accepted: by job; None: the policy allows any run inside its other limits.
    """
    if accepted is None:
        return
    run = accepted.get(what.job)
    if run is None:
        raise PolicyError(f"run: {what.job!r} is not listed.", ("run",))
    job = run.job
    asked: dict[str, object] = {"task": what.task, "model": what.model}
    agreed: dict[str, object] = {"task": run.task.name, "model": job.model}
    if isinstance(what, TrainRequest):
        asked |= {"private": what.private, "plain": what.plain, "encoding": what.encoding}
        agreed |= {"private": job.private, "plain": job.plain, "encoding": job.encoding}
    else:
        asked["metrics"], agreed["metrics"] = what.metrics, job.metrics
    wrong = [name for name in asked if asked[name] != agreed[name]]
    if what.round >= job.rounds:
        wrong.append("round")
    if wrong:
        raise PolicyError(
            f"run: {', '.join(wrong)} of {what.job!r} is not as in its accepted file.", ("run",)
        )


def refuse_backwards(
    entries: Iterable[Entry], about: Mapping[str, str | int], request: str
) -> None:
    """Raise PolicyError when a job goes back to a round that was paid for, with another request.

    A run of so many rounds then costs so many at most, whatever the aggregator asks. The same
    request again is none: it may have been lost with a process.

    Args:
        entries: of the ledger.
        about: what is asked, as its reservation will record it.
        request: digest of it.
    """
    for entry in entries:
        if entry.kind != "reserve":
            continue
        before = {"release": "update"} | entry.body["what"]
        if any(before.get(name) != about[name] for name in ("job", "server", "release")):
            continue
        newest = int(before.get("round", 0))
        again = newest == about["round"] and entry.body["request"] == request
        if newest >= int(about["round"]) and not again:
            raise PolicyError(
                f"round: {about['round']} of {about['job']!r} comes after {newest}.", ("round",)
            )
