"""Logs: JSON lines that turn over by size and hold nothing of a user. Real processes."""

import json
import os
import subprocess
import sys
import textwrap

import pytest

from silotune.logs import LOG_VARIABLE

SECRET = "household-4711 bought Zinfandel"

LOUD = """
import asyncio, logging, sys, threading, traceback, warnings
import numpy as np, torch
from silotune.errors import DataError, LedgerError
from silotune.logs import configure, event, why
SECRET = sys.argv[2]
library = logging.getLogger("somebody.else")
library.addHandler(logging.StreamHandler(open(1, "w", closefd=False)))
library.propagate = False
configure("daemon", sees_data=sys.argv[1] == "yes")

def thrown(error):
    try:
        raise error
    except Exception as caught:
        return caught

print("a print of", SECRET)
print(SECRET, file=sys.stderr)
traceback.print_exception(thrown(KeyError(SECRET)))
warnings.warn(SECRET)
library.error("row %s", SECRET)
library.error(SECRET)
try:
    raise ValueError(SECRET)
except ValueError:
    library.exception("it failed")
    logging.getLogger("flwr").log(logging.ERROR, "failed", exc_info=True)
threading.Thread(target=lambda: 1 / len([]) + int(SECRET)).start()
threading.Thread(target=lambda: int(SECRET), name=SECRET).start()

async def lost():
    asyncio.get_running_loop().create_task(fails())
    await asyncio.sleep(0.01)
async def fails():
    raise RuntimeError(SECRET)
asyncio.run(lost())

class Unraisable:
    def __del__(self):
        raise RuntimeError(SECRET)
Unraisable()
for kind in (DataError, RuntimeError, OSError, LookupError):
    event("wrong", **why(thrown(kind(SECRET))))
event("told", **why(thrown(LedgerError("the ledger is held"))))
event("tensor", values=torch.tensor([0.123456]), more=np.float64(0.654321), ok=1.5, none=None)
raise SystemError(SECRET)
"""


def run(tmp_path, code, *arguments, **environment):
    path = tmp_path / "one.log"
    with path.open("ab") as out:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), *arguments],
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | {LOG_VARIABLE: str(path)} | environment,
            timeout=100,
        )
    return done.returncode, [json.loads(line) for line in path.read_text().splitlines()]


def test_no_way_out_of_a_process_that_sees_rows_carries_one_into_its_log(tmp_path):
    code, lines = run(tmp_path, LOUD, "yes", SECRET)
    assert code == 1
    said = json.dumps(lines)
    for word in ("household", "Zinfandel", "0.1234", "0.6543"):
        assert word not in said
    assert {"KeyError", "ValueError", "SystemError"} & {x.get("error") for x in lines}
    # All of it left a trace: that it happened, of what kind, where.
    assert sum(x.get("error") == "ValueError" for x in lines) == 3
    assert sum(x.get("error") == "RuntimeError" for x in lines) == 3
    assert sum(x.get("logger") == "print" for x in lines) >= 4
    assert sum(x.get("logger") == "uncaught" for x in lines) == 4
    (told,) = [x for x in lines if x["event"] == "told"]
    assert told["words"] == "the ledger is held"
    (tensor,) = [x for x in lines if x["event"] == "tensor"]
    assert (tensor["values"], tensor["ok"], tensor["none"]) == ("(Tensor left out)", 1.5, None)


def test_a_process_without_rows_keeps_what_libraries_say_but_no_words_of_exceptions(tmp_path):
    _, lines = run(tmp_path, LOUD, "no", SECRET)
    assert f"row {SECRET}" in [x["text"] for x in lines if x.get("logger") == "somebody.else"]
    exceptions = [x for x in lines if "error" in x]
    assert len(exceptions) > 8
    assert all("household" not in x["words"] for x in exceptions)
    assert not any("household" in json.dumps(x) for x in lines if x.get("logger") == "asyncio")


def test_every_line_says_when_in_utc_how_bad_and_who(tmp_path):
    _, lines = run(
        tmp_path,
        "from silotune.logs import *; configure('node', sees_data=False); event('up', n=1)\n"
        "import logging; logging.getLogger('x').error('two\\nlines \\u2028 \\x1b[31m \"')",
    )
    first, second = lines
    time = first.pop("time")
    assert time.endswith("Z")
    assert len(time) == len("2026-11-22T11:06:12.123Z")
    assert first == {"level": "info", "process": "node", "event": "up", "n": 1}
    assert (second["level"], second["text"]) == ("error", "two")


def test_a_log_turns_over_by_size_with_all_that_the_process_says(tmp_path):
    code = """
    import os, sys
    from silotune.logs import configure, event
    configure("loud", sees_data=False, limit=20_000)
    for i in range(2000):
        event("said", number=i, text="x" * 50)
    os.write(1, b'{"event": "straight"}\\n')
    """
    _, newest = run(tmp_path, code)
    assert newest[-1] == {"event": "straight"}
    files = sorted(p.name for p in tmp_path.iterdir())
    assert files == ["one.log", "one.log.1", "one.log.2", "one.log.3", "one.log.4"]
    assert all(p.stat().st_size < 20_400 for p in tmp_path.iterdir())
    numbers = []
    for name in reversed(files):
        lines = [json.loads(x) for x in (tmp_path / name).read_text().splitlines()]
        numbers += [x["number"] for x in lines if "number" in x]
    # Nothing is lost but the oldest files.
    assert numbers == list(range(numbers[0], 2000))
    assert len(numbers) > 500
    assert (tmp_path / "one.log").stat().st_mode & 0o777 == 0o600


def test_the_log_of_a_silo_turns_over_and_one_that_cannot_be_written_stops_nothing(
    tmp_path, monkeypatch
):
    from client import silo_log
    from silotune import logs

    monkeypatch.setattr(logs, "_BYTES", 1000)
    log = tmp_path / "silo" / "silo.log"
    for number in range(40):
        silo_log.append(log, "refused", words="y" * 40, number=number)
    assert {p.name for p in log.parent.iterdir()} == {
        "silo.log",
        *(f"silo.log.{n}" for n in range(1, 5)),
    }
    assert json.loads(log.read_text().splitlines()[-1])["number"] == 39
    silo_log.append(tmp_path, "to a folder")
    assert log.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("module", ["client.daemon", "client.node", "client.observe"])
def test_a_process_that_cannot_start_says_why_in_its_log(tmp_path, module):
    (tmp_path / "run").mkdir()
    (tmp_path / "client.toml").write_text("threads = 'many'\n")
    path = tmp_path / "its.log"
    # Held open: its end is the end of the supervisor.
    inside, outside = os.pipe()
    with path.open("wb") as out:
        done = subprocess.run(
            [sys.executable, "-m", module, str(tmp_path)],
            stdin=inside,
            stdout=out,
            stderr=out,
            timeout=100,
        )
    os.close(inside)
    os.close(outside)
    assert done.returncode == 1
    (line,) = [json.loads(x) for x in path.read_text().splitlines()]
    assert line["error"] == "ConfigError"
    assert "threads" in line["words"]
