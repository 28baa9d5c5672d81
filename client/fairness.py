"""Does the model serve every kind of customer as well? Quality by what `users` says of them.

For the merchant's own eyes. It is computed from raw behaviour and attributes without noise: it is
no release, and no message carries it. Groups of few customers are joined as "other", and left
out where that is too few as well.

A gap between the best and the worst of several groups is above 0 by chance alone, and the more so
the smaller the groups are. Beside it stands what chance gives: the gap that 95 of 100 random
divisions of the same customers into groups of the same sizes stay below.

Shape suffixes: E examples, U customers, G groups.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.outcomes import OutcomeRows, Outcomes
from client.segment_profiles import LEAST_USERS, check_least_users
from silotune.tables.schema import CAMPAIGNS
from silotune.tables.silo_folder import SiloFolder

__all__ = [
    "AttributeQuality",
    "GroupQuality",
    "groups_markdown",
    "quality_by_group",
    "user_groups",
]

_Ints = NDArray[np.int64]

_OTHER, _UNKNOWN = "other", "not stated"
_LEVEL = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupQuality:
    """The main metric of the test examples of one group of customers."""

    name: str
    users: int
    value: float
    """NaN where it has no answer: all outcomes alike."""
    low: float
    high: float
    """Percentile bootstrap interval of 95% over customers (Efron 1979)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributeQuality:
    """Quality by one attribute of the customers."""

    attribute: str
    metric: str
    """Key of the objective's main metric."""
    groups: tuple[GroupQuality, ...]
    """The largest first; none where no two groups are large enough."""
    gap: float
    """Between the best and the worst group; NaN with fewer than two."""
    low: float
    high: float
    """Interval of the gap, drawn within each group: it never reaches below 0."""
    chance: float
    """What a gap stays below in 95 of 100 cases where the groups do not differ."""

    @property
    def verdict(self) -> str:
        """'more than by chance', 'no more than by chance', or 'not known'."""
        if not np.isfinite([self.gap, self.chance]).all():
            return "not known"
        return "more than by chance" if self.gap > self.chance else "no more than by chance"


def user_groups(silo: SiloFolder) -> dict[str, dict[str, str]]:
    """Return each attribute of the table `users`: what it says of whom. Empty without a table.

    What customers were sent is none.
    """
    if not silo.has_users:
        return {}
    with silo.connect() as connection:
        cursor = connection.execute("SELECT * FROM users")
        names = [str(column[0]) for column in cursor.description or ()]
        rows = cursor.fetchall()
    who = names.index("user_id")
    return {
        name: {str(row[who]): str(row[i]) for row in rows if row[i] not in (None, "")}
        for i, name in enumerate(names)
        if i != who and name != CAMPAIGNS
    }


def quality_by_group(
    parts: Sequence[Outcomes],
    groups: Mapping[str, Mapping[str, str]],
    *,
    least_users: int = LEAST_USERS,
    draws: int = 200,
    seed: int = 0,
) -> list[AttributeQuality]:
    """Return the quality of test examples by every attribute.

    Args:
        parts: of the scored customers, one at least, each customer in one of them.
        groups: from `user_groups`; who is not in one is "not stated".
        least_users: customers of a group that is shown, at least.
        draws: of the bootstrap, and of random divisions.
        seed: of both.

    Raises:
        ConfigError: ``least_users`` is below the floor.
    """
    check_least_users(least_users)
    rows = OutcomeRows(parts)
    return [
        _of_attribute(rows, name, values, least_users, draws, np.random.default_rng([seed, i]))
        for i, (name, values) in enumerate(groups.items())
    ]


def _of_attribute(
    rows: OutcomeRows,
    attribute: str,
    values: Mapping[str, str],
    least: int,
    draws: int,
    generator: np.random.Generator,
) -> AttributeQuality:
    members = _members(rows, values, least)
    if len(members) < 2:
        none = dict.fromkeys(("gap", "low", "high", "chance"), float("nan"))
        return AttributeQuality(attribute=attribute, metric=rows.objective.main, groups=(), **none)
    value_G = [rows.value(users) for users in members.values()]
    drawn = np.array(
        [
            [rows.value(generator.choice(users, len(users))) for users in members.values()]
            for _ in range(draws)
        ]
    )
    # Of the groups that make the gap, and of no other.
    asked = [u for u, v in zip(members.values(), value_G, strict=True) if np.isfinite(v)]
    everyone = np.concatenate([*asked, np.empty(0, np.int64)])
    edges = np.cumsum([len(users) for users in asked])[:-1]
    shuffled = np.array(
        [
            [rows.value(users) for users in np.split(generator.permutation(everyone), edges)]
            for _ in range(draws)
        ]
        if len(asked) > 1
        else np.empty((0, 2))
    )
    low, high = _interval(_gaps(drawn))
    return AttributeQuality(
        attribute=attribute,
        metric=rows.objective.main,
        groups=tuple(
            GroupQuality(
                name=name,
                users=len(users),
                value=value,
                **dict(zip(("low", "high"), _interval(drawn[:, g]), strict=True)),
            )
            for g, ((name, users), value) in enumerate(zip(members.items(), value_G, strict=True))
        ),
        gap=float(_gaps(np.array([value_G]))[0]),
        low=low,
        high=high,
        chance=_quantile(_gaps(shuffled), _LEVEL),
    )


def _members(rows: OutcomeRows, values: Mapping[str, str], least: int) -> dict[str, _Ints]:
    """Return the customers of each group that is large enough, the largest first."""
    found: dict[str, list[int]] = {}
    for user, name in enumerate(rows.names_U.tolist()):
        found.setdefault(values.get(name, _UNKNOWN), []).append(user)
    large = {name: users for name, users in found.items() if len(users) >= least}
    rest = [u for name, users in found.items() if name not in large for u in users]
    if len(rest) >= least:
        # A merchant's own value may be called so as well.
        large[_OTHER] = large.get(_OTHER, []) + rest
    order = sorted(large, key=lambda name: (-len(large[name]), name))
    return {name: np.array(large[name], dtype=np.int64) for name in order}


def _gaps(value_DG: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return best less worst of each row; NaN where fewer than two groups have an answer."""
    known = np.isfinite(value_DG)
    best = np.where(known, value_DG, -np.inf).max(1)
    worst = np.where(known, value_DG, np.inf).min(1)
    return np.where(known.sum(1) >= 2, best - np.where(np.isinf(worst), 0, worst), np.nan)


def _interval(value_D: NDArray[np.float64]) -> tuple[float, float]:
    outside = (1 - _LEVEL) / 2
    return _quantile(value_D, outside), _quantile(value_D, 1 - outside)


def _quantile(value_D: NDArray[np.float64], level: float) -> float:
    known = value_D[np.isfinite(value_D)]
    return float(np.quantile(known, level)) if len(known) else float("nan")


def groups_markdown(found: list[AttributeQuality], title: str, least_users: int) -> str:
    """Return ``found`` as a page of Markdown with a table for each attribute."""
    note = (
        f"Groups have at least {least_users} customers; smaller ones are joined as '{_OTHER}', or "
        "left out where that is too few. For your own people: made without noise, not to be "
        "passed on."
    )
    lines = [f"# {title}", "", note]
    for one in found:
        lines += ["", f"## {one.attribute}", ""]
        if not one.groups:
            lines.append(f"No two groups of {least_users} customers.")
            continue
        lines += [
            f"| {one.attribute} | customers | {one.metric} | 95% |",
            "| --- | --: | --: | --- |",
        ]
        for g in one.groups:
            # A bar in a merchant's own value would end the cell.
            name = g.name.replace("|", "\\|")
            lines.append(f"| {name} | {g.users:,} | {g.value:.3f} | {g.low:.3f} to {g.high:.3f} |")
        gap = f"Gap {one.gap:.3f} ({one.low:.3f} to {one.high:.3f})"
        lines += ["", f"{gap}; by chance up to {one.chance:.3f}: {one.verdict}."]
    return "\n".join(lines) + "\n"
