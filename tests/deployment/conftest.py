"""A federation of real processes on this machine, started by the commands that people use."""

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from silotune.observe import read_url

RUN = """
nodes = {nodes}
quorum = {quorum}
deadline = {deadline}

[task]
first = 2024-02-05T00:00:00
split = 2024-05-20T00:00:00
last = 2024-07-01T00:00:00
category_level = 2
train_visits = 1
test_visits = 1

[model]
use_text = false

[job]
name = "{name}"
rounds = {rounds}
epsilon = 8.0

[job.private]
noise_multiplier = {noise}
clip_norm = 4.0
sampling_rate = 0.25
examples_per_user = 8
steps = 2
learning_rate = 0.5
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@dataclass
class Federation:
    """Commands and folders of one aggregator and some merchants."""

    root: Path
    port: int

    @property
    def server(self):
        return self.root / "aggregator"

    @property
    def silos(self):
        return sorted((self.root / "silos").iterdir())

    def silotune(self, *arguments, fails=False, timeout=280):
        done = subprocess.run(
            [sys.executable, "-m", "silotune.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=self.root,
        )
        said = done.stdout + done.stderr
        assert (done.returncode != 0) == fails, said + self.logs()
        return said

    def logs(self):
        """What the processes wrote; into the message of a test that fails."""
        found = [*self.root.glob("aggregator/logs/*"), *self.root.glob("silos/*/logs/*")]
        return "".join(f"\n== {p}\n{p.read_text()[-1500:]}" for p in found)

    def run_file(self, **changes):
        known = {"nodes": 2, "quorum": 0.5, "deadline": 120, "rounds": 3, "noise": 2.0}
        values = known | {"name": "promotions"} | changes
        path = self.root / f"{values['name']}.toml"
        path.write_text(RUN.format(**values))
        return path

    def state(self, folder):
        return json.loads((folder / "run" / "state.json").read_text())["processes"]

    def kill(self, folder, name):
        """SIGKILL a process; return once its supervisor has started another that is ready."""
        before = self.state(folder)[name]["pid"]
        os.kill(before, signal.SIGKILL)
        return before

    def until_ready(self, folder, name, before, timeout=120):
        ready = folder / "run" / f"{name}.ready"
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            with contextlib.suppress(OSError, ValueError, KeyError):
                now = self.state(folder)[name]["pid"]
                if now not in (None, before) and int(ready.read_text()) == now:
                    return
            time.sleep(0.1)
        raise AssertionError(f"{name} did not come back" + self.logs())

    def status(self):
        return json.loads(self.silotune("server", "status", self.server, "--json"))

    def until_online(self, count, timeout=120):
        until = time.monotonic() + timeout
        while time.monotonic() < until:
            if sum(m["status"] == "online" for m in self.status()["merchants"]) == count:
                return
            time.sleep(0.5)
        raise AssertionError("merchants did not come back" + self.logs())

    def stop(self):
        self.silotune("client", "stop", *self.silos)
        self.silotune("server", "stop", self.server)


@pytest.fixture(scope="session")
def federation(tmp_path_factory):
    """An aggregator and two merchants, enrolled and running; a model without text."""
    one = Federation(tmp_path_factory.mktemp("federation"), free_port())
    run = one.run_file()
    one.silotune(
        "data", "synthetic", one.root / "silos", "--merchants", 2, "--users", 60, "--quiet"
    )
    one.silotune("server", "init", one.server, "--address", f"127.0.0.1:{one.port}", "--start")
    invitation, enrolments = one.server / "invitation.toml", one.root / "enrolments"
    files = ("--invitation", invitation, "--run", run, "--enrolments", enrolments)
    one.silotune("client", "init", *one.silos, *files)
    for silo in one.silos:
        # Tests start runs as they like; test_hostile_runs.py holds the pin.
        policy = silo / "policy.toml"
        policy.write_text(re.sub("(?m)^runs = .*$", 'runs = ["any"]', policy.read_text()))
    one.silotune("server", "enrol", one.server, *(one.root / "enrolments").iterdir())
    try:
        one.silotune("client", "start", *one.silos)
        yield one
    finally:
        one.stop()


class Observed:
    """One side's `observe` process alone, and HTTP to it."""

    @staticmethod
    @contextlib.contextmanager
    def running(folder, module="server.observe"):
        (folder / "run").mkdir(exist_ok=True)
        url = folder / "run" / "observe.ready"
        url.unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-m", module, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            until = time.monotonic() + 30
            while not (url.exists() and url.read_text()):
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.05)
            yield process
        finally:
            # Its supervisor is gone, for all that it knows.
            process.stdin.close()
            assert process.wait(10) == 1

    @staticmethod
    def ask(folder, path, method="GET", **headers):
        address = read_url(folder).removeprefix("http://")
        connection = http.client.HTTPConnection(address, timeout=20)
        try:
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer, answer.read().decode()
        finally:
            connection.close()


@pytest.fixture(scope="session")
def observed():
    """Start one side's `observe` process, and ask it."""
    return Observed
