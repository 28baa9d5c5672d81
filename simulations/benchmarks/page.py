"""Rewrites the generated tables of docs/performance.md and leaves every other line alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from simulations.benchmarks.harness import BenchmarkError

__all__ = ["write_table"]


def write_table(
    page: Path, name: str, header: Sequence[str], rows: Mapping[str, Sequence[str]]
) -> None:
    """Put ``rows`` into the table ``name`` of ``page``.

    The table lies between the lines ``<!-- table NAME: begin -->`` and ``<!-- table NAME: end
    -->``. A row of the same first cell is replaced where it stands, a new one goes to the end, and
    one that was not measured now stays.

    Args:
        page: Markdown file.
        name: of the table.
        header: column titles; when they differ from the page's, old rows are dropped.
        rows: by first cell; the other cells of each.

    Raises:
        BenchmarkError: the page lacks one of the two lines, or has one twice.
    """
    text = page.read_text(encoding="utf-8")
    before, old, after = _parts(page, text, name)
    lines = [line.strip() for line in old.splitlines() if line.strip()]
    kept: dict[str, Sequence[str]] = {}
    if lines and _cells(lines[0]) == list(header):
        kept = {cells[0]: cells[1:] for cells in map(_cells, lines[2:])}
    kept |= {_clean(key): [_clean(c) for c in cells] for key, cells in rows.items()}
    table = [_line(header), _line(["---"] * len(header))]
    table += [_line([key, *cells]) for key, cells in kept.items()]
    page.write_text(before + "\n" + "\n".join(table) + "\n" + after, encoding="utf-8")


def _parts(page: Path, text: str, name: str) -> tuple[str, str, str]:
    begin, end = (f"<!-- table {name}: {what} -->" for what in ("begin", "end"))
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise BenchmarkError(f"{page}: must hold '{begin}' and '{end}' once each, in this order.")
    before, rest = text.split(begin)
    old, after = rest.split(end)
    return before + begin, old, end + after


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _clean(cell: str) -> str:
    return " ".join(cell.replace("|", "/").split())


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
