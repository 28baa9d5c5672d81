"""The merchant's own limits. A request is inside all of them or refused whole.

One TOML file of the merchant. No server message can change it; nothing is silently clamped.
"""

import math
from dataclasses import dataclass, field

from silotune.config import config
from silotune.errors import ConfigError, PolicyError
from silotune.tasks.names import names_in

__all__ = ["ANY_RUN", "Ask", "Policy"]

ANY_RUN = "any"
"""In `Policy.runs`: whatever run is inside the other limits."""

_METRICS = ("scores", "errors", "centroids")


@config
class Policy:
    """Limits on what may be asked of a silo and on what may leave it."""

    epsilon: float
    """Budget of each user for the life of the ledger, over all tasks, runs and restarts."""
    delta: float
    """Of the budget. Must be below one over the number of users."""
    base_digests: tuple[str, ...]
    """Base models whose adapters may be trained; 'none' for models without text."""
    servers: tuple[str, ...]
    """Identities of the aggregators that may ask."""
    runs: tuple[str, ...] = (ANY_RUN,)
    """Digests of the run files whose requests are answered, or 'any'."""
    tasks: tuple[str, ...] = ("promotion-response",)
    """Names of the tasks that may be trained. A request for several at once needs all of them."""
    noise_multiplier_min: float = 0.5
    """Least noise of a step, in units of the clip norm."""
    mechanisms: tuple[str, ...] = ("gaussian", "discrete-gaussian")
    """Kinds of noise that may be asked for; take the first away to insist on the hardened one."""
    clip_norm_max: float = 10.0
    sampling_rate_max: float = 0.5
    steps_max: int = 100
    """Steps of one request."""
    examples_per_user_max: int = 64
    update_norm_max: float = 1e4
    """Largest L2 norm of an update that leaves."""
    reply_interval: float = 0.0
    """Seconds. Above 0, a reply leaves at a multiple of it after the request came, so that its
    time tells no more than which multiple."""
    metrics: dict[str, float] = field(default_factory=dict)
    """What may leave of noised sums, and the most ε that one release with it may cost: 'scores'
    (AUC, accuracy, log loss, calibration), 'errors' (mean absolute error), both on an aggregator's
    request; 'centroids' (of customers), on the merchant's own command only."""
    plain_training: bool = False
    """Allow training without privacy. Only for simulations on data that is not personal."""
    seeded_noise: bool = False
    """Allow noise that can be reproduced. Only for tests and simulations: it protects nobody."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        for name in (
            "epsilon",
            "noise_multiplier_min",
            "clip_norm_max",
            "steps_max",
            "examples_per_user_max",
            "update_norm_max",
        ):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be > 0 and finite.")
        if not 0 <= self.reply_interval < float("inf"):
            raise ConfigError(f"reply_interval is {self.reply_interval}; it must be >= 0.")
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta is {self.delta}; it must be above 0 and below 1/users.")
        if not 0 < self.sampling_rate_max <= 1:
            raise ConfigError(
                f"sampling_rate_max is {self.sampling_rate_max}; it must be in (0, 1]."
            )
        for name, epsilon in self.metrics.items():
            if not epsilon > 0:
                raise ConfigError(f"metrics.{name} is {epsilon}; its ε must be > 0.")
            if name not in _METRICS:
                raise ConfigError(f"metrics.{name} is no release; known: {', '.join(_METRICS)}.")

    def check(self, ask: "Ask", *, nominal_users: int) -> None:
        """Raise PolicyError naming every limit that ``ask`` is outside of; else return.

        Args:
            ask: what is asked.
            nominal_users: of the silo, declared and public.
        """
        reasons = [
            reason
            for wrong, reason in (
                (
                    self.delta >= 1 / nominal_users,
                    f"delta: {self.delta:g} is not below 1/users = {1 / nominal_users:g}",
                ),
                (ask.server not in self.servers, f"server: {ask.server!r} is not listed"),
                *(
                    (name not in self.tasks, f"task: {name!r} is not listed")
                    for name in names_in(ask.task)
                ),
                (
                    ask.base_digest not in self.base_digests,
                    f"base_digest: {ask.base_digest[:12]!r} is not listed",
                ),
            )
            if wrong
        ]
        if ask.metrics:
            reasons += self._of_metrics(ask)
        else:
            reasons += self._of_noise(ask) if ask.private else self._of_plain()
        if ask.private and ask.seeded and not self.seeded_noise:
            reasons.append("noise: the silo's noise is seeded, which the policy does not allow")
        if reasons:
            limits = tuple(r.partition(":")[0] for r in reasons)
            raise PolicyError("outside the policy: " + "; ".join(reasons) + ".", limits)

    def _of_plain(self) -> list[str]:
        if self.plain_training:
            return []
        return ["private: training without privacy is not allowed"]

    def _of_metrics(self, ask: "Ask") -> list[str]:
        reasons = [] if ask.mechanism in self.mechanisms else [f"mechanism: {ask.mechanism!r}"]
        for name in ask.metrics:
            limit = self.metrics.get(name)
            if limit is None:
                reasons.append(f"metrics: {name!r} is not listed")
            # Written so that a NaN is outside of every limit.
            elif not ask.metrics_epsilon <= limit:
                reasons.append(f"metrics: {name!r} at ε = {ask.metrics_epsilon:.3g} of {limit:g}")
        return reasons

    def _of_noise(self, ask: "Ask") -> list[str]:
        checks = (
            ("noise_multiplier", ask.noise_multiplier, ">=", self.noise_multiplier_min),
            ("clip_norm", ask.clip_norm, "<=", self.clip_norm_max),
            ("sampling_rate", ask.sampling_rate, "<=", self.sampling_rate_max),
            ("steps", ask.steps, "<=", self.steps_max),
            ("examples_per_user", ask.examples_per_user, "<=", self.examples_per_user_max),
        )
        # Written so that a NaN is outside of every limit.
        wrong = [] if ask.mechanism in self.mechanisms else [f"mechanism: {ask.mechanism!r}"]
        return wrong + [
            f"{name}: {value:g} is not {sign} {limit:g}"
            for name, value, sign, limit in checks
            if not (value >= limit if sign == ">=" else value <= limit)
        ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """What a request asks for, as far as a policy has a say in it."""

    server: str
    task: str
    """Of several tasks that share an adapter, all names (`silotune.tasks.names`)."""
    base_digest: str
    private: bool
    seeded: bool = False
    """The silo's own noise can be reproduced."""
    noise_multiplier: float = 0.0
    clip_norm: float = 0.0
    sampling_rate: float = 0.0
    steps: int = 0
    examples_per_user: int = 0
    mechanism: str = "gaussian"
    metrics: tuple[str, ...] = ()
    """What a release of metrics holds; not empty: it asks for metrics, not for training."""
    metrics_epsilon: float = math.inf
    """ε of that release alone, at the policy's δ."""
