import re
from html.parser import HTMLParser

import pytest

from silotune.errors import ConfigError
from simulations import report
from simulations.plots_of_rounds import stages_plot
from simulations.report import write_report
from simulations.run_folder import RunFolder
from simulations.summary import summarise, verdicts

VOID = ("meta", "br", "img", "link", "input", "hr")
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


class Page(HTMLParser):
    """What a browser would make of a page, as far as the tests ask."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.open, self.figures = [], [], [], [], []
        self.text, self.rows = "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        self.links += [given[k] for k in ("href", "src", "xlink:href", "srcset") if k in given]
        self.links += re.findall(r"url\(([^)]*)\)", " ".join(v or "" for v in given.values()))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        self.handle_endtag(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] in (["style"], ["title"]):
            return
        self.text += data
        if self.open and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data.replace("\u00a0", " ")
        if self.open[-1:] == ["h3"]:
            self.figures.append(data)

    def row(self, name):
        return next(row for row in self.rows if row and row[0] == name)


def page_of(run):
    return Page(write_report(run).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole_text(whole_run):
    return write_report(whole_run).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def whole_page(whole_text):
    return Page(whole_text)


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
        assert row[2] == f"{arm.metrics['log_loss'].mean:.3f}"
    gain = summary.compare("federated", "local-only").gain
    assert whole_page.row("Federated, no noise")[6].startswith(f"{gain.mean:+.3f}")
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


def test_a_seeded_run_is_marked_as_not_private(made_up_run):
    run = made_up_run(seeds=1, merchants=2, arms=("federated-eps8",), private=False)
    text = page_of(run).text
    assert "NOT PRIVATE: seeded noise. Whoever knows the seed" in text
    assert "it says what the same training would cost with secret noise" in text


def test_no_name_becomes_markup(made_up_run):
    evil = "<script>alert('$x_1$')</script>"
    run = made_up_run(seeds=1, merchants=2, arms=("local-only", "federated", evil))
    run.describe(
        merchants=[{"name": evil}],
        excluded=[{"name": evil, "reason": evil}],
        privacy_note=evil,
        timings={evil: 3.0},
    )
    score = {"kind": "score", "seed": 0, "merchant": evil, "auc": 0.7}
    for arm in ("local-only", "federated"):
        run.append(score | {"arm": arm})
    run.append({"kind": "event", "message": evil})
    run.append({"kind": evil})
    run.append({"kind": "calibration", "seed": 0, "arm": evil, "bins": [[0.1, 0.2, 3]]})
    run.append({"kind": "round", "seed": 0, "arm": evil, "round": 0, "auc": 0.5, "bytes_up": 9})
    run.append({"kind": "privacy", "seed": 0, "arm": evil, "merchant": evil, "round": 0})
    html = write_report(run).read_text(encoding="utf-8")
    page = Page(html)
    assert "script" not in page.tags
    assert page.open == []
    assert "<script" not in html
    assert page.text.count(evil) >= 6


def test_letters_of_any_language_are_drawn(made_up_run):
    run = made_up_run(seeds=1, merchants=1, arms=("local-only", "federated-eps8", "商店"))
    run.describe(timings={"数据": 1.0})
    assert "数据" in page_of(run).text


@pytest.mark.parametrize(
    ("arms", "shown"),
    [
        (("local-only",), ["AUC of every arm", "Time of each stage"]),
        (("federated",), ["AUC of every arm", "Calibration", "AUC", "Log loss"]),
        (("mine", "local-only"), ["AUC of every arm", "Calibration", "Time of each stage"]),
    ],
)
def test_what_an_arm_does_not_have_is_left_out(made_up_run, arms, shown):
    page = page_of(made_up_run(seeds=1, merchants=2, arms=arms))
    assert set(shown) <= set(page.figures)
    assert "ε by merchant" not in page.figures
    assert "None" not in page.text


def test_an_unknown_arm_is_shown_by_its_own_name(made_up_run):
    page = page_of(made_up_run(seeds=1, merchants=2, arms=("local-only", "boosted+trees")))
    assert page.row("boosted+trees")
    assert "Other arms" in page.text


def test_one_seed_has_no_spread(made_up_run):
    page = page_of(made_up_run(seeds=1, merchants=2, arms=("local-only", "federated")))
    assert re.fullmatch(r"0\.\d{3}", page.row("Federated, no noise")[1])
    assert "over 1 seeds" not in page.text


def test_a_run_that_has_only_begun_has_a_report(tmp_path):
    page = page_of(RunFolder.create(tmp_path / "run", {"name": "empty"}))
    assert "No arm has been scored yet." in page.text
    assert "Not recorded yet." in page.text
    assert page.tags.count("svg") == 0


def test_an_interrupted_run_shows_what_it_has(made_up_run):
    run = made_up_run(seeds=2, merchants=3, arms=("local-only", "federated", "federated-eps8"))
    path = run.path / "metrics.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if b'"score"' in line)
    # Killed while it wrote the last score of the last arm.
    path.write_bytes(b"".join(lines[:last]) + lines[last][:30])
    run.finish("interrupted")
    page = page_of(RunFolder.open(run.path))
    assert "The run was interrupted." in page.text
    assert f"line {last + 1} is cut off" in page.text
    assert "Federated, ε = 8 (5 of 6 scores)" in [row[0] for row in page.rows if row]
    assert "Not scored on every merchant and seed: Federated, ε = 8." in page.text


def test_records_of_an_unknown_kind_are_counted_not_shown(made_up_run):
    run = made_up_run(seeds=1, merchants=1, arms=("local-only",))
    run.append({"kind": "weather", "arm": 7})
    run.append({"kind": "weather"})
    assert "2 records 'weather'" in page_of(run).text


def test_a_curve_over_some_merchants_is_held_against_the_same_ones(made_up_run):
    run = made_up_run(seeds=1, merchants=3, arms=("local-only",))
    name = run.records()[0]["merchant"]
    fields = {"kind": "round", "seed": 0, "arm": "federated", "round": 0, "auc": 0.8}
    run.append(fields | {"merchants": [name]})
    assert "Mean over 1 merchant and seeds" in page_of(run).text


def test_a_model_that_diverged_is_shown_as_such(made_up_run):
    run = made_up_run(seeds=1, merchants=2, arms=("local-only", "pooled"))
    for record in run.records()[:2]:
        run.append(record | {"kind": "score", "arm": "federated", "auc": float("nan")})
    bins = [[float("nan"), float("nan"), 9]]
    run.append({"kind": "calibration", "seed": 0, "arm": "federated", "bins": bins})
    run.append({"kind": "round", "seed": 0, "arm": "federated", "round": 0, "auc": None})
    page = page_of(run)
    assert page.row("Federated, no noise")[1] == "NaN"
    assert "a model diverged (NaN)" in page.text


def test_many_merchants_make_no_endless_plot(made_up_run):
    arms = ("local-only", "federated-eps8")
    page = page_of(made_up_run(seeds=1, merchants=41, arms=arms))
    assert "Each merchant, alone and federated" not in page.figures
    assert "ε by merchant" not in page.figures
    assert "Federated against alone, by merchant" in page.figures


def test_many_stages_are_folded():
    drawing = str(stages_plot({f"stage {n}": n + 1.0 for n in range(30)}))
    assert "all other stages" in drawing
    assert "stage 29" in drawing
    assert "stage 3<" not in drawing
    assert stages_plot({}) is None


def test_a_run_that_is_damaged_gives_no_report(made_up_run):
    run = made_up_run(seeds=1, merchants=1, arms=("local-only",))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(ConfigError, match=r"metrics.jsonl: line 3: 'kind' is missing"):
        write_report(run)
    assert not (run.path / report.REPORT).exists()


def test_a_budget_has_one_colour_everywhere(made_up_run):
    # ε = 4 was scored but has no rounds: the curve of ε = 2 must not take its colour.
    arms = ("local-only", "federated-eps8", "federated-eps4", "federated-eps2")
    html = write_report(made_up_run(seeds=1, merchants=2, arms=arms)).read_text(encoding="utf-8")
    labels = re.findall(r"<text[^>]*?var\((--\w+)\)[^>]*>(?:Federated, )?ε = 2</text>", html)
    dots = re.findall(r"--c: var\((--\w+)\)\"></i>Federated, ε\s=\s2", html)
    assert len(labels) >= 3
    assert set(labels) - {"--ink"} == set(dots) == {"--purple"}
