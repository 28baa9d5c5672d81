"""The report of a whole run: one page that stands by itself and says what was measured."""

import re

import pytest

from simulations.aggregate import summarise
from simulations.report import write_report
from simulations.run_folder import RunFolder
from simulations.verdicts import verdicts

HEADINGS = [
    "AUC of every arm",
    "What each step costs or adds",
    "Federated against alone, by merchant",
    "Each merchant, alone and federated",
    "Calibration",
    "AUC",
    "Log loss",
    "ε round by round",
    "ε by merchant",
    "Bytes a round",
    "Time of each stage",
]


@pytest.fixture(scope="module")
def whole_page(whole_run, page_of):
    return page_of(whole_run)


@pytest.fixture(scope="module")
def whole_text(whole_page):
    return whole_page.html


def test_the_report_is_in_the_run_folder_and_the_same_every_time(whole_run, whole_text):
    again = write_report(RunFolder.open(whole_run.path))
    assert again == whole_run.path / "report.html"
    assert again.read_text(encoding="utf-8") == whole_text
    assert not [p for p in whole_run.path.iterdir() if "partial" in p.name]


def test_the_report_is_whole_html_with_every_plot(whole_page):
    assert whole_page.open == []
    assert whole_page.figures == [*HEADINGS, "Left out"]
    assert whole_page.tags.count("svg") == len(HEADINGS)


def test_the_report_loads_nothing_and_runs_nothing(whole_text, whole_page):
    assert "://" not in whole_text
    assert whole_page.links
    assert all(link.startswith("#") for link in whole_page.links)
    assert not {"script", "link", "img", "iframe", "object", "image"} & set(whole_page.tags)
    assert "default-src 'none'" in whole_text


def test_plots_refer_to_their_own_parts_only(whole_page):
    assert len(set(whole_page.ids)) == len(whole_page.ids)
    assert {link.removeprefix("#") for link in whole_page.links} <= set(whole_page.ids)


def test_every_colour_of_a_plot_is_one_of_the_page(whole_text):
    drawings = "".join(re.findall(r"<svg.*?</svg>", whole_text, flags=re.DOTALL))
    assert not re.findall(r"#[0-9a-f]{6}\b(?=[;\"])", drawings)
    used = set(re.findall(r"var\((--[a-z]+)\)", drawings))
    assert used <= set(re.findall(r"(--[a-z]+):", whole_text))
    assert {"--ink", "--blue", "--green", "--vermillion"} <= used


def test_the_table_has_the_figures_of_the_summary(whole_run, whole_page):
    summary = summarise(whole_run.records())
    for arm in summary.arms:
        figure = summary.figure(arm.arm.name)
        row = whole_page.row(arm.arm.label)
        assert row[1] == f"{figure.mean:.3f} ± {figure.std:.3f}"
        assert row[4] == f"{arm.metrics['log_loss'].mean:.3f}"
    gain = summary.compare("federated", "local-only").gain
    assert whole_page.row("Federated, no noise")[2].startswith(f"{gain.mean:+.3f}")
    for verdict in verdicts(summary):
        assert verdict.claim in whole_page.text


def test_privacy_is_stated_with_unit_neighbours_delta_and_what_was_spent(whole_page):
    text = " ".join(whole_page.text.split())
    assert "one user of one merchant" in text
    assert "added or removed" in text
    assert "δ = 0.0001" in text
    assert "upper bound, computed by Opacus" in text
    assert "Private. Noise and sampling come from the operating system's" in text
    assert "NOT PRIVATE" not in text
    # The bound is rounded up: 7.98399… is at most 7.984.
    spent = [row for row in whole_page.rows if row[:1] == ["Federated, ε = 8"] and len(row) == 4]
    assert spent == [["Federated, ε = 8", "7.984", "7.259", "16"]]


def test_private_metrics_stand_beside_what_only_a_simulation_knows(whole_text):
    section = whole_text.partition("What the federation could measure privately")[2]
    table = section.partition("</table>")[0]
    assert table.count("<b>") == 16
    assert table.count("± 0.029</b></td><td>0.750<small>0.754</small></td>") == 2
    assert "± 0.008" in table
    assert "known to a simulation alone" in section


def test_merchants_are_listed_with_what_is_public_and_what_is_not(whole_run, whole_page):
    for merchant in whole_run.info.merchants:
        row = whole_page.row(merchant.name)
        assert row[1:4] == [
            f"{merchant.nominal_users:,}",
            f"{merchant.train_examples:,}",
            f"{merchant.test_examples:,}",
        ]
    assert "they would not leave a silo" in whole_page.text
    assert whole_page.row("store-31")[1] == "38 users before the split, fewer than 50"
