import io
import math
import re
import statistics

import pytest
from rich.console import Console

from simulations.aggregate import summarise
from simulations.arm_labels import arm_named, in_order
from simulations.run_folder import RunFolder
from simulations.summary import print_summary
from simulations.verdicts import effects, verdicts


def score(seed, arm, merchant, auc, **others):
    record = {"kind": "score", "seed": seed, "arm": arm, "merchant": merchant, "auc": auc}
    return record | others


def scores(arm, *by_seed):
    """Scores of one arm: a list of AUCs for each seed, merchants a, b, c, …"""
    return [
        score(seed, arm, "abcdef"[index], auc)
        for seed, aucs in enumerate(by_seed)
        for index, auc in enumerate(aucs)
    ]


def printed(run, width=160):
    console = Console(file=io.StringIO(), width=width, color_system=None)
    print_summary(run, console)
    return console.file.getvalue()


def row(text, label):
    return next(line for line in text.splitlines() if line.strip().startswith(label))


def test_the_mean_is_over_merchants_first_then_over_seeds():
    # Seed 0 has two merchants, seed 1 one: each seed counts the same.
    summary = summarise(scores("federated", [0.6, 0.8], [0.9]))
    figure = summary.figure("federated")
    assert figure.mean == pytest.approx(0.8)
    assert figure.std == pytest.approx(statistics.stdev([0.7, 0.9]))
    assert (figure.low, figure.high) == pytest.approx((0.7, 0.9))


def test_the_gain_is_paired_by_merchant_and_seed():
    alone = scores("local-only", [0.5, 0.7], [0.6, 0.6])
    summary = summarise(alone + scores("federated", [0.6, 0.6], [0.7, 0.6]))
    found = summary.compare("federated", "local-only")
    assert found.gain.values == pytest.approx((0.0, 0.05))
    # A tie is no win.
    assert found.wins.values == (0.5, 0.5)
    assert found.merchants == 2


def test_only_what_both_arms_were_scored_on_is_compared():
    alone = scores("local-only", [0.5, 0.7, 0.9])
    found = summarise(alone + scores("federated", [0.6, 0.6])).compare("federated", "local-only")
    assert found.gain.mean == pytest.approx(0.0)
    assert found.merchants == 2
    assert summarise(alone).compare("federated", "local-only") is None


def test_the_last_of_two_scores_counts():
    summary = summarise([score(0, "federated", "a", 0.1), score(0, "federated", "a", 0.9)])
    assert summary.figure("federated").values == (0.9,)


def test_a_model_that_diverged_at_one_merchant_is_not_skipped():
    alone = scores("local-only", [0.5, 0.7])
    summary = summarise(alone + scores("federated", [None, 0.9]))
    assert math.isnan(summary.figure("federated").mean)
    assert math.isnan(summary.figure("federated").std or math.nan)
    found = summary.compare("federated", "local-only")
    assert math.isnan(found.gain.mean)
    assert found.wins.values == (0.5,)
    claim = verdicts(summary)[0].claim
    assert claim.endswith("alone: a model diverged (NaN).")
    assert not [e for e in effects(summary) if "diverged" in e.label]


def test_a_question_without_an_answer_is_left_out_for_every_arm():
    # Merchant a has one class only: no arm can have an AUC there.
    summary = summarise(scores("local-only", [None, 0.7]) + scores("federated", [None, 0.9]))
    assert summary.figure("federated").mean == pytest.approx(0.9)
    assert summary.compare("federated", "local-only").gain.mean == pytest.approx(0.2)


def test_arms_are_shown_in_the_order_of_the_comparison_and_unknown_ones_last():
    names = [
        "popularity",
        "logistic-local",
        "logistic-pooled",
        "local-only",
        "pooled",
        "federated",
        "federated-eps8",
        "federated-eps2",
        "federated-eps0.5",
        "numeric-federated",
        "numeric-eps8",
        "numeric-eps2",
        "federated+local",
        "federated-eps8+local",
        "federated-eps2+local",
        "+local",
        "boosted-trees",
        "boosted-trees+local",
    ]
    assert [arm.name for arm in in_order(sorted(names) * 2)][:15] == names[:15]
    assert {arm.name for arm in in_order(names)[15:]} == set(names[15:])
    assert arm_named("boosted-trees").label == "boosted-trees"
    assert arm_named("federated-eps2+local").epsilon == 2
    assert len({arm.label for arm in in_order(names)}) == len(names)


def test_the_sentences_answer_the_questions_of_the_comparison(whole_run):
    summary = summarise(whole_run.records())
    claims = [v.claim for v in verdicts(summary)]
    assert len(claims) == 8
    gain = summary.compare("federated", "logistic-local").gain.mean
    assert claims[0] == (
        "Federated without noise beats the best simple method, logistic regression at each "
        f"merchant alone, by {gain:.3f} AUC."
    )
    cost = summary.compare("federated", "federated-eps8").gain.mean
    assert f"Privacy at ε = 8 costs {cost:.3f} AUC." in claims
    text = summary.compare("federated-eps2", "numeric-eps2").gain.mean
    assert (
        "The language model at ε = 2 beats numeric features alone under the same noise "
        f"by {text:.3f} AUC." in claims
    )
    local = next(v for v in verdicts(summary) if v.claim.startswith("Federated at ε = 8 with a"))
    wins = summary.compare("federated-eps8+local", "local-only").wins
    assert f"Better at {wins.mean:.0%} of merchants" in local.detail
    assert "over 3 seeds" in local.detail


@pytest.mark.parametrize(
    ("ours", "claim"),
    [
        ([0.68, 0.7], "falls short of LoRA at each merchant alone by 0.010 AUC."),
        ([0.7, 0.7], "equals LoRA at each merchant alone in AUC."),
        ([0.7, 0.72], "beats LoRA at each merchant alone by 0.010 AUC."),
    ],
)
def test_a_loss_is_not_called_a_gain(ours, claim):
    summary = summarise(scores("local-only", [0.7, 0.7]) + scores("federated", ours))
    assert verdicts(summary)[0].claim == f"Federated without noise {claim}"


def test_seeds_that_disagree_are_said_to():
    summary = summarise(scores("local-only", [0.7], [0.7]) + scores("federated", [0.8], [0.65]))
    assert "not always of the same sign" in verdicts(summary)[0].detail


def test_privacy_that_costs_nothing_is_not_given_a_negative_price():
    summary = summarise(scores("federated", [0.7]) + scores("federated-eps4", [0.72]))
    claims = [v.claim for v in verdicts(summary)]
    assert claims == ["Privacy at ε = 4 costs no AUC here; the private model gains 0.020."]


def test_what_a_step_adds_is_against_the_arm_without_it(whole_run):
    summary = summarise(whole_run.records())
    pairs = {e.label: (e.contrast.arm.name, e.contrast.against.name) for e in effects(summary)}
    assert pairs["Privacy, ε = 2"] == ("federated-eps2", "federated")
    assert pairs["Local adapter, ε = 8"] == ("federated-eps8+local", "federated-eps8")
    assert pairs["Language model, no noise"] == ("federated", "numeric-federated")
    assert pairs["Language model, ε = 2"] == ("federated-eps2", "numeric-eps2")
    assert pairs["Not pooling the data"] == ("federated", "pooled")
    assert len(pairs) == 10


@pytest.mark.parametrize("width", [72, 80, 100, 160])
def test_the_table_fits_the_terminal_and_keeps_auc_and_gain(whole_run, width):
    text = printed(whole_run, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    summary = summarise(whole_run.records())
    line = row(text, "Federated, ε = 8 + local")
    assert f"{summary.figure('federated-eps8+local').mean:.3f}" in line
    assert f"{summary.compare('federated-eps8+local', 'local-only').gain.mean:+.3f}" in line
    assert ("Recall@10" in text) == (width == 160)
    assert "NOT PRIVATE" not in text
    assert "δ = 0.0001" in " ".join(text.split())


def test_what_was_measured_privately_stands_beside_what_it_is_without_noise(whole_run):
    text = printed(whole_run)
    assert "Measured privately, ± standard error (what it is without noise)" in text
    below = text.partition("Measured privately")[2]
    found = re.search(r"Federated, ε = 2 +(\S+) ± (\S+) \((\S+)\)", below)
    # Three seeds of 0.05 each.
    assert found[2] == f"{0.05 / math.sqrt(3):.3f}"
    assert found[3] == "0.750"
    assert abs(float(found[1]) - 0.75) < 4 * 0.05 / math.sqrt(3)


def test_a_figure_that_noise_hides_is_said_to_be(made_up_run):
    run = made_up_run(seeds=1, arms=("local-only", "federated-eps2"))
    run.append(
        {"kind": "private-metrics", "seed": 0, "arm": "federated-eps2", "round": 7, "metric": "auc"}
        | {"value": None, "standard_error": None, "noiseless": 0.7, "exact": 0.7}
    )
    assert "hidden by noise (0.700)" in printed(run)


def test_one_seed_has_no_spread(made_up_run):
    text = printed(made_up_run(seeds=1, merchants=3))
    assert "3 merchants, 1 seed " in text
    assert "±" not in text.partition("Measured privately")[0]
    assert "[" not in text


def test_a_reader_is_told_what_the_figures_lack(made_up_run):
    run = made_up_run(seeds=2, merchants=3, arms=("local-only", "federated"), private=False)
    run.append(score(0, "pooled", "store-1", 0.9))
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "score", "se')
    run = RunFolder.open(run.path)
    text = printed(run)
    assert "NOT PRIVATE: seeded noise" in text
    assert "no recorded end" in text
    assert "is cut off" in text
    assert "Not scored on every merchant and seed: LoRA, pooled data (ceiling)." in text
    run.finish("failed")
    assert "The run failed." in printed(run)
    run.finish("interrupted")
    assert "The run was interrupted." in printed(run)


def test_names_are_no_markup(made_up_run):
    run = made_up_run(seeds=1, merchants=2, arms=("local-only", "[red]mine[/red]"))
    assert "[red]mine[/red]" in printed(run)


def test_a_run_without_scores_says_so(made_up_run):
    assert "No arm has been scored yet." in printed(made_up_run(seeds=0))


def test_metrics_that_nobody_measured_have_no_column():
    summary = summarise([score(0, "federated", "a", 0.5, ndcg=None)])
    assert list(summary.arms[0].metrics) == ["auc"]
