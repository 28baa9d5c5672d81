"""Runs a task's SQL on a silo."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from silotune.tables.silo_folder import SiloFolder

__all__ = ["ALL", "rows_of"]

ALL = 2**31 - 1
"""A cap that caps nothing."""


def rows_of(
    silo: SiloFolder, blocks: Sequence[str], parameters: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """Run ``blocks`` of statements in order; return the rows of the last one, by column.

    Args:
        silo: whose tables are read.
        blocks: statements, each ended by a semicolon and a line break.
        parameters: by the name that a statement has after its dollar sign; a statement gets
            those it names.
    """
    with silo.connect() as connection:
        for block in blocks:
            for statement in block.split(";\n"):
                if statement.strip():
                    # DuckDB refuses parameters that a statement does not name.
                    used = {k: v for k, v in parameters.items() if _uses(statement, k)}
                    result = connection.execute(statement, used)
        columns = [d[0] for d in result.description]
        return [dict(zip(columns, row, strict=True)) for row in result.fetchall()]


def _uses(statement: str, parameter: str) -> bool:
    return re.search(rf"\${parameter}\b", statement) is not None
