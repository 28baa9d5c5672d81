"""What a run found, in words and as a table on a terminal."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from silotune.tables.problems import counted
from simulations.aggregate import METRICS, REFERENCE, ArmSummary, Contrast, Spread, Summary
from simulations.aggregate import summarise as summarise
from simulations.arm_labels import GROUPS
from simulations.run_folder import RunFolder, RunInfo

__all__ = [
    "Effect",
    "difference",
    "effects",
    "figure",
    "notices",
    "print_summary",
    "share",
    "spread_of",
    "summarise",
    "verdicts",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Effect:
    """What one change of method does to AUC."""

    label: str
    contrast: Contrast


def difference(value: float, digits: int = 3) -> str:
    """Return ``value`` with its sign, a minus as wide as a plus.

    >>> difference(-0.0123)
    '−0.012'
    """
    if math.isnan(value):
        return "NaN"
    # Rounded first, so that -0.0001 is no '−0.000'.
    return f"{round(value, digits) + 0.0:+.{digits}f}".replace("-", "−")


def share(value: float) -> str:
    """Return a share as a percentage."""
    return "NaN" if math.isnan(value) else f"{value:.0%}"


def figure(spread: Spread | None, digits: int = 3) -> str:
    """Return mean ± standard deviation over seeds; a dash for what was not measured."""
    if spread is None:
        return "—"
    if math.isnan(spread.mean):
        return "NaN"
    std = "" if spread.std is None else f" ± {spread.std:.{digits}f}"
    return f"{spread.mean:.{digits}f}{std}"


def spread_of(spread: Spread, *, shares: bool = False) -> str:
    """Return smallest to largest seed in brackets; nothing for one seed."""
    if len(spread.values) < 2 or math.isnan(spread.mean):
        return ""
    form = share if shares else difference
    low, high = form(spread.low), form(spread.high)
    return "" if low == high else f"[{low} to {high}]"


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


def verdicts(summary: Summary) -> list[str]:
    """Return what the run says about the questions it was made for, a sentence each."""
    plain, alone = "Federated without noise", "LoRA at each merchant alone"
    wanted = [
        (plain, "federated", "logistic regression at each merchant alone", "logistic-local"),
        (plain, "federated", alone, REFERENCE),
    ]
    budgets = [(f"ε = {epsilon:g}", f"federated-eps{epsilon:g}") for epsilon in summary.epsilons]
    for what, arm in budgets:
        wanted.append((f"{what} with a local adapter", f"{arm}+local", alone, REFERENCE))
    for what, arm in budgets:
        wanted.append(
            (what, arm, "numeric features alone under the same noise", _without_text(arm))
        )
    found = []
    for ours, arm, theirs, against in wanted:
        if contrast := summary.compare(arm, against):
            found.append(_versus(ours, theirs, contrast))
    for what, arm in budgets:
        if contrast := summary.compare("federated", arm):
            found.append(_cost(what, contrast))
    return found


def _versus(ours: str, theirs: str, contrast: Contrast) -> str:
    gain, wins = contrast.gain, contrast.wins
    if math.isnan(gain.mean):
        return f"{ours} cannot be held against {theirs}: a model diverged (NaN)."
    size = f"{abs(gain.mean):.3f}"
    if float(size) == 0:
        verb = f"equals {theirs} in AUC"
    elif gain.mean > 0:
        verb = f"beats {theirs} by {size} AUC"
    else:
        verb = f"falls short of {theirs} by {size} AUC"
    better = f"better at {share(wins.mean)} of merchants {spread_of(wins, shares=True)}".rstrip()
    return f"{ours} {verb}{_over_seeds(gain)}, {better}."


def _cost(what: str, contrast: Contrast) -> str:
    cost = contrast.gain
    if math.isnan(cost.mean):
        return f"What privacy at {what} costs cannot be said: a model diverged (NaN)."
    if round(cost.mean, 3) > 0:
        return f"Privacy at {what} costs {cost.mean:.3f} AUC{_over_seeds(cost)}."
    gain = difference(-cost.mean)
    return f"Privacy at {what} costs no AUC here: {gain}{_over_seeds(cost)}."


def _over_seeds(spread: Spread) -> str:
    text = spread_of(spread).strip("[]")
    mixed = "; seeds differ in sign" if spread.low < 0 < spread.high else ""
    return f" ({text} over {len(spread.values)} seeds{mixed})" if text else ""


def notices(run: RunFolder, summary: Summary) -> list[str]:
    """Return what a reader has to know before reading any figure."""
    found = []
    if not run.info.private:
        found.append("NOT PRIVATE: seeded noise. Whoever knows the seed can take the noise away.")
    status = run.info.status
    if status == "running":
        found.append("The run has no recorded end: it is running, or was killed.")
    elif status != "finished":
        found.append(f"The run {'was interrupted' if status == 'interrupted' else 'failed'}.")
    if run.torn:
        found.append(run.torn)
    partial = [a.arm.label for a in summary.arms if a.cells < summary.expected_cells]
    if partial:
        found.append(f"Not scored on every merchant and seed: {'; '.join(partial)}.")
    return found


def print_summary(run: RunFolder, console: Console) -> None:
    """Print the table of arms, the sentences and what to know about them, as wide as fits."""
    summary = summarise(run.records())
    for notice in notices(run, summary):
        console.print(Text(notice, style="bold yellow"))
    if not summary.arms:
        console.print("No arm has been scored yet.")
        return
    table = _widest_that_fits(summary, run.info, console)
    console.print(table)
    for sentence in verdicts(summary):
        console.print(Text(f"• {sentence}"))


def _widest_that_fits(summary: Summary, info: RunInfo, console: Console) -> Table:
    # What goes first is what the report shows anyway.
    optional = ("spread", "recall", "ndcg", "calibration_error", "log_loss")
    unlimited = console.options.update_width(10_000)
    for dropped in range(len(optional) + 1):
        table = _table(summary, info, without=optional[:dropped])
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            break
    return table


def _table(summary: Summary, info: RunInfo, without: tuple[str, ...]) -> Table:
    name = str(info.scenario.get("name", "Run"))
    size = f"{counted(len(summary.merchants), 'merchant')}, {counted(len(summary.seeds), 'seed')}"
    table = Table(title=Text(f"{name}: {size}"), title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    metrics = [m for m in METRICS if m not in without and any(m in a.metrics for a in summary.arms)]
    short = {"calibration_error": "calib."}
    for metric in metrics:
        table.add_column(short.get(metric, METRICS[metric]), justify="right", no_wrap=True)
    table.add_column("vs alone", justify="right", no_wrap=True)
    table.add_column("better at", justify="right", no_wrap=True)
    group = ""
    for row in summary.arms:
        if row.arm.group != group:
            group = row.arm.group
            table.add_row(Text(GROUPS[group], style="dim"))
        label = Text(f"  {row.arm.label}")
        table.add_row(
            label, *_cells(row, metrics), *_against(row.contrast, "spread" not in without)
        )
    return table


def _cells(row: ArmSummary, metrics: list[str]) -> list[str]:
    spreads = {metric: row.metrics.get(metric) for metric in metrics}
    return [
        figure(s) if metric == "auc" or s is None else f"{s.mean:.3f}".replace("nan", "NaN")
        for metric, s in spreads.items()
    ]


def _against(contrast: Contrast | None, spread: bool) -> tuple[Text, Text]:
    if contrast is None:
        return Text("—"), Text("—")
    gain, wins = difference(contrast.gain.mean), share(contrast.wins.mean)
    if spread:
        gain = f"{gain} {spread_of(contrast.gain)}".rstrip()
        wins = f"{wins} {spread_of(contrast.wins, shares=True)}".rstrip()
    style = "green" if contrast.gain.mean > 0 else "red"
    return Text(gain, style=style), Text(wins)
