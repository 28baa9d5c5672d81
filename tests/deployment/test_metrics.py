"""What Prometheus reads on both sides: from real files, over HTTP, past the token."""

import asyncio
import json
import time

import pytest
from prometheus_client.parser import text_string_to_metric_families

from client.metrics_export import client_metrics, client_reasons
from client.refusals import WORDS, note
from client.tally import read_tally, timed
from privacy.accounting import GaussianEvent
from privacy.ledger import Ledger
from server.listener import MerchantsOnly
from server.metrics_export import OUTCOMES, nodes_by_status
from server.traffic import Counted, read_traffic, traffic_path
from silotune.errors import BudgetError, PolicyError
from silotune.invitation import Enrolment
from silotune.observe import read_token

SERVER = 'name = "here"\npublic_address = "127.0.0.1:1"\n'
CLIENT = f"""
[server]
name = "here"
address = "127.0.0.1:1"
certificate_sha256 = "{"0" * 64}"
ca = ""
[task]
[model]
"""
POLICY = """
epsilon = 4.0
delta = 1e-4
base_digests = ["none"]
servers = ["sha256:0"]
"""


def scraped(observed, folder):
    """Every sample that Prometheus reads, by name and labels."""
    answer, text = observed.ask(folder, "/metrics", Authorization=f"Bearer {read_token(folder)}")
    assert answer.status == 200, text
    return {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


@pytest.fixture
def silo(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "client.toml").write_text(CLIENT)
    (tmp_path / "policy.toml").write_text(POLICY)
    return tmp_path


def test_a_silo_shows_what_it_spent_released_and_refused(silo, observed):
    event = GaussianEvent(sampling_rate=0.25, noise_multiplier=1.5, steps=4)
    with Ledger(silo / "ledger.db") as ledger:
        for job in ("a", "b"):
            kept = ledger.reserve(job, [event], {"job": job}, epsilon=4.0, delta=1e-4)
        ledger.record_release(kept, b"numbers", {"name": "update"})
        spent = ledger.spent(1e-4)
    note(PolicyError("steps: 9 is not <= 1", ("steps",)), silo / "silo.log")
    note(PolicyError("clip: 9 is not <= 1", ("clip_norm",)), silo / "silo.log")
    note(BudgetError("nothing left"), silo / "silo.log")
    note(KeyError("household-4711"), silo / "silo.log")
    with timed(silo):
        time.sleep(0.05)
    with pytest.raises(RuntimeError), timed(silo):
        raise RuntimeError
    contact = time.time() - 5
    (silo / "run" / "node.contact").write_text(f"{contact:<24.3f}")
    with observed.running(silo, "client.observe"):
        found = scraped(observed, silo)
    assert found["silotune_epsilon_spent",] == pytest.approx(spent)
    assert found["silotune_epsilon_left",] == pytest.approx(4 - spent)
    assert found["silotune_epsilon_budget",] == 4
    assert found["silotune_reservations_total",] == 2
    assert found["silotune_releases_total",] == 1
    assert found["silotune_released_bytes_total",] == len(b"numbers")
    assert found["silotune_refusals_total", "refused by the policy"] == 2
    assert found["silotune_refusals_total", "refused by the budget"] == 1
    assert found["silotune_refusals_total", "failed; the silo's log says why"] == 1
    assert found["silotune_requests_total",] == 2
    assert 0.05 <= found["silotune_training_seconds_total",] < 5
    assert found["silotune_last_contact_timestamp_seconds",] == pytest.approx(contact, abs=0.01)
    assert found["silotune_disk_free_bytes",] > 0


def test_health_of_a_silo_says_what_is_wrong_in_fixed_words(silo, monkeypatch):
    from client import metrics_export

    assert client_reasons(silo) == ["not running"]
    monkeypatch.setattr(metrics_export, "process_reasons", lambda _: [])
    (silo / "run" / "node.contact").write_text(f"{time.time():<24.3f}")
    assert client_reasons(silo) == []
    (silo / "run" / "node.contact").write_text(f"{time.time() - 61:<24.3f}")
    assert client_reasons(silo) == ["no contact with the aggregator"]
    (silo / "ledger.db").write_bytes(b"household-4711" * 100)
    (silo / "policy.toml").write_text("epsilon = 'household-4711'")
    assert client_reasons(silo)[1:] == ["the ledger cannot be read", "the policy cannot be read"]
    names = {m.name for m in client_metrics(silo)}
    # What is not known is not shown as nought.
    assert "silotune_epsilon_spent" not in names
    assert "silotune_training_seconds" in names


def test_half_written_and_damaged_files_stop_no_scrape(silo):
    for name, text in (("tally.json", '{"seco'), ("node.contact", "x"), ("state.json", "[]")):
        (silo / "run" / name).write_text(text)
    assert read_tally(silo)["answers"] == 0
    assert list(client_metrics(silo))


@pytest.fixture
def aggregator(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "server.toml").write_text(SERVER)
    (tmp_path / "merchants").mkdir()
    for name in ("a", "b"):
        text = Enrolment(name=name, public_key="k", nominal_users=9).text()
        (tmp_path / "merchants" / f"{name}.json").write_text(text)
    run = tmp_path / "runs" / "one"
    (run / "rounds").mkdir(parents=True)
    (run / "status.json").write_text('{"state": "running"}')
    (run / "run.toml").write_text("[job]\nrounds = 7\n")
    lines = (
        {"round": 0, "seconds": 2.0, "replies": 3, "failures": 0, "late": 1, "reasons": {}},
        {
            "round": 1,
            "seconds": 4.0,
            "replies": 1,
            "failures": 4,
            "late": 0,
            "reasons": {
                "refused by the policy (steps)": 2,
                "no reply in time": 1,
                'made up by a merchant\n{x="1"} 99': 1,
            },
        },
    )
    text = "".join(json.dumps(x) + "\n" for x in lines)
    (run / "rounds" / "rounds.jsonl").write_text(text + '{"round": 2, "sec')
    return tmp_path


def test_an_aggregator_shows_runs_rounds_and_replies_by_outcome(aggregator, observed):
    with observed.running(aggregator):
        found = scraped(observed, aggregator)
    assert found["silotune_run_state", "one", "running"] == 1
    assert found["silotune_run_state", "failed", "one"] == 0
    assert found["silotune_run_rounds", "one"] == 7
    assert found["silotune_run_rounds_done", "one"] == 2
    assert found["silotune_round_seconds_sum", "one"] == 6
    assert found["silotune_round_seconds_count", "one"] == 2
    assert found["silotune_merchants_enrolled",] == 2
    replies = {k[1:]: v for k, v in found.items() if k[0] == "silotune_replies_total"}
    assert replies == {
        ("one", "update"): 4,
        ("late", "one"): 1,
        ("one", "refused by the policy"): 2,
        ("no reply in time", "one"): 1,
        # No name that a merchant chose.
        ("one", "other"): 1,
    }


def test_every_word_that_a_silo_answers_with_is_an_outcome():
    assert set(OUTCOMES) >= WORDS


# Of the database migrations that Flower runs.
@pytest.mark.filterwarnings("ignore:No path_separator found:DeprecationWarning")
def test_nodes_are_counted_by_what_flowers_own_database_says(tmp_path):
    from flwr.server.superlink.linkstate import LinkStateFactory
    from flwr.supercore.object_store import ObjectStoreFactory
    from flwr.superlink.federation import NoOpFederationManager

    assert nodes_by_status(tmp_path) == {"registered": 0, "online": 0, "offline": 0}
    database = str(tmp_path / "state.db")
    state = LinkStateFactory(database, NoOpFederationManager(), ObjectStoreFactory()).state()
    nodes = [state.create_node("me", "me", str(n).encode(), 30.0) for n in range(4)]
    for node in nodes[:3]:
        assert state.activate_node(node, 30.0)
    assert state.deactivate_node(nodes[0])
    assert state.acknowledge_node_heartbeat(nodes[1], -100.0)
    assert nodes_by_status(tmp_path) == {"registered": 1, "online": 1, "offline": 2}


def test_bytes_and_answers_are_counted_where_they_pass(tmp_path):
    path = traffic_path(tmp_path)
    path.parent.mkdir()

    async def inner(scope, receive, send):
        while (await receive()).get("more_body"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 100})

    async def talk():
        known = frozenset({"/health", "/v1/fleet/pull-messages"})
        app = Counted(MerchantsOnly(inner, body_limit=1000), path, known)

        async def ask(method, at, bodies):
            left = [
                {"type": "http.request", "body": b, "more_body": i + 1 < len(bodies)}
                for i, b in enumerate(bodies)
            ]

            async def receive():
                return left.pop(0) if left else {"type": "http.disconnect"}

            async def send(_):
                pass

            await app({"type": "http", "method": method, "path": at, "headers": []}, receive, send)

        await ask("POST", "/v1/fleet/pull-messages", [b"a" * 30, b"b" * 12])
        await ask("GET", "/health", [b""])
        for n in range(20):
            await ask("GET", f"/stranger-{n}", [b""])
        await asyncio.sleep(1.2)

    asyncio.run(talk())
    passed, answers = read_traffic(tmp_path)
    assert passed == {"in": 42, "out": 200}
    assert answers == {
        ("/v1/fleet/pull-messages", "200"): 1,
        ("/health", "200"): 1,
        ("other", "404"): 20,
    }
