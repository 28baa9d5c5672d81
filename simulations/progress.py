"""Progress of long work on the terminal: stages with a bar, what is being done, and an ETA."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Stages"]


class Stages:
    """Shows one bar per stage; a stage that is done stays, with its time.

    Args:
        console: where; None shows nothing.
    """

    def __init__(self, console: Console | None) -> None:
        self._console = console

    @contextmanager
    def stage(self, name: str) -> Iterator[Callable[..., None]]:
        """Open a stage; call the result with (done, total) or (done, total, detail)."""
        if self._console is None:
            yield lambda *_: None
            return
        columns = (
            TextColumn("{task.description:<44}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("eta"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
        )
        with Progress(*columns, console=self._console) as progress:
            bar = progress.add_task(name, total=None, detail="")

            def update(done: int, total: int, detail: str = "") -> None:
                progress.update(bar, completed=done, total=total, detail=detail)

            yield update
            total = progress.tasks[bar].total
            progress.update(bar, completed=total, detail="")
