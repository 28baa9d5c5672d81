"""What a run found, in words and as a table on a terminal."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from silotune.tables.problems import counted
from simulations.aggregate import METRICS, REFERENCE, ArmSummary, Contrast, Spread, Summary
from simulations.aggregate import summarise as summarise
from simulations.arm_labels import GROUPS, in_order
from simulations.measured import FIGURES, Measured, estimate, measured
from simulations.records import Record
from simulations.run_folder import RunFolder, RunInfo

__all__ = [
    "Effect",
    "Verdict",
    "deltas",
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What the run says about one question."""

    claim: str
    """A sentence."""
    detail: str
    """How it spreads over seeds and merchants; may be empty."""


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


def figure(spread: Spread | None, digits: int = 3, *, std: bool = True) -> str:
    """Return mean, ± standard deviation over seeds; a dash for what was not measured."""
    if spread is None:
        return "—"
    if math.isnan(spread.mean):
        return "NaN"
    after = f" ± {spread.std:.{digits}f}" if std and spread.std is not None else ""
    return f"{spread.mean:.{digits}f}{after}"


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


def verdicts(summary: Summary) -> list[Verdict]:
    """Return what the run says about the questions it was made for."""
    plain, alone = "Federated without noise", "LoRA at each merchant alone"
    numeric = "numeric features alone under the same noise"
    wanted = [
        (plain, "federated", "logistic regression at each merchant alone", "logistic-local"),
        (plain, "federated", alone, REFERENCE),
    ]
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
            found.append(_versus(ours, theirs, contrast))
    for what, arm in budgets:
        if contrast := summary.compare("federated", arm):
            found.append(_cost(what, contrast))
    return found


def _versus(ours: str, theirs: str, contrast: Contrast) -> Verdict:
    gain, wins = contrast.gain, contrast.wins
    if math.isnan(gain.mean):
        claim = f"{ours} cannot be held against {theirs}: a model diverged (NaN)."
        return Verdict(claim=claim, detail="")
    size = f"{abs(gain.mean):.3f}"
    if float(size) == 0:
        claim = f"{ours} equals {theirs} in AUC."
    elif gain.mean > 0:
        claim = f"{ours} beats {theirs} by {size} AUC."
    else:
        claim = f"{ours} falls short of {theirs} by {size} AUC."
    better = f"Better at {share(wins.mean)} of merchants {spread_of(wins, shares=True)}".rstrip()
    return Verdict(claim=claim, detail=f"{_over_seeds(gain)} {better}.".lstrip())


def _cost(what: str, contrast: Contrast) -> Verdict:
    cost = contrast.gain
    if math.isnan(cost.mean):
        claim = f"What privacy at {what} costs cannot be said: a model diverged (NaN)."
        return Verdict(claim=claim, detail="")
    if round(cost.mean, 3) > 0:
        claim = f"Privacy at {what} costs {cost.mean:.3f} AUC."
    else:
        claim = f"Privacy at {what} costs no AUC here; the private model gains {-cost.mean:.3f}."
    return Verdict(claim=claim, detail=_over_seeds(cost))


def _over_seeds(spread: Spread) -> str:
    text = spread_of(spread).strip("[]")
    mixed = ", not always of the same sign" if spread.low < 0 < spread.high else ""
    return f"{text} over {len(spread.values)} seeds{mixed}." if text else ""


def deltas(records: Iterable[Record]) -> str:
    """Return δ of the run's releases as text; empty without any."""
    spent = [r for r in records if r["kind"] == "privacy"]
    found = {float(r["delta"]) for r in spent if r.get("delta") is not None}
    return " or ".join(f"{delta:g}" for delta in sorted(found))


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
    records = run.records()
    summary = summarise(records)
    for notice in notices(run, summary):
        console.print(Text(notice, style="bold yellow"))
    if not summary.arms:
        console.print("No arm has been scored yet.")
        return
    table = _widest_that_fits(summary, run.info, console)
    console.print(table)
    if found := deltas(records):
        about = f"ε: at most this for each user of one merchant, added or removed; δ = {found}"
        console.print(Text(about, style="dim"))
    if private := measured(records):
        console.print()
        console.print(_widest(lambda n: _private_table(private, n), len(FIGURES), console))
    console.print()
    for verdict in verdicts(summary):
        console.print(Text(f"• {verdict.claim}"), Text(verdict.detail, style="dim"))


def _private_table(found: dict[str, dict[str, Measured]], columns: int) -> Table:
    title = "Measured privately, ± standard error (what it is without noise)"
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    names = list(FIGURES)[:columns]
    for name in names:
        table.add_column(FIGURES[name], justify="right", no_wrap=True)
    for arm in in_order(found):
        cells = (found[arm.name].get(name) for name in names)
        shown = [f"{estimate(c)} ({c.noiseless:.3f})" if c else "—" for c in cells]
        table.add_row(Text(f"  {arm.label}"), *shown)
    return table


def _widest(make: Callable[[int], Table], columns: int, console: Console) -> Table:
    unlimited = console.options.update_width(10_000)
    for number in range(columns, 1, -1):
        table = make(number)
        if Measurement.get(console, unlimited, table).maximum <= console.width:
            return table
    return make(1)


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
    return [figure(row.metrics.get(metric), std=metric == "auc") for metric in metrics]


def _against(contrast: Contrast | None, spread: bool) -> tuple[Text, Text]:
    if contrast is None:
        return Text("—"), Text("—")
    gain, wins = difference(contrast.gain.mean), share(contrast.wins.mean)
    if spread:
        gain = f"{gain} {spread_of(contrast.gain)}".rstrip()
        wins = f"{wins} {spread_of(contrast.wins, shares=True)}".rstrip()
    style = "green" if contrast.gain.mean > 0 else "red"
    return Text(gain, style=style), Text(wins)
