"""Whether keeping the activations of the frozen layers pays, from what was measured."""

import math
from dataclasses import dataclass
from pathlib import Path

from client.silo_log import append

__all__ = ["Choice", "Chooser", "Costs", "Declined", "note_choice"]


class Declined(Exception):  # noqa: N818  # an answer, not an error
    """The activations are not worth keeping."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """Seconds per token, of this machine, this model and this silo's disk."""

    compute: float
    """Of the frozen layers. NaN: not known."""
    store: float = 0.0
    read: float


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided, and why, in words that hold times and settings but no data."""

    on: bool
    why: str

    @classmethod
    def measured(cls, costs: Costs, new: float, passes: float | None) -> "Choice":
        """Decide by cost.

        Args:
            costs: measured.
            new: share of the tokens that would have to be computed and stored first, 0 to 1.
            passes: expected passes over the tokens; None: many.
        """
        if passes is None:
            without, kept = costs.compute, costs.read
        else:
            without = passes * costs.compute
            kept = new * (costs.compute + costs.store) + passes * costs.read
        # Costs that nobody knows decide nothing: what is stored is used.
        on = math.isnan(costs.compute) or kept < without
        expected = "many passes" if passes is None else f"{passes:.3g} passes"
        return cls(
            on,
            f"measured: a token takes {_micro(costs.compute)} to compute, "
            f"{_micro(costs.store)} to store, {_micro(costs.read)} to read; {expected} expected",
        )


class Chooser:
    """Decides once, by configuration or from the first costs that it is told.

    Args:
        mode: `ModelConfig.prefix_cache`, 'on' or 'auto'.
        passes: as `Choice.measured`.
    """

    def __init__(self, mode: str, passes: float | None) -> None:
        self._passes = passes
        self.choice = Choice(True, "by configuration") if mode == "on" else None
        """None until it is made."""

    def settle(self, costs: Costs, new: float) -> None:
        """Decide unless that is done. Raises Declined when the answer is no."""
        self.choice = self.choice or Choice.measured(costs, new, self._passes)
        if not self.choice.on:
            raise Declined


def note_choice(about: str, choice: Choice, log: Path) -> None:
    """Append a decision to the silo's own log. It holds times and settings, no data."""
    append(log, "prefix cache", on=choice.on, of=about, why=choice.why)


def _micro(seconds: float) -> str:
    return "an unknown time" if math.isnan(seconds) else f"{1e6 * seconds:.2g} µs"
