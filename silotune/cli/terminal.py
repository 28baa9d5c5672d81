"""What commands show: results on standard output, progress and problems on standard error."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from silotune.tables.problems import Problem

__all__ = ["progress_bar", "show_problems"]

_STYLES = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@contextmanager
def progress_bar(label: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function of (steps done, steps in all) that moves a bar on standard error.

    Yields None, and shows nothing, when ``quiet`` or when no one watches.
    """
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True
    ) as bars:
        task = bars.add_task(label, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def show_problems(problems: "list[Problem]", *, stderr: bool = False) -> None:
    """Print each problem on a line of its own, its severity first."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=stderr)
    for problem in problems:
        # `Text`: brackets in a value are no markup. Not wrapped: a line is one problem.
        head = Text(f"{problem.severity}: ", style=_STYLES[problem.severity])
        console.print(head + Text(str(problem)), soft_wrap=True, highlight=False)
