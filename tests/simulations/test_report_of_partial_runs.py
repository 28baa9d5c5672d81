"""The report of runs that are small, seeded, interrupted, odd or damaged."""

import re

import pytest

from silotune.errors import ConfigError
from simulations import report
from simulations.plots_of_rounds import stages_plot
from simulations.report import write_report
from simulations.run_folder import RunFolder


def test_a_seeded_run_is_marked_as_not_private(page_of, made_up_run):
    run = made_up_run(seeds=1, merchants=2, arms=("federated-eps8",), private=False)
    text = page_of(run).text
    assert "NOT PRIVATE: seeded noise. Whoever knows the seed" in text
    assert "it says what the same training would cost with secret noise" in text


def test_no_name_becomes_markup(page_of, made_up_run):
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
    page = page_of(run)
    assert "script" not in page.tags
    assert page.open == []
    assert "<script" not in page.html
    assert page.text.count(evil) >= 6


def test_letters_of_any_language_are_drawn(page_of, made_up_run):
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
def test_what_an_arm_does_not_have_is_left_out(page_of, made_up_run, arms, shown):
    page = page_of(made_up_run(seeds=1, merchants=2, arms=arms))
    assert set(shown) <= set(page.figures)
    assert "ε by merchant" not in page.figures
    assert "None" not in page.text


def test_an_unknown_arm_is_shown_by_its_own_name(page_of, made_up_run):
    page = page_of(made_up_run(seeds=1, merchants=2, arms=("local-only", "boosted+trees")))
    assert page.row("boosted+trees")
    assert "Other arms" in page.text


def test_one_seed_has_no_spread(page_of, made_up_run):
    page = page_of(made_up_run(seeds=1, merchants=2, arms=("local-only", "federated")))
    assert re.fullmatch(r"0\.\d{3}", page.row("Federated, no noise")[1])
    assert "over 1 seeds" not in page.text


def test_a_run_that_has_only_begun_has_a_report(page_of, tmp_path):
    page = page_of(RunFolder.create(tmp_path / "run", {"name": "empty"}))
    assert "No arm has been scored yet." in page.text
    assert "Not recorded yet." in page.text
    assert page.tags.count("svg") == 0


def test_an_interrupted_run_shows_what_it_has(page_of, made_up_run):
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


def test_records_of_an_unknown_kind_are_counted_not_shown(page_of, made_up_run):
    run = made_up_run(seeds=1, merchants=1, arms=("local-only",))
    run.append({"kind": "weather", "arm": 7})
    run.append({"kind": "weather"})
    assert "2 records 'weather'" in page_of(run).text


def test_a_curve_over_some_merchants_is_held_against_the_same_ones(page_of, made_up_run):
    run = made_up_run(seeds=1, merchants=3, arms=("local-only",))
    name = run.records()[0]["merchant"]
    fields = {"kind": "round", "seed": 0, "arm": "federated", "round": 0, "auc": 0.8}
    run.append(fields | {"merchants": [name]})
    assert "Mean over 1 merchant and seeds" in page_of(run).text


def test_a_model_that_diverged_is_shown_as_such(page_of, made_up_run):
    run = made_up_run(seeds=1, merchants=2, arms=("local-only", "pooled"))
    for record in run.records()[:2]:
        run.append(record | {"kind": "score", "arm": "federated", "auc": float("nan")})
    bins = [[float("nan"), float("nan"), 9]]
    run.append({"kind": "calibration", "seed": 0, "arm": "federated", "bins": bins})
    run.append({"kind": "round", "seed": 0, "arm": "federated", "round": 0, "auc": None})
    page = page_of(run)
    assert page.row("Federated, no noise")[1] == "NaN"
    assert "a model diverged (NaN)" in page.text


def test_many_merchants_make_no_endless_plot(page_of, made_up_run):
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


def test_a_budget_has_one_colour_everywhere(page_of, made_up_run):
    # ε = 4 was scored but has no rounds: the curve of ε = 2 must not take its colour.
    arms = ("local-only", "federated-eps8", "federated-eps4", "federated-eps2")
    html = page_of(made_up_run(seeds=1, merchants=2, arms=arms)).html
    labels = re.findall(r"<text[^>]*?var\((--\w+)\)[^>]*>(?:Federated, )?ε = 2</text>", html)
    dots = re.findall(r"--c: var\((--\w+)\)\"></i>Federated, ε\s=\s2", html)
    assert len(labels) >= 3
    assert set(labels) - {"--ink"} == set(dots) == {"--purple"}
