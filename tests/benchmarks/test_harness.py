import json
import sys
import time

import pytest

from simulations.benchmarks import harness
from simulations.benchmarks.harness import (
    BenchmarkError,
    Pairs,
    Sample,
    paired,
    run_module,
    sample_call,
)


def test_the_side_that_runs_first_changes_with_every_repetition():
    order = []

    def side(name):
        order.append(name)
        return Sample(1.0, 1.0, 1.0)

    paired(lambda: side("a"), lambda: side("b"), 4)
    assert "".join(order) == "abbaabba"


def test_samples_stay_with_their_side_and_repetition():
    count = iter(range(100))

    def side(sign):
        return Sample(sign * next(count), 1.0, 1.0)

    pairs = paired(lambda: side(1), lambda: side(-1), 3)
    assert [s.wall for s in pairs.first] == [0, 3, 4]
    assert [s.wall for s in pairs.second] == [-1, -2, -5]


def test_the_ratio_is_the_median_within_repetitions_and_not_of_medians():
    # The machine is ten times as slow in the middle one; the ratio is 2 in each.
    first = tuple(Sample(w, 1.0, 1.0) for w in (2.0, 20.0, 4.0))
    second = tuple(Sample(w, 1.0, 1.0) for w in (1.0, 10.0, 2.0))
    ratio = Pairs(first, second).ratio("wall")
    assert (ratio.median, ratio.low, ratio.high, ratio.repeats) == (2.0, 2.0, 2.0, 3)


def test_a_ratio_that_hangs_on_the_order_shows_it():
    # Whoever runs second takes half as long.
    first = tuple(Sample(w, 1.0, 1.0) for w in (2.0, 1.0, 2.0, 1.0))
    second = tuple(Sample(w, 1.0, 1.0) for w in (1.0, 2.0, 1.0, 2.0))
    ratio = Pairs(first, second).ratio("wall")
    assert (ratio.first_before, ratio.first_after) == (2.0, 0.5)


def test_quartiles_are_those_of_the_ratios():
    first = tuple(Sample(float(w), 1.0, 1.0) for w in (1, 2, 3, 4, 5))
    ratio = Pairs(first, (Sample(1.0, 1.0, 1.0),) * 5).ratio("wall")
    assert (ratio.low, ratio.median, ratio.high) == (2.0, 3.0, 4.0)


def test_known_sleeps_give_their_ratio_in_wall_time_and_no_processor_time():
    pairs = paired(
        lambda: sample_call(lambda: time.sleep(0.3)),
        lambda: sample_call(lambda: time.sleep(0.1)),
        3,
    )
    # A busy machine lengthens sleeps; the middle one of three is little changed.
    assert 1.5 < pairs.ratio("wall").median < 4.5
    assert max(s.cpu for s in pairs.first) < 0.1


def test_no_repetition_is_refused():
    with pytest.raises(BenchmarkError, match="repeats is 0"):
        paired(lambda: Sample(1, 1, 1), lambda: Sample(1, 1, 1), 0)


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def write(text):
        (tmp_path / "bench_child.py").write_text(text, encoding="utf-8")
        return "bench_child"

    return write


def test_time_and_memory_of_grandchildren_count(module, tmp_path):
    child = "import time; b = bytearray(80 << 20); b[::4096] = b[::4096]; "
    child += "t = time.process_time()\\nwhile time.process_time() - t < 0.6: pass\\ntime.sleep(3)"
    text = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', '{child}'])\n"
    sample = run_module(module(text), [], log=tmp_path / "log")
    assert sample.wall > 3.5
    assert 0.5 < sample.cpu < 2.5
    assert 80 < sample.peak < 200


def test_a_failed_process_is_an_error_with_the_end_of_its_log(module, tmp_path):
    name = module("import sys\nprint('what went wrong', sys.argv[1])\nsys.exit(3)\n")
    with pytest.raises(BenchmarkError, match=r"(?s)exit code 3.*what went wrong here"):
        run_module(name, ["here"], log=tmp_path / "logs" / "log")


def test_a_process_that_hangs_is_ended(module, tmp_path):
    began = time.monotonic()
    with pytest.raises(BenchmarkError, match="exit code -9"):
        run_module(module("import time\ntime.sleep(60)"), [], log=tmp_path / "log", timeout=0.5)
    assert time.monotonic() - began < 30


def test_results_are_plain_json_with_the_machine(tmp_path):
    pairs = Pairs((Sample(2.0, 1.0, 1.0),), (Sample(1.0, 1.0, 1.0),))
    path = harness.save(tmp_path, "row", {"pairs": pairs, "ratio": pairs.ratio("wall")})
    raw = json.loads(path.read_text(encoding="utf-8"))
    assert raw["ratio"]["median"] == 2.0
    assert raw["pairs"]["first"] == [{"wall": 2.0, "cpu": 1.0, "peak": 1.0}]
    assert raw["machine"]["python"] == sys.version.split()[0]
