"""Importing a merchant's own tables as a silo folder: all of them, or nothing."""

from collections.abc import Callable
from pathlib import Path

from silotune.errors import DataError
from silotune.tables.checks import check_stage
from silotune.tables.local_work import Cancellable, explain_full_disk
from silotune.tables.problems import Report
from silotune.tables.readers import Progress, read_source
from silotune.tables.silo_folder import SiloInfo, write_silo

__all__ = ["import_tables"]


def import_tables(
    source: str | Path,
    out: Path,
    *,
    name: str,
    nominal_users: int,
    schema: str | None = None,
    key: bytes | None = None,
    progress: Progress | None = None,
    on_report: Callable[[Report], None] | None = None,
) -> SiloInfo:
    """Check the tables of ``source`` and write them as the silo folder ``out``.

    The folder appears when everything is in it. On an error, an interruption or a full disk
    nothing of it is left; working files lie beside it meanwhile.

    Args:
        source: a folder of Parquet or CSV files, or ``postgresql://…``; see `readers`.
        out: the folder to make.
        name: public name of the silo.
        nominal_users: number of users the merchant declares, > 0. Public.
        schema: schema of the database's tables; None: named in the address, or its default.
        key: 32 bytes that hash user ids; None draws them. Keep a silo's key to import it anew.
        progress: called with (parts read, parts in all).
        on_report: given the report before anything is written, for warnings and notes.

    Raises:
        DataError: ``out`` exists, the source cannot be read, or rows are wrong; all errors, one
            a line.
        ConfigError: ``name`` or ``nominal_users`` is refused.
    """
    # Before the hours that reading may take.
    SiloInfo(name=name, nominal_users=nominal_users)
    if out.exists() or out.is_symlink():
        raise DataError(f"{out}: exists already. Name another folder or remove this one.")
    disk = next(folder for folder in out.absolute().parents if folder.is_dir())
    work = Cancellable()

    def run() -> SiloInfo:
        with read_source(
            source, schema=schema, workdir=disk, progress=progress, on_cancel=work.on_cancel
        ) as stage:
            report = check_stage(stage)
            if on_report is not None:
                on_report(report)
            report.raise_if_errors()
            sources = {table: staged.query for table, staged in stage.tables.items()}
            return write_silo(
                stage.connection, sources, out, name=name, nominal_users=nominal_users, key=key
            )

    with explain_full_disk(disk, "nothing was imported."):
        return work.run(run)
