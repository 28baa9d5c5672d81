"""A merchant's policy in words that need no knowledge of the file."""

from collections.abc import Iterable

from privacy.policy import Policy

__all__ = ["policy_words"]


def policy_words(policy: Policy) -> list[tuple[str, str]]:
    """Return what ``policy`` allows, as heading and sentence."""
    words = {
        "Budget": _budget(policy),
        "Noise": _noise(policy),
        "Training": _training(policy),
        "Tasks": _listed(policy.tasks),
        "Base models": _listed(_short(d) for d in policy.base_digests),
        "Aggregators": _listed(_short(s) for s in policy.servers),
        "Figures about quality": _metrics(policy),
        "When replies leave": _time(policy),
        "Without privacy": _unprotected(policy),
    }
    return list(words.items())


def _budget(policy: Policy) -> str:
    return (
        "Everything that ever leaves is, all together, (ε, δ)-differentially private for each "
        f"customer, with ε at most {policy.epsilon:g} and δ {policy.delta:g}. When that is spent, "
        "nothing more leaves."
    )


def _noise(policy: Policy) -> str:
    least = policy.noise_multiplier_min
    return f"In every step at least {least:g} times the clip norm; {_listed(policy.mechanisms)}."


def _training(policy: Policy) -> str:
    return (
        f"A request may ask for at most {policy.steps_max} steps, {policy.sampling_rate_max:.0%} "
        f"of the customers in a step, {policy.examples_per_user_max} examples of one customer, "
        f"and clip norm {policy.clip_norm_max:g}."
    )


def _time(policy: Policy) -> str:
    if policy.reply_interval > 0:
        return f"At multiples of {policy.reply_interval:g} s after the request."
    return "As soon as they are ready: how long training took can be seen."


def _unprotected(policy: Policy) -> str:
    plain = "ALLOWED" if policy.plain_training else "refused"
    seeded = "ALLOWED" if policy.seeded_noise else "refused"
    return f"Training without privacy is {plain}. Noise that can be made again is {seeded}."


def _metrics(policy: Policy) -> str:
    if not policy.metrics:
        return "None leaves."
    limits = (
        f"{name}, at most ε {epsilon:g} a release" for name, epsilon in policy.metrics.items()
    )
    return f"Noised sums, inside the budget: {'; '.join(limits)}."


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"


def _short(digest: str) -> str:
    head, _, rest = digest.rpartition(":")
    return f"{head}{':' if head else ''}{rest[:16]}…" if len(rest) > 16 else digest
