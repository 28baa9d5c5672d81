"""The HTML report of a run: one file, made from the run folder alone, that loads nothing."""

import collections
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from silotune import __version__
from silotune.tables.problems import counted
from simulations import plots, plots_of_rounds
from simulations.aggregate import (
    REFERENCE,
    ArmSummary,
    Summary,
    Traffic,
    epsilons_of,
    summarise,
    traffic_of,
)
from simulations.apart import part_tables
from simulations.arm_labels import GROUPS, Arm, arm_named, in_order
from simulations.forgetting import forgetting_words
from simulations.measured import FIGURES, estimate, measured
from simulations.plot_style import Looks, styles
from simulations.plots_of_rounds import duration, size
from simulations.records import KINDS, Record
from simulations.run_folder import Merchant, RunFolder, RunInfo, write_whole
from simulations.summary import deltas, notices
from simulations.tensorboard_scalars import write_tensorboard
from simulations.verdicts import verdicts
from simulations.wording import difference, figure, share, spread_of

__all__ = ["write_report", "write_tensorboard"]

REPORT = "report.html"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spent:
    arm: Arm
    high: str
    low: str
    merchants: int


@dataclass(frozen=True, kw_only=True, slots=True)
class _MerchantRow:
    merchant: Merchant
    figures: tuple[float | None, ...]
    """The main metric of each arm."""


def write_report(run: RunFolder) -> Path:
    """Write ``report.html`` into the run's folder and return its path.

    The same folder gives the same file. A run that is not finished gives a report of what it has.

    Raises:
        ConfigError: a file of the run is damaged; names it and the line.
    """
    records = run.records()
    summary = summarise(records, run.info.main)
    looks = styles(in_order(r["arm"] for r in records if isinstance(r.get("arm"), str)))
    environment = Environment(
        loader=PackageLoader("simulations"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {"groupby_in_order": _by_group, "sentence": _sentence}
    environment.globals.update(_WORDING)
    template = environment.get_template("report.html.j2")
    html = template.render(
        **_of_run(run, records, summary),
        **_of_results(run.info, records, summary),
        plots=_plots(run.info, records, summary, looks),
        looks=looks,
    )
    path = run.path / REPORT
    write_whole(path, html)
    return path


def _of_run(run: RunFolder, records: Sequence[Record], summary: Summary) -> dict[str, Any]:
    info = run.info
    events = [str(r["message"]) for r in records if r["kind"] == "event"]
    unknown = collections.Counter(str(r["kind"]) for r in records if r["kind"] not in KINDS)
    seconds = (info.finished - info.started).total_seconds() if info.finished else None
    return {
        "version": __version__,
        "info": info,
        "main": info.main,
        "title": str(info.scenario.get("name", run.path.name)),
        "description": str(info.scenario.get("description", "")),
        "took": duration(seconds) if seconds is not None else "",
        "notices": notices(run, summary),
        "merchants_count": len(info.merchants) or len(summary.merchants),
        "events": events,
        "unknown": ", ".join(f"{counted(n, 'record')} '{kind}'" for kind, n in unknown.items()),
        "scenario": json.dumps(info.scenario, indent=2, ensure_ascii=False),
    }


def _of_results(info: RunInfo, records: Sequence[Record], summary: Summary) -> dict[str, Any]:
    names = summary.main.names
    scored = {m: t for m, t in names.items() if any(m in a.metrics for a in summary.arms)}
    shown, private = _merchant_arms(summary), measured(records)
    return {
        "summary": summary,
        "metrics": scored,
        "verdicts": verdicts(summary),
        "spent": list(_spent(records)),
        "deltas": deltas(records),
        "private_figures": FIGURES,
        "private_metrics": {arm: private[arm.name] for arm in in_order(private)},
        "part_tables": part_tables(records),
        "forgetting": forgetting_words(records, summary.main),
        "traffic": traffic_of(records),
        "merchant_arms": shown,
        "merchants": list(_merchant_rows(info, summary, shown)),
        "yes_or_no": any(m.test_positives is not None for m in info.merchants),
        "curve_note": _curve_note(records),
    }


def _plots(
    info: RunInfo, records: Sequence[Record], summary: Summary, looks: Looks
) -> Mapping[str, Markup | None]:
    rounds, main = plots_of_rounds, summary.main.key
    return {
        "overview": plots.overview_plot(summary, looks),
        "effects": plots.effects_plot(summary),
        "scatter": plots.scatter_plot(summary, looks),
        "merchants": plots.merchants_plot(summary, looks),
        "calibration": plots.calibration_plot(records, looks, summary.main),
        "rounds_main": rounds.rounds_plot(records, summary, looks, main),
        "rounds_log_loss": None
        if main == "log_loss"
        else rounds.rounds_plot(records, summary, looks, "log_loss"),
        "epsilon": rounds.epsilon_plot(records, looks),
        "merchant_epsilon": rounds.merchant_epsilon_plot(records, looks),
        "traffic": rounds.traffic_plot(records, looks),
        "stages": rounds.stages_plot(info.timings),
    }


def _by_group(rows: Sequence[ArmSummary]) -> Iterator[tuple[str, list[ArmSummary]]]:
    for group, members in itertools.groupby(rows, key=lambda row: row.arm.group):
        yield GROUPS[group], list(members)


def _spent(records: Sequence[Record]) -> Iterator[_Spent]:
    for arm, merchants in epsilons_of(records).items():
        last = [max(rounds.values()) for rounds in merchants.values()]
        high, low = _epsilon(max(last)), _epsilon(min(last))
        yield _Spent(arm=arm_named(arm), high=high, low=low, merchants=len(last))


def _epsilon(value: float) -> str:
    # Upwards: a rounded bound must still be one.
    return f"{math.ceil(value * 1000) / 1000:.3f}" if math.isfinite(value) else "no bound"


def _merchant_arms(summary: Summary) -> list[Arm]:
    """Return the arms that are shown by merchant: alone, federated, and the private ones."""
    scored = [row.arm for row in summary.arms]
    return [a for a in scored if a.name == REFERENCE or a.group in ("federated", "local")]


def _merchant_rows(info: RunInfo, summary: Summary, arms: Sequence[Arm]) -> Iterator[_MerchantRow]:
    of_arms = [summary.per_merchant(arm.name) for arm in arms]
    described = {merchant.name: merchant for merchant in info.merchants}
    for name in sorted(described.keys() | set(summary.merchants)):
        merchant = described.get(name, Merchant(name=name))
        yield _MerchantRow(merchant=merchant, figures=tuple(arm.get(name) for arm in of_arms))


def _curve_note(records: Sequence[Record]) -> str:
    named = (len(r["merchants"]) for r in records if r["kind"] == "round" and r.get("merchants"))
    number = next(named, 0)
    over = f"Mean over {counted(number, 'merchant')}" if number else "Mean over merchants"
    return f"{over} and seeds; the band spans the seeds. Dotted: what needs no rounds."


def _bytes_all(row: Traffic) -> float | None:
    both = [amount for amount in (row.bytes_up, row.bytes_down) if amount is not None]
    return sum(both) * row.rounds if both else None


def _sentence(text: str) -> str:
    text = text.strip().rstrip(".")
    return f"{text[:1].upper()}{text[1:]}." if text else ""


def _number(value: float | None, digits: int = 1) -> str:
    return "—" if value is None else f"{value:.{digits}f}"


def _count(value: int | None) -> str:
    return "—" if value is None else f"{value:,}"


_WORDING = {
    "bytes_all": _bytes_all,
    "count": _count,
    "counted": counted,
    "difference": difference,
    "duration": duration,
    "estimate": estimate,
    "figure": figure,
    "number": _number,
    "share": share,
    "size": size,
    "spread_of": spread_of,
}
