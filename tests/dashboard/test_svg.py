"""Plots say what their figures say."""

import re
from xml.etree import ElementTree as ET

import pytest

from silotune.dashboard.svg import Bar, Point, bar_plot, line_plot, step_plot, strip

SAID = {"about": "what <is> drawn", "x_name": "round & time"}


def _of(drawing, tag, name):
    return [e for e in ET.fromstring(drawing).iter(tag) if e.get("class") == name]


def test_heights_of_bars_are_as_their_values_and_pieces_lie_on_each_other():
    bars = [Bar(label="0", pieces=(2.0, 1.0)), Bar(label="<b>", pieces=(4.0, 0.0))]
    drawing = bar_plot(bars, **SAID)
    low, high = _of(drawing, "rect", "f1")
    assert float(high.get("height")) == pytest.approx(2 * float(low.get("height")), abs=0.2)
    upper = _of(drawing, "rect", "f2")[0]
    assert float(upper.get("y")) + float(upper.get("height")) == pytest.approx(
        float(low.get("y")), abs=0.2
    )


def test_an_error_bar_spans_twice_the_error_around_its_point():
    drawing = line_plot([Point(x=0, y=0.5, error=0.1), Point(x=1, y=0.7, error=0.1)], **SAID)
    first, second = (float(c.get("cy")) for c in _of(drawing, "circle", "f1"))
    path = _of(drawing, "path", "line c1")[0].get("d")
    low, high = (float(v) for v in re.match(r"M\S+ (\S+?)V([\d.]+)M", path).groups())
    assert (low + high) / 2 == pytest.approx(first, abs=0.2)
    # 0.2 apart: as far as the two points.
    assert low - high == pytest.approx(first - second, abs=0.2)


def test_what_is_spent_reaches_the_limit_when_all_is():
    drawing = step_plot([Point(x=1, y=4.0), Point(x=2, y=8.0)], limit=8.0, **SAID)
    limit = re.search(r" ([\d.]+)H", _of(drawing, "path", "limit")[0].get("d"))[1]
    steps = re.findall(r"V([\d.]+)", _of(drawing, "path", "line c1")[0].get("d"))
    assert steps[-1] == limit
    assert float(steps[0]) > float(limit)


def test_every_mark_of_a_strip_is_drawn():
    drawing = strip([True, False, True])
    assert (len(_of(drawing, "rect", "f1")), len(_of(drawing, "rect", "f0"))) == (2, 1)
    assert 'aria-label="yes, no, yes"' in drawing


@pytest.mark.parametrize("values", [[0.0], [1e-9, 1e9], [-1.0, 1.0], [5.0, 5.0]])
def test_any_range_has_a_grid_of_some_lines(values):
    points = [Point(x=float(i), y=v) for i, v in enumerate(values)]
    assert 2 <= len(_of(line_plot(points, **SAID), "path", "grid")) <= 12
    bars = [Bar(label="0", pieces=(abs(v),)) for v in values]
    assert 2 <= len(_of(bar_plot(bars, **SAID), "path", "grid")) <= 12
