"""The two largest stores of Complete Journey, converted once, and its files as SQL."""

import duckdb
import pytest

from silotune.tables import complete_journey
from silotune.tables.complete_journey import convert
from silotune.tables.silo_folder import SiloFolder
from silotune.tables.staging import sql_path

DATA = complete_journey._data_folder()
SOURCE = f"read_parquet({sql_path(DATA / 'transactions.parquet')})"


def ask(query):
    with duckdb.connect() as con:
        return con.execute(query).fetchall()


@pytest.fixture(scope="session")
def journey(tmp_path_factory):
    out = tmp_path_factory.mktemp("journey") / "silos"
    convert(out, merchants=2)
    return out


@pytest.fixture(scope="session", params=["store-381", "store-367"])
def store(journey, request):
    return SiloFolder.open(journey / request.param)


def source_of(silo, what):
    store = silo.info.name.removeprefix("store-")
    return ask(f"SELECT {what} FROM {SOURCE} WHERE store_id = {store} AND quantity > 0")
