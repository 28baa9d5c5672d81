"""One question to every node: push it, fold replies in as they arrive, tally what fails.

A request can be lost with the process that held it. The node then comes back, and is asked the
same again while there is time: a silo answers a request twice with the same stored bytes, at no
cost.
"""

import datetime as dt
import hashlib
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from threading import Event
from typing import Literal

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from silotune.errors import MessageError, SilotuneError

__all__ = ["QuorumError", "RoundOptions", "Tally", "ask_all", "refuse_below_quorum", "wait_for"]

_LOST = frozenset({3, 4, 5, 8})
"""Flower's own codes of a request or reply that is gone, or whose process is."""
_BUSY = "refused by the ledger"
"""A silo whose disk is full, say: the one refusal that may pass."""
_BUSY_TRIES, _BUSY_PAUSE = 5, 10.0
_LOOK = 1.0
"""Seconds between two looks at who is connected."""
_AWAY = 60.0
"""Seconds without a connection after which a node is no longer waited for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RoundOptions:
    """When a round may start and when it ends."""

    nodes: int
    """Nodes to wait for before the first round."""
    quorum: float = 0.5
    """Share of the nodes that were asked whose replies must arrive."""
    cohort_min: int = 1
    """Fewest replies that make a round, however few were asked."""
    deadline: float = 3600.0
    """Seconds after which missing replies are given up."""
    ask_again: float = 300.0
    """Seconds of silence after which a node is asked again; doubles each time."""
    stop: Event = field(default_factory=Event)
    """Set by whoever started the run to end it between two looks for replies."""
    update_norm_max: float = 1e4
    """L2 norm above which an update is not folded in."""
    poll: float = 0.02
    """Seconds between two looks for replies, at first; grows to a second while none come."""

    @property
    def enough(self) -> int:
        """Nodes without which a later round does not start."""
        return max(1, self.cohort_min, math.ceil(self.quorum * self.nodes))


class QuorumError(MessageError):
    """Too few replies.

    Args:
        message: with the reasons.
        final: as many nodes refused as the quorum needs; asking again gives the same.
    """

    def __init__(self, message: str, *, final: bool) -> None:
        """Keep apart what may pass."""
        super().__init__(message)
        self.final = final


@dataclass(kw_only=True, slots=True)
class Tally:
    """What became of one question."""

    asked: int = 0
    """Nodes."""
    releases: dict[int, str] = field(default_factory=dict)
    """SHA-256 of what was folded in, by node: as in the receipt of the silo's ledger."""
    failures: dict[str, int] = field(default_factory=dict)
    """Nodes without a valid reply, by reason."""
    refused: int = 0
    """Of those, the ones that would refuse again."""
    again: int = 0
    """Requests sent once more."""
    late: int = 0
    """Replies of nodes that had answered, or to nothing that was asked."""

    def record(self) -> dict[str, int | dict[str, int]]:
        """Return its counts, for the round's record."""
        return {
            "asked": self.asked,
            "replies": len(self.releases),
            "failures": sum(self.failures.values()),
            "reasons": dict(self.failures),
            "asked_again": self.again,
            "late": self.late,
        }


def wait_for(grid: Grid, options: RoundOptions, count: int) -> list[int]:
    """Return the nodes once ``count`` are connected.

    Raises:
        QuorumError: the deadline passes.
    """
    until = time.monotonic() + options.deadline
    while len(nodes := sorted(_connected(grid))) < count:
        if time.monotonic() > until:
            raise QuorumError(f"{len(nodes)} of {count} nodes are connected.", final=False)
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
) -> Tally:
    """Ask every node the same and fold its reply in; who connects meanwhile is asked too.

    Args:
        grid: Flower's, or the inline one.
        nodes: whom to ask first.
        kind: Flower's type of the message.
        pack: makes the content of one message.
        fold: takes the content of one reply, and raises SilotuneError on one that is not valid.
        options: deadline and pauses.
        on_reply: called with the number of nodes that have answered.
    """
    return _Exchange(grid, kind, pack, fold, options).run(nodes, on_reply)


def refuse_below_quorum(where: str, releases: str, tally: Tally, options: RoundOptions) -> None:
    """Raise QuorumError, with the reasons, when fewer valid replies came than are needed."""
    needed = max(options.cohort_min, math.ceil(options.quorum * tally.asked))
    if len(tally.releases) < needed:
        reasons = "; ".join(f"{n} × {r}" for r, n in tally.failures.items()) or "nobody was asked"
        raise QuorumError(
            f"{where}: {len(tally.releases)} of {tally.asked} {releases} arrived, {needed} are "
            f"needed (quorum {options.quorum:.0%}, at least {options.cohort_min}). "
            f"Failures: {reasons}.",
            final=tally.asked - tally.refused < needed,
        )


@dataclass(slots=True)
class _Asked:
    """A node whose reply is not there."""

    at: float
    """Seconds since 1970."""
    due: float
    """To be asked again; monotonic."""
    tries: int = 0
    away: float | None = None
    """Since when it is not connected; monotonic."""
    reason: str = "no reply in time"


class _Exchange:
    def __init__(
        self,
        grid: Grid,
        kind: Literal["train", "evaluate"],
        pack: Callable[[], RecordDict],
        fold: Callable[[RecordDict], None],
        options: RoundOptions,
    ) -> None:
        self._grid, self._kind, self._pack, self._fold = grid, kind, pack, fold
        self._options = options
        self._until = time.monotonic() + options.deadline
        self._waiting: dict[int, _Asked] = {}
        self._open: dict[str, int] = {}
        self._seen: set[int] = set()
        self._tally = Tally()

    def run(self, nodes: list[int], on_reply: Callable[[int], None]) -> Tally:
        self._ask(nodes)
        pause, look = self._options.poll, time.monotonic() + _LOOK
        while self._waiting and time.monotonic() < self._until:
            replies = list(self._grid.pull_messages(set(self._open)))
            for answer in replies:
                self._take(answer)
            on_reply(len(self._seen) - len(self._waiting))
            if self._waiting and time.monotonic() >= look:
                self._look_around()
                look = time.monotonic() + _LOOK
            pause = self._options.poll if replies else min(1.0, 1.5 * pause)
            if self._waiting:
                _pause(self._options, 0 if replies else pause)
        for asked in self._waiting.values():
            self._count(asked.reason)
        return self._tally

    def _ask(self, nodes: Iterable[int]) -> None:
        # Past the deadline nobody shall spend anything on it.
        left = max(1.0, self._until - time.monotonic())
        pairs = [
            (n, Message(content=self._pack(), message_type=self._kind, dst_node_id=n, ttl=left))
            for n in nodes
        ]
        ids = list(self._grid.push_messages([message for _, message in pairs]))
        # Empty: more than the SuperLink takes at once.
        for (node, _), message_id in zip(pairs, ids or [""] * len(pairs), strict=True):
            known = self._waiting.get(node)
            tries = 0 if known is None else known.tries + 1
            due = time.monotonic() + self._options.ask_again * 2.0**tries
            self._waiting[node] = _Asked(at=time.time(), due=due, tries=tries)
            # None: the SuperLink does not know the node any more.
            if message_id:
                self._open[message_id] = node
            if node not in self._seen:
                self._seen.add(node)
                self._tally.asked += 1

    def _take(self, answer: Message) -> None:
        node = self._open.pop(answer.metadata.reply_to_message_id, None)
        if node is None or node not in self._waiting:
            # A second one, or to nothing that is open: it is not folded in.
            self._tally.late += 1
            return
        if answer.has_error():
            self._take_error(node, answer.error.code, str(answer.error.reason)[:200])
            return
        del self._waiting[node]
        try:
            self._fold(answer.content)
        except SilotuneError as error:
            self._tally.refused += 1
            self._count(str(error)[:200])
        else:
            self._tally.releases[node] = _digest(answer.content)

    def _take_error(self, node: int, code: int, reason: str) -> None:
        asked = self._waiting[node]
        busy = reason == _BUSY and asked.tries < _BUSY_TRIES
        if busy or code in _LOST:
            asked.reason = reason
            pause = _BUSY_PAUSE if busy else 1.0
            asked.due = time.monotonic() + min(60.0, pause * 2.0**asked.tries)
            return
        del self._waiting[node]
        self._tally.refused += 1
        self._count(reason)

    def _look_around(self) -> None:
        """Ask those who are new, who came back, or who have been silent for long."""
        now, connected = time.monotonic(), _connected(self._grid)
        again = []
        for node, asked in list(self._waiting.items()):
            if node in connected:
                asked.away = None
                # A process that started after it was asked knows nothing of it.
                if connected[node] > asked.at or now >= asked.due:
                    again.append(node)
                continue
            asked.away = now if asked.away is None else asked.away
            # The SuperLink takes the request back when it says that a node is away.
            if now - asked.away > _AWAY and node not in self._open.values():
                del self._waiting[node]
                self._count(asked.reason)
        self._tally.again += len(again)
        new = [node for node in connected if node not in self._seen]
        if again or new:
            self._ask([*again, *new])

    def _count(self, said: str) -> None:
        reason = "".join(c if c.isprintable() else "?" for c in said)  # a terminal may obey it
        self._tally.failures[reason] = self._tally.failures.get(reason, 0) + 1


def _connected(grid: Grid) -> dict[int, float]:
    """Return the nodes that are connected, and since when, seconds since 1970; 0: unknown."""
    return {int(node.node_id): _seconds(node.last_activated_at) for node in grid.get_nodes()}


def _seconds(when: str) -> float:
    return dt.datetime.fromisoformat(when).timestamp() if when else 0.0


def _digest(content: RecordDict) -> str:
    digest = hashlib.sha256()
    for record in content.array_records.values():
        for array in record.values():
            digest.update(array.numpy().tobytes())
    return digest.hexdigest()


def _pause(options: RoundOptions, seconds: float) -> None:
    if options.stop.wait(seconds):
        raise MessageError("the run was stopped; rounds that are done are kept.")
