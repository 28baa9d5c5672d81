import pytest

from silotune.errors import ConfigError
from simulations.scenario import LocalTraining, PrivateTraining, load_scenario, scenario_names


@pytest.mark.parametrize("name", scenario_names())
def test_a_scenario_that_comes_with_it_can_be_read_under_its_name(name):
    assert load_scenario(name).name == name


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epsilons": (8.0, 0.0)}, "epsilons holds 0.0"),
        ({"delta": 0.0}, "delta is 0.0"),
        ({"sampling_rate": 1.5}, "sampling_rate is 1.5"),
        ({"clip_norm": 0.0}, "clip_norm is 0.0"),
        ({"learning_rates": (0.5, -1.0)}, "learning_rates holds -1.0"),
        ({"learning_rates": (0.5,)}, "learning_rates has 1 values for 2 epsilons"),
        ({"server_momentum": 1.0}, "server_momentum is 1.0"),
        ({"own_shares": (0.2,)}, "own_shares has 1 values for 2 epsilons"),
        ({"own_shares": (0.2, 1.5)}, "own_shares holds 1.5"),
        (
            {"epsilons": (8.0, 4.0, 2.0), "learning_rates": (1.0,) * 3},
            "own_shares has 2 values for 3",
        ),
    ],
)
def test_impossible_privacy_parameters_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        PrivateTraining(**changes)


def test_no_epsilon_needs_no_share():
    assert PrivateTraining(epsilons=(), own_shares=()).epsilons == ()


def test_a_share_outside_its_range_is_named():
    with pytest.raises(ConfigError, match=r"own_share is -0\.1"):
        LocalTraining(own_share=-0.1)
