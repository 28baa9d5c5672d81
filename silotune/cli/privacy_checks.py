"""Checks of the options of ``silotune privacy``: what is wrong, and what to do.

Before anything is imported that takes long, and in the words of the command line.
"""

from pathlib import Path

from silotune.errors import ConfigError

__all__ = ["check_delta", "check_epsilon", "check_noise", "check_plan", "check_plot"]

# Parts of the extra 'simulation'.
_EXTRA = ("markupsafe", "matplotlib")


def check_delta(delta: float, users: int | None) -> None:
    """Refuse a δ outside (0, 1), or not below one over the number of users. Raises ConfigError."""
    if users is not None and users < 1:
        raise ConfigError(f"--users is {users}; a silo has at least 1 user.")
    if not 0 < delta < 1:
        raise ConfigError(f"--delta is {delta}; it must be above 0 and below 1. 1e-5 is common.")
    if users is not None and delta >= 1 / users:
        raise ConfigError(
            f"--delta is {delta:g}; it must be below 1/users = {1 / users:g}, or a release of one "
            f"user's data whole would be within it. Try --delta {0.1 / users:.1g}."
        )


def check_plan(rate: float, steps: int) -> None:
    """Refuse a rate outside (0, 1] and steps below 1. Raises ConfigError."""
    if not 0 < rate <= 1:
        raise ConfigError(f"--rate is {rate}; it must be above 0 and at most 1 (every user).")
    if steps < 1:
        raise ConfigError(f"--steps is {steps}; a plan has at least 1.")


def check_noise(noise: float) -> None:
    """Refuse a noise multiplier that is no noise. Raises ConfigError."""
    if not 0 < noise < float("inf"):
        raise ConfigError(
            f"--noise is {noise}; it must be above 0: without noise nothing is private. "
            "`silotune privacy calibrate` finds one for a budget."
        )


def check_epsilon(epsilon: float) -> None:
    """Refuse a budget of nothing, or of everything. Raises ConfigError."""
    if not 0 < epsilon < float("inf"):
        raise ConfigError(f"--epsilon is {epsilon}; it must be above 0. 8 is a common first value.")


def check_plot(plot: Path, noises: list[float]) -> None:
    """Refuse a plot that could not be written at the end. Raises ConfigError."""
    # Before the accounting, which takes long.
    try:
        from simulations.plan_plot import FORMATS, MOST_NOISES
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        raise ConfigError(
            f"'{error.name}' is not installed. --plot needs: pip install 'silotune[simulation]'."
        ) from error
    if plot.suffix.lower() not in FORMATS:
        raise ConfigError(f"--plot is {plot}; its ending must be one of {', '.join(FORMATS)}.")
    if not plot.parent.is_dir():
        raise ConfigError(f"--plot is {plot}; the folder {plot.parent} does not exist. Make it.")
    if len(noises) > MOST_NOISES:
        raise ConfigError(f"--noise is given {len(noises)} times; a plot shows {MOST_NOISES}.")
