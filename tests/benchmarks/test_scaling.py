import math

import pytest

from simulations.benchmarks.curves import plot
from simulations.benchmarks.scaling import (
    Curve,
    _adapter_point,
    adapter_curve,
    exponent,
    merchants_curve,
    steps_to,
    users_curve,
    workers_curve,
)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0, 2.0])
def test_the_exponent_of_a_power_law_is_its_power(power):
    sizes = [1, 3, 10, 40]
    assert exponent(sizes, [7 * s**power for s in sizes]) == pytest.approx(power)


def test_a_constant_start_does_not_hide_quadratic_growth():
    sizes = tuple(float(s) for s in (1, 3, 10, 32, 100, 316, 1000))
    seconds = {"job": tuple(15 + 0.001 * s**2 for s in sizes)}
    curve = Curve("c", "merchants", sizes, seconds, (1.0,) * 7)
    assert curve.exponents()["job"] > 1.4


@pytest.mark.parametrize(
    ("first", "limit", "sizes"),
    [
        (1, 1, [1]),
        (1, 1000, [1, 3, 10, 32, 100, 316, 1000]),
        (10, 100_000, [10, 32, 100, 316, 1000, 3162, 10_000, 31_623, 100_000]),
        (0.1, 50, [0.1, 0.316, 1.0, 3.162, 10.0, 31.623, 50]),
    ],
)
def test_sizes_end_at_the_limit(first, limit, sizes):
    assert steps_to(first, limit) == sizes


def test_messages_and_aggregation_take_longer_for_a_larger_adapter():
    small, large = (_adapter_point({"bytes": size, "replies": 4}) for size in (4e5, 4e7))
    assert sum(large.values()) > 3 * sum(small.values())


@pytest.mark.slow
def test_the_adapter_axis_in_small(tmp_path):
    curve = adapter_curve(tmp_path, 0.3, replies=2)
    assert curve.sizes == (0.1, 0.3)
    assert set(curve.seconds) == {"message", "aggregation", "whole process"}
    assert all(t > 0 for values in curve.seconds.values() for t in values)
    assert min(curve.memory) > 50


def test_a_plot_is_drawn(tmp_path):
    curve = Curve("c", "merchants", (1.0, 10.0), {"job": (1.0, 9.0)}, (100.0, 110.0))
    plot(curve, tmp_path / "images" / "c.svg")
    text = (tmp_path / "images" / "c.svg").read_text(encoding="utf-8")
    # What a reader sees: numbers, no code of a formula.
    assert "mathdefault" not in text
    assert text.startswith("<?xml")
    assert math.isclose(curve.exponents()["job"], math.log10(9))


@pytest.mark.slow
@pytest.mark.long
def test_the_other_axes_in_small(tmp_path):
    curves = [
        merchants_curve(tmp_path / "m", 2, users=40, engine="inline"),
        users_curve(tmp_path / "u", 40),
        users_curve(tmp_path / "n", 40, text=False),
        workers_curve(tmp_path / "w", 1, merchants=1, users=40, engine="inline"),
    ]
    for curve in curves:
        assert all(t > 0 for values in curve.seconds.values() for t in values)
        assert set(curve.seconds) == {"preparation", "last round", "whole process"}
