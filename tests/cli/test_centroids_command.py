"""``silotune client centroids`` as a merchant types it."""

import pytest

from silotune.cli import main
from silotune.tables.silo_folder import list_silos
from silotune.tables.synthetic import SyntheticConfig, generate
from tests.client.merchant import take_part


@pytest.fixture(scope="module")
def silo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("centroids")
    generate(SyntheticConfig(merchants=1, users_per_merchant=60, weeks=16, seed=5), folder / "s")
    (silo,) = list_silos(folder / "s")
    take_part(silo.path)
    return silo.path


def test_a_release_is_written_charged_and_shown(silo, capsys):
    asked = ["client", "centroids", str(silo), "--as-of", "2024-04-10", "--clusters", "3"]
    assert main([*asked, "--axes", "2"]) == 0
    out = silo / "releases" / "centroids-2024-04-10.safetensors"
    said = capsys.readouterr().out
    assert out.exists()
    assert f"{out}: ε = 0." in said
    assert "What left" in said
    assert main([*asked, "--axes", "2"]) == 0
    assert "at no further cost" in capsys.readouterr().out
    assert main(["client", "ledger", "show", str(silo), "--json"]) == 0
    assert "centroids" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--as-of", "2024-04-10", "--noise-multiplier", "0.5"], "outside the policy"),
        (["--as-of", "2024-04-10", "--clusters", "0"], "clusters is 0"),
        (["--as-of", "April"], "--as-of is 'April'"),
        ([], "--as-of"),
        (["--as-of", "2024-04-10", "--task", "promotion-response"], "holds no adapter"),
    ],
)
def test_wrong_input_is_refused_in_words(silo, capsys, arguments, words):
    before = sorted(p.name for p in (silo / "releases").glob("*"))
    assert main(["client", "centroids", str(silo), *arguments]) == 2
    assert words in capsys.readouterr().err
    assert sorted(p.name for p in (silo / "releases").glob("*")) == before
