"""Worker processes that the system ends are told in words."""

import os
import signal
import time

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
