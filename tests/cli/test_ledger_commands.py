import json
import sqlite3

import pytest

from privacy.accounting import GaussianEvent, epsilon_spent
from privacy.ledger import Ledger
from silotune.cli import main

EVENT = GaussianEvent(sampling_rate=0.25, noise_multiplier=1.5, steps=4)


@pytest.fixture
def silo(tmp_path):
    with Ledger(tmp_path / "ledger.db") as ledger:
        for request, released in (("a", True), ("b", False)):
            reservation = ledger.reserve(
                request, [EVENT], {"job": "run", "round": 3}, epsilon=8.0, delta=1e-4
            )
            if released:
                ledger.record_release(reservation, b"numbers!", {"private": True})
                ledger.settle(reservation.seq)
    Ledger(tmp_path / "ledger.db").close()
    return tmp_path


def test_show_lists_costs_and_outcomes(silo, capsys):
    assert main(["client", "ledger", "show", str(silo), "--json"]) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert (first["job"], first["round"], first["bytes"]) == ("run", 3, 8)
    assert (first["outcome"], second["outcome"]) == ("settled", "nothing left")
    assert second["epsilon"] == epsilon_spent([EVENT, EVENT], delta=1e-4)


def test_show_prints_what_is_left_of_the_policy_and_draws(silo, capsys):
    policy = silo / "policy.toml"
    policy.write_text("epsilon = 8.0\ndelta = 1e-4\nbase_digests = ['b']\nservers = ['s']\n")
    plot = silo / "spent.svg"
    command = ["client", "ledger", "show", str(silo / "ledger.db")]
    assert main([*command, "--policy", str(policy), "--plot", str(plot)]) == 0
    out = capsys.readouterr().out
    spent = epsilon_spent([EVENT, EVENT], delta=1e-4)
    assert f"ε = {spent:.3f} at δ = 0.0001; left of 8: {8 - spent:.3f}" in " ".join(out.split())
    assert plot.stat().st_size > 1000


def test_show_prints_names_that_look_like_markup(tmp_path, capsys):
    with Ledger(tmp_path / "ledger.db") as ledger:
        what = {"job": "[/x][b]", "round": 0}
        ledger.reserve("a", [EVENT], what, epsilon=8.0, delta=1e-4)
    assert main(["client", "ledger", "show", str(tmp_path)]) == 0
    assert "[/x][b]" in capsys.readouterr().out


def test_verify_passes_what_was_written_and_names_what_was_changed(silo, capsys):
    assert main(["client", "ledger", "verify", str(silo)]) == 0
    assert "2 reservations, 1 releases" in capsys.readouterr().out
    with sqlite3.connect(silo / "ledger.db") as connection:
        connection.execute("DROP TRIGGER no_update")
        connection.execute("UPDATE entry SET body = replace(body, '1.5', '9.5') WHERE seq = 2")
    connection.close()
    assert main(["client", "ledger", "verify", str(silo)]) == 2
    assert "entry 2 is not what was written" in capsys.readouterr().err


def test_verify_refuses_an_epsilon_that_the_costs_do_not_give(tmp_path, monkeypatch, capsys):
    with Ledger(tmp_path / "ledger.db") as ledger:
        monkeypatch.setattr("privacy.ledger._epsilon", lambda *_: 0.1)
        ledger.reserve("a", [EVENT], {}, epsilon=8.0, delta=1e-4)
    assert main(["client", "ledger", "verify", str(tmp_path)]) == 2
    assert "records ε = 0.1000" in capsys.readouterr().err


def test_a_clock_is_accepted_by_a_person(silo, capsys):
    assert main(["client", "ledger", "accept-clock", str(silo)]) == 0
    assert "accepted" in capsys.readouterr().out
    with Ledger(silo / "ledger.db") as ledger:
        assert ledger.entries[-1].kind == "clock"


@pytest.mark.parametrize("command", ["show", "verify", "accept-clock"])
def test_a_ledger_that_is_not_there_is_not_made(tmp_path, capsys, command):
    assert main(["client", "ledger", command, str(tmp_path)]) == 2
    assert "no such file" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
