import pytest

from simulations.benchmarks.harness import BenchmarkError
from simulations.benchmarks.page import write_table

HEADER = ("row", "median")
TEXT = """# Title

Before | with a bar.

<!-- table ratios: begin -->
<!-- table ratios: end -->

Between.
<!-- table curves: begin -->
| a | b |
| --- | --- |
| kept | 1 |
<!-- table curves: end -->
After, no line end"""


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.md"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_the_text_around_the_table_stays(page):
    write_table(page, "ratios", HEADER, {"stock": ["5.0"]})
    text = page.read_text(encoding="utf-8")
    table = "| row | median |\n| --- | --- |\n| stock | 5.0 |\n"
    assert text.replace(table, "") == TEXT


def test_a_second_run_changes_its_row_and_keeps_the_others_in_place(page):
    write_table(page, "ratios", HEADER, {"stock": ["5.0"], "plain": ["1.2"]})
    write_table(page, "ratios", HEADER, {"stock": ["6.0"], "new": ["2.0"]})
    lines = [x for x in page.read_text(encoding="utf-8").splitlines() if x.startswith("| ")]
    assert lines[2:5] == ["| stock | 6.0 |", "| plain | 1.2 |", "| new | 2.0 |"]
    assert "| kept | 1 |" in lines


def test_the_same_rows_again_change_nothing(page):
    write_table(page, "ratios", HEADER, {"stock": ["5.0"]})
    once = page.read_bytes()
    write_table(page, "ratios", HEADER, {"stock": ["5.0"]})
    assert page.read_bytes() == once


def test_a_bar_or_a_line_end_in_a_cell_does_not_break_the_table(page):
    write_table(page, "ratios", HEADER, {"stock": ["a | b\nc"]})
    assert "| stock | a / b c |" in page.read_text(encoding="utf-8")


def test_other_columns_drop_the_old_rows(page):
    write_table(page, "ratios", HEADER, {"stock": ["5.0"]})
    write_table(page, "ratios", ("row", "x", "y"), {"plain": ["1", "2"]})
    assert "stock" not in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "text",
    [
        "nothing",
        "<!-- table ratios: end --><!-- table ratios: begin -->",
        "<!-- table ratios: begin --><!-- table ratios: begin --><!-- table ratios: end -->",
    ],
)
def test_a_page_without_the_two_lines_is_refused_and_left(page, text):
    page.write_text(text, encoding="utf-8")
    with pytest.raises(BenchmarkError, match="once each"):
        write_table(page, "ratios", HEADER, {"stock": ["5.0"]})
    assert page.read_text(encoding="utf-8") == text
