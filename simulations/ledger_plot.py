"""Plot of a ledger: what was spent, reservation by reservation."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from privacy.ledger_report import LedgerRow
from silotune.errors import ConfigError
from simulations.plan_plot import FORMATS
from simulations.plot_style import HUES, INK, save

__all__ = ["save_ledger_plot"]


def save_ledger_plot(rows: Sequence[LedgerRow], path: Path, *, budget: float | None) -> None:
    """Write ε spent after every reservation to ``path``, a .png, .svg or .pdf file.

    Raises:
        ConfigError: another ending, or a folder that cannot be written to.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"--plot is {path}; its ending must be one of {', '.join(FORMATS)}.")

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.step(
            range(len(rows) + 1), [0.0, *(r.epsilon for r in rows)], where="post", color=HUES[0]
        )
        lost = [(i + 1, r.epsilon) for i, r in enumerate(rows) if r.outcome == "nothing left"]
        if lost:
            axes.plot(*zip(*lost, strict=True), "x", color=HUES[1], label="spent, nothing left")
        if budget is not None:
            axes.axhline(budget, color=INK, linewidth=1, dashes=(4, 3), label=f"budget {budget:g}")
        if lost or budget is not None:
            axes.legend(frameon=False)
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("reservations")
        axes.set_ylabel(f"ε of one user at δ = {rows[-1].delta:g}" if rows else "ε of one user")

    try:
        save(path, 3.2, paint)
    except OSError as error:
        raise ConfigError(f"--plot: {path} cannot be written: {error.strerror}.") from error
