"""A real federation that trained, refused and was disturbed: what it logged, and what it shows."""

import base64
import json
import os
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families
from safetensors.numpy import load_file

from privacy.chain import Chain
from privacy.ledger_report import ledger_rows
from silotune.observe import read_token

pytestmark = [pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def trained(federation):
    """Two rounds, a refused run, and a killed daemon."""
    federation.until_online(2)
    run = federation.run_file(name="logged", rounds=2, noise=4.0)
    federation.silotune("server", "run", federation.server, run)
    loud = federation.run_file(name="logged-loud", noise=0.1, rounds=1)
    federation.silotune("server", "run", federation.server, loud, fails=True)
    silo = federation.silos[0]
    before = federation.state(silo)["daemon"]["pid"]
    os.kill(before, signal.SIGKILL)
    federation.until_ready(silo, "daemon", before)
    return federation


def logs(federation):
    folders = [federation.server, *federation.silos]
    found = [p for f in folders for p in (*f.glob("logs/*"), *f.glob("silo.log*"))]
    assert len(found) >= 3 * 4
    return {p: p.read_text(errors="replace") for p in found}


def secrets_of(federation):
    """What no log may hold: keys, secrets and tokens, in each form that a log could have."""
    found = set()
    for folder in (federation.server, *federation.silos):
        for path in folder.glob("*.key"):
            raw = path.read_bytes()
            lines = [x for x in raw.decode("latin-1").splitlines() if not x.startswith("-----")]
            found |= set(lines) if b"PRIVATE KEY" in raw else forms(raw)
        found |= forms((folder / "superexec.secret").read_bytes())
        found.add(read_token(folder))
    return {x for x in found if len(x) > 12}


def forms(raw):
    return {raw.hex(), base64.b64encode(raw).decode(), repr(raw)[2:-1], str(list(raw))[1:-1]}


def rows_of(silo):
    """User ids, item ids and every text of a row."""
    found = set()
    for table in silo.glob("*.parquet"):
        read = pq.read_table(table)
        for name in read.column_names:
            if name in ("user_id", "visit_id", "item_id", "title", "brand", "size"):
                found |= {str(v) for v in read[name].to_pylist() if v is not None}
    return {x for x in found if len(x) >= 5}


def numbers_of(federation):
    """Every weight that travelled or was kept, as a program would write it."""
    found = set()
    for path in federation.server.glob("runs/*/rounds/round-*.safetensors"):
        values = load_file(path)["flat"]
        for value in values[np.abs(values) > 1e-6]:
            found |= {repr(float(value)), str(value), f"{value:.6f}", f"{value:.4e}"}
    for silo in federation.silos:
        for path in silo.glob("**/*.bin"):
            raw = path.read_bytes()
            values = np.frombuffer(raw[: len(raw) // 4 * 4], np.float32)
            for value in values[np.isfinite(values) & (np.abs(values) > 1e-6)]:
                found |= {repr(float(value)), str(value)}
    return {x for x in found if len(x.strip("-0.")) >= 5}


def test_no_log_of_either_side_holds_a_row_a_key_a_token_or_a_weight(trained):
    said = logs(trained)
    rows = set().union(*(rows_of(s) for s in trained.silos))
    secrets, numbers = secrets_of(trained), numbers_of(trained)
    assert len(rows) > 100
    assert len(secrets) > 10
    assert len(numbers) > 30
    for path, text in said.items():
        assert not [x for x in secrets if x in text], path
        assert not [x for x in rows if x in text], path
        assert not [x for x in numbers if x in text], path


def test_the_search_finds_what_it_looks_for(trained):
    row, key, number = (
        sorted(found)[0]
        for found in (rows_of(trained.silos[0]), secrets_of(trained), numbers_of(trained))
    )
    text = f'{{"event": "x", "text": "{row} {key} {number}"}}'
    assert all(x in text for x in (row, key, number))
    assert "logged" in "".join(logs(trained).values())


def test_every_line_is_json_with_time_level_process_and_event(trained):
    for path, text in logs(trained).items():
        for line in text.splitlines():
            one = json.loads(line)
            assert {"time", "level", "process", "event"} <= set(one), (path, line)
            assert one["time"].endswith("Z")
        assert path.stat().st_mode & 0o077 == 0, path
    events = {json.loads(x)["event"] for text in logs(trained).values() for x in text.splitlines()}
    assert {"process started", "process ended", "run started", "run finished", "run failed"} <= (
        events
    )
    assert {"ready", "refused"} <= events


def scraped(observed, folder):
    answer, text = observed.ask(folder, "/metrics", Authorization=f"Bearer {read_token(folder)}")
    assert answer.status == 200
    return {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def well(observed, folder, timeout=60):
    until = time.monotonic() + timeout
    while True:
        answer, text = observed.ask(folder, "/health")
        if (answer.status, text) == (200, "ok\n"):
            return
        assert time.monotonic() < until, text
        time.sleep(0.5)


def test_the_running_aggregator_shows_what_it_did(trained, observed):
    well(observed, trained.server)
    trained.until_online(2)
    found = scraped(observed, trained.server)
    assert found["silotune_nodes", "online"] == 2
    assert found["silotune_merchants_enrolled",] == 2
    assert found["silotune_run_state", "finished", "logged"] == 1
    assert found["silotune_run_state", "failed", "logged-loud"] == 1
    assert found["silotune_run_rounds_done", "logged"] == 2
    assert found["silotune_round_seconds_sum", "logged"] > 0
    assert found["silotune_replies_total", "logged", "update"] == 4
    for direction in ("in", "out"):
        assert found["silotune_bytes_total", direction] > 1000
    assert found["silotune_requests_total", "/v1/fleet/pull-messages", "200"] > 0
    for name in ("superlink", "executor", "observe"):
        assert found["silotune_process_ready", name] == 1
    assert "silotune server" not in str(found)
    assert trained.silotune("server", "health", trained.server) == "ok\n"
    assert "fail" not in trained.silotune("server", "doctor", trained.server)


def test_the_running_silo_shows_what_it_spent_and_keeps_it_to_itself(trained, observed):
    silo = trained.silos[0]
    well(observed, silo)
    found = scraped(observed, silo)
    rows = ledger_rows(Chain.read(silo / "ledger.db"))
    assert found["silotune_epsilon_spent",] == pytest.approx(rows[-1].epsilon)
    assert found["silotune_releases_total",] == sum(r.bytes > 0 for r in rows)
    assert found["silotune_released_bytes_total",] == sum(r.bytes for r in rows)
    assert found["silotune_refusals_total", "refused by the policy"] >= 1
    assert found["silotune_training_seconds_total",] > 0
    assert time.time() - found["silotune_last_contact_timestamp_seconds",] < 30
    assert found["silotune_process_starts_total", "daemon"] >= 2
    # The aggregator's own figures hold nothing of it.
    names = {name for name, *_ in scraped(observed, trained.server)}
    assert not [n for n in names if "epsilon" in n or "training" in n or "refusals" in n]
    assert trained.silotune("client", "health", silo) == "ok\n"
    assert "fail" not in trained.silotune("client", "doctor", silo)
