"""Which customers a merchant wants scored: a Parquet file with a column of their ids."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from silotune.errors import ConfigError
from silotune.tables.keyed_hash import hash_id
from silotune.tables.ratings import seen
from silotune.tables.silo_folder import SiloFolder

__all__ = ["read_customers"]

_COLUMN = "user_id"


def read_customers(path: Path, silo: SiloFolder) -> list[str]:
    """Return the keyed hashes of the customers that ``path`` names, in order, each once.

    Its column ``user_id`` holds keyed hashes, as a file of scores does, or the merchant's own
    ids, which are hashed here with the silo's key. Other columns are not read.

    Raises:
        ConfigError: the file cannot be read or has no such column; an id is empty, or nobody of
            the silo; it names the row, never the id.
    """
    try:
        has_ids = _COLUMN in pq.read_schema(path).names
        table = pq.read_table(path, columns=[_COLUMN] if has_ids else [])
    except (OSError, pa.ArrowException) as error:
        first = str(error).splitlines()[0] if str(error) else "?"
        raise ConfigError(f"{path}: cannot be read as Parquet ({first}).") from error
    if not has_ids:
        raise ConfigError(f"{path}: has no column '{_COLUMN}'.")
    with silo.connect() as connection:
        rows = connection.execute(f"SELECT DISTINCT user_id FROM ({seen(silo)})").fetchall()  # noqa: S608
    known = {user for (user,) in rows}
    key = (silo.path / "user.key").read_bytes()
    ids = table[_COLUMN].cast(pa.string()).to_pylist()
    found = [i if i in known else hash_id(i or "", key=key) for i in ids]
    strangers = [row for row, user in enumerate(found, start=1) if user not in known]
    if strangers:
        raise ConfigError(
            f"{path}: column '{_COLUMN}' has {len(strangers):,} values that are no customer of "
            f"{silo.path} (first at row {strangers[0]:,}): neither one of its keyed hashes nor an "
            "id that its events were imported with. Take them out."
        )
    if not found:
        raise ConfigError(f"{path}: has no rows. Leave --customers out to score everyone.")
    return sorted(set(found))
