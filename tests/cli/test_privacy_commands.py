import json
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest

from privacy.accounting import GaussianEvent, epsilon_by_rdp, epsilon_spent
from privacy.conversions import epsilon_of_group
from silotune.cli import main
from silotune.cli.privacy import _up

EPSILON = {"users": 2000, "rate": 0.04, "noise": 1.5, "steps": 2250, "delta": 1e-5}
CALIBRATE = {"epsilon": 3.0, "delta": 1e-5, "rate": 0.1, "steps": 20}
PLAN = {"users": 2000, "rate": 0.1, "delta": 1e-5, "rounds": 6, "steps": 2, "noise": 1.5}


def arguments(command, options, *more):
    pairs = [part for k, v in options.items() for part in (f"--{k}", str(v))]
    return ["privacy", command, *pairs, *map(str, more)]


def event(rate, noise, steps):
    return GaussianEvent(sampling_rate=rate, noise_multiplier=noise, steps=steps)


def test_epsilon_is_that_of_the_accountants_with_its_unit_and_groups(capsys):
    assert main(arguments("epsilon", EPSILON, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    events = [event(0.04, 1.5, 2250)]
    assert found["epsilon"] == epsilon_spent(events, delta=1e-5)
    assert found["epsilon_rdp"] == epsilon_by_rdp(events, delta=1e-5)
    assert found["unit"] == "one user of one merchant"
    assert found["neighbours"] == "add or remove one user"
    assert found["noise_in_the_mean"] == pytest.approx(1.5 / 80)
    assert found["groups"] == {
        str(k): epsilon_of_group(events, users=k, delta=1e-5) for k in (2, 4, 8)
    }


def test_epsilon_is_shown_rounded_up_never_down(capsys):
    assert main(arguments("epsilon", EPSILON)) == 0
    shown = capsys.readouterr().out
    # 6.77913 and 7.32911.
    assert "6.780" in shown
    assert "7.330" in shown
    assert "one user of one merchant" in shown
    assert "add or remove one user" in shown
    assert "80 of 2,000 users" in shown
    assert [_up(x, 2) for x in (1.0, 1.001, 0.0, 1.999)] == ["1.00", "1.01", "0.00", "2.00"]


def test_a_group_that_nothing_bounds_is_said_to_have_no_bound(capsys):
    options = EPSILON | {"noise": 0.004, "steps": 1, "rate": 1.0}
    assert main(arguments("epsilon", options)) == 0
    assert "8 users together" in capsys.readouterr().out
    assert main(arguments("epsilon", options | {"noise": 0.0015}, "--json")) == 0
    assert json.loads(capsys.readouterr().out)["groups"]["8"] is None


def test_the_noise_that_is_printed_keeps_the_budget(capsys):
    assert main(arguments("calibrate", CALIBRATE)) == 0
    first, second = capsys.readouterr().out.splitlines()
    sigma = float(first.removeprefix("noise multiplier σ = "))
    assert epsilon_spent([event(0.1, sigma, 20)], delta=1e-5) <= 3.0
    assert epsilon_spent([event(0.1, sigma * 0.998, 20)], delta=1e-5) > 3.0
    assert "one user of one merchant" in second
    assert main(arguments("calibrate", CALIBRATE, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["noise_multiplier"] == sigma
    assert found["epsilon"] == epsilon_spent([event(0.1, sigma, 20)], delta=1e-5)


def test_a_plan_shows_epsilon_by_rounds_and_the_rounds_of_a_budget(capsys):
    assert main(arguments("plan", PLAN, "--noise", 3, "--epsilon", 1.6)) == 0
    shown = capsys.readouterr().out
    for noise in (1.5, 3.0):
        assert f"σ = {noise:g}" in shown
        assert _up(epsilon_spent([event(0.1, noise, 12)], delta=1e-5), 2) in shown
    assert "rounds within ε = 1.6" in shown
    # σ / (q N): 1.5 / 200 at the declared number, and ten times more and less.
    assert all(text in shown for text in ("0.75%", "7.5%", "0.075%", "20,000 users"))


def test_the_rounds_of_a_budget_fit_and_one_more_does_not(capsys):
    assert main(arguments("plan", PLAN, "--epsilon", 1.6, "--json")) == 0
    found = json.loads(capsys.readouterr().out)
    (plan,) = found["plans"]
    rounds = plan["rounds_within_budget"]
    assert rounds > 0
    assert epsilon_spent([event(0.1, 1.5, 2 * rounds)], delta=1e-5) <= 1.6
    assert epsilon_spent([event(0.1, 1.5, 2 * rounds + 2)], delta=1e-5) > 1.6
    assert [p["rounds"] for p in plan["rounds"]] == [1, 2, 3, 4, 5, 6]
    assert plan["rounds"][2]["epsilon"] == epsilon_spent([event(0.1, 1.5, 6)], delta=1e-5)
    assert plan["noise_in_the_mean"] == pytest.approx(1.5 / 200)


@pytest.mark.parametrize("ending", ["svg", "png", "pdf"])
@pytest.mark.parametrize("more", [(), ("--epsilon", 0.3, "--noise", 4)], ids=str)
def test_the_plot_is_written_in_the_format_of_its_ending(ending, more, tmp_path, capsys):
    path = tmp_path / f"plan.{ending}"
    assert main(arguments("plan", PLAN | {"rounds": 1}, "--plot", path, *more)) == 0
    assert str(path) in capsys.readouterr().out
    head = path.read_bytes()
    if ending == "svg":
        assert ET.fromstring(head).tag.endswith("svg")
    else:
        assert head.startswith({"png": b"\x89PNG", "pdf": b"%PDF"}[ending])


@pytest.mark.parametrize(
    ("command", "options", "wrong", "remedy"),
    [
        ("epsilon", EPSILON, {"delta": 0.0005}, "below 1/users = 0.0005"),
        ("epsilon", EPSILON, {"delta": 0}, "above 0 and below 1"),
        ("epsilon", EPSILON, {"delta": "nan"}, "above 0 and below 1"),
        ("epsilon", EPSILON, {"users": 0}, "at least 1 user"),
        ("epsilon", EPSILON, {"rate": 0}, "above 0 and at most 1"),
        ("epsilon", EPSILON, {"rate": 1.01}, "above 0 and at most 1"),
        ("epsilon", EPSILON, {"rate": "nan"}, "above 0 and at most 1"),
        ("epsilon", EPSILON, {"steps": 0}, "at least 1"),
        ("epsilon", EPSILON, {"noise": 0}, "silotune privacy calibrate"),
        ("epsilon", EPSILON, {"noise": "inf"}, "silotune privacy calibrate"),
        ("calibrate", CALIBRATE, {"epsilon": 0}, "8 is a common first value"),
        ("calibrate", CALIBRATE, {"epsilon": "nan"}, "8 is a common first value"),
        ("calibrate", CALIBRATE, {"delta": 1}, "above 0 and below 1"),
        ("calibrate", CALIBRATE, {"rate": -0.1}, "above 0 and at most 1"),
        ("calibrate", CALIBRATE, {"steps": -3}, "at least 1"),
        ("calibrate", CALIBRATE | {"users": 10**6}, {"delta": 1e-5}, "Try --delta 1e-07"),
        ("plan", PLAN, {"delta": 0.01}, "Try --delta 5e-05"),
        ("plan", PLAN, {"rounds": 0}, "at least 1"),
        ("plan", PLAN, {"steps": 0}, "at least 1"),
        ("plan", PLAN, {"noise": -1}, "above 0"),
        ("plan", PLAN, {"epsilon": -1}, "above 0"),
        ("plan", PLAN, {"plot": "plan.txt"}, ".png, .svg, .pdf"),
        ("plan", PLAN, {"plot": "/no/such/folder/plan.png"}, "does not exist"),
    ],
)
def test_a_bad_value_is_refused_by_name_with_the_remedy(command, options, wrong, remedy, capsys):
    assert main(arguments(command, options | wrong)) == 2
    error = capsys.readouterr().err
    (name,) = wrong
    assert error.startswith(f"error: --{name} is ")
    assert remedy in error


def test_more_lines_than_a_plot_can_tell_apart_are_refused(tmp_path, capsys):
    many = [part for i in range(8) for part in ("--noise", str(1 + i))]
    assert main(arguments("plan", PLAN, *many, "--plot", tmp_path / "p.svg")) == 2
    assert "--noise is given 9 times; a plot shows 6" in capsys.readouterr().err


def test_without_the_extra_the_remedy_is_named(tmp_path, capsys, monkeypatch):
    monkeypatch.delitem(sys.modules, "simulations.plan_plot", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.axes", raising=False)
    assert main(arguments("plan", PLAN, "--plot", tmp_path / "p.svg")) == 2
    assert "pip install 'silotune[simulation]'" in capsys.readouterr().err


def test_help_and_refusals_import_nothing_that_takes_long():
    script = (
        "import sys\nfrom silotune.cli import main\n"
        f"main({arguments('epsilon', EPSILON | {'delta': 1})})\nmain(['privacy', '--help'])\n"
        "sys.exit(str(found) if (found := set(sys.modules) & {'torch', 'opacus', 'numpy'}) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--delta is 1.0" in done.stderr
    assert "calibrate" in done.stdout
