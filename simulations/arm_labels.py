"""What the arms of a comparison are called, and in which order they are shown."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["GROUPS", "Arm", "Group", "arm_named", "in_order"]

Group = str
"""Key of `GROUPS`."""

GROUPS: dict[Group, str] = {
    "baseline": "Without federation",
    "federated": "Federated language model",
    "numeric": "Federated numeric features",
    "local": "Federated, then a local adapter",
    "other": "Other arms",
}
"""Titles of the groups, in display order."""

_BASELINES = {
    "popularity": "Popularity",
    "rfm-rules": "RFM rules, each merchant alone",
    "mean": "One value for all",
    "mean-by-group": "Mean of the group",
    "median-by-group": "Median of the group",
    "linear-local": "Linear, each merchant alone",
    "linear-pooled": "Linear, pooled data",
    "logistic-local": "Logistic, each merchant alone",
    "logistic-pooled": "Logistic, pooled data",
    "trees-local": "Boosted trees, each merchant alone",
    "tfidf-local": "TF-IDF + linear, each merchant alone",
    "tfidf-pooled": "TF-IDF + linear, pooled data",
    "frozen-local": "Frozen encoder, each merchant alone",
    "frozen-pooled": "Frozen encoder, pooled data",
    "trees-pooled": "Boosted trees, pooled data",
    "local-only": "LoRA, each merchant alone",
    "pooled": "LoRA, pooled data (ceiling)",
}
_EPSILON = re.compile(r"(federated|numeric)-eps(\d+(?:\.\d+)?)")
_FAMILIES = {"federated": "Federated", "numeric": "Numeric only"}
_NO_NOISE = {"federated": "federated", "numeric-federated": "numeric"}
_LOCAL = "+local"
# Of a simple method that has no label of its own.
_WHERE = {"-local": "each merchant alone", "-pooled": "pooled data"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One way to get a model, as people read it."""

    name: str
    """As in the records."""
    label: str
    """At most some thirty characters; an unknown arm's own name."""
    group: Group
    base: Group
    """Group of what a local adapter follows; the arm's own group otherwise."""
    epsilon: float | None = None
    """Budget per user by the arm's name; None: no noise."""

    @property
    def brief(self) -> str:
        """The label where there is little room."""
        label = self.label.split(" (", maxsplit=1)[0]
        return label.replace("each merchant alone", "alone").replace("pooled data", "pooled")


def arm_named(name: str) -> Arm:
    """Return the arm called ``name``; one that is not known is in the group 'other'.

    >>> arm_named("federated-eps0.5+local").label
    'Federated, ε = 0.5 + local'
    """
    if name.endswith(_LOCAL) and name != _LOCAL:
        before = arm_named(name.removesuffix(_LOCAL))
        group = "other" if before.group in ("other", "local") else "local"
        label = f"{before.label} + local"
        return Arm(name=name, label=label, group=group, base=before.group, epsilon=before.epsilon)
    if label := _BASELINES.get(name) or _simple(name):
        return Arm(name=name, label=label, group="baseline", base="baseline")
    if name in _NO_NOISE:
        family = _NO_NOISE[name]
        label = f"{_FAMILIES[family]}, no noise"
        return Arm(name=name, label=label, group=family, base=family)
    if found := _EPSILON.fullmatch(name):
        family, epsilon = found[1], float(found[2])
        label = f"{_FAMILIES[family]}, ε = {epsilon:g}"
        return Arm(name=name, label=label, group=family, base=family, epsilon=epsilon)
    return Arm(name=name, label=name, group="other", base="other")


def _simple(name: str) -> str:
    for end, where in _WHERE.items():
        if stem := name.removesuffix(end) if name.endswith(end) else "":
            return f"{stem.replace('-', ' ').capitalize()}, {where}"
    return ""


def in_order(names: Iterable[str]) -> list[Arm]:
    """Return the arms of ``names``, each once: by group, without noise first, then by falling ε."""
    return sorted(map(arm_named, set(names)), key=_position)


def _position(arm: Arm) -> tuple[int, int, int, float, str]:
    groups, baselines = list(GROUPS), list(_BASELINES)
    # A simple method without a label of its own: after those that have one, before the models.
    known = baselines.index(arm.name if arm.name in baselines else "local-only")
    noise = float("-inf") if arm.epsilon is None else -arm.epsilon
    after = 2 * known + (arm.name in baselines)
    return groups.index(arm.group), after, groups.index(arm.base), noise, arm.name
