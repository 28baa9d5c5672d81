"""The aggregator's dashboard, from folders that a test wrote: figures, damage, hostile text."""

import asyncio
import json
import re
import subprocess
import sys

import httpx
import pytest
from starlette.applications import Starlette

from server.dashboard import routes
from server.dashboard_files import server_view
from silotune.invitation import Enrolment

HOSTILE = "<script>window.pwned=1</script><img src=x onerror=window.pwned=1>\"'&{{7*7}}"
AUC = {"value": 0.75, "standard_error": 0.05}


def _record(round_, **changes):
    known = {"seconds": 2.0, "bytes_up": 1000, "bytes_down": 3000, "asked": 3}
    counts = {"replies": 3, "failures": 0, "asked_again": 0, "late": 0}
    return known | counts | {"round": round_} | changes


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "server.toml").write_text('name = "here"\npublic_address = "127.0.0.1:1"\n')
    (tmp_path / "merchants").mkdir()
    for number, name in enumerate(("north", "south"), start=1):
        one = Enrolment(name=name, public_key="key", nominal_users=100 * number)
        (tmp_path / "merchants" / f"{name}.json").write_text(one.text())
        (tmp_path / "merchants" / f"{name}.node").write_text(f"{number}\n")
    return tmp_path


def _run(folder, records, name="promotions", job="", **status):
    run = folder / "runs" / name
    (run / "rounds").mkdir(parents=True)
    known = {"state": "running", "message": "", "submitted": 1.0, "starts": 1}
    (run / "status.json").write_text(json.dumps(known | status))
    toml = f'nodes = 3\nquorum = 0.6\n[job]\nname = "{name}"\nrounds = 4\n{job}'
    (run / "run.toml").write_text(toml)
    lines = "".join(json.dumps(r) + "\n" for r in records)
    (run / "rounds" / "rounds.jsonl").write_text(lines)
    return run / "rounds"


def _ask(folder, path, method="GET"):
    async def ask():
        transport = httpx.ASGITransport(app=Starlette(routes=routes(folder)))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
            return await client.request(method, path)

    return asyncio.run(ask())


def _page(folder, path="/"):
    answer = _ask(folder, path)
    assert answer.status_code == 200
    return answer


def test_an_aggregator_without_merchants_and_runs_has_a_page(tmp_path):
    (tmp_path / "server.toml").write_text('name = "here"\n')
    text = _page(tmp_path).text
    for words in ("No run yet", "None has enrolled", "not running"):
        assert words in text


def test_a_run_in_progress_shows_its_rounds_and_what_each_merchant_brought(folder):
    rounds = _run(folder, [_record(0), _record(1, replies=2, failures=1, late=1)])
    (rounds / "releases-0000.json").write_text('{"1": "aa", "2": "bb"}')
    (rounds / "releases-0001.json").write_text('{"2": "cc"}')
    view = server_view(folder)
    assert [(m.name, m.arrived) for m in view.merchants] == [
        ("north", (True, False)),
        ("south", (True, True)),
    ]
    text = _page(folder).text
    assert "2 of 4 rounds done" in text
    assert "1 of 2" in text
    assert "8.0 kB" in text  # all bytes of both rounds
    assert 'aria-label="yes, no"' in text


def test_quality_is_shown_with_its_error_and_what_noise_hides_is_said_so(folder):
    rounds = _run(folder, [_record(0), _record(1)])
    hidden = {"value": None, "standard_error": None}
    for number, auc in enumerate((AUC, hidden)):
        bounds = dict.fromkeys(("low", "middle", "high"), auc)
        metrics = {"quality": [{"auc": bounds, "mae": None}]}
        (rounds / f"metrics-{number:04d}.json").write_text(json.dumps(metrics))
    text = _page(folder).text
    assert "0.750 ± 0.050" in text
    assert "hidden by noise" in text
    assert "AUC by round, with standard errors. 0: 0.750 ± 0.050." in text
    assert "Mean error" not in text


def test_a_run_that_is_asked_for_by_name_is_shown_and_an_unknown_one_is_the_newest(folder):
    _run(folder, [_record(0)], name="old", submitted=1.0)
    _run(folder, [], name="new", submitted=2.0)
    assert server_view(folder).shown.name == "new"
    assert server_view(folder, "old").shown.name == "old"
    assert server_view(folder, "../../etc").shown.name == "new"
    assert "Run old" in _page(folder, "/?run=old").text


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("runs/promotions/status.json", "{"),
        ("runs/promotions/status.json", "[1]"),
        ("runs/promotions/run.toml", "nodes = "),
        ("runs/promotions/run.toml", "job = 3"),
        ("runs/promotions/rounds/rounds.jsonl", '{"round": 0}\n{"round": "x", "seconds": {}}\n'),
        ("runs/promotions/rounds/rounds.jsonl", b"\xff\xfe}\n"),
        ("runs/promotions/rounds/metrics-0000.json", '{"quality": [{"auc": {"middle": 3}}]}'),
        ("runs/promotions/rounds/metrics-0000.json", '{"quality": 3}'),
        ("runs/promotions/rounds/releases-0000.json", "[[]]"),
        ("merchants/north.json", "{"),
        ("merchants/north.node", b"\xff"),
        ("server.toml", "name ="),
    ],
)
def test_a_damaged_file_is_told_and_the_rest_is_shown(folder, file, content):
    _run(folder, [_record(0)])
    path = folder / file
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    text = _page(folder).text
    assert "south" in text
    if not file.endswith(".node"):
        assert path.name in text


def test_troubles_of_the_processes_are_shown_newest_first(folder):
    (folder / "logs").mkdir()
    lines = [
        {"time": f"2026-01-0{d}T00:00:00Z", "level": level, "process": "executor", "event": event}
        for d, level, event in ((1, "warning", "one"), (2, "error", "two"), (3, "info", "three"))
    ]
    text = "".join(json.dumps(one | {"words": HOSTILE}) + "\n" for one in lines)
    (folder / "logs" / "executor.log").write_text(f"no JSON\n{text}")
    assert [t.event for t in server_view(folder).troubles] == ["two", "one"]
    assert "two: words &lt;script&gt;" in _page(folder).text


def test_a_round_that_is_being_written_is_not_there_yet(folder):
    rounds = _run(folder, [_record(0)])
    with (rounds / "rounds.jsonl").open("a") as file:
        file.write('{"round": 1, "seco')
    view = server_view(folder)
    assert (len(view.shown.done), view.faults) == (1, ())


def test_hostile_text_is_shown_as_text(folder):
    _run(folder, [_record(0, reasons={HOSTILE: 2})], state="failed", message=HOSTILE)
    (folder / "merchants" / "x.json").write_text(
        json.dumps({"name": HOSTILE, "public_key": "k", "nominal_users": 1})
    )
    (folder / "server.toml").write_text(f"name = {json.dumps(HOSTILE)}\n")
    answer = _page(folder)
    nonce = re.search(r"'nonce-([^']+)'", answer.headers["content-security-policy"])[1]
    parts = "".join(_page(folder, "/state.json").json()["parts"].values())
    for text in (answer.text.replace(f'<script nonce="{nonce}">', ""), parts):
        assert "<script" not in text
        assert "<img" not in text
        assert "&lt;script&gt;" in text
        assert "{{7*7}}" in text


def test_every_answer_forbids_all_that_the_page_does_not_need(folder):
    first, second = _page(folder), _page(folder)
    policies = [a.headers["content-security-policy"] for a in (first, second)]
    assert policies[0] != policies[1]  # the nonce
    assert "default-src 'none'" in policies[0]
    assert "unsafe" not in policies[0]
    assert not re.search(r"https?://(?!127)", first.text)
    data = _page(folder, "/state.json").headers["content-security-policy"]
    assert "script-src 'none'" in data


def test_nothing_can_be_changed_here(folder):
    for path in ("/", "/state.json", "/stop"):
        assert _ask(folder, path, "POST").status_code in (404, 405)
    for path in ("/server.toml", "/../server.toml", "/runs/", "/templates/look.css", "/static/"):
        assert _ask(folder, path).status_code == 404


@pytest.mark.parametrize("module", ["server.dashboard", "client.dashboard"])
def test_a_dashboard_loads_neither_torch_nor_tables(module):
    code = f"import sys, {module}; print({{'torch', 'flwr', 'duckdb', 'numpy'}} & {{*sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
