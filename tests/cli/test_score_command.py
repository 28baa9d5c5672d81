"""``silotune client score`` as a merchant types it."""

import datetime as dt

import pyarrow.parquet as pq
import pytest
import torch

from silotune.cli import main
from silotune.models.export import export_adapter
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tables.synthetic import SyntheticConfig, generate
from silotune.tasks.customers import CustomerSegment
from silotune.tasks.product_category import ProductCategory
from silotune.tasks.registry import task_mapping
from tests.client.scoring import exported

TASK = CustomerSegment(
    first=dt.datetime.fromisoformat("2024-02-12"),
    split=dt.datetime.fromisoformat("2024-04-01"),
    last=dt.datetime.fromisoformat("2024-05-20"),
    horizon_days=14,
    at_risk_below=5.0,
    high_value_from=40.0,
)
PRODUCTS = ProductCategory(
    first=TASK.first,
    split=TASK.split,
    last=TASK.last,
    category_level=2,
    classes=("apples", "milk", "bread", "cheese"),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score")
    generate(SyntheticConfig(merchants=1, users_per_merchant=170, weeks=20, seed=5), folder / "s")
    model = TextModel(ModelConfig(use_text=False), numeric_size=len(TASK.numeric_names), outputs=3)
    model.load_adapter(torch.linspace(-1, 1, model.layout.size))
    export_adapter(model, folder / "a", numeric_names=TASK.numeric_names, task=task_mapping(TASK))
    exported(PRODUCTS, folder / "p")
    return folder


def test_a_file_for_every_customer_is_written_into_the_silo(place, capsys):
    silo = place / "s" / "merchant-0001"
    code = main(["client", "score", TASK.name, str(silo), "--adapter", str(place / "a")])
    assert code == 0
    out = silo / "scores" / f"{TASK.name}.parquet"
    table = pq.read_table(out)
    assert table.column_names == ["user_id", "date", "at risk", "regular", "high value"]
    said = capsys.readouterr().out
    assert f"{out}: {table.num_rows} rows, as of 2024-" in said
    assert out.parent.stat().st_mode & 0o777 == 0o700


def test_labels_are_written_on_request(place, capsys):
    silo = place / "s" / "merchant-0001"
    asked = ["client", "score", TASK.name, str(silo), "--adapter", str(place / "a")]
    assert main([*asked, "--with-labels", "--out", str(place / "l.parquet")]) == 0
    assert pq.read_table(place / "l.parquet").column_names[-1] == "label"
    assert "test examples" in capsys.readouterr().out


def test_quality_by_group_is_shown_and_written_beside_the_scores(place, capsys):
    silo = place / "s" / "merchant-0001"
    asked = ["client", "score", TASK.name, str(silo), "--adapter", str(place / "a")]
    asked += ["--with-labels", "--out", str(place / "g.parquet")]
    assert main(asked) == 0
    said, page = capsys.readouterr().out, (place / "g-groups.md").read_text()
    assert "by group of customers. It stays here." in said
    assert "by chance up to" in said
    assert "## age" in page
    rows = [r.split("|") for r in page.splitlines() if r.startswith("| ") and "customers" not in r]
    assert {r[1].strip() for r in rows} & {"25-34", "other"}
    assert all(int(r[2]) >= 20 for r in rows[1:])
    assert (place / "g-groups.md").stat().st_mode & 0o777 == 0o600
    assert main([*asked, "--least-users", "19"]) == 2
    assert "least_users is 19" in capsys.readouterr().err
    # Of a date nobody knows the outcome: no groups.
    assert main([*asked[:6], "--out", str(place / "d.parquet")]) == 0
    assert not (place / "d-groups.md").exists()
    # It can be left out, and is where rows are products.
    assert main([*asked[:-1], str(place / "n.parquet"), "--no-groups", "--least-users", "19"]) == 0
    assert "by group" not in capsys.readouterr().out
    asked[2:6] = [PRODUCTS.name, str(silo), "--adapter", str(place / "p")]
    assert main([*asked[:-1], str(place / "p.parquet")]) == 0
    assert "by group" not in capsys.readouterr().out
    assert not [name for name in "np" if (place / f"{name}-groups.md").exists()]


def test_drift_since_an_earlier_date_is_shown(place, capsys):
    silo = place / "s" / "merchant-0001"
    asked = ["client", "score", TASK.name, str(silo), "--adapter", str(place / "a")]
    asked += ["--as-of", "2024-04-29", "--drift-from"]
    assert main([*asked, "2024-03-04"]) == 0
    said = capsys.readouterr().out
    assert "Drift from 2024-03-04 to 2024-04-29. It stays here." in said
    shown = {line.split()[0] for line in said.splitlines() if line.strip()}
    assert {*TASK.numeric_names, "regular"} <= shown
    assert main([*asked, "2024-05-04"]) == 2
    assert "must be before" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["segment", "{silo}"], "known tasks: promotion-response"),
        (["customer-segment", "{silo}"], "holds no adapter of task"),
        (["customer-segment", "nowhere"], "nowhere: no such folder"),
        (["customer-segment", "{silo}", "--adapter", "gone"], "gone: no such file or folder"),
        (["customer-churn", "{silo}", "--adapter", "{adapter}"], "not of 'customer-churn'"),
        (["customer-segment", "{silo}", "--as-of", "March"], "--as-of is 'March'"),
        (["customer-segment", "{silo}", "--as-of", "2024-03-01T00:00Z"], "leave out the zone"),
        (
            ["customer-segment", "{silo}", "--as-of", "2024-03-01", "--with-labels"],
            "leave out --as-of",
        ),
        (["customer-segment", "{silo}", "--run", "gone.toml", "--adapter", "{adapter}"], "gone"),
    ],
)
def test_wrong_input_is_refused_in_words(place, capsys, arguments, words):
    known = {"silo": place / "s" / "merchant-0001", "adapter": place / "a"}
    assert main(["client", "score", *(a.format(**known) for a in arguments)]) == 2
    assert words in capsys.readouterr().err
