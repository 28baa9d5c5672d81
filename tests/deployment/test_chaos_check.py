"""The checks of `make chaos` find what they are for."""

import hashlib
import json
import sqlite3

import numpy as np
import pytest
import torch

from privacy.accounting import GaussianEvent
from privacy.ledger import Ledger
from server.run_store import RunStore
from simulations.chaos.check import check_merchant, check_run, check_sums

EVENT = GaussianEvent(sampling_rate=0.01, noise_multiplier=20.0, steps=1)
NODE, ROUNDS = 7, 3


def _payload(round_):
    return np.full(5, float(round_ + 1), dtype="<f4").tobytes()


def _release(ledger, request, round_, payload):
    what = {"job": "chaos", "round": round_}
    held = ledger.reserve(request, [EVENT], what, epsilon=8.0, delta=1e-5)
    if payload is not None:
        ledger.record_release(held, payload, {"name": "update", "private": True})


@pytest.fixture
def made(tmp_path):
    """A run of three rounds with one merchant, as it should be."""
    run, silo = tmp_path / "run", tmp_path / "silo"
    store, adapter_D, releases = RunStore(run / "rounds", "digest"), torch.zeros(5), []
    with Ledger(silo / "ledger.db") as ledger:
        for round_ in range(ROUNDS):
            payload = _payload(round_)
            _release(ledger, f"request {round_}", round_, payload)
            adapter_D = adapter_D + torch.from_numpy(np.frombuffer(payload, "<f4").copy())
            releases.append({NODE: hashlib.sha256(payload).hexdigest()})
            store.save(round_, adapter_D, {}, releases[-1])
    (run / "status.json").write_text(json.dumps({"state": "finished", "message": ""}))
    return run, silo, releases


def _wrong(silo, releases, kills=0):
    return check_merchant(silo, "m", releases, NODE, kills=kills)[1]


def test_what_is_right_passes(made):
    run, silo, releases = made
    assert check_run(run, ROUNDS) == []
    merchant, wrong = check_merchant(silo, "m", releases, NODE, kills=0)
    assert wrong == []
    assert (merchant.received, merchant.reservations, merchant.interrupted) == (3, 3, 0)
    assert merchant.epsilon == pytest.approx(merchant.epsilon_received)
    assert check_sums(run, {NODE: silo}, releases) == []


def test_a_lost_or_doubled_round_and_an_open_run_are_found(made):
    run, _, _ = made
    assert check_run(run, ROUNDS + 1)
    lines = (run / "rounds" / "rounds.jsonl").read_text()
    (run / "rounds" / "rounds.jsonl").write_text(lines + lines.splitlines()[-1] + "\n")
    assert "record" in check_run(run, ROUNDS)[0]
    (run / "rounds" / "rounds.jsonl").write_text(lines)
    (run / "status.json").write_text(json.dumps({"state": "failed", "message": "why"}))
    assert check_run(run, ROUNDS) == ["the run is failed: why"]


def test_a_release_that_the_ledger_has_not_is_found(made):
    _, silo, releases = made
    assert "in the ledger 0 times" in _wrong(silo, [*releases[:2], {NODE: "0" * 64}])[0]


def test_costs_that_no_kill_explains_are_found(made):
    _, silo, releases = made
    with Ledger(silo / "ledger.db") as ledger:
        _release(ledger, "interrupted", 2, None)
    with Ledger(silo / "ledger.db"):
        pass
    assert "1 reservations without release, 0 kills" in _wrong(silo, releases)[0]
    merchant, wrong = check_merchant(silo, "m", releases, NODE, kills=1)
    assert wrong == []
    assert merchant.epsilon > merchant.epsilon_received


def test_a_round_that_was_released_twice_is_found(made):
    _, silo, releases = made
    with Ledger(silo / "ledger.db") as ledger:
        _release(ledger, "once more", 2, b"another")
    assert "released 2 times" in " ".join(_wrong(silo, releases, kills=9))


def test_a_ledger_that_was_changed_is_found(made):
    _, silo, releases = made
    with sqlite3.connect(silo / "ledger.db") as other:
        other.execute("DROP TRIGGER no_update")
        other.execute("UPDATE entry SET body = replace(body, '20.0', '21.0')")
    assert "was changed" in _wrong(silo, releases)[0]


def test_a_round_that_is_not_the_mean_of_its_releases_is_found(made):
    run, silo, releases = made
    store = RunStore(run / "rounds", "digest")
    store.save(1, store.load(1) + 0.01, {})
    found = check_sums(run, {NODE: silo}, releases)
    assert found == [f"round {r}: is not the mean of its releases" for r in (1, 2)]
