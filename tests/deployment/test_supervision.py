"""Supervisors: one per folder, processes that come back, and none that stays behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from silotune.errors import ConfigError
from silotune.supervised import socket_path
from silotune.supervision import Supervisor, launch, read_state, stop, wait_until_ready
from silotune.toml_text import toml_text

CHILD = """
import sys, time
from pathlib import Path
from silotune.supervised import mark_ready, open_ready, watch_parent
watch_parent()
mark_ready(open_ready(Path(sys.argv[1]), sys.argv[2]))
time.sleep(600)
"""
PARENT = """
import sys
from pathlib import Path
from silotune.supervision import Process, Supervisor
folder = Path(sys.argv[1])
Supervisor(folder, [
    Process(name=n, arguments=["child.py", str(folder), n]) for n in ("first", "second")
]).run()
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose supervisor of two idle processes `launch` can start."""
    monkeypatch.chdir(tmp_path)
    for name, text in (("child.py", CHILD), ("parent.py", PARENT)):
        (tmp_path / name).write_text(textwrap.dedent(text))
    one = tmp_path / "one"
    yield one
    stop(one)
    for process in _launched:
        process.wait(20)
    _launched.clear()


_launched = []


def _launch(folder):
    _launched.append(launch(folder, ["parent.py", str(folder)]))
    return _launched[-1]


def _start(folder):
    process = _launch(folder)
    wait_until_ready(folder, process, 60)
    return process


def _gone(pid, timeout=10):
    until = time.monotonic() + timeout
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_killed_process_comes_back_and_stop_ends_all(folder):
    parent = _start(folder)
    with pytest.raises(ConfigError, match="running already"):
        launch(folder, ["parent.py", str(folder)])
    with pytest.raises(ConfigError, match="running already"):
        Supervisor(folder, [])
    before = read_state(folder)["processes"]
    os.kill(before["first"]["pid"], signal.SIGKILL)
    until = time.monotonic() + 60
    while (now := read_state(folder)["processes"])["first"]["pid"] in (
        None,
        before["first"]["pid"],
    ) or not now["first"]["ready"]:
        assert time.monotonic() < until
        time.sleep(0.05)
    assert now["first"]["starts"] == 2
    assert now["second"] == before["second"]
    assert stop(folder)
    parent.wait(10)
    for process in now.values():
        assert _gone(process["pid"])
    assert read_state(folder) is None
    assert not stop(folder)


def test_processes_do_not_outlive_a_killed_supervisor(folder):
    parent = _start(folder)
    processes = read_state(folder)["processes"].values()
    parent.kill()
    parent.wait()
    for process in processes:
        assert _gone(process["pid"])
    # The folder is free again.
    _start(folder)


def test_a_process_that_cannot_start_is_named_with_the_place_of_its_log(folder):
    folder.parent.joinpath("child.py").write_text("raise SystemExit('no such model')")
    process = _launch(folder)
    with pytest.raises(ConfigError, match="first, second not ready after 2 s"):
        wait_until_ready(folder, process, 2.0)
    assert "no such model" in (folder / "logs" / "first.log").read_text()
    folder.parent.joinpath("parent.py").write_text("raise SystemExit(1)")
    stop(folder)
    with pytest.raises(ConfigError, match="did not start"):
        wait_until_ready(folder, _launch(folder), 20.0)


def test_a_socket_of_a_deep_folder_is_in_a_private_one(tmp_path):
    assert socket_path(tmp_path, "x.sock") == tmp_path.resolve() / "run" / "x.sock"
    deep = tmp_path / ("d" * 60) / ("e" * 60)
    deep.mkdir(parents=True)
    found = socket_path(deep, "x.sock")
    assert len(os.fsencode(found)) < 108
    assert found == socket_path(deep, "x.sock")
    assert found != socket_path(deep.parent, "x.sock")
    try:
        found.parent.chmod(0o755)
        with pytest.raises(ConfigError, match="only you can open"):
            socket_path(deep, "x.sock")
    finally:
        found.parent.rmdir()


def test_what_is_written_as_toml_reads_back():
    import datetime as dt
    import tomllib

    values = {
        "text": 'a "b" \\ ü\n',
        "flag": True,
        "number": 3,
        "tiny": 1e-7,
        "when": dt.datetime(2024, 2, 5),  # noqa: DTZ001
        "list": ["a", "b"],
        "table": {"x y": 1.5, "inner": {"z": False}, "empty": {}},
    }
    assert tomllib.loads(toml_text({**values, "none": None})) == values


def test_supervisors_import_neither_torch_nor_flower():
    code = "import sys, client.start, server.start; print([m for m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    names = json.loads(done.stdout.replace("'", '"'))
    assert not {n.split(".")[0] for n in names} & {"torch", "flwr", "transformers", "numpy"}


def test_what_follows_another_is_started_again_with_it(folder):
    text = PARENT.replace(
        'n]) for n in ("first", "second")', "n], follows=f) for n, f in F.items()"
    ).replace("folder =", "F = {'first': 'second', 'second': None}\nfolder =")
    folder.parent.joinpath("parent.py").write_text(textwrap.dedent(text))
    _start(folder)
    before = read_state(folder)["processes"]
    os.kill(before["second"]["pid"], signal.SIGKILL)
    _until(lambda: _starts(folder) == {"first": 2, "second": 2})
    # Not the other way round.
    os.kill(read_state(folder)["processes"]["first"]["pid"], signal.SIGKILL)
    _until(lambda: _starts(folder) == {"first": 3, "second": 2})


def _starts(folder):
    found = read_state(folder)["processes"]
    return {name: p["starts"] for name, p in found.items() if p["ready"]}


def _until(true, seconds=30):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_process_that_was_ready_is_back_at_once_and_one_that_never_is_ever_later(folder):
    _start(folder)
    for starts in (2, 3, 4):
        pid = read_state(folder)["processes"]["first"]["pid"]
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        _until(lambda n=starts: _starts(folder).get("first") == n)
        assert time.monotonic() - began < 4
    stop(folder)
    folder.parent.joinpath("child.py").write_text("raise SystemExit(1)")
    _launch(folder)
    time.sleep(6)
    # After 1, 2 and 4 seconds.
    assert 2 <= read_state(folder)["processes"]["first"]["starts"] <= 4


def test_processes_end_one_after_another_the_last_first(folder):
    text = CHILD.replace("time.sleep(600)", "signal.pause()").replace(
        "watch_parent()\n", "watch_parent()\nsignal.signal(signal.SIGTERM, end)\n", 1
    )
    end = """
def end(*_):
    time.sleep(0.5)
    with open(sys.argv[1] + "/order", "a") as f:
        f.write(sys.argv[2] + " ")
    sys.exit()
"""
    text = text.replace("import sys, time", "import signal, sys, time").replace(
        "from silotune.supervised", end + "from silotune.supervised", 1
    )
    folder.parent.joinpath("child.py").write_text(text)
    _start(folder)
    stop(folder)
    assert (folder / "order").read_text() == "second first "
    # One that does not end is killed after its time.
    folder.parent.joinpath("child.py").write_text(
        text.replace("time.sleep(0.5)", "time.sleep(600)")
    )
    folder.parent.joinpath("parent.py").write_text(PARENT.replace("n]) for", "n], grace=1.0) for"))
    _start(folder)
    began = time.monotonic()
    stop(folder)
    assert time.monotonic() - began < 10


def test_a_full_disk_ends_no_process(folder):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    folder.mkdir()
    disk = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)], capture_output=True
    )
    if disk.returncode:
        pytest.skip("no disk can be mounted here")
    try:
        _start(folder)
        before = read_state(folder)["processes"]
        with contextlib.suppress(OSError), (folder / "filler").open("wb", 0) as filler:
            while filler.write(b"x" * 512):
                pass
        os.kill(before["first"]["pid"], signal.SIGKILL)
        time.sleep(4)
        assert Path(f"/proc/{before['second']['pid']}").exists()
        (folder / "filler").unlink()
        _until(lambda: _starts(folder).get("first", 0) > 1, 60)
        assert read_state(folder)["processes"]["second"] == before["second"]
    finally:
        stop(folder)
        subprocess.run(["umount", "-l", str(folder)], check=False)
