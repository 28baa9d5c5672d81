"""Similar products: the nearest are the nearest, queries are answered, and the judge is fair."""

import datetime as dt
from dataclasses import asdict, replace

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from client.score import load_model
from client.score_settings import score_settings
from client.similar import Shelf, found_table, judge, query_vectors, shelf_of
from silotune.cli import main
from silotune.errors import ConfigError, DataError
from silotune.models.adapter import LoraSettings
from silotune.tables.silo_folder import SiloFolder, write_silo
from silotune.tasks.product_category import ProductCategory
from silotune.tasks.registry import task_mapping
from silotune.toml_text import toml_text
from tests.client.scoring import CHURN, exported

TASK = ProductCategory(
    first=dt.datetime.fromisoformat("2024-01-01"),
    split=dt.datetime.fromisoformat("2024-02-01"),
    last=dt.datetime.fromisoformat("2024-03-01"),
    classes=("drinks", "bakery", "toys"),
    held_out=0.4,
)
GOODS = {
    "Drinks > Tea": ("green tea", "black tea", "herbal tea", "iced tea"),
    "Drinks > Beer": ("pale ale", "wheat beer", "lager beer", "stout"),
    "Bakery > Bread": ("rye bread", "wheat bread", "baguette", "white toast"),
    "Toys > Games": ("chess game", "card game", "puzzle", "board game"),
}
ITEMS = [
    (f"{name.replace(' ', '-')}-{size}", f"{name}, {size}", category, None, size)
    for category, names in GOODS.items()
    for name in names
    for size in ("small", "large")
]
TEXT = {"use_text": True, "precision": "float32", "lora": LoraSettings(rank=2, top_layers=1)}


@pytest.fixture(scope="module")
def silo(tmp_path_factory):
    out = tmp_path_factory.mktemp("similar") / "shop"
    text, number, time = "VARCHAR", "DOUBLE", "TIMESTAMP"
    empty = {
        "events": {"user_id": text, "item_id": text, "kind": text, "time": time},
        "promotions": {"item_id": text, "category": text, "start": time, "end": time}
        | {"depth": number},
    }
    with duckdb.connect() as con:
        names = ("item_id", "title", "category", "brand", "size")
        rows = [dict(zip(names, row, strict=True)) for row in ITEMS]
        con.register(
            "items", pa.Table.from_pylist(rows, pa.schema([(n, pa.string()) for n in names]))
        )
        sources = {"items": "SELECT * FROM items"}
        for name, columns in empty.items():
            nulls = ", ".join(f'NULL::{kind} AS "{column}"' for column, kind in columns.items())
            sources[name] = f"SELECT {nulls} WHERE FALSE"
        write_silo(con, sources, out, name="shop", nominal_users=10)
    return SiloFolder.open(out)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter") / "a"
    exported(TASK, folder, **TEXT)
    return folder


@pytest.fixture(scope="module")
def encoders(silo, adapter):
    """Settings, the adapted model, its shelf, and that of the frozen encoder."""
    settings = score_settings(silo.path, TASK.name, adapter=adapter)
    frozen = load_model(settings)
    frozen.load_adapter(torch.zeros(frozen.layout.size))
    before = shelf_of(settings, silo, frozen)
    model = load_model(settings)
    return settings, model, shelf_of(settings, silo, model), before


def test_vectors_are_what_the_head_reads_and_the_adapter_moves_them(encoders, silo):
    from client.prepared import prepare

    _, model, after, before = encoders
    assert np.allclose(np.linalg.norm(after.vector_IH, axis=1), 1, atol=1e-5)
    assert np.abs(after.vector_IH - before.vector_IH).max() > 1e-3
    prepared = prepare(after.products, model)
    head = model.head(
        torch.from_numpy(after.vector_IH), torch.from_numpy(after.products.numeric_EF)
    )
    logits = prepared.scores(model, np.arange(len(after.products)))
    np.testing.assert_allclose(head.detach().numpy(), logits, atol=1e-4)


def test_the_nearest_stand_first_and_a_product_is_nearest_to_itself(encoders):
    _, _, shelf, _ = encoders
    nearest, cosine = shelf.nearest(shelf.vector_IH[[3, 10]], 5)
    assert nearest[:, 0].tolist() == [3, 10]
    assert cosine[:, 0] == pytest.approx([1, 1])
    expected = shelf.vector_IH @ shelf.vector_IH[3]
    assert cosine[0] == pytest.approx(np.sort(expected)[::-1][:5])
    assert shelf.nearest(shelf.vector_IH[:1], 999)[0].shape == (1, len(ITEMS))


def test_a_query_in_words_finds_its_goods(encoders):
    settings, _, _, before = encoders
    model = load_model(settings)
    model.load_adapter(torch.zeros(model.layout.size))
    queries = ["something to play with friends", "a loaf of bread"]
    nearest, cosine = before.nearest(query_vectors(model, queries, before.products), 4)
    table = found_table(before, queries, nearest, cosine)
    assert table.column_names == ["query", "rank", "item_id", "title", "category", "similarity"]
    rows = table.to_pylist()
    assert [r["rank"] for r in rows] == [1, 2, 3, 4] * 2
    assert [r["query"] for r in rows] == [q for q in queries for _ in range(4)]
    assert {r["category"] for r in rows[:2]} == {"Toys > Games"}
    assert {r["category"] for r in rows[4:6]} == {"Bakery > Bread"}


def shelf_at(shelf, *, right):
    """Return a shelf where products of a category lie together, or each far from its like."""
    categories = sorted(GOODS)
    vectors = np.zeros((len(ITEMS), 8), np.float32)
    for row, category in enumerate(shelf.products.keys["category"]):
        place = categories.index(category)
        held_out = shelf.products.test_E[row]
        vectors[row, place if right or not held_out else (place + 1) % 4] = 1
    return Shelf(products=shelf.products, vector_IH=vectors)


def test_the_judge_counts_neighbours_of_held_out_names_among_the_others(encoders):
    _, _, shelf, _ = encoders
    held_out = {g for g, t in zip(shelf.products.group, shelf.products.test_E, strict=True) if t}
    rest = [n for names in GOODS.values() for n in names if n not in held_out]
    fewest = min(sum(n in rest for n in names) for names in GOODS.values())
    assert fewest >= 1
    assert len(held_out) >= 3
    right, wrong = shelf_at(shelf, right=True), shelf_at(shelf, right=False)
    found = judge(wrong, right, level=2, count=1)
    assert (found.frozen, found.adapted, found.names) == (0, 1, len(held_out))
    assert found.error == 0
    # Of the others, names alone: both sizes of one count once.
    lies = {name: category for category, names in GOODS.items() for name in names}
    chance = np.mean([[lies[h] == lies[r] for r in rest] for h in held_out])
    assert found.chance == pytest.approx(chance)
    # All others are nearest: as good as drawn at random.
    every = judge(wrong, right, level=2, count=999)
    assert (every.frozen, every.adapted) == pytest.approx((chance, chance))
    wide = judge(wrong, right, level=1, count=1)
    assert wide.frozen > 0
    assert wide.chance > found.chance


def test_a_judge_without_held_out_products_says_so(encoders):
    _, _, shelf, _ = encoders
    known = replace(shelf.products, test_E=np.zeros(len(ITEMS), bool))
    bare = Shelf(products=known, vector_IH=shelf.vector_IH)
    with pytest.raises(DataError, match="no held-out product"):
        judge(bare, bare, level=1)


def test_an_adapter_whose_run_held_out_other_names_is_not_judged(silo, adapter, tmp_path, capsys):
    run = tmp_path / "run.toml"
    model = score_settings(silo.path, TASK.name, adapter=adapter).model
    parts = {"task": task_mapping(replace(TASK, seed=7)), "model": asdict(model)}
    run.write_text(toml_text(parts | {"job": {"name": "a", "rounds": 1, "plain": {"epochs": 1.0}}}))
    asked = ["client", "similar", str(silo.path), "--adapter", str(adapter), "--run", str(run)]
    assert main([*asked, "--judge"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "held out other names (task.seed = 0, here 7)" in said
    assert main([*asked, "--text", "tea"]) == 0


def test_other_tasks_and_models_without_text_are_refused(silo, tmp_path):
    exported(CHURN, tmp_path / "churn")
    settings = score_settings(silo.path, CHURN.name, adapter=tmp_path / "churn")
    with pytest.raises(ConfigError, match="'customer-churn' is not about products"):
        shelf_of(settings, silo, load_model(settings))
    exported(TASK, tmp_path / "numeric")
    settings = score_settings(silo.path, TASK.name, adapter=tmp_path / "numeric")
    with pytest.raises(ConfigError, match="use_text is false"):
        shelf_of(settings, silo, load_model(settings))


def test_the_command_answers_queries_items_and_files_and_judges(silo, adapter, tmp_path, capsys):
    before = {p.name for p in silo.path.iterdir()}
    asked = ["client", "similar", str(silo.path), "--adapter", str(adapter)]
    assert main([*asked, "--text", "tea", "--nearest", "2"]) == 0
    assert capsys.readouterr().out.count(" > ") == 2
    assert main([*asked, "--item", "stout-small", "--nearest", "1"]) == 0
    assert "1.000  stout-small" in capsys.readouterr().out
    pq.write_table(pa.table({"query": ["tea", "bread"]}), tmp_path / "q.parquet")
    assert main([*asked, "--queries", str(tmp_path / "q.parquet"), "--nearest", "3"]) == 0
    out = silo.path / "scores" / "similar.parquet"
    assert pq.read_table(out).num_rows == 6
    assert out.stat().st_mode & 0o777 == 0o600
    capsys.readouterr()
    assert main([*asked, "--judge"]) == 0
    assert capsys.readouterr().out.count("of the 10 nearest") == 2
    # No ledger, no release: what was found lies in one file.
    assert {p.name for p in silo.path.iterdir()} - before <= {"cache", "scores"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "give one of --text"),
        (["--text", "tea", "--judge"], "give one of --text"),
        (["--item", "nothing"], "item 'nothing' is not in items.parquet"),
        (["--queries", "{place}/none.parquet"], "none.parquet: cannot be read"),
        (["--queries", "{place}/other.parquet"], "has no column 'query'; it has words"),
        (["--queries", "{place}/empty.parquet"], "row 2 of column 'query' is no text"),
    ],
)
def test_what_cannot_be_answered_is_said(silo, adapter, tmp_path, capsys, options, message):
    pq.write_table(pa.table({"words": ["tea"]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"query": ["tea", None]}), tmp_path / "empty.parquet")
    asked = ["client", "similar", str(silo.path), "--adapter", str(adapter)]
    assert main([*asked, *(o.format(place=tmp_path) for o in options)]) == 2
    assert message in " ".join(capsys.readouterr().err.split())
