"""What a segment's customers are like, in plain words, each true of a minimum number of them.

A profile says only what at least ``least`` customers of the segment have in common: the public
band that most of them lie in, categories that so many of them usually buy from. Where no band
holds so many it says "mixed", and no sum, mean or extreme is ever shown: each could be the work
of one customer.

Shape suffixes: U customers.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from silotune.errors import ConfigError
from silotune.tasks.base import Traits

__all__ = ["LEAST_USERS", "Profile", "check_least_users", "markdown", "profiles_of"]

LEAST_USERS = 20
"""The floor of what a merchant may set."""
_NAMED = 3
"""Categories named, at most."""
_MORE = 1.25
"""Times the share of all customers, from which a category stands out in a segment."""


def check_least_users(least: int) -> None:
    """Raise ConfigError where ``least`` customers are too few to say anything of."""
    if least < LEAST_USERS:
        raise ConfigError(
            f"least_users is {least}; it must be at least {LEAST_USERS}: what is said of fewer "
            "customers speaks of persons."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Profile:
    """One segment in words. Private all the same: it describes a merchant's customers."""

    segment: int
    users: int | None
    """None: fewer than the minimum, and nothing else is said."""
    share: float
    """Of all customers; NaN where ``users`` is None."""
    words: tuple[tuple[str, str], ...]
    """(trait, band), the band with "mostly" where half of the segment or more lies in it."""
    usual: tuple[str, ...]
    """Categories that most customers of the segment usually buy from."""
    stands_out: tuple[str, ...]
    """Categories that more of them buy from than of all customers."""

    def sentence(self) -> str:
        """Return the profile as one line of text."""
        if self.users is None:
            return "too few customers to describe."
        parts = [f"{name}: {band}" for name, band in self.words]
        if self.usual:
            parts.append(f"buy {', '.join(self.usual)}")
        if self.stands_out:
            parts.append(f"more than others {', '.join(self.stands_out)}")
        return "; ".join(parts) + "."


def profiles_of(traits: Traits, segment_U: NDArray[np.int64], least: int) -> list[Profile]:
    """Return the profile of every segment, 1 first.

    Args:
        traits: of the customers.
        segment_U: their segments, from 1.
        least: customers behind everything that is said, at least.
    """
    everyone = Counter(c for habits in traits.habits for c in set(habits))
    found = []
    for segment in range(1, int(segment_U.max(initial=0)) + 1):
        rows = np.flatnonzero(segment_U == segment).tolist()
        if len(rows) < least:
            found.append(
                Profile(
                    segment=segment,
                    users=None,
                    share=float("nan"),
                    words=(),
                    usual=(),
                    stands_out=(),
                )
            )
            continue
        own = Counter(c for row in rows for c in set(traits.habits[row]))
        known = sorted((c for c in own if own[c] >= least), key=lambda c: (-own[c], c))
        lift = {c: own[c] / len(rows) / (everyone[c] / len(segment_U)) for c in known}
        out = sorted((c for c in known if lift[c] >= _MORE), key=lambda c: (-lift[c], c))
        found.append(
            Profile(
                segment=segment,
                users=len(rows),
                share=len(rows) / len(segment_U),
                words=tuple(
                    (name, _band([bands[row] for row in rows], least))
                    for name, bands in traits.words.items()
                ),
                usual=tuple(known[:_NAMED]),
                stands_out=tuple(out[:_NAMED]),
            )
        )
    return found


def _band(bands: Sequence[str], least: int) -> str:
    # Of bands that hold as many, the first by name: no order of rows decides.
    band, count = min(Counter(bands).items(), key=lambda item: (-item[1], item[0]))
    if count < least:
        return "mixed"
    return f"{'mostly' if 2 * count >= len(bands) else 'often'} {band}"


def markdown(profiles: Sequence[Profile], title: str, least: int) -> str:
    """Return ``profiles`` as a page of Markdown.

    Args:
        profiles: from `profiles_of`.
        title: heading.
        least: that they were made with.
    """
    note = (
        f"Everything said here is true of at least {least} customers of the segment. For your own "
        "people: it was made without noise and is not to be passed on."
    )
    lines = [f"# {title}", "", note]
    for p in profiles:
        size = (
            f"fewer than {least} customers"
            if p.users is None
            else f"{p.users:,} customers, {p.share:.0%}"
        )
        lines += ["", f"## Segment {p.segment}: {size}", ""]
        if p.users is None:
            lines.append("No profile.")
            continue
        lines += [f"- **{name}**: {band}" for name, band in p.words]
        lines.append(f"- **usually buy**: {', '.join(p.usual) or 'nothing in common'}")
        if p.stands_out:
            lines.append(f"- **more than others**: {', '.join(p.stands_out)}")
    return "\n".join(lines) + "\n"
