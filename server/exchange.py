"""One question to every node: push it, fold replies in as they arrive, tally what fails."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import Literal

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from silotune.errors import MessageError, SilotuneError

__all__ = ["RoundOptions", "ask_all", "refuse_below_quorum", "wait_for_nodes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundOptions:
    """When a round may start and when it ends."""

    nodes: int
    """Nodes to wait for before the first round."""
    quorum: float = 0.5
    """Share of the nodes whose replies must arrive."""
    deadline: float = 3600.0
    """Seconds after which missing replies are given up."""
    stop: Event = field(default_factory=Event)
    """Set by whoever started the run to end it between two looks for replies."""
    poll: float = 0.02
    """Seconds between two looks for replies, at first; grows to a second while none come."""


def wait_for_nodes(grid: Grid, options: RoundOptions) -> list[int]:
    """Return the nodes once enough are connected. Raises MessageError when the deadline passes."""
    until = time.monotonic() + options.deadline
    while len(nodes := sorted(grid.get_node_ids())) < options.nodes:
        if time.monotonic() > until:
            raise MessageError(f"{len(nodes)} of {options.nodes} nodes are connected.")
        _pause(options, 0.1)
    return nodes


def ask_all(
    grid: Grid,
    nodes: list[int],
    kind: Literal["train", "evaluate"],
    pack: Callable[[], RecordDict],
    fold: Callable[[RecordDict], None],
    options: RoundOptions,
    on_reply: Callable[[int], None] = lambda _: None,
) -> dict[str, int]:
    """Send every node the same question and fold its reply in; return failures by reason.

    Args:
        grid: Flower's, or the inline one.
        nodes: whom to ask.
        kind: Flower's type of the message.
        pack: makes the content of one message.
        fold: takes the content of one reply, and raises SilotuneError on one that is not valid.
        options: deadline and pauses.
        on_reply: called with the number of nodes that have answered.
    """
    messages = [Message(content=pack(), message_type=kind, dst_node_id=node) for node in nodes]
    waiting, failures = set(grid.push_messages(messages)), dict[str, int]()
    until, pause = time.monotonic() + options.deadline, options.poll
    while waiting and time.monotonic() < until:
        replies = list(grid.pull_messages(waiting))
        pause = options.poll if replies else min(1.0, 1.5 * pause)
        for answer in replies:
            # A reply to no open message, or a second one, is not folded in.
            if answer.metadata.reply_to_message_id in waiting:
                waiting.discard(answer.metadata.reply_to_message_id)
                if reason := _folded(answer, fold):
                    failures[reason] = failures.get(reason, 0) + 1
        on_reply(len(nodes) - len(waiting))
        if waiting:
            _pause(options, 0 if replies else pause)
    return failures


def refuse_below_quorum(
    where: str,
    releases: str,
    arrived: int,
    nodes: int,
    failures: dict[str, int],
    options: RoundOptions,
) -> None:
    """Raise MessageError, with the reasons, when fewer valid replies came than the quorum."""
    if arrived < options.quorum * nodes:
        reasons = "; ".join(f"{n} × {r}" for r, n in failures.items()) or "no reply in time"
        raise MessageError(
            f"{where}: {arrived} of {nodes} {releases} arrived, the quorum is "
            f"{options.quorum:.0%}. Failures: {reasons}."
        )


def _folded(answer: Message, fold: Callable[[RecordDict], None]) -> str:
    """Fold a reply in; return why not, if not."""
    if answer.has_error():
        return str(answer.error.reason)[:200]
    try:
        fold(answer.content)
    except SilotuneError as error:
        return str(error)[:200]
    return ""


def _pause(options: RoundOptions, seconds: float) -> None:
    if options.stop.wait(seconds):
        raise MessageError("the run was stopped; rounds that are done are kept.")
