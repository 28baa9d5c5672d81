"""Off-policy estimates on the Open Bandit sample: what a uniform policy earns, by another's log.

Saito et al. (2021), arXiv:2008.07146: a fashion shop's recommendations, chosen by Bernoulli
Thompson sampling and, on the same days, uniformly. 10,000 choices of each ship in the wheel of
`obp` (Apache-2.0), which is read as an archive: the package is neither installed nor run.
"""

import csv
import io
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from client.bayesian_layer import BayesianLayer
from client.off_policy import Log, cross_fitted, doubly_robust, ips, snips

pytestmark = pytest.mark.slow

WHEEL = "obp-0.4.1-py3-none-any.whl"
CAMPAIGNS = ("all", "men", "women")


@pytest.fixture(scope="module")
def wheel(request):
    folder = request.config.cache.mkdir("open-bandit")
    if not (folder / WHEEL).exists():
        download = (sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder))
        try:
            subprocess.run([*download, "obp==0.4.1"], check=True, capture_output=True, timeout=60)
        except (subprocess.SubprocessError, OSError) as error:
            pytest.skip(f"pip gets no obp 0.4.1, whose wheel holds the sample: {error}")
    with zipfile.ZipFile(folder / WHEEL) as archive:
        yield archive


def sample(wheel, policy, campaign):
    """Return the log of a policy and features of every item for every choice, (E, A, 5)."""
    path = f"obp/dataset/obd/{policy}/{campaign}"
    with wheel.open(f"{path}/{campaign}.csv") as raw:
        rows = list(csv.DictReader(io.TextIOWrapper(raw, "utf-8")))
    with wheel.open(f"{path}/item_context.csv") as raw:
        price_A = [float(r["item_feature_0"]) for r in csv.DictReader(io.TextIOWrapper(raw))]
    log = Log(
        action_E=np.array([int(r["item_id"]) for r in rows]),
        reward_E=np.array([float(r["click"]) for r in rows]),
        propensity_E=np.array([float(r["propensity_score"]) for r in rows]),
    )
    features = np.zeros((len(rows), len(price_A), 5))
    position_E = np.array([int(r["position"]) for r in rows])
    features[np.arange(len(rows)), :, position_E - 1] = 1
    features[:, :, 3] = price_A
    for item in range(len(price_A)):
        features[:, item, 4] = [float(r[f"user-item_affinity_{item}"]) for r in rows]
    return log, features


def estimates(log, features):
    """Return every estimate of the uniform policy: what it earns per item shown."""
    uniform_EA = np.full(features.shape[:2], 1 / features.shape[1])
    # Of a hundred items shown, a few are clicked.
    mean_F, precision_F = np.array([-5.0, -5, -5, 0, 0]), np.array([1.0, 1, 1, 4, 4])
    prior = BayesianLayer(mean_F=mean_F, precision_FF=np.diag(precision_F))
    return {
        "ips": ips(log, uniform_EA),
        "snips": snips(log, uniform_EA),
        "doubly robust": doubly_robust(log, uniform_EA, cross_fitted(log, features, prior)),
    }


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_what_a_uniform_policy_earns_is_told_by_the_log_of_thompson_sampling(wheel, campaign):
    log, features = sample(wheel, "bts", campaign)
    uniform, _ = sample(wheel, "random", campaign)
    truth = uniform.reward_E.mean()
    truth_error = uniform.reward_E.std() / np.sqrt(len(uniform.reward_E))
    for name, found in estimates(log, features).items():
        print(
            f"{campaign} {name}: {found.value:.5f} ± {found.standard_error:.5f}, "
            f"on-policy {truth:.5f} ± {truth_error:.5f}, Thompson {log.reward_E.mean():.5f}, "
            f"effective rows {found.effective_rows:.0f}, mean weight {found.mean_weight:.3f}"
        )
        # What was earned on the same days is a sample itself.
        error = np.hypot(found.standard_error, truth_error)
        assert abs(found.value - truth) < 2.58 * error
        # In one campaign a few choices of tiny propensity outweigh all others: nothing can be
        # learnt from its log, and this is what says so.
        assert (found.effective_rows < 10) == (campaign == "women")
        if campaign != "women":
            assert found.effective_rows > 300
            assert 0 < found.standard_error < 0.3 * truth


@pytest.mark.parametrize("campaign", CAMPAIGNS)
def test_the_logged_propensities_are_those_of_the_log(wheel, campaign):
    log, features = sample(wheel, "bts", campaign)
    uniform_EA = np.full(features.shape[:2], 1 / features.shape[1])
    found = ips(log, uniform_EA)
    weight_E = 1 / features.shape[1] / log.propensity_E
    assert abs(found.mean_weight - 1) < 4 * weight_E.std() / np.sqrt(len(weight_E))
    # A uniform policy on its own log is the mean, with the mean's error.
    own, _ = sample(wheel, "random", campaign)
    same = ips(own, uniform_EA[: len(own.action_E)])
    assert same.value == pytest.approx(own.reward_E.mean(), rel=1e-3)
    assert same.effective_rows == pytest.approx(len(own.reward_E), rel=1e-3)
