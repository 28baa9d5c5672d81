"""Quality of an adapter on a silo's test examples: noised sums, and what asking for them costs.

Shape suffixes: E examples, K outputs, D numbers.
"""

import math
from collections.abc import Mapping

from torch import Tensor

from client.prepared import PreparedExamples
from privacy.accounting import release_epsilon
from privacy.metrics import MetricsPlan, noised_metrics
from privacy.policy import Ask
from privacy.randomness import RandomSource
from silotune.config import from_mapping
from silotune.errors import ConfigError
from silotune.messages import MetricsRequest
from silotune.models.text_model import TextModel
from silotune.tasks.objective import Objective

__all__ = ["MECHANISM", "ask_of", "measured", "norm_limit", "plan_of"]

MECHANISM = "discrete-gaussian"
"""How `privacy.metrics` draws its noise, always."""


def plan_of(numbers: Mapping[str, float], model: TextModel, objective: Objective) -> MetricsPlan:
    """Return the plan that a request spells out.

    Raises:
        ConfigError: it is none for ``model``, or the task's outcome is no yes or no.
    """
    if not objective.private_histograms:
        raise ConfigError(
            "request.metrics: are of yes-or-no tasks only; this one has no such sums."
        )
    plan = from_mapping(MetricsPlan, numbers, where="request.metrics")
    outputs = model.outputs
    if plan.outputs != outputs:
        raise ConfigError(f"request.metrics: outputs is {plan.outputs}; the model has {outputs}.")
    return plan


def ask_of(
    what: MetricsRequest, plan: MetricsPlan, *, server: str, seeded: bool, delta: float
) -> Ask:
    """Return what the policy has a say in: which metrics, and what one release costs at δ."""
    return Ask(
        server=server,
        task=what.task,
        base_digest=what.base_digest,
        private=True,
        seeded=seeded,
        mechanism=MECHANISM,
        metrics=plan.names,
        metrics_epsilon=release_epsilon(plan.event, delta),
    )


def norm_limit(plan: MetricsPlan, nominal_users: int) -> float:
    """Return an L2 norm that no release comes near: a bound for the gate, from public numbers."""
    return 10 * (nominal_users + plan.noise_std * math.sqrt(plan.size))


def measured(
    model: TextModel, data: PreparedExamples, plan: MetricsPlan, source: RandomSource
) -> Tensor:
    """Score every test example with the adapter that ``model`` holds; return noised sums, (D,).

    The caller has charged ``plan.event``. Chances, not logits, enter the sums.
    """
    rows = data.examples.rows(test=True)
    return noised_metrics(
        data.examples.objective.scores(data.scores(model, rows)),
        data.examples.label_EK[rows],
        data.examples.user_E[rows],
        plan,
        source,
    )
