import json
import re
from dataclasses import replace

import pytest
import typer
from typer.testing import CliRunner

import client.trainer
from silotune.cli import audit
from silotune.errors import ConfigError
from silotune.tables.silo_folder import list_silos
from silotune.tables.synthetic import SyntheticConfig, generate
from silotune.tables.synthetic_words import BRANDS, CATEGORIES

SMALL = ["--no-text", "--canaries", "400", "--trials", "500", "--runs", "16", "--quiet"]


@pytest.fixture
def run(tmp_path):
    root, group = typer.Typer(), typer.Typer()
    audit.register(group)
    root.add_typer(group, name="privacy")

    def call(*arguments, out="audit.html"):
        words = ["privacy", "audit", *SMALL, "--out", str(tmp_path / out), *map(str, arguments)]
        # Without traces: errors of silotune are the caller's to see.
        return CliRunner().invoke(root, words, catch_exceptions=True)

    # A group with one command would be the command itself.
    @root.command("other")
    def _other() -> None: ...

    @group.command("other")
    def _another() -> None: ...

    return call


def found(result):
    return json.loads(result.stdout)


def test_the_sound_code_passes_and_the_same_seed_finds_the_same(run):
    first = run("--seed", 1, "--json")
    assert first.exit_code == 0, first.output
    assert found(first)["refuted"] == []
    assert found(first)["claim"] > 2
    assert found(run("--seed", 1, "--json")) == found(first)


def test_the_table_says_what_an_audit_is_and_shows_no_one(run, tmp_path):
    result = run("--seed", 1)
    assert result.exit_code == 0, result.output
    text = " ".join(result.stdout.split())
    for words in ("evidence, not proof", "Nothing was released", "95% confidence", "not private"):
        assert words in text
    page = (tmp_path / "audit.html").read_text()
    assert page.count("<svg") == 4
    assert "evidence, not proof" in page
    assert "<script" not in page
    # No word of the tables, no hashed id: figures alone.
    words = {*BRANDS, *(c.name for c in CATEGORIES), "person-", "item-0"}
    for output in (result.output, page):
        assert not [w for w in words if re.search(rf"\b{re.escape(w)}\b", output)]
        assert not re.search(r"[0-9a-f]{32}", output)


def test_code_that_forgets_the_noise_is_refuted_with_exit_code_1(run, monkeypatch, tmp_path):
    real = client.trainer.noisy_mean

    def silent(parts, size, settings, *rest):
        return real(parts, size, replace(settings, noise_multiplier=1e-9), *rest)

    monkeypatch.setattr(client.trainer, "noisy_mean", silent)
    result = run("--json", "--noise-multiplier", 4)
    assert result.exit_code == 1
    assert found(result)["refuted"] == [
        "single steps",
        "one run, all steps seen",
        "one run, release seen",
    ]
    assert "the claim is refuted" in (tmp_path / "audit.html").read_text()


def test_a_silo_folder_is_audited_with_its_own_users_and_left_as_it_was(run, tmp_path):
    made = SyntheticConfig(merchants=1, users_per_merchant=20, weeks=40, seed=5)
    generate(made, tmp_path / "silos")
    silo = list_silos(tmp_path / "silos")[0].path
    before = sorted(p.name for p in silo.iterdir())
    result = run("--silo", silo, "--seed", 1)
    assert result.exit_code == 0, result.output
    assert silo.name in result.stdout
    # The cache of its examples stays in the silo; no ledger appears, nothing is charged.
    assert {p.name for p in silo.iterdir()} - set(before) <= {"cache"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--delta", "0.1"], "below 1/users"),
        (["--sampling-rate", "0"], "sampling_rate"),
        (["--steps", "0"], "steps"),
        (["--canaries", "3"], "canaries"),
        (["--confidence", "1"], "confidence"),
        (["--scenario", "nowhere"], "nowhere"),
        (["--out", "/nowhere/at/all.html"], "does not exist"),
    ],
)
def test_what_cannot_be_audited_is_said_in_words(run, arguments, words):
    result = run(*arguments)
    assert isinstance(result.exception, ConfigError)
    assert words in str(result.exception)
