"""``silotune privacy``: what a plan costs each user, and what a budget allows."""

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from silotune.cli.audit import register as register_audit
from silotune.cli.privacy_checks import (
    check_delta,
    check_epsilon,
    check_noise,
    check_plan,
    check_plot,
)
from silotune.cli.terminal import progress_bar
from silotune.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["group", "register"]

_UNIT = "one user of one merchant"
_NEIGHBOURS = "add or remove one user"
_GROUPS = (2, 4, 8)
_NOISES = (0.8, 1.0, 1.5, 2.0)

_Users = Annotated[int, typer.Option(help="Declared number of customers of a silo.")]
_Rate = Annotated[float, typer.Option(help="q: chance of a user to be in a step, in (0, 1].")]
_Steps = Annotated[int, typer.Option(help="Steps over all rounds.")]
_Delta = Annotated[float, typer.Option(help="δ; below one over the number of users.")]
_Epsilon = Annotated[float, typer.Option(help="ε of one user, over all steps.")]
_Json = Annotated[bool, typer.Option("--json", help="Print as JSON.")]

group = typer.Typer(no_args_is_help=True)


def register(root: typer.Typer) -> None:
    """Add the group to ``root``."""
    register_audit(group)
    root.add_typer(group, name="privacy", help="What a plan costs each user; what a budget allows.")


@group.command("epsilon")
def _epsilon(
    users: _Users,
    rate: _Rate,
    noise: Annotated[float, typer.Option(help="σ: noise over the clip norm.")],
    steps: _Steps,
    delta: _Delta,
    as_json: _Json = False,
) -> None:
    """Print the ε that a plan costs each user, and what it means for groups of users."""
    check_delta(delta, users)
    check_plan(rate, steps)
    check_noise(noise)
    from privacy.accounting import GaussianEvent, epsilon_by_rdp, epsilon_spent

    events = [GaussianEvent(sampling_rate=rate, noise_multiplier=noise, steps=steps)]
    found: dict[str, Any] = {
        "epsilon": epsilon_spent(events, delta=delta),
        "epsilon_rdp": epsilon_by_rdp(events, delta=delta),
        "delta": delta,
        "unit": _UNIT,
        "neighbours": _NEIGHBOURS,
        "users": users,
        "sampling_rate": rate,
        "noise_multiplier": noise,
        "steps": steps,
        "noise_in_the_mean": noise / (rate * users),
        "groups": {str(k): _of_group(events, k, delta) for k in _GROUPS},
    }
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    shown = _table("guarantee", "ε at most")
    shown.add_row("one user", f"[bold]{_up(found['epsilon'], 3)}[/bold]")
    shown.add_row("one user, by RDP alone", _up(found["epsilon_rdp"], 3))
    for k, value in found["groups"].items():
        shown.add_row(f"{k} users together", "no bound" if value is None else _up(value, 3))
    _print(
        f"δ = {delta:g}. Unit: {_UNIT}. Neighbours: {_NEIGHBOURS}.",
        shown,
        f"A step samples {rate * users:,.4g} of {users:,} users on average; the noise in its mean "
        f"is {found['noise_in_the_mean']:.2%} of the clip norm per parameter.",
    )


@group.command("calibrate")
def _calibrate(
    epsilon: _Epsilon,
    delta: _Delta,
    rate: _Rate,
    steps: _Steps,
    users: Annotated[
        int | None, typer.Option(help="To check δ against.", show_default=False)
    ] = None,
    as_json: _Json = False,
) -> None:
    """Print the smallest noise multiplier σ that keeps a plan within ε."""
    check_delta(delta, users)
    check_plan(rate, steps)
    check_epsilon(epsilon)
    from privacy.accounting import GaussianEvent, calibrate_noise, epsilon_spent

    sigma = calibrate_noise(epsilon, delta=delta, sampling_rate=rate, steps=steps)
    event = GaussianEvent(sampling_rate=rate, noise_multiplier=sigma, steps=steps)
    spent = epsilon_spent([event], delta=delta)
    if as_json:
        found = {"noise_multiplier": sigma, "epsilon": spent, "delta": delta, "unit": _UNIT}
        typer.echo(json.dumps(found | {"neighbours": _NEIGHBOURS}, indent=2))
        return
    # Every digit: rounded down, σ would not keep the budget.
    typer.echo(f"noise multiplier σ = {sigma}")
    typer.echo(f"ε = {_up(spent, 4)} at δ = {delta:g}. Unit: {_UNIT}. Neighbours: {_NEIGHBOURS}.")


@group.command("plan")
def _plan(
    users: _Users,
    rate: _Rate,
    delta: _Delta,
    rounds: Annotated[int, typer.Option(help="How many to plan for.")] = 50,
    steps: Annotated[int, typer.Option(help="Steps of one round.")] = 5,
    noise: Annotated[
        list[float] | None,
        typer.Option(help="σ; may be repeated. Default: 0.8, 1, 1.5, 2.", show_default=False),
    ] = None,
    epsilon: Annotated[
        float | None, typer.Option(help="Budget: prints how many rounds fit.", show_default=False)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="File for the plot: .png, .svg or .pdf.", show_default=False)
    ] = None,
    as_json: _Json = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Print ε round by round for several σ, and the noise that is left in the mean."""
    noises = sorted(set(noise or _NOISES))
    check_delta(delta, users)
    check_plan(rate, steps)
    if rounds < 1:
        raise ConfigError(f"--rounds is {rounds}; a plan has at least 1.")
    for sigma in noises:
        check_noise(sigma)
    if epsilon is not None:
        check_epsilon(epsilon)
    if plot is not None:
        check_plot(plot, noises)
    asked: dict[str, Any] = {"users": users, "rate": rate, "delta": delta, "steps": steps}
    epsilons = _rounds(noises, rounds, rate=rate, steps=steps, delta=delta, quiet=quiet)
    fit = None
    if epsilon is not None:
        fit = {s: _fitting(s, epsilon, rate=rate, steps=steps, delta=delta) for s in noises}
    if plot is not None:
        from simulations.plan_plot import Plan, save_plan_plot

        save_plan_plot(Plan(epsilons=epsilons, target=epsilon, **asked), plot)
    if as_json:
        typer.echo(json.dumps(_plan_as_json(asked, epsilons, epsilon, fit), indent=2))
        return
    _print(
        f"ε of one user at δ = {delta:g}, {steps} steps a round, q = {rate:g}",
        _plan_table(epsilons, users, rate, epsilon, fit),
        "noise: in the mean of a step, per parameter, as a share of the clip norm",
    )
    if plot is not None:
        typer.echo(str(plot))


def _rounds(
    noises: list[float], rounds: int, *, rate: float, steps: int, delta: float, quiet: bool
) -> dict[float, list[tuple[int, float]]]:
    from privacy.accounting import GaussianEvent, epsilon_spent

    marks = sorted({round(rounds ** (i / 9)) for i in range(10)} | {max(1, rounds // 2), rounds})
    found: dict[float, list[tuple[int, float]]] = {sigma: [] for sigma in noises}
    with progress_bar("Accounting", quiet=quiet) as progress:
        for done, (sigma, n) in enumerate((s, n) for s in noises for n in marks):
            event = GaussianEvent(sampling_rate=rate, noise_multiplier=sigma, steps=n * steps)
            found[sigma].append((n, epsilon_spent([event], delta=delta)))
            if progress is not None:
                progress(done + 1, len(noises) * len(marks))
    return found


def _fitting(sigma: float, epsilon: float, *, rate: float, steps: int, delta: float) -> int:
    from privacy.accounting import steps_left

    allowed = steps_left(
        [], epsilon=epsilon, delta=delta, sampling_rate=rate, noise_multiplier=sigma
    )
    return allowed // steps


def _plan_as_json(
    asked: dict[str, Any],
    epsilons: dict[float, list[tuple[int, float]]],
    epsilon: float | None,
    fit: dict[float, int] | None,
) -> dict[str, Any]:
    plans = [
        {
            "noise_multiplier": sigma,
            "noise_in_the_mean": sigma / (asked["rate"] * asked["users"]),
            "rounds": [{"rounds": n, "epsilon": value} for n, value in points],
            "rounds_within_budget": fit[sigma] if fit else None,
        }
        for sigma, points in epsilons.items()
    ]
    return asked | {
        "unit": _UNIT,
        "neighbours": _NEIGHBOURS,
        "budget_epsilon": epsilon,
        "plans": plans,
    }


def _plan_table(
    epsilons: dict[float, list[tuple[int, float]]],
    users: int,
    rate: float,
    epsilon: float | None,
    fit: dict[float, int] | None,
) -> "Table":
    shown = _table("rounds", *(f"σ = {sigma:g}" for sigma in epsilons))
    columns = list(epsilons.values())
    for row, (n, _) in enumerate(columns[0]):
        values = [column[row][1] for column in columns]
        over = [epsilon is not None and value > epsilon for value in values]
        shown.add_row(
            f"{n:,}",
            *(
                f"[red]{_up(v, 2)}[/red]" if o else _up(v, 2)
                for v, o in zip(values, over, strict=True)
            ),
        )
    shown.add_section()
    if fit is not None:
        shown.add_row(
            f"rounds within ε = {epsilon:g}", *(f"[bold]{n:,}[/bold]" for n in fit.values())
        )
    for factor in (0.1, 1, 10):
        count = max(1, round(factor * users))
        noises = (f"{100 * sigma / (rate * count):.3g}%" for sigma in epsilons)
        shown.add_row(f"noise, {count:,} users", *noises)
    return shown


def _up(value: float, digits: int) -> str:
    # An upper bound stays one when it is shown.
    return f"{math.ceil(value * 10**digits) / 10**digits:.{digits}f}"


def _of_group(events: list[Any], users: int, delta: float) -> float | None:
    from privacy.conversions import epsilon_of_group
    from silotune.errors import PrivacyError

    try:
        return epsilon_of_group(events, users=users, delta=delta)
    except PrivacyError:
        return None


def _table(first: str, *others: str) -> "Table":
    from rich.table import Table

    table = Table(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _print(*parts: Any) -> None:
    from rich.console import Console

    console = Console()
    for part in parts:
        console.print(part, highlight=False, soft_wrap=isinstance(part, str))
