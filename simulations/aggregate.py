"""What a run found: means over merchants and seeds, and paired comparisons of arms.

Every mean is over merchants first, within one seed, then over seeds. A null where another arm has
a number means that the model diverged there: it makes the arm's mean NaN, it is not skipped.
"""

import collections
import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

from simulations.arm_labels import Arm, arm_named, in_order
from simulations.judged import MainMetric
from simulations.records import Record

__all__ = [
    "REFERENCE",
    "ArmSummary",
    "Contrast",
    "Spread",
    "Summary",
    "Traffic",
    "epsilons_of",
    "rounds_of",
    "summarise",
    "traffic_of",
]

REFERENCE = "local-only"
"""What a merchant could do without anyone else; every arm is held against it."""

Cell = tuple[int, str]
"""Seed and merchant."""


@dataclass(frozen=True, slots=True)
class Spread:
    """One figure over the seeds."""

    values: tuple[float, ...]
    """One per seed, at least one."""

    @property
    def mean(self) -> float:
        """NaN if any seed is."""
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; None with one seed."""
        if len(self.values) < 2:
            return None
        return math.nan if math.isnan(self.mean) else statistics.stdev(self.values)

    @property
    def low(self) -> float:
        """Smallest seed; NaN if any seed is."""
        return math.nan if math.isnan(self.mean) else min(self.values)

    @property
    def high(self) -> float:
        """Largest seed; NaN if any seed is."""
        return math.nan if math.isnan(self.mean) else max(self.values)


@dataclass(frozen=True, kw_only=True, slots=True)
class Contrast:
    """One arm against another at the same merchants in the same seeds."""

    arm: Arm
    against: Arm
    gain: Spread
    """Mean over merchants of how much better ``arm`` is in the main metric, per seed."""
    wins: Spread
    """Share of merchants where ``arm`` is better in it, per seed. A tie is no win."""
    merchants: int
    larger_is_better: bool = True

    @property
    def change(self) -> Spread:
        """The difference in the main metric as it is: below zero where a better arm has less."""
        return self.gain if self.larger_is_better else Spread(tuple(-v for v in self.gain.values))


@dataclass(frozen=True, kw_only=True, slots=True)
class ArmSummary:
    """One row of the table."""

    arm: Arm
    metrics: dict[str, Spread]
    """By key of `MainMetric.names`; a metric that nobody could compute is not there."""
    cells: int
    """Pairs of seed and merchant that were scored."""
    contrast: Contrast | None
    """Against `REFERENCE`; None for itself or without it."""


@dataclass(frozen=True, kw_only=True)
class Summary:
    """All scores of a run."""

    scores: dict[str, dict[Cell, Record]]
    """By arm; the last record counts where an arm was scored twice."""
    _answerable: dict[str, set[Cell]] = field(repr=False)
    """Where a metric has an answer: at least one arm has a number."""
    main: MainMetric
    """By which arms are compared."""

    @cached_property
    def seeds(self) -> list[int]:
        """All seeds with a score."""
        return sorted({seed for cells in self.scores.values() for seed, _ in cells})

    @cached_property
    def merchants(self) -> list[str]:
        """All merchants with a score."""
        return sorted({merchant for cells in self.scores.values() for _, merchant in cells})

    @cached_property
    def expected_cells(self) -> int:
        """Pairs of seed and merchant that a complete arm has."""
        return max((len(cells) for cells in self.scores.values()), default=0)

    @cached_property
    def arms(self) -> list[ArmSummary]:
        """Every scored arm, in display order."""
        return [self._arm(arm) for arm in in_order(self.scores)]

    @cached_property
    def epsilons(self) -> list[float]:
        """Budgets of the scored arms, largest first."""
        found = {a.arm.epsilon for a in self.arms if a.arm.epsilon is not None}
        return sorted(found, reverse=True)

    @cached_property
    def simple(self) -> list[Arm]:
        """The scored arms that a merchant could run alone without a language model, best first."""
        rows = [
            (self.figure(a.arm.name), a.arm)
            for a in self.arms
            if a.arm.group == "baseline" and a.arm.name not in (REFERENCE, "pooled")
        ]
        # What learns from everyone's data is no method of one merchant.
        alone = [(f.mean, arm) for f, arm in rows if f and not arm.name.endswith("-pooled")]
        known = [(mean, arm) for mean, arm in alone if not math.isnan(mean)]
        known.sort(key=lambda pair: -pair[0] if self.main.larger_is_better else pair[0])
        return [arm for _, arm in known]

    def figure(self, arm: str, metric: str | None = None) -> Spread | None:
        """Return one figure of one arm, the main one unless another is named.

        None if the arm was not scored or has no such metric.
        """
        key = metric or self.main.key
        return next((a.metrics.get(key) for a in self.arms if a.arm.name == arm), None)

    def per_merchant(self, arm: str, metric: str | None = None) -> dict[str, float]:
        """Return one figure by merchant, mean over seeds; without those that have none."""
        found: dict[str, list[float]] = {}
        for cell, value in self._values(arm, metric or self.main.key).items():
            found.setdefault(cell[1], []).append(value)
        means = {name: statistics.fmean(values) for name, values in sorted(found.items())}
        return {name: mean for name, mean in means.items() if not math.isnan(mean)}

    def compare(self, arm: str, against: str) -> Contrast | None:
        """Hold ``arm`` against ``against`` wherever both were scored; None if nowhere."""
        larger, key = self.main.larger_is_better, self.main.key
        ours, theirs = self._values(arm, key), self._values(against, key)
        shared = ours.keys() & theirs.keys()
        if not shared or arm == against:
            return None
        gains: dict[int, list[float]] = {}
        for cell in sorted(shared):
            more = ours[cell] - theirs[cell]
            gains.setdefault(cell[0], []).append(more if larger else -more)
        return Contrast(
            arm=arm_named(arm),
            against=arm_named(against),
            gain=Spread(tuple(statistics.fmean(g) for g in gains.values())),
            wins=Spread(tuple(sum(x > 0 for x in g) / len(g) for g in gains.values())),
            merchants=len({merchant for _, merchant in shared}),
            larger_is_better=larger,
        )

    def _arm(self, arm: Arm) -> ArmSummary:
        metrics = {}
        for metric in self.main.names:
            by_seed: dict[int, list[float]] = {}
            for (seed, _), value in self._values(arm.name, metric).items():
                by_seed.setdefault(seed, []).append(value)
            if by_seed:
                metrics[metric] = Spread(tuple(statistics.fmean(v) for v in by_seed.values()))
        return ArmSummary(
            arm=arm,
            metrics=metrics,
            cells=len(self.scores[arm.name]),
            contrast=self.compare(arm.name, REFERENCE),
        )

    def _values(self, arm: str, metric: str) -> dict[Cell, float]:
        answerable = self._answerable[metric]
        found = {}
        for cell, record in sorted(self.scores.get(arm, {}).items()):
            value = record.get(metric)
            # Not measured at all by this arm: popularity may have no log loss.
            if cell in answerable and metric in record:
                found[cell] = math.nan if value is None else float(value)
        return found


def summarise(records: Iterable[Record], main: MainMetric | None = None) -> Summary:
    """Collect the score records among ``records``, to be compared by ``main`` (None: AUC)."""
    main = main or MainMetric()
    scores: dict[str, dict[Cell, Record]] = {}
    answerable: dict[str, set[Cell]] = {metric: set() for metric in main.names}
    for record in records:
        if record["kind"] == "score":
            cell = (record["seed"], record["merchant"])
            scores.setdefault(record["arm"], {})[cell] = record
    for cells in scores.values():
        for cell, record in cells.items():
            for metric, found in answerable.items():
                if record.get(metric) is not None:
                    found.add(cell)
    return Summary(scores=scores, _answerable=answerable, main=main)


def rounds_of(records: Iterable[Record]) -> dict[str, dict[tuple[int, int], Record]]:
    """Return the round records by arm, then seed and round; the last one counts."""
    found: dict[str, dict[tuple[int, int], Record]] = {}
    for record in records:
        if record["kind"] == "round":
            found.setdefault(record["arm"], {})[record["seed"], record["round"]] = record
    return {arm.name: dict(sorted(found[arm.name].items())) for arm in in_order(found)}


def epsilons_of(records: Iterable[Record]) -> dict[str, dict[str, dict[int, float]]]:
    """Return ε spent by arm, merchant and round: the largest over seeds, infinite if unbounded."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for record in records:
        if record["kind"] == "privacy":
            spent = math.inf if record.get("epsilon") is None else float(record["epsilon"])
            rounds = found.setdefault(record["arm"], {}).setdefault(record["merchant"], {})
            rounds[record["round"]] = max(spent, rounds.get(record["round"], 0.0))
    return {arm.name: found[arm.name] for arm in in_order(found)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What an arm's rounds took. Means over rounds and seeds; None: not recorded."""

    arm: Arm
    rounds: int
    """Of one seed, the largest."""
    seconds: float | None
    bytes_up: float | None
    """From all merchants together, a round."""
    bytes_down: float | None
    replies: float | None
    failures: float | None


def traffic_of(records: Iterable[Record]) -> list[Traffic]:
    """Return the traffic of every arm with rounds."""
    found = []
    for arm, cells in rounds_of(records).items():
        means: dict[str, float | None] = {}
        for key in ("seconds", "bytes_up", "bytes_down", "replies", "failures"):
            numbers = [r[key] for r in cells.values() if r.get(key) is not None]
            means[key] = statistics.fmean(numbers) if numbers else None
        rounds = max(collections.Counter(seed for seed, _ in cells).values())
        found.append(Traffic(arm=arm_named(arm), rounds=rounds, **means))
    return found
