"""``silotune client segments`` as a merchant types it."""

import pyarrow.parquet as pq
import pytest

from silotune.cli import main
from silotune.tables.silo_folder import list_silos
from silotune.tables.synthetic import SyntheticConfig, generate
from tests.client.scoring import PROMOTION, SEGMENT, exported


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("segments")
    generate(SyntheticConfig(merchants=1, users_per_merchant=90, weeks=16, seed=5), folder / "s")
    exported(SEGMENT, folder / "a")
    exported(PROMOTION, folder / "p")
    return folder


def test_customers_get_segments_and_segments_get_words(place, capsys):
    silo = list_silos(place / "s")[0]
    before = {p.name for p in silo.path.iterdir()}
    asked = ["client", "segments", str(silo.path), "--adapter", str(place / "a")]
    assert main([*asked, "--clusters", "3", "--as-of", "2024-04-10"]) == 0
    table = pq.read_table(silo.path / "scores" / "segments.parquet")
    assert table.column_names == ["user_id", "date", "segment"]
    sizes = [table["segment"].to_pylist().count(n) for n in range(1, 4)]
    page = silo.path / "scores" / "segments.md"
    text, said = page.read_text(), capsys.readouterr().out
    assert page.stat().st_mode & 0o777 == 0o600
    assert f"## Segment 1: {sizes[0]} customers" in text
    assert "**spend a week**: " in text
    assert "Segments on 2024-04-10. They stay here." in said
    assert f"{table.num_rows} customers" in said
    # No ledger, no release.
    assert {p.name for p in silo.path.iterdir()} - before <= {"cache", "scores"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{silo}", "--least-users", "5"], "it must be at least 20"),
        (["{silo}", "--clusters", "0"], "clusters is 0"),
        (["{silo}", "--task", "promotion-response", "--adapter", "{p}"], "take customer-segment"),
        (["nowhere"], "nowhere: no such folder"),
        (["{silo}", "--as-of", "March"], "--as-of is 'March'"),
    ],
)
def test_wrong_input_is_refused_in_words(place, capsys, arguments, words):
    known = {"silo": place / "s" / "merchant-0001", "p": place / "p"}
    assert main(["client", "segments", *(a.format(**known) for a in arguments)]) == 2
    assert words in capsys.readouterr().err
