"""The round loop: push requests, fold replies in as they arrive, make the round durable."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event

from flwr.app import Message
from flwr.serverapp import Grid
from torch import Tensor

from server.aggregation import StreamingMean
from server.run_store import RunStore
from silotune.errors import MessageError, SilotuneError
from silotune.federation import Job
from silotune.messages import TrainRequest, read_reply, request
from silotune.models.text_model import TextModel

__all__ = ["RoundOptions", "run_job"]

_HEADER_BYTES = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundOptions:
    """When a round may start and when it ends."""

    nodes: int
    """Nodes to wait for before the first round."""
    quorum: float = 0.5
    """Share of the nodes whose updates must arrive."""
    deadline: float = 3600.0
    """Seconds after which missing replies are given up."""
    stop: Event = field(default_factory=Event)
    """Set by whoever started the run to end it between two looks for replies."""
    poll: float = 0.02
    """Seconds between two looks for replies, at first; grows to a second while none come."""


def run_job(
    grid: Grid,
    job: Job,
    model: TextModel,
    store: RunStore,
    options: RoundOptions,
    on_reply: Callable[[str, int, int], None] = lambda *_: None,
    *,
    task: str = "promotion-response",
) -> Tensor:
    """Run all rounds of ``job`` that ``store`` does not hold yet; return the last adapter.

    Args:
        grid: Flower's, or the inline one.
        job: what to train and how long.
        model: gives the layout, the base's digest and the adapter to start from.
        store: durable state.
        options: quorum and deadline.
        on_reply: called with job name, round and replies so far.
        task: name of what is learned.

    Raises:
        MessageError: fewer valid updates than the quorum arrived before the deadline.
    """
    start = store.next_round()
    first_D = model.adapter()
    adapter_D = first_D if start == 0 else store.load(start - 1)
    # Momentum needs no state of its own: the last movement is in the store.
    before_D = store.load(start - 2) if start > 1 else first_D
    nodes = _wait_for_nodes(grid, options)
    for round_ in range(start, job.rounds):
        began = time.monotonic()
        what = TrainRequest(
            job=job.name,
            round=round_,
            task=task,
            model=job.model,
            base_digest=model.base_digest,
            layout_digest=model.layout.digest,
            private=job.private,
            plain=job.plain,
        )
        mean, failures = _one_round(grid, nodes, what, adapter_D, options, on_reply)
        if mean.count < options.quorum * len(nodes):
            reasons = "; ".join(f"{n} × {r}" for r, n in failures.items()) or "no reply in time"
            raise MessageError(
                f"{job.name}, round {round_}: {mean.count} of {len(nodes)} updates arrived, the "
                f"quorum is {options.quorum:.0%}. Failures: {reasons}."
            )
        moved_D = mean.value() + job.server_momentum * (adapter_D - before_D)
        before_D, adapter_D = adapter_D, adapter_D + moved_D
        size = 4 * adapter_D.numel() + _HEADER_BYTES
        store.save(
            round_,
            adapter_D,
            {
                "seconds": time.monotonic() - began,
                "bytes_up": size * mean.count,
                "bytes_down": size * len(nodes),
                "replies": mean.count,
                "failures": sum(failures.values()),
            },
        )
    return adapter_D


def _wait_for_nodes(grid: Grid, options: RoundOptions) -> list[int]:
    until = time.monotonic() + options.deadline
    while len(nodes := sorted(grid.get_node_ids())) < options.nodes:
        if time.monotonic() > until:
            raise MessageError(f"{len(nodes)} of {options.nodes} nodes are connected.")
        _pause(options, 0.1)
    return nodes


def _one_round(
    grid: Grid,
    nodes: list[int],
    what: TrainRequest,
    adapter_D: Tensor,
    options: RoundOptions,
    on_reply: Callable[[str, int, int], None],
) -> tuple[StreamingMean, dict[str, int]]:
    messages = [
        Message(content=request(what, adapter_D), message_type="train", dst_node_id=node)
        for node in nodes
    ]
    waiting = set(grid.push_messages(messages))
    mean, failures = StreamingMean(adapter_D.numel()), dict[str, int]()
    until, pause = time.monotonic() + options.deadline, options.poll
    while waiting and time.monotonic() < until:
        replies = list(grid.pull_messages(waiting))
        pause = options.poll if replies else min(1.0, 1.5 * pause)
        for answer in replies:
            # A reply to no open message, or a second one, is not folded in.
            if answer.metadata.reply_to_message_id in waiting:
                waiting.discard(answer.metadata.reply_to_message_id)
                _fold(answer, mean, failures)
        on_reply(what.job, what.round, len(nodes) - len(waiting))
        if waiting:
            _pause(options, 0 if replies else pause)
    return mean, failures


def _pause(options: RoundOptions, seconds: float) -> None:
    if options.stop.wait(seconds):
        raise MessageError("the run was stopped; rounds that are done are kept.")


def _fold(answer: Message, mean: StreamingMean, failures: dict[str, int]) -> None:
    if answer.has_error():
        reason = str(answer.error.reason)[:200]
    else:
        try:
            mean.add(read_reply(answer.content, mean.size))
        except SilotuneError as error:
            reason = str(error)[:200]
        else:
            return
    failures[reason] = failures.get(reason, 0) + 1
