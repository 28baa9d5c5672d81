"""Worker processes that the system ends are told in words."""

import os
import signal

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
