"""What a run says about the questions it was made for: sentences, and steps from arm to arm."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from simulations.aggregate import REFERENCE, Contrast, Spread, Summary
from simulations.arm_labels import Arm
from simulations.judged import MainMetric, in_sentence
from simulations.wording import share, spread_of

__all__ = ["Effect", "Verdict", "effects", "verdicts"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """What one change of method does to the main metric."""

    label: str
    contrast: Contrast


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the run says about one question."""

    claim: str
    """A sentence."""
    detail: str
    """How it spreads over seeds and merchants; may be empty."""


def effects(summary: Summary) -> list[Effect]:
    """Return every step from the merchant alone to the private model that the run can judge."""
    pairs = [("Federating, no noise", "federated", REFERENCE)]
    pairs += [
        (f"Privacy, ε = {epsilon:g}", f"federated-eps{epsilon:g}", "federated")
        for epsilon in summary.epsilons
    ]
    levels = list(_noise_levels(summary))
    pairs += [(f"Local adapter, {what}", f"{name}+local", name) for name, what in levels]
    pairs += [(f"Language model, {what}", name, _without_text(name)) for name, what in levels]
    pairs.append(("Not pooling the data", "federated", "pooled"))
    found = ((label, summary.compare(arm, against)) for label, arm, against in pairs)
    return [Effect(label=label, contrast=c) for label, c in found if c is not None]


def _noise_levels(summary: Summary) -> Iterator[tuple[str, str]]:
    yield "federated", "no noise"
    for epsilon in summary.epsilons:
        yield f"federated-eps{epsilon:g}", f"ε = {epsilon:g}"


def _without_text(arm: str) -> str:
    return "numeric-federated" if arm == "federated" else arm.replace("federated", "numeric")


def verdicts(summary: Summary) -> list[Verdict]:
    """Return what the run says about the questions it was made for."""
    plain, alone = "Federated without noise", "LoRA at each merchant alone"
    numeric = "numeric features alone under the same noise"
    wanted = [(plain, "federated", _simple(summary), arm.name) for arm in summary.simple[:1]]
    wanted.append((plain, "federated", alone, REFERENCE))
    budgets = [(f"ε = {epsilon:g}", f"federated-eps{epsilon:g}") for epsilon in summary.epsilons]
    wanted += [
        (f"Federated at {b} with a local adapter", f"{arm}+local", alone, REFERENCE)
        for b, arm in budgets
    ]
    wanted += [
        (f"The language model at {b}", arm, numeric, _without_text(arm)) for b, arm in budgets
    ]
    found = []
    for ours, arm, theirs, against in wanted:
        if contrast := summary.compare(arm, against):
            found.append(_versus(ours, theirs, contrast, summary.main))
    for what, arm in budgets:
        if contrast := summary.compare("federated", arm):
            found.append(_cost(what, contrast, summary.main))
    return found


def _simple(summary: Summary) -> str:
    first, *others = summary.simple
    return f"the best simple method, {_method(first)}," if others else _method(first)


def _method(arm: Arm) -> str:
    label = arm.label.replace("Logistic", "logistic regression")
    return in_sentence(label.replace(", each merchant alone", " at each merchant alone"))


def _versus(ours: str, theirs: str, contrast: Contrast, main: MainMetric) -> Verdict:
    gain, wins = contrast.gain, contrast.wins
    if math.isnan(gain.mean):
        theirs = theirs.removesuffix(",")
        claim = f"{ours} cannot be held against {theirs}: a model diverged (NaN)."
        return Verdict(claim=claim, detail="")
    size = f"{abs(gain.mean):.3f}"
    if float(size) == 0:
        claim = f"{ours} equals {theirs} in {main.words}."
    elif gain.mean > 0:
        claim = f"{ours} beats {theirs} by {size} {main.unit}."
    else:
        claim = f"{ours} falls short of {theirs} by {size} {main.unit}."
    better = f"Better at {share(wins.mean)} of merchants {spread_of(wins, shares=True)}".rstrip()
    return Verdict(claim=claim, detail=f"{_over_seeds(gain)} {better}.".lstrip())


def _cost(what: str, contrast: Contrast, main: MainMetric) -> Verdict:
    cost = contrast.gain
    if math.isnan(cost.mean):
        claim = f"What privacy at {what} costs cannot be said: a model diverged (NaN)."
        return Verdict(claim=claim, detail="")
    if round(cost.mean, 3) > 0:
        claim = f"Privacy at {what} costs {cost.mean:.3f} {main.unit}."
    else:
        none = f"no {main.words}" if main.larger_is_better else f"nothing {main.unit}"
        claim = f"Privacy at {what} costs {none} here; the private model gains {-cost.mean:.3f}."
    return Verdict(claim=claim, detail=_over_seeds(cost))


def _over_seeds(spread: Spread) -> str:
    text = spread_of(spread).strip("[]")
    mixed = ", not always of the same sign" if spread.low < 0 < spread.high else ""
    return f"{text} over {len(spread.values)} seeds{mixed}." if text else ""
