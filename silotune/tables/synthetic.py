"""Synthetic merchants: silo folders of any number and size, with planted preferences.

People have tastes, brands they are loyal to, a sensitivity to price, and goods they run out of at
their own pace; promotions draw by depth and place. `synthetic_world` says who people and merchants
are, `synthetic_events` what they do, `synthetic_ratings` what they think of it. One block of
people at a time is in memory.
"""

import hashlib
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from silotune.tables.silo_folder import SiloInfo, write_silo
from silotune.tables.staging import sql_path, staged_folder
from silotune.tables.synthetic_events import KINDS, Events, simulate
from silotune.tables.synthetic_ratings import rate
from silotune.tables.synthetic_words import AGES, BRANDS, PLACEMENTS
from silotune.tables.synthetic_world import (
    Catalogue,
    Ints,
    Merchant,
    People,
    SyntheticConfig,
    generator,
    make_catalogue,
    make_merchant,
    people_of,
)

__all__ = ["START", "SyntheticConfig", "generate", "raw_user_id"]

START = datetime(2024, 1, 1)  # noqa: DTZ001 - UTC, no zone
"""First moment of the history, a Monday."""

_VISITS_IN_MEMORY = 60_000


def raw_user_id(person: int) -> str:
    """Return the id that person number ``person`` has at every merchant, before hashing."""
    return f"person-{person}"


def generate(
    settings: SyntheticConfig,
    out: Path,
    progress: Callable[[int, int], None] | None = None,
    *,
    seeded_keys: bool = False,
) -> list[SiloInfo]:
    """Write ``settings.merchants`` silo folders ``out/merchant-0001``… and return their infos.

    Args:
        settings: what to make.
        out: folder to make; it appears when all silos are written.
        progress: called with (silos written, silos in all).
        seeded_keys: derive each silo's user key from the seed, so that the files are the same in
            every run. Anyone can then undo the hashes: right for made-up people only.

    Raises:
        DataError: ``out`` exists or cannot be made.
    """
    catalogue = make_catalogue(settings)
    width = max(4, len(str(settings.merchants)))
    infos = []
    with staged_folder(out) as stage, duckdb.connect() as con:
        con.execute("SET memory_limit = '2GiB'")
        con.execute("SET enable_progress_bar = false")
        con.execute(f"SET temp_directory = {sql_path(stage / '.spill')}")
        for number in range(settings.merchants):
            merchant = make_merchant(settings, catalogue, number)
            events, users = stage / ".events.parquet", stage / ".users.parquet"
            _write_people(settings, catalogue, merchant, events, users)
            con.register("items", _items(catalogue, merchant))
            con.register("promotions", _promotions(catalogue, merchant))
            name = f"merchant-{number + 1:0{width}}"
            info = write_silo(
                con,
                {
                    "events": f"FROM read_parquet({sql_path(events)})",
                    "items": "FROM items",
                    "promotions": "FROM promotions",
                    "users": f"FROM read_parquet({sql_path(users)})",
                },
                stage / name,
                name=name,
                nominal_users=settings.users_per_merchant,
                key=_seeded_key(settings, number) if seeded_keys else None,
            )
            infos.append(info)
            events.unlink()
            users.unlink()
            if progress is not None:
                progress(number + 1, settings.merchants)
    return infos


def _seeded_key(settings: SyntheticConfig, merchant: int) -> bytes:
    return hashlib.sha256(f"silotune synthetic {settings.seed} {merchant}".encode()).digest()


def _write_people(
    settings: SyntheticConfig, catalogue: Catalogue, merchant: Merchant, events: Path, users: Path
) -> None:
    schema = _EVENT_SCHEMA.append(_RATING) if settings.rated else _EVENT_SCHEMA
    with (
        pq.ParquetWriter(events, schema, compression="lz4") as event_file,
        pq.ParquetWriter(users, _USER_SCHEMA, compression="lz4") as user_file,
    ):
        for number, people in enumerate(_bounded(settings, catalogue, merchant)):
            rng = generator(settings, "events", merchant.number, number)
            done = simulate(settings, catalogue, merchant, people, rng)
            rows = _event_rows(catalogue, people, done)
            if settings.rated:
                # A stream of its own: everything else is as it is without ratings.
                rng = generator(settings, "ratings", merchant.number, number)
                given, stars = rate(settings, catalogue, people, done, rng)
                given_rows = _event_rows(catalogue, people, given)
                event_file.write_table(given_rows.append_column(_RATING, pa.array(stars)))
                rows = rows.append_column(_RATING, pa.nulls(len(rows), pa.float64()))
            event_file.write_table(rows)
            user_file.write_table(_user_rows(people))


def _bounded(
    settings: SyntheticConfig, catalogue: Catalogue, merchant: Merchant
) -> Iterator[People]:
    """Yield the merchant's people, few enough at a time for their visits to fit in memory."""
    size = max(1, int(_VISITS_IN_MEMORY / settings.visits_per_user))
    for people in people_of(settings, catalogue, merchant.number):
        for start in range(0, len(people.number_U), size):
            yield people[start : start + size]


_EVENT_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("kind", pa.string()),
        ("time", pa.timestamp("us")),
        ("visit_id", pa.string()),
        ("quantity", pa.float64()),
        ("price", pa.float64()),
        ("discount", pa.float64()),
    ]
)
_RATING = pa.field("rating", pa.float64())
_USER_SCHEMA = pa.schema([("user_id", pa.string()), ("age", pa.string())])


def _taken(words: list[str], index: Ints) -> pa.Array:
    return pa.array(words, pa.string()).take(pa.array(index))


def _user_ids(people: People) -> list[str]:
    return [raw_user_id(number) for number in people.number_U.tolist()]


def _item_id(item: int) -> str:
    return f"item-{item:05}"


def _event_rows(catalogue: Catalogue, people: People, events: Events) -> pa.Table:
    ids = _user_ids(people)
    micros = np.datetime64(START, "us") + events.second_R.astype("timedelta64[s]")
    # One text per visit, not per row.
    visits = int(events.visit_R.max(initial=0)) + 1
    pairs, row = np.unique(events.user_R * visits + events.visit_R, return_inverse=True)
    names = [f"{ids[pair // visits]}/{pair % visits}" for pair in pairs.tolist()]
    return pa.table(
        [
            _taken(ids, events.user_R),
            _taken([_item_id(i) for i in range(len(catalogue.titles))], events.item_R),
            _taken(list(KINDS), events.kind_R),
            pa.array(micros),
            _taken(names, row),
            *(
                pa.array(values, from_pandas=True)  # NaN is an empty value
                for values in (events.quantity_R, events.price_R, events.discount_R)
            ),
        ],
        schema=_EVENT_SCHEMA,
    )


def _user_rows(people: People) -> pa.Table:
    # As in practice, not everyone tells: every fourth person has no age.
    age_U = [AGES[a] if n % 4 else None for a, n in zip(people.age_U, people.number_U, strict=True)]
    return pa.table([_user_ids(people), age_U], schema=_USER_SCHEMA)


def _items(catalogue: Catalogue, merchant: Merchant) -> pa.Table:
    sold = merchant.items_S.tolist()
    return pa.table(
        {
            "item_id": [_item_id(item) for item in sold],
            "title": [catalogue.titles[item] for item in sold],
            "category": [catalogue.path(catalogue.category_I[item]) for item in sold],
            "brand": [BRANDS[catalogue.brand_I[item]] for item in sold],
            "size": [catalogue.sizes[item] for item in sold],
        }
    )


def _promotions(catalogue: Catalogue, merchant: Merchant) -> pa.Table:
    rows = merchant.promotions
    return pa.table(
        {
            "item_id": pa.array(
                [_item_id(t) if t >= 0 else None for _, t, _, _ in rows], pa.string()
            ),
            "category": pa.array(
                [None if t >= 0 else catalogue.path(-1 - t) for _, t, _, _ in rows], pa.string()
            ),
            "start": pa.array([START + timedelta(weeks=w) for w, *_ in rows], pa.timestamp("us")),
            "end": pa.array([START + timedelta(weeks=w + 1) for w, *_ in rows], pa.timestamp("us")),
            "placement": [PLACEMENTS[place].name for _, _, place, _ in rows],
            "mechanic": [PLACEMENTS[place].mechanic for _, _, place, _ in rows],
            "depth": pa.array([depth for *_, depth in rows], pa.float64()),
        }
    )
