"""Worker processes that the system ends are told in words."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from silotune.errors import WorkerError
from silotune.federation import read_federation
from simulations.pool import SiloPool


def end_itself(worker):
    os.kill(os.getpid(), signal.SIGKILL)


def name_of(worker):
    return type(worker).__name__


def test_a_worker_that_the_system_ends_is_an_error_with_a_remedy(small_federation, tmp_path):
    path = small_federation(tmp_path, "plain")
    assert read_federation(path).silos
    with SiloPool(path, 1) as pool:
        assert pool.each([(name_of, ())], lambda *_: None) == ["Worker"]
        with pytest.raises(WorkerError, match="memory or disk is full"):
            pool.each([(end_itself, ())], lambda *_: None)


def test_the_dearest_call_is_begun_first_and_results_keep_their_order(small_federation, tmp_path):
    path = small_federation(tmp_path, "plain")
    with SiloPool(path, 1) as pool:
        began = [(begun_at, (n,)) for n in range(4)]
        results = pool.each(began, lambda *_: None, cost=[1, 3, 2, 5])
    assert [n for n, _ in results] == [0, 1, 2, 3]
    by_time = sorted(range(4), key=lambda n: results[n][1])
    # With one worker: the order of the costs.
    assert by_time == [3, 1, 2, 0]


def begun_at(worker, n):
    return n, time.monotonic_ns()


def number_of(worker):
    return os.getpid()


def waiting(worker, path):
    path.write_text(str(os.getpid()))
    time.sleep(120)


def runs(pid):
    # A process that nobody collects is over, and still listed.
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


PARENT = """
import sys
from pathlib import Path
from simulations.pool import SiloPool
from tests.simulations.test_pool import number_of, waiting

if __name__ == "__main__":
    with SiloPool(Path(sys.argv[1]), 2) as pool:
        # One worker is busy, one is idle: each has to notice.
        busy = (waiting, (Path(sys.argv[2]) / "busy",))
        print(pool.each([(number_of, ())], lambda *_: None)[0], flush=True)
        pool.each([busy], lambda *_: None)
"""


def test_no_worker_outlives_a_parent_that_was_killed(small_federation, tmp_path):
    path = small_federation(tmp_path, "plain")
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    command = [sys.executable, str(script), str(path), str(tmp_path)]
    root = Path(__file__).parents[2]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(root)}
    ) as parent:
        first = int(parent.stdout.readline())
        until = time.monotonic() + 60
        while not (tmp_path / "busy").exists() and time.monotonic() < until:
            time.sleep(0.1)
        workers = {first, int((tmp_path / "busy").read_text())}
        assert all(runs(w) for w in workers)
        parent.kill()
    until = time.monotonic() + 20
    while any(runs(w) for w in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [w for w in workers if runs(w)]


def test_a_silo_goes_back_to_the_worker_that_has_it_and_nobody_is_idle(small_federation, tmp_path):
    path = small_federation(tmp_path, "plain")
    with SiloPool(path, 2) as pool:
        # Both have started: else one would have taken most of them.
        pool.each([(number_after, (1.0,))] * 2, lambda *_: None)
        first = [pool.submit(number_after, 0.3, silo=name) for name in "abcdef"]
        homes = dict(zip("abcdef", [f.result() for f in first], strict=True))
        # Another order, so that chance would not do it.
        again = {name: pool.submit(number_after, 0.3, silo=name) for name in "fdbeca"}
        kept = sum(future.result() == homes[name] for name, future in again.items())
        assert len(set(homes.values())) == 2
        assert kept >= 5
        # All of one worker's: the other one takes its share.
        mine = [name for name in homes if homes[name] == homes["a"]] * 4
        shared = [pool.submit(number_after, 0.2, silo=f"{name}") for name in mine]
        assert len({future.result() for future in shared}) == 2


def number_after(worker, seconds):
    time.sleep(seconds)
    return os.getpid()


@pytest.mark.skipif(sys.platform != "linux", reason="pages are given back by GNU's C library")
def test_a_worker_gives_back_what_it_has_freed(small_federation, tmp_path):
    path = small_federation(tmp_path, "plain")
    with SiloPool(path, 1) as pool:
        before = pool.submit(resident).result()
        full = pool.submit(with_holes).result()
        for _ in range(10):
            after = pool.submit(resident).result()
    assert full > before + 150
    assert after < before + 60


PINNED = []


def resident(worker):
    """MiB of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") >> 20


def with_holes(worker):
    # Blocks too small to be mapped each by itself, and one that stays above them.
    blocks = [bytearray(b"x" * 65_000) for _ in range(3000)]
    PINNED.append(bytearray(b"x" * 65_000))
    assert len(blocks) == 3000
    return resident(worker)
