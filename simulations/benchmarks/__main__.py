"""``python -m simulations.benchmarks``: all comparisons, JSON results, the page's tables.

``--only NAME`` runs one; ``--quick`` takes few merchants and repetitions, to see that everything
works; its figures mean nothing and go to no page.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from silotune.errors import SilotuneError
from simulations.benchmarks.comparisons import COMPARISONS, Bench
from simulations.benchmarks.curves import CURVES
from simulations.benchmarks.harness import NotInstalledError, save
from simulations.benchmarks.page import write_table

__all__ = ["main"]

_PAGE = Path(__file__).parents[2] / "docs" / "performance.md"
_RATIOS = (
    "row",
    "what over what",
    "median",
    "quartiles",
    "run first / second",
    "repeats",
    "beside it",
)
_CURVES = ("curve", "sizes", "time grows as size to the power of", "memory, smallest to largest")

Run = Callable[[Bench], dict[str, Any]]


def main(
    only: Annotated[str, typer.Option(help="Run this one alone.")] = "",
    quick: Annotated[bool, typer.Option(help="Small and meaningless; the page stays.")] = False,
    out: Annotated[Path, typer.Option(help="Folder for results and work.")] = Path("runs/bench"),
    repeats: Annotated[int, typer.Option(help="Repetitions of each pair.")] = 3,
    scenario: Annotated[str, typer.Option(help="Whose merchants and model.")] = "complete-journey",
    stock_rate: Annotated[float, typer.Option(help="AdamW rate of the stock recipe.")] = 5e-3,
    merchants: Annotated[
        int | None, typer.Option(help="So many of them, evenly spaced by size; all when left out.")
    ] = None,
    page: Annotated[Path, typer.Option(help="Page with the tables.")] = _PAGE,
) -> None:
    """Measure, save, and rewrite the tables."""
    console = Console()
    known: dict[str, Run] = {**COMPARISONS, **CURVES}
    if only and only not in known:
        console.print(f"--only {only}: not known; there are {', '.join(known)}.")
        raise typer.Exit(2)
    bench = Bench(
        out=out,
        scenario=scenario,
        repeats=1 if quick else repeats,
        quick=quick,
        learning_rate=stock_rate,
        merchants=merchants,
        plots=page.parent,
    )
    failed = False
    for name in [only] if only else known:
        console.print(f"[bold]{name}[/bold]")
        try:
            result = known[name](bench)
        except NotInstalledError as error:
            # No failure, unless it was asked for by name.
            failed = failed or bool(only)
            console.print(f"  skipped: {error}", markup=False)
            continue
        except SilotuneError as error:
            failed = True
            console.print(f"  failed: {error}", markup=False)
            continue
        save(out, name, result)
        figures = _ratio_cells(result) if "ratio" in result else _curve_cells(result)
        console.print("  " + "; ".join(figures), markup=False)
        if not quick:
            write_rows(page, name, result)
    raise typer.Exit(int(failed))


def write_rows(page: Path, name: str, result: dict[str, Any]) -> None:
    """Put one result into the page's table of ratios or of curves."""
    if "ratio" in result:
        write_table(page, "ratios", _RATIOS, {name: _ratio_cells(result)})
    else:
        write_table(page, "curves", _CURVES, {name: _curve_cells(result)})


def _ratio_cells(result: dict[str, Any]) -> list[str]:
    ratio = result["ratio"]
    return [
        result["what"],
        f"**{ratio.median:.2f}**",
        f"{ratio.low:.2f} to {ratio.high:.2f}",
        f"{_number(ratio.first_before)} / {_number(ratio.first_after)}",
        str(ratio.repeats),
        result["beside"],
    ]


def _curve_cells(result: dict[str, Any]) -> list[str]:
    curve = result["curve"]
    powers = ", ".join(f"{stage} {value:.2f}" for stage, value in result["exponents"].items())
    return [
        f"{curve.sizes[0]:g} to {curve.sizes[-1]:g} {curve.axis}",
        powers,
        f"{curve.memory[0]:.0f} to {curve.memory[-1]:.0f} MiB",
    ]


def _number(value: float) -> str:
    return "none" if math.isnan(value) else f"{value:.2f}"


if __name__ == "__main__":
    typer.run(main)
