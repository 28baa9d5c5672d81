"""What a run found, in words and as a table on a terminal."""

from collections.abc import Callable, Iterable

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from silotune.tables.problems import counted
from simulations.aggregate import ArmSummary, Contrast, Summary, summarise
from simulations.arm_labels import GROUPS, in_order
from simulations.measured import FIGURES, Measured, estimate, measured
from simulations.records import Record
from simulations.run_folder import RunFolder, RunInfo
from simulations.verdicts import verdicts
from simulations.wording import difference, figure, share, spread_of

__all__ = ["deltas", "notices", "print_summary"]


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
    summary = summarise(records, run.info.main)
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
    wanted = ("spread", "recall", "ndcg", "rmse", "calibration_error", "log_loss", "accuracy")
    optional = tuple(name for name in wanted if name != summary.main.key)
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
    names = summary.main.names | {"calibration_error": "calib.", "rmse": "RMSE"}
    scored = [m for m in names if any(m in a.metrics for a in summary.arms)]
    metrics = [m for m in scored if m not in without]
    for metric in metrics:
        table.add_column(names[metric], justify="right", no_wrap=True)
    table.add_column("vs alone", justify="right", no_wrap=True)
    table.add_column("better at", justify="right", no_wrap=True)
    group = ""
    for row in summary.arms:
        if row.arm.group != group:
            group = row.arm.group
            table.add_row(Text(GROUPS[group], style="dim"))
        label = Text(f"  {row.arm.label}")
        table.add_row(
            label,
            *_cells(row, metrics, summary.main.key),
            *_against(row.contrast, "spread" not in without),
        )
    return table


def _cells(row: ArmSummary, metrics: list[str], main: str) -> list[str]:
    return [figure(row.metrics.get(metric), std=metric == main) for metric in metrics]


def _against(contrast: Contrast | None, spread: bool) -> tuple[Text, Text]:
    if contrast is None:
        return Text("—"), Text("—")
    change, wins = difference(contrast.change.mean), share(contrast.wins.mean)
    if spread:
        change = f"{change} {spread_of(contrast.change)}".rstrip()
        wins = f"{wins} {spread_of(contrast.wins, shares=True)}".rstrip()
    style = "green" if contrast.gain.mean > 0 else "red"
    return Text(change, style=style), Text(wins)
