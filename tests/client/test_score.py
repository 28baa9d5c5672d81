"""Scores for a merchant: right, of what is asked, and nowhere but in its own file."""

import datetime as dt
import json
from dataclasses import replace

import duckdb
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from client.score import Asked, score_silo
from client.score_file import write_scores
from client.score_settings import score_settings
from silotune.errors import DataError
from silotune.tasks.discounts import DiscountResponse
from silotune.tasks.product_rating import ProductRating
from silotune.tasks.registry import TASKS as REGISTERED
from tests.client.scoring import (
    CHURN,
    DATE,
    PROMOTION,
    SEGMENT,
    SPAN,
    TASKS,
    exported,
    score,
)

WEEKS = {
    name: {"horizon_days": 7} for name in ("customer-churn", "customer-segment", "item-interest")
} | {"product-category": {"classes": ("apples", "milk", "bread", "cheese")}}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_scores_are_what_the_exported_head_gives_for_each_row(task, silo, tmp_path):
    exported(task, tmp_path / "a")
    table = score(silo, task.name, tmp_path / "a", tmp_path / "s.parquet", as_of=DATE)
    from safetensors.torch import load_file

    head = {k: v.double().numpy() for k, v in load_file(tmp_path / "a/head.safetensors").items()}
    examples = task.build_at(silo, DATE)
    logits = examples.numeric_EF @ head["weight"].T + head["bias"]
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = ["at risk", "regular", "high value"]
    if task is not SEGMENT:
        expected, names = 1 / (1 + np.exp(-logits)), ["score"]
    found = np.stack([table[n].to_numpy() for n in names], axis=1)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.ptp(found) > 0.05
    assert table["user_id"].to_pylist() == list(examples.keys["user_id"])
    assert np.isnan(examples.label_EK).all()
    assert table.column_names == [*examples.keys, *names]


def test_every_active_customer_is_asked_about_once_and_no_other(silo, tmp_path):
    exported(CHURN, tmp_path / "a")
    table = score(silo, CHURN.name, tmp_path / "a", tmp_path / "s.parquet", as_of=DATE)
    with silo.connect() as connection:
        active = connection.execute(
            "SELECT user_id FROM events WHERE kind IN ('purchase', 'redeem') AND time < $date "
            "GROUP BY user_id HAVING count(DISTINCT visit_id) >= 3 "
            "AND max(time) >= $date - INTERVAL 56 DAY ORDER BY user_id",
            {"date": DATE},
        ).fetchall()
    assert table["user_id"].to_pylist() == [u for (u,) in active]
    assert set(table["date"].to_pylist()) == {DATE}
    assert len(active) > 8


def test_every_offer_that_runs_is_asked_about_for_every_customer(silo, tmp_path):
    exported(PROMOTION, tmp_path / "a")
    table = score(silo, PROMOTION.name, tmp_path / "a", tmp_path / "s.parquet", as_of=DATE)
    with silo.connect() as connection:
        users = connection.execute(
            "SELECT count(DISTINCT user_id) FROM events WHERE time < $1", [DATE]
        ).fetchall()[0][0]
    rows = list(zip(*(table[c].to_pylist() for c in table.column_names[:-1]), strict=True))
    assert len(set(rows)) == len(rows)
    offers = {r[2:] for r in rows}
    assert len(rows) == users * len(offers)
    assert len(offers) > 3
    assert all(begin <= DATE < end for _, begin, end in offers)
    assert table.column_names[:2] == ["user_id", "time"]


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_happens_later_changes_no_score(task, silo, tmp_path):
    exported(task, tmp_path / "a")
    before = score(silo, task.name, tmp_path / "a", tmp_path / "1.parquet", as_of=DATE)
    events = silo.path / "events.parquet"
    with duckdb.connect() as connection:
        connection.execute(
            f"COPY (SELECT * REPLACE (CASE WHEN time >= TIMESTAMP '{DATE}' "
            "THEN time + INTERVAL 3 DAY ELSE time END AS time, "
            f"CASE WHEN time >= TIMESTAMP '{DATE}' THEN price * 7 ELSE price END AS price) "
            f"FROM read_parquet('{events}')) TO '{events}.new' (FORMAT parquet)"
        )
    events.with_name("events.parquet.new").replace(events)
    after = score(silo, task.name, tmp_path / "a", tmp_path / "2.parquet", as_of=DATE)
    assert after.equals(before)
    end = score(silo, task.name, tmp_path / "a", as_of=DATE + dt.timedelta(days=20))
    assert end.score_EK.tolist() != before[before.column_names[-1]].to_pylist()


def test_labels_are_those_of_the_tasks_own_test_examples(silo, tmp_path):
    exported(SEGMENT, tmp_path / "a")
    table = score(silo, SEGMENT.name, tmp_path / "a", tmp_path / "s.parquet", labels=True)
    examples = SEGMENT.build(silo)
    names = SEGMENT.objective.names
    labels = [names[k] for k in examples.label_EK[examples.test_E].argmax(1)]
    assert table["label"].to_pylist() == labels
    assert min(table["date"].to_pylist()) >= SEGMENT.split
    assert len(set(labels)) > 1
    exported(PROMOTION, tmp_path / "b")
    table = score(silo, PROMOTION.name, tmp_path / "b", tmp_path / "p.parquet", labels=True)
    examples = PROMOTION.build(silo)
    assert table["label"].to_pylist() == examples.label_EK[examples.test_E, 0].tolist()
    assert "visit_id" in table.column_names


def test_without_a_date_the_end_of_the_tables_is_meant(silo, tmp_path):
    exported(CHURN, tmp_path / "a")
    scored = score(silo, CHURN.name, tmp_path / "a")
    with silo.connect() as connection:
        times = "SELECT time FROM events UNION ALL SELECT time FROM ratings"
        last = connection.execute(f"SELECT max(time) FROM ({times})").fetchall()[0][0]
    assert scored.date == last + dt.timedelta(microseconds=1)


def test_text_goes_through_the_adapted_layers_and_the_prefix_store(silo, tmp_path):
    from client.prepared import Work, load_or_prepare, prepare
    from silotune.models.adapter import LoraSettings

    cfg = {"use_text": True, "precision": "float32", "prefix_cache": "on"}
    cfg |= {"lora": LoraSettings(rank=2, top_layers=1)}
    model = exported(CHURN, tmp_path / "a", **cfg)
    # Stored by training; the date is one of the task's own.
    load_or_prepare(silo, CHURN, model)
    date = CHURN.split
    settings = score_settings(silo.path, CHURN.name, adapter=tmp_path / "a")
    assert settings.model == model.cfg
    scored = score_silo(settings, silo, Asked(as_of=date))
    examples, work = CHURN.build_at(silo, date), Work()
    direct = prepare(examples, model)
    expected = CHURN.objective.scores(direct.scores(model, scored.rows))
    np.testing.assert_allclose(scored.score_EK, expected, atol=1e-4)
    prepare(examples, model, silo.path / "cache", passes=1.0, work=work)
    assert work.texts_run == 0


def test_the_file_is_private_whole_and_says_what_it_is_of(silo, tmp_path):
    exported(CHURN, tmp_path / "a")
    out = tmp_path / "new" / "scores.parquet"
    score(silo, CHURN.name, tmp_path / "a", out, as_of=DATE)
    assert out.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in out.parent.iterdir()] == ["scores.parquet"]
    about = json.loads(pq.read_schema(out).metadata[b"silotune"])
    assert (about["task"], about["as_of"]) == (CHURN.name, DATE.isoformat())
    first = out.read_bytes()
    settings = score_settings(silo.path, CHURN.name, adapter=tmp_path / "a")
    scored = score_silo(settings, silo, Asked(as_of=DATE))
    keys = dict(scored.examples.keys) | {"broken": [object()] * len(scored.examples)}
    broken = replace(scored, examples=replace(scored.examples, keys=keys))
    with pytest.raises(Exception, match="object"):
        write_scores([scored, broken], settings, out)
    assert out.read_bytes() == first
    assert [p.name for p in out.parent.iterdir()] == ["scores.parquet"]


def test_scoring_touches_no_ledger_and_charges_nothing(silo, tmp_path):
    exported(CHURN, tmp_path / "a")
    before = {p.name for p in silo.path.iterdir()}
    score(silo, CHURN.name, tmp_path / "a", tmp_path / "s.parquet", as_of=DATE)
    assert {p.name for p in silo.path.iterdir()} - before <= {"cache"}


def test_tables_without_events_are_refused(silo, tmp_path):
    exported(CHURN, tmp_path / "a")
    events = silo.path / "events.parquet"
    pq.write_table(pq.read_table(events).slice(0, 0), events)
    (silo.path / "ratings.parquet").unlink()
    with pytest.raises(DataError, match=r"events\.parquet: has no rows"):
        score(silo, CHURN.name, tmp_path / "a")


def test_an_adapter_that_blows_up_gives_no_file(silo, tmp_path):
    model = exported(SEGMENT, tmp_path / "a")
    flat = torch.full((model.layout.size,), 3e38)
    save_file({"flat": flat}, tmp_path / "a.safetensors", {"layout": model.layout.digest})
    settings = replace(
        score_settings(silo.path, SEGMENT.name, adapter=tmp_path / "a"),
        adapter=tmp_path / "a.safetensors",
    )
    with pytest.raises(DataError, match="no numbers"):
        score_silo(settings, silo, Asked(as_of=DATE))


def test_a_response_to_a_discount_is_told_with_what_it_adds(silo, tmp_path):
    task = DiscountResponse(**SPAN, category_level=2)
    exported(task, tmp_path / "a")
    table = score(silo, task.name, tmp_path / "a", tmp_path / "s.parquet", labels=True)
    assert table.column_names == [
        *("user_id", "visit_id", "time", "category", "offer_start", "offer_end", "depth"),
        *("score", "slope", "label", "dose"),
    ]
    assert table.num_rows > 20
    assert min(table["slope"].to_pylist()) > 0
    assert len(set(table["dose"].to_pylist())) > 1


def test_a_rating_is_told_as_its_place_on_the_scale(silo, tmp_path):
    task = ProductRating(**SPAN)
    exported(task, tmp_path / "a")
    table = score(silo, task.name, tmp_path / "a", tmp_path / "s.parquet", labels=True)
    assert table.column_names == ["user_id", "time", "item_id", "title", "score", "label"]
    assert 2 < len(set(table["label"].to_pylist())) <= 5
    assert set(table["label"].to_pylist()) <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert 0 <= min(table["score"].to_pylist()) < max(table["score"].to_pylist()) <= 1
    assert min(table["time"].to_pylist()) >= task.split


@pytest.mark.parametrize("name", sorted(REGISTERED))
def test_every_task_says_whose_its_examples_are(name, silo):
    examples = REGISTERED[name](**SPAN, **WEEKS.get(name, {}), category_level=2).build(silo)
    with silo.connect() as connection:
        known = {u for (u,) in connection.execute("SELECT user_id FROM events").fetchall()}
    assert next(iter(examples.keys)) == "user_id"
    assert set(examples.keys["user_id"]) <= known
    assert all(len(values) == len(examples) for values in examples.keys.values())
    # A row has a name of its own.
    assert len(set(zip(*examples.keys.values(), strict=True))) == len(examples)
    # The unit of privacy is the user whose name stands there.
    pairs = set(zip(examples.user_E.tolist(), examples.keys["user_id"], strict=True))
    assert len(pairs) == examples.users == len(set(examples.keys["user_id"]))
