"""A merchant's dashboard, from real ledgers: what was spent, what left, what was refused."""

import asyncio
import json
import shutil
import sqlite3
import time
from types import SimpleNamespace

import httpx
import pytest
from starlette.applications import Starlette

from client import dashboard
from client.dashboard import client_view, routes
from client.dashboard_ledger import ledger_view
from client.dashboard_policy import policy_words
from client.refusals import note
from privacy.accounting import GaussianEvent
from privacy.ledger import Ledger
from privacy.policy import Policy
from silotune.errors import PolicyError
from silotune.toml_text import toml_text

HOSTILE = "<script>window.pwned=1</script><img src=x onerror=window.pwned=1>\"'&{{7*7}}"
EVENT = GaussianEvent(sampling_rate=0.25, noise_multiplier=1.5, steps=4)
POLICY = {
    "epsilon": 8.0,
    "delta": 1e-4,
    "base_digests": ["none"],
    "servers": ["sha256:" + "a" * 64],
}
RECEIPT = {
    "name": "update",
    "size": 3463,
    "mechanism": "gaussian",
    "encoding": "float32",
    "noise_multiplier": 1.5,
    "clip_norm": 4.0,
    "sampling_rate": 0.25,
    "steps": 4,
    "private": True,
}
DAY = 86_400.0
NOON = 1_700_000_000.0 // DAY * DAY + DAY / 2


def _release(ledger, number, job="promotions", **changes):
    what = {"job": job, "round": number}
    reservation = ledger.reserve(f"{job}{number}", [EVENT], what, epsilon=8.0, delta=1e-4)
    receipt = RECEIPT | what | changes
    entry = ledger.record_release(reservation, b"numbers" * (number + 1), receipt)
    ledger.settle(reservation.seq)
    return entry


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "silo.toml").write_text('name = "north"\nnominal_users = 5\nschema_version = 1\n')
    (tmp_path / "policy.toml").write_text(toml_text(POLICY))
    digest = "a" * 64
    server = {"name": "here", "address": "127.0.0.1:1", "certificate_sha256": digest, "ca": "PEM"}
    (tmp_path / "client.toml").write_text(toml_text({"server": server, "task": {}, "model": {}}))
    return tmp_path


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """Two days, two jobs, a reservation of which nothing left."""
    made, clock = tmp_path_factory.mktemp("filled"), SimpleNamespace(now=NOON)
    with Ledger(made / "ledger.db", clock=lambda: clock.now) as ledger:
        _release(ledger, 0)
        clock.now += DAY
        _release(ledger, 1)
        _release(ledger, 0, job="discount")
        ledger.reserve("lost", [EVENT], {"job": "discount", "round": 1}, epsilon=8.0, delta=1e-4)
    return made


@pytest.fixture
def ledger(folder, filled):
    """Held, as by the daemon."""
    shutil.copytree(filled, folder, dirs_exist_ok=True)
    with Ledger(folder / "ledger.db", clock=lambda: NOON + DAY) as held:
        yield held


def _ask(folder, path, method="GET"):
    async def ask():
        transport = httpx.ASGITransport(app=Starlette(routes=routes(folder)))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path)

    return asyncio.run(ask())


def test_epsilon_is_that_of_the_ledger_while_the_daemon_holds_it(folder, ledger):
    view = client_view(folder)
    assert view.ledger.verified
    assert view.ledger.spent == ledger.spent(1e-4)
    assert view.left == 8.0 - ledger.spent(1e-4)
    assert view.faults == ()


def test_what_days_and_jobs_added_makes_the_total(folder, ledger):
    view = ledger_view(folder / "ledger.db")
    for groups in (view.by_day, view.by_job):
        assert sum(g.added for g in groups) == pytest.approx(view.spent, rel=1e-12)
        assert sum(g.bytes for g in groups) == 7 + 14 + 7
        assert all(g.added > 0 for g in groups)
    assert [(g.label, g.releases) for g in view.by_job] == [("promotions", 2), ("discount", 1)]
    assert [g.releases for g in view.by_day] == [1, 2]
    assert view.by_day[-1].after == view.spent


def test_a_receipt_says_what_left_when_how_large_and_under_which_guarantee(folder, ledger):
    entry = ledger.entries[2]
    first, *_, last = client_view(folder).ledger.receipts
    assert (first.sha256, first.bytes, first.numbers) == (entry.body["sha256"], 7, 3463)
    assert first.outcome == "handed over"
    assert (last.outcome, last.bytes, last.sha256) == ("nothing left", 0, "")
    text = _ask(folder, "/").text
    for words in (
        entry.body["sha256"],
        time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(NOON)),
        "gaussian noise, σ 1.5 × clip norm 4; 4 steps, 0.25 of customers in each",
        "3463 numbers, float32",
        f"{client_view(folder).left - 0.0005:.3f}",  # rounded down
    ):
        assert words in text


def test_epsilon_is_rounded_up_and_what_is_left_of_it_never_negative(folder, ledger):
    (folder / "policy.toml").write_text(toml_text(POLICY | {"epsilon": 0.5}))
    assert client_view(folder).left == 0.0
    assert ">0.000 <small>of 0.5" in _ask(folder, "/").text


def test_a_release_without_a_guarantee_is_said_in_red(folder, ledger):
    assert "without a guarantee" not in _ask(folder, "/").text
    ledger.record_unprotected(b"plain", {"name": "update", "mechanism": "none", "job": "p"})
    _release(ledger, 5, private=False)
    assert client_view(folder).ledger.unprotected == 2
    assert "2 releases without a guarantee" in _ask(folder, "/").text


def test_a_changed_ledger_is_not_called_verified(folder, ledger):
    assert ">verified<" in _ask(folder, "/").text
    ledger.close()
    with sqlite3.connect(folder / "ledger.db") as connection:
        connection.execute("DROP TRIGGER no_update")
        connection.execute(
            "UPDATE entry SET body = replace(body, 'reservation', 'x') WHERE seq = 3"
        )
    text = _ask(folder, "/").text
    assert ">NOT verified<" in text
    assert "The ledger is not verified." in text
    assert ">verified<" not in text


def test_a_silo_that_released_nothing_says_so(folder):
    text = _ask(folder, "/").text
    for words in ("Nothing has left this silo", "There is none yet", "8.000 <small>of 8"):
        assert words in text
    assert _ask(folder, "/state.json").status_code == 200


def test_refusals_are_shown_with_their_reasons_newest_first(folder):
    for number in (1, 2):
        error = PolicyError(f"outside the policy: steps: {number}00 is not <= 100.", ("steps",))
        note(error, folder / "silo.log")
    newest, oldest = client_view(folder).refusals
    assert newest.fields["words"].startswith("outside the policy: steps: 200")
    assert oldest.fields["reply"] == "refused by the policy (steps)"
    with (folder / "silo.log").open("a") as file:
        file.write('{"event": "refused", "half')
    text = _ask(folder, "/").text
    assert "steps: 200 is not &lt;= 100" in text


def test_hostile_text_is_shown_as_text(folder, ledger):
    _release(ledger, 0, job=HOSTILE)
    note(PolicyError(HOSTILE), folder / "silo.log")
    (folder / "silo.toml").write_text(f"name = {json.dumps(HOSTILE)}\n")
    (folder / "policy.toml").write_text(toml_text(POLICY | {"servers": [HOSTILE]}))
    answer = _ask(folder, "/")
    parts = "".join(_ask(folder, "/state.json").json()["parts"].values())
    for text in (answer.text.replace('<script nonce="', ""), parts):
        assert "<script" not in text
        assert "<img" not in text
        assert "&lt;script&gt;" in text
        assert "{{7*7}}" in text


@pytest.mark.parametrize("file", ["silo.toml", "policy.toml", "client.toml"])
@pytest.mark.parametrize("content", [b"x = ", b"\xff", b"y = 1"])
def test_a_damaged_file_is_told_and_the_ledger_is_shown(folder, ledger, file, content):
    (folder / file).write_bytes(content)
    text = _ask(folder, "/").text
    assert f"{folder / file}: " in text
    assert "What left, with receipts" in text
    assert len(client_view(folder).faults) == 1


def test_the_policy_is_told_in_words_and_what_it_allows_in_capitals():
    strict = dict(policy_words(Policy(**POLICY)))
    assert "ε at most 8 and δ 0.0001" in strict["Budget"]
    assert strict["Figures about quality"] == "None leaves."
    assert "ALLOWED" not in strict["Without privacy"]
    loose = Policy(**POLICY, plain_training=True, metrics={"scores": 0.5}, reply_interval=30.0)
    words = dict(policy_words(loose))
    assert words["Without privacy"].startswith("Training without privacy is ALLOWED.")
    assert "scores, at most ε 0.5 a release" in words["Figures about quality"]
    assert "multiples of 30 s" in words["When replies leave"]


def test_only_a_post_stops(folder, monkeypatch):
    ended = []
    monkeypatch.setattr(dashboard, "_stop", ended.append)
    assert _ask(folder, "/stop").status_code == 405
    assert _ask(folder, "/stop", "HEAD").status_code == 405
    assert not ended
    answer = _ask(folder, "/stop", "POST")
    assert answer.status_code == 200
    assert "Stopping." in answer.text
    assert ended == [folder]
