"""``silotune client similar``: products that are alike, and products for a query."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from silotune.cli.adapter_options import AdapterOption, RunOption, SiloArgument
from silotune.errors import ConfigError

if TYPE_CHECKING:
    import pyarrow as pa

    from client.score_settings import ScoreSettings
    from client.similar import Shelf
    from silotune.tables.silo_folder import SiloFolder

__all__ = ["add_similar"]


def add_similar(group: typer.Typer) -> None:
    """Add the command to ``silotune client``."""
    group.command("similar")(_similar)


def _similar(
    folder: SiloArgument,
    text: Annotated[
        list[str] | None, typer.Option(help="A query in words. May be repeated.")
    ] = None,
    item: Annotated[
        list[str] | None, typer.Option(help="What is like this item? May be repeated.")
    ] = None,
    queries: Annotated[
        Path | None,
        typer.Option(help="Parquet file with a text column 'query'.", show_default=False),
    ] = None,
    judge: Annotated[
        bool,
        typer.Option(help="Of the 10 nearest of held-out products, how many are of their kind?"),
    ] = False,
    nearest: Annotated[int, typer.Option(min=1, help="Products for each query.")] = 10,
    task: Annotated[str, typer.Option(help="Of the adapter.")] = "product-category",
    adapter: AdapterOption = None,
    run: RunOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Parquet file. Default: the terminal; for --queries DIR/scores/similar.parquet.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Find the products of DIR that are nearest to queries, or to other products.

    It stays inside: nothing is released, nothing is charged.
    """
    if sum(map(bool, (text, item, queries, judge))) != 1:
        raise ConfigError("give one of --text, --item, --queries and --judge.")
    from client.score import load_model
    from client.score_settings import score_settings
    from client.similar import refuse_other_names, shelf_of
    from silotune.tables.silo_folder import SiloFolder

    silo = SiloFolder.open(folder)
    settings = score_settings(folder, task, adapter=adapter, run=run)
    if judge:
        refuse_other_names(settings)
    if settings.threads is not None:
        import torch

        torch.set_num_threads(settings.threads)
    model = load_model(settings)
    shelf = shelf_of(settings, silo, model)
    if judge:
        _show_judged(settings, silo, shelf)
        return
    if item:
        asked, vectors = item, shelf.vector_IH[[shelf.position(i) for i in item]]
    else:
        from client.similar import query_vectors

        asked = text or _read_queries(queries or Path())
        vectors = query_vectors(model, asked, shelf.products)
    from client.similar import found_table

    table = found_table(shelf, asked, *shelf.nearest(vectors, nearest))
    path = out or (folder / "scores" / "similar.parquet" if queries else None)
    if path is None:
        _show(table)
        return
    from client.score_file import write_parquet

    write_parquet(table, path)
    typer.echo(f"{path}: {table.num_rows:,} rows, adapter {settings.adapter}.")


def _read_queries(path: Path) -> list[str]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"{path}: cannot be read as Parquet ({error}).") from error
    if "query" not in table.column_names:
        known = ", ".join(table.column_names)
        raise ConfigError(f"{path}: has no column 'query'; it has {known}.")
    found: list[Any] = table["query"].to_pylist()
    wrong = next((n for n, q in enumerate(found, 1) if not isinstance(q, str) or not q), None)
    if wrong is not None or not found:
        where = f"row {wrong} of column 'query' is no text" if wrong else "has no rows"
        raise ConfigError(f"{path}: {where}. Give one query in words for each row.")
    return found


def _show(table: "pa.Table") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=None, header_style="bold")
    for name in ("query", "similarity", "item", "title", "category"):
        shown.add_column(name, justify="right" if name == "similarity" else "left")
    for row in table.to_pylist():
        words = (row["item_id"], row["title"], row["category"])
        query = row["query"] if row["rank"] == 1 else ""
        shown.add_row(Text(query), f"{row['similarity']:.3f}", *map(Text, words))
    Console().print(shown)


def _show_judged(settings: "ScoreSettings", silo: "SiloFolder", shelf: "Shelf") -> None:
    from client.similar import judge, shelf_of
    from silotune.models.text_model import TextModel

    task = settings.task
    frozen = TextModel(
        settings.model,
        numeric_size=len(task.numeric_names),
        outputs=task.outputs,
        public_texts=task.public_texts(),
    )
    before = shelf_of(settings, silo, frozen)
    for level in (1, 2):
        found = judge(before, shelf, level=level)
        typer.echo(
            f"Level {level} of the category, {found.names:,} held-out names: {found.adapted:.1%} "
            f"of the 10 nearest are of the same one; frozen encoder {found.frozen:.1%} "
            f"(difference ± {found.error:.1%}), at random {found.chance:.1%}."
        )
