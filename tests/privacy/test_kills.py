"""SIGKILL at random moments of reserve, train, release and settle: real processes, real files.

`make kills` runs 200; the default run a few.
"""

import hashlib
import multiprocessing
import os
import random
import signal
import time

import torch

from privacy.accounting import GaussianEvent, epsilon_spent
from privacy.dp_sgd import DPConfig, noisy_mean
from privacy.egress import Declaration, Gate
from privacy.ledger import Ledger
from privacy.ledger_report import verify
from privacy.randomness import SecureSource

KILLS = int(os.environ.get("SILOTUNE_KILLS", "10"))
PER_LEDGER = 10
EVENT = GaussianEvent(sampling_rate=0.01, noise_multiplier=20.0, steps=1)
SIZE = 2000


def _say(handle, *words):
    # What has happened in the world outside the ledger, whatever happens next.
    os.write(handle, (" ".join(words) + "\n").encode())
    os.fsync(handle)


def _work(folder, name):
    """Release for ever; the world's record is kept beside the ledger, not in it."""
    torch.set_num_threads(1)
    world = os.open(folder / "world", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    settings = DPConfig(clip_norm=1.0, noise_multiplier=20.0, sampling_rate=0.01)
    declared = Declaration(name="update", size=SIZE, mechanism="gaussian", norm_max=1e9)
    with Ledger(folder / "ledger.db") as ledger:
        gate = Gate(ledger)
        for index in range(10**6):
            request = f"{name}-{index}"
            reservation = ledger.reserve(request, [EVENT], {}, epsilon=8.0, delta=1e-5)
            _say(world, "trained", request)
            update = noisy_mean([torch.randn(4, SIZE)], SIZE, settings, 100, SecureSource())
            out = gate.release(reservation, declared, update, private=True, facts={})
            _say(world, "left", request, hashlib.sha256(out.vector().numpy().tobytes()).hexdigest())
            gate.handed_over(out)


def _killed(folder, name, generator):
    process = multiprocessing.get_context("fork").Process(target=_work, args=(folder, name))
    process.start()
    time.sleep(generator.uniform(0.0, 0.5))
    assert process.is_alive(), f"the worker ended by itself: {process.exitcode}"
    os.kill(process.pid, signal.SIGKILL)
    process.join()


def _world(folder):
    path = folder / "world"
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    trained = [line.split()[1] for line in lines if line.startswith("trained")]
    left = {line.split()[1]: line.split()[2] for line in lines if line.startswith("left")}
    return trained, left


def test_no_kill_makes_the_ledger_say_less_than_what_was_spent(tmp_path):
    # Imported before the fork: a worker would spend its short life on it.
    spent = [epsilon_spent([EVENT] * count, delta=1e-5) for count in (1, 2)]
    assert spent[0] < spent[1]
    generator = random.Random(20261122)
    seen = {"reserve": 0, "release": 0, "abandon": 0, "settle": 0}
    for index in range(KILLS):
        folder = tmp_path / str(index // PER_LEDGER)
        folder.mkdir(exist_ok=True)
        before = len(_reserved(folder)[0])
        trained_before = len(_world(folder)[0])
        _killed(folder, str(index), generator)
        # Opening is the restart: it must work after every kill.
        Ledger(folder / "ledger.db").close()
        found = verify(folder / "ledger.db")
        reserved, released = _reserved(folder)
        trained, left = _world(folder)
        assert set(trained) <= set(reserved), "trained without a reservation"
        assert len(reserved) == len(set(reserved)), "one request, two reservations"
        extra = (len(reserved) - before) - (len(trained) - trained_before)
        assert 0 <= extra <= 1, f"{extra} reservations more than trainings"
        true = epsilon_spent([EVENT] * len(trained), delta=1e-5) if trained else 0.0
        assert found.epsilon >= true
        for request, digest in left.items():
            assert released[request] == digest, "something left without its receipt"
        if left:
            _replayed(folder, *list(left.items())[-1])
        for kind in seen:
            seen[kind] += sum(e.kind == kind for e in _entries(folder)) if index % 10 == 9 else 0
    # The kills did fall into the work; many of them into every part of it.
    assert seen["reserve"], seen
    assert all(seen.values()) or KILLS < 100, seen


def _entries(folder):
    if not (folder / "ledger.db").exists():
        return ()
    with Ledger(folder / "ledger.db") as ledger:
        return ledger.entries


def _reserved(folder):
    entries = _entries(folder)
    released = {e.body["request"]: e.body["sha256"] for e in entries if e.kind == "release"}
    return [e.body["request"] for e in entries if e.kind == "reserve"], released


def _replayed(folder, request, digest):
    with Ledger(folder / "ledger.db") as ledger:
        payload, _ = ledger.stored(request)
    assert hashlib.sha256(payload).hexdigest() == digest
