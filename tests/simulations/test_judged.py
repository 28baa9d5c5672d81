"""Arms are judged by the task's own main metric, in its own direction and words."""

import datetime as dt
import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from silotune.tasks.objective import Binary, Bounded, Classes
from simulations.aggregate import summarise
from simulations.arm_labels import arm_named, in_order
from simulations.judged import MainMetric, main_of
from simulations.run_folder import RunFolder
from simulations.summary import print_summary
from simulations.verdicts import effects, verdicts

ERROR = main_of(Bounded())
MACRO = main_of(Classes(names=("a", "b", "c")))


def scored(arm, figures, key="mae", seed=0):
    return [
        {"kind": "score", "seed": seed, "arm": arm, "merchant": "abcdef"[i], key: value}
        for i, value in enumerate(figures)
    ]


ERRORS = [
    *scored("tree-local", [0.30, 0.32]),
    *scored("ridge-local", [0.25, 0.27]),
    *scored("ridge-pooled", [0.10, 0.10]),
    *scored("local-only", [0.20, 0.22]),
    *scored("federated", [0.15, 0.23]),
    *scored("federated-eps8", [0.18, 0.24]),
]


def test_each_objective_says_by_what_it_is_judged():
    assert main_of(Binary()) == MainMetric() == MainMetric(key="auc", name="AUC")
    assert (MACRO.name, MACRO.words, MACRO.unit) == ("Macro AUC", "macro AUC", "macro AUC")
    assert (ERROR.key, ERROR.larger_is_better) == ("mae", False)
    assert (ERROR.unit, ERROR.axis) == ("in mean error", "Mean error (smaller is better)")


def test_a_smaller_error_is_a_gain_and_a_win():
    summary = summarise(ERRORS, ERROR)
    found = summary.compare("federated", "local-only")
    assert found.gain.mean == pytest.approx(0.02)
    assert found.change.mean == pytest.approx(-0.02)
    assert found.wins.values == (0.5,)
    assert summary.figure("federated").mean == pytest.approx(0.19)
    assert {e.label for e in effects(summary)} >= {"Federating, no noise", "Privacy, ε = 8"}


def test_sentences_about_an_error_say_which_way_is_better():
    claims = [v.claim for v in verdicts(summarise(ERRORS, ERROR))]
    simple = "Federated without noise beats the best simple method,"
    assert claims == [
        f"{simple} ridge at each merchant alone, by 0.070 in mean error.",
        "Federated without noise beats LoRA at each merchant alone by 0.020 in mean error.",
        "Privacy at ε = 8 costs 0.020 in mean error.",
    ]
    turned = [{**r, "mae": 1 - r["mae"]} for r in ERRORS]
    claims = [v.claim for v in verdicts(summarise(turned, ERROR))]
    assert "falls short of LoRA at each merchant alone by 0.020 in mean error." in claims[1]
    assert claims[0].startswith("Federated without noise falls short of the best simple method, tr")
    free = "Privacy at ε = 8 costs nothing in mean error here; the private model gains 0.020."
    assert claims[2] == free


def test_the_best_simple_method_is_the_best_one_that_needs_no_pooled_data():
    summary = summarise(ERRORS, ERROR)
    assert [arm.name for arm in summary.simple] == ["ridge-local", "tree-local"]
    areas = [{**r, "auc": r["mae"]} for r in ERRORS]
    assert [a.name for a in summarise(areas, MACRO).simple] == ["tree-local", "ridge-local"]
    assert arm_named("ridge-local").label == "Ridge, each merchant alone"
    assert arm_named("boosted-trees-pooled").label == "Boosted trees, pooled data"
    assert arm_named("boosted-trees-pooled").group == "baseline"
    shown = ["logistic-pooled", "ridge-local", "local-only", "pooled", "federated"]
    assert [arm.name for arm in in_order(sorted(shown))] == shown


def made_up(path, main, records):
    run = RunFolder.create(path, {"name": "made-up"}, private=True)
    run.describe(
        main={"key": main.key, "name": main.name, "of_classes": main.of_classes}
        | {"larger_is_better": main.larger_is_better}
    )
    for record in records:
        run.append(record)
    run.finish("finished")
    return run


def printed(run, width=160):
    console = Console(file=io.StringIO(), width=width, color_system="standard", force_terminal=True)
    print_summary(run, console)
    return console.file.getvalue()


def test_table_and_report_of_an_error_show_it_as_it_is_and_colour_it_by_what_is_better(
    tmp_path, page_of
):
    run = made_up(tmp_path / "run", ERROR, ERRORS)
    (line,) = [one for one in printed(run).splitlines() if "Federated, no noise" in one]
    # Green: better, although below zero.
    assert re.search(r"\x1b\[32m\s*−0\.020", line)
    page = page_of(run)
    assert page.row("Federated, no noise")[1:4] == ["0.190", "−0.020", "50%"]
    for text in ("Mean error of every arm", "Mean error against alone", "with the smaller mean"):
        assert text in " ".join(page.text.split())
    assert "Below the diagonal the federated model is better" in page.text
    assert re.search(r'class="up">−0\.020', page.html)
    assert "AUC" not in page.text
    assert page.figures[0] == "Mean error of every arm"


def test_a_run_that_says_nothing_of_its_metric_is_judged_by_auc(made_up_run):
    run = made_up_run(seeds=1, merchants=2, arms=("local-only", "federated"))
    raw = json.loads((run.path / "run.json").read_text())
    del raw["main"]
    (run.path / "run.json").write_text(json.dumps(raw))
    assert RunFolder.open(run.path).info.main == MainMetric()


SCENARIO = """
name = "tiny-segment"
description = "three classes at three small merchants"
engine = "inline"
workers = 1
[data]
source = "folder"
path = "{silos}"
minimum_users = 10
[task]
name = "customer-segment"
first = 2024-02-12T00:00:00
split = 2024-04-01T00:00:00
last = 2024-05-20T00:00:00
horizon_days = 14
at_risk_below = 5.0
high_value_from = 40.0
[model]
use_text = false
[federated]
rounds = 2
[privacy]
epsilons = [8.0]
delta = 1e-3
rounds = 2
steps = 2
noise = "seeded"
[local]
epochs = 1
pooled_epochs = 1
"""


@pytest.fixture(scope="module")
def segment_run(tmp_path_factory):
    """A whole comparison of the segment task through the inline engine."""
    from silotune.tables.synthetic import SyntheticConfig, generate
    from simulations.start import simulate

    folder = tmp_path_factory.mktemp("segment")
    generate(SyntheticConfig(merchants=3, users_per_merchant=40, weeks=20, seed=3), folder / "s")
    (folder / "tiny.toml").write_text(SCENARIO.format(silos=folder / "s"))
    said = Console(file=io.StringIO(), width=160, color_system=None)
    options = {"seeds": None, "engine": None, "console": said, "progress": None}
    run = simulate(
        str(folder / "tiny.toml"), out=folder / "run", data=Path(folder / "data"), **options
    )
    return run, said.file.getvalue()


def test_a_run_of_classes_is_judged_by_macro_auc_everywhere(segment_run, page_of):
    run, said = segment_run
    assert run.info.main == MACRO
    page = page_of(run)
    text = " ".join(page.text.split())
    for words in (
        "Macro AUC of every arm",
        "Macro AUC against alone",
        "Macro AUC, mean over seeds",
        "Macro AUC is the mean over classes",
        "that of the likeliest class",
    ):
        assert words in text
    assert "Positive" not in [cell for row in page.rows for cell in row]
    assert "change in macro AUC" in page.html
    assert "share that is right" in page.html
    assert "RFM rules, each merchant alone" in text
    claims = [v.claim for v in verdicts(summarise(run.records(), run.info.main))]
    assert "the best simple method, " in claims[0]
    assert all("macro AUC" in c for c in claims)
    for claim in claims:
        assert claim in text
        assert claim in " ".join(said.split())
    assert "Macro AUC" in said
    assert "No private metrics" in text


def test_the_run_exports_adapters_that_say_their_task(segment_run):
    from client.score import Asked, score_silo
    from client.score_settings import score_settings
    from silotune.tables.silo_folder import list_silos

    run, _ = segment_run
    silo = list_silos(Path(run.info.scenario["data"]["path"]))[0]
    adapter = run.path / "adapters" / "federated-seed0"
    settings = score_settings(silo.path, "customer-segment", adapter=adapter)
    scored = score_silo(settings, silo, Asked(as_of=dt.datetime.fromisoformat("2024-04-15")))
    assert scored.score_EK.sum(1) == pytest.approx(1.0)
    assert scored.score_EK.std() > 0
