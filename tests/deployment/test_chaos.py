"""SIGKILL of real processes while they train: at random, all at once, and SIGTERM for all.

`make chaos` is the large form: 100 kills, 20 rounds, 4 merchants.
"""

import json
import time
from pathlib import Path

import pytest

from privacy.chain import Chain
from privacy.ledger_report import ledger_rows
from simulations.chaos.__main__ import Chaos
from simulations.chaos.check import check_merchant, check_run, check_sums
from simulations.chaos.setting import JOB, Setting, make, node_numbers, silotune, started

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(3000)]


def test_a_run_under_kills_ends_by_itself_and_every_ledger_is_exact(tmp_path):
    setting = Setting(merchants=2, rounds=4, kills=6, seed=3, gap=3.0)
    chaos = Chaos(tmp_path, setting)
    try:
        chaos.go(2000)
    finally:
        slow = chaos.stop()
    merchants, wrong = chaos.check()
    assert slow + wrong == [], chaos.table(merchants)
    assert [m.received for m in merchants] == [4, 4]


def test_a_machine_that_restarts_and_an_operator_that_stops_lose_no_round(tmp_path):
    setting = Setting(merchants=2, rounds=3, kills=3, seed=0, gap=4.0)
    hosts = make(tmp_path, setting)
    aggregator = tmp_path / "aggregator"
    run = aggregator / "runs" / JOB
    try:
        nodes = node_numbers(aggregator)
        silotune("server", "run", aggregator, tmp_path / f"{JOB}.toml", "--detach")
        _until(lambda: _asked(hosts, 1))
        # Everything at once, as without power, while the second round is under way.
        before = [pid for host in hosts for pid in host.processes().values()]
        for host in hosts:
            host.kill_all()
        _until(lambda: not any(_runs(pid) for pid in before))
        started(hosts)
        _until(lambda: _asked(hosts, 2))
        spent = [len(ledger_rows(Chain.read(h.folder / "ledger.db"))) for h in hosts[1:]]
        # The operator stops the merchants, then the aggregator: all end by themselves.
        assert [host.stop() for host in reversed(hosts)] == [True] * 3
        started(hosts)
        _until(lambda: _state(run) != "running")
    finally:
        ended = [host.stop() for host in reversed(hosts)]
    assert ended == [True] * 3
    assert check_run(run, 3) == []
    paths = sorted((run / "rounds").glob("releases-*.json"))
    releases = [{int(n): d for n, d in json.loads(p.read_text()).items()} for p in paths]
    for host, reservations in zip(hosts[1:], spent, strict=True):
        name = host.folder.name
        found, wrong = check_merchant(host.folder, name, releases, nodes[name], kills=1)
        assert wrong == []
        assert found.received == 3
        # What was stopped in order was finished, or had not begun: it cost nothing more.
        assert found.reservations == reservations
    silos = {nodes[h.folder.name]: h.folder for h in hosts[1:]}
    assert check_sums(run, silos, releases) == []


def _asked(hosts, round_):
    """Return whether every silo has paid for the round."""
    rows = [ledger_rows(Chain.read(h.folder / "ledger.db")) for h in hosts[1:]]
    return all(any(r.round == round_ for r in of_silo) for of_silo in rows)


def _state(run):
    return json.loads((run / "status.json").read_text())["state"]


def _runs(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _until(true, seconds=900):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.2)
