"""Scores of many customers: some at a time, the same as at once; of some; about a part."""

from collections import Counter
from dataclasses import fields, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from client import score as module
from client.customers_file import read_customers
from client.score import Asked, score_parts, score_silo
from client.score_file import write_scores
from client.score_settings import score_settings
from silotune.errors import ConfigError, DataError, NoExamplesError
from silotune.tables.keyed_hash import hash_id
from silotune.tables.synthetic import raw_user_id
from silotune.tasks.base import ListsProducts
from silotune.tasks.product_rating import ProductRating
from silotune.tasks.registry import TASKS as REGISTERED
from tests.client.scoring import CHURN, DATE, PROMOTION, SEGMENT, SPAN, TASKS, exported


@pytest.fixture
def settings_of(silo, tmp_path):
    def settings(task):
        exported(task, tmp_path / task.name)
        return score_settings(silo.path, task.name, adapter=tmp_path / task.name)

    return settings


def written(silo, settings, asked, out, **options):
    write_scores(score_parts(settings, silo, asked, **options), settings, out)
    return pq.read_table(out)


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("own", [False, True], ids=["date", "test examples"])
def test_some_customers_at_a_time_give_the_same_file_as_all_at_once(
    silo, settings_of, tmp_path, task, own
):
    settings = settings_of(task)
    asked = Asked(own_examples=own, as_of=None if own else DATE)
    one, three = tmp_path / "1.parquet", tmp_path / "3.parquet"
    write_scores([score_silo(settings, silo, asked)], settings, one, with_labels=own)
    parts = score_parts(settings, silo, asked, customers_at_once=3)
    told = write_scores(parts, settings, three, with_labels=own)
    whole, found = pq.read_table(one), pq.read_table(three)
    assert pq.ParquetFile(three).num_row_groups >= 5
    assert found.schema.equals(whole.schema, check_metadata=True)
    names = [*task.objective.score_names]
    assert found.drop_columns(names).equals(whole.drop_columns(names))
    for name in names:
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-5)
    assert told.rows == whole.num_rows > 10


@pytest.mark.parametrize("name", sorted(REGISTERED))
def test_every_task_is_scored_at_a_date_and_each_row_has_a_name(silo, tmp_path, name):
    known = {field.name for field in fields(REGISTERED[name])}
    weeks = {"horizon_days": 7} if "horizon_days" in known else {}
    classes = ("apples", "milk", "bread", "cheese")
    weeks |= {"classes": classes} if "classes" in known else {}
    task = REGISTERED[name](**SPAN, **weeks, category_level=2)
    exported(task, tmp_path / "a")
    settings = score_settings(silo.path, name, adapter=tmp_path / "a")
    customers = _users(silo)[:4]
    asked = Asked(as_of=DATE, customers=customers, most=3)
    if isinstance(task, ListsProducts):
        # Of products: nobody's, and each once.
        for wrong in (asked, Asked(most=3)):
            with pytest.raises(ConfigError, match=r"of no customer. Leave it out"):
                score_silo(settings, silo, wrong)
        table = written(silo, settings, Asked(as_of=DATE), tmp_path / "s.parquet")
        assert "user_id" not in table.column_names
        assert len(set(table["item_id"].to_pylist())) == table.num_rows > 1
        return
    table = written(silo, settings, asked, tmp_path / "s.parquet", customers_at_once=3)
    keys = table.drop_columns([*task.objective.score_names]).to_pylist()
    assert len({tuple(row.values()) for row in keys}) == table.num_rows > 1
    counts = Counter(row["user_id"] for row in keys)
    assert set(counts) <= set(customers)
    assert max(counts.values()) <= 3


def test_parts_shrink_to_what_memory_was_meant_to_hold(silo, settings_of, monkeypatch):
    settings = settings_of(PROMOTION)
    rows = len(score_silo(settings, silo, Asked(as_of=DATE)).rows)
    each = rows // 18
    monkeypatch.setattr(module, "_FIRST_CUSTOMERS", 2)
    monkeypatch.setattr(module, "_ROWS_AT_ONCE", 5 * each)
    steps = []
    parts = list(
        score_parts(settings, silo, Asked(as_of=DATE), progress=lambda *step: steps.append(step))
    )
    assert [len(p.rows) // each for p in parts] == [2, 5, 5, 5, 1]
    assert steps == sorted(steps)
    assert steps[-1] == (18, 18)


def test_a_cap_asks_about_what_the_customer_bought_most(silo, settings_of):
    settings = settings_of(PROMOTION)
    whole = score_silo(settings, silo, Asked(as_of=DATE))
    few = score_silo(settings, silo, Asked(as_of=DATE, most=3))

    def by_customer(scored):
        found = {}
        for i in scored.rows:
            keys = scored.examples.keys
            row = (keys["category"][i], keys["offer_start"][i], keys["offer_end"][i])
            visits = scored.examples.numeric_EF[i, 0]
            found.setdefault(keys["user_id"][i], {})[row] = (visits, scored.examples.text[i])
        return found

    everything, some = by_customer(whole), by_customer(few)
    assert list(some) == list(everything)
    for user, rows in some.items():
        assert len(rows) == 3 < len(everything[user])
        # The same question in the same words.
        assert rows.items() <= everything[user].items()
        often = sorted((v for v, _ in everything[user].values()), reverse=True)[:3]
        assert sorted((v for v, _ in rows.values()), reverse=True) == often
    # Of what they never bought, customers are not all asked about the same.
    offers = len(next(iter(everything.values())))
    more = by_customer(score_silo(settings, silo, Asked(as_of=DATE, most=offers - 1)))
    assert len({row for user in more for row in everything[user].keys() - more[user]}) > 1


def test_the_customers_of_a_file_are_scored_and_no_others(silo, settings_of, tmp_path):
    settings = settings_of(CHURN)
    whole = written(silo, settings, Asked(as_of=DATE), tmp_path / "all.parquet")
    # A file of scores is a file of customers.
    pq.write_table(whole.slice(2, 3), tmp_path / "three.parquet")
    customers = read_customers(tmp_path / "three.parquet", silo)
    asked = Asked(as_of=DATE, customers=customers)
    found = written(silo, settings, asked, tmp_path / "found.parquet")
    expected = whole.slice(2, 3)
    assert found.drop_columns("score").equals(expected.drop_columns("score"))
    np.testing.assert_allclose(found["score"], expected["score"], rtol=1e-5)
    assert len(score_silo(settings, silo, asked).rows) == 3


def test_a_customer_who_only_rates_is_a_customer(silo, settings_of, tmp_path):
    with silo.connect() as connection:
        (someone,) = connection.execute("SELECT min(user_id) FROM ratings").fetchone()
    events = pq.read_table(silo.path / "events.parquet")
    pq.write_table(events.filter(pc.field("user_id") != someone), silo.path / "events.parquet")
    path = tmp_path / "one.parquet"
    pq.write_table(pa.table({"user_id": [someone]}), path)
    assert read_customers(path, silo) == [someone]
    settings = settings_of(ProductRating(**SPAN))
    found = written(silo, settings, Asked(as_of=SPAN["last"]), tmp_path / "s.parquet")
    assert someone in found["user_id"].to_pylist()


def test_customers_may_have_the_merchants_own_ids(silo, tmp_path):
    key = (silo.path / "user.key").read_bytes()
    with silo.connect() as connection:
        known = {u for (u,) in connection.execute("SELECT user_id FROM events").fetchall()}
    own = [raw_user_id(i) for i in range(50) if hash_id(raw_user_id(i), key=key) in known]
    assert len(own) > 5
    path = tmp_path / "c.parquet"
    pq.write_table(pa.table({"name": ["x"] * 4, "user_id": [*own[:3], own[0]]}), path)
    found = read_customers(path, silo)
    assert found == sorted({hash_id(i, key=key) for i in own[:3]})


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"user": ["a"]}, "has no column 'user_id'"),
        ({"user_id": pa.array([], pa.string())}, "has no rows"),
        ({"user_id": ["{known}", "secret", None]}, r"2 values .* \(first at row 2\)"),
    ],
)
def test_a_file_of_strangers_is_refused_without_naming_them(silo, tmp_path, table, words):
    with silo.connect() as connection:
        [(known,)] = connection.execute("SELECT min(user_id) FROM events").fetchall()
    path = tmp_path / "c.parquet"
    table = {
        n: [known if x == "{known}" else x for x in v] if n == "user_id" and len(v) else v
        for n, v in table.items()
    }
    pq.write_table(pa.table(table), path)
    with pytest.raises(ConfigError, match=words) as caught:
        read_customers(path, silo)
    assert "secret" not in str(caught.value)
    path.write_text("user_id\n1\n")
    with pytest.raises(ConfigError, match="cannot be read as Parquet"):
        read_customers(path, silo)


def test_an_error_halfway_leaves_the_file_that_was_there(silo, settings_of, tmp_path):
    settings = settings_of(PROMOTION)
    out = tmp_path / "s" / "scores.parquet"
    asked = Asked(as_of=DATE)
    written(silo, settings, asked, out)
    before = out.read_bytes()

    def halfway(error):
        parts = score_parts(settings, silo, asked, customers_at_once=4)
        yield next(parts)
        yield next(parts)
        raise error

    for error in (DataError("no numbers"), KeyboardInterrupt("stop"), OSError("cache")):
        # An error of the tables is not told as one of the file.
        with pytest.raises(type(error), match=str(error)):
            write_scores(halfway(error), settings, out)
        assert out.read_bytes() == before
        assert [p.name for p in out.parent.iterdir()] == [out.name]


def test_customers_whom_nothing_can_be_asked_are_passed_over(silo, settings_of, tmp_path):
    # Few are active: of most customers there is nothing, of the silo there is.
    task = replace(SEGMENT, active_days=1)
    exported(task, tmp_path / "a")
    settings = score_settings(silo.path, task.name, adapter=tmp_path / "a")
    asked = Asked(as_of=DATE)
    whole = score_silo(settings, silo, asked)
    parts = list(score_parts(settings, silo, asked, customers_at_once=1))
    assert 0 < len(parts) < 18
    users = [u for p in parts for u in p.examples.keys["user_id"]]
    assert users == list(whole.examples.keys["user_id"])
    nobody = [u for u in _users(silo) if u not in users]
    with pytest.raises(NoExamplesError, match="Ask about a date that the tables"):
        list(score_parts(settings, silo, Asked(as_of=DATE, customers=nobody)))


def _users(silo):
    with silo.connect() as connection:
        return [u for (u,) in connection.execute("SELECT DISTINCT user_id FROM events").fetchall()]
