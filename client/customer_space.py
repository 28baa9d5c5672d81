"""Where customers lie: coordinates of the adapted encoder's vectors, in a space that is public.

Everything that defines the space comes from the model and from the task's made-up customers:
scales, centre and axes. Nothing is fitted on a silo's customers, so a customer's coordinates
depend on that customer alone, and whoever has the adapter can compute the same space.

Shape suffixes: E examples, H hidden size of the text, F numeric features, X = H + F, P axes.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.prepared import PreparedExamples, prepare
from silotune.errors import ConfigError, ModelError
from silotune.models.text_model import TextModel
from silotune.tasks.base import DescribesCustomers

__all__ = ["CustomerSpace", "public_space"]

_Floats = NDArray[np.float64]

_REACH = 0.9
"""Quantile of the made-up customers' distances from the centre that is length 1."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CustomerSpace:
    """The main axes of the made-up customers. Public, as the model is."""

    centre_X: _Floats
    axes_XP: _Floats
    """Coordinates are ``(vector - centre) @ axes``; scales are in it."""
    made_up_EP: _Floats
    """The made-up customers themselves: where a search for centroids may begin."""

    def coordinates(self, model: TextModel, data: PreparedExamples) -> _Floats:
        """Return where the examples of ``data`` lie, (E, P), with the adapter that ``model`` holds.

        A row's coordinates depend on that row alone; with text, up to the rounding of kernels that
        run several texts at once. Private where the examples are.
        """
        away_EX = _vectors(model, data) - self.centre_X
        # No matrix product: its rounding of a row depends on how many rows there are.
        found: _Floats = np.einsum("ex,xp->ep", away_EX, self.axes_XP, optimize=False)
        return found


def public_space(model: TextModel, task: DescribesCustomers, axes: int) -> CustomerSpace:
    """Return the space of ``model``'s adapter: principal axes of the task's made-up customers.

    Text and numeric features have equal weight: each part is scaled so that the made-up
    customers' mean squared distance from their centre is 1. Nine tenths of them lie within
    distance 1 of the centre.

    Args:
        model: with its adapter loaded.
        task: gives the made-up customers.
        axes: P.

    Raises:
        ModelError: the adapter gives vectors that are no numbers.
        ConfigError: ``axes`` is not between 1 and what the made-up customers span.
    """
    made_up = prepare(task.made_up(), model)
    vectors_EX = _vectors(model, made_up)
    if not np.isfinite(vectors_EX).all():
        raise ModelError("the adapter gives vectors that are no numbers. Use another.")
    centre_X = vectors_EX.mean(0)
    away_EX = vectors_EX - centre_X
    scale_X = np.ones(len(centre_X))
    text = len(centre_X) - made_up.examples.numeric_EF.shape[1]
    for part in (slice(0, text), slice(text, None)):
        spread = np.sqrt((away_EX[:, part] ** 2).sum(1).mean())
        scale_X[part] = 1 / max(float(spread), 1e-6)
    most = min(len(vectors_EX) - 1, len(centre_X))
    if not 1 <= axes <= most:
        raise ConfigError(f"axes is {axes}; it must be from 1 to {most}.")
    _, _, basis = np.linalg.svd(away_EX * scale_X, full_matrices=False)
    axes_XP = basis[:axes].T * scale_X[:, None]
    # An axis and its opposite say the same: one of them, on every machine.
    strongest_P = np.abs(axes_XP).argmax(0)
    axes_XP *= np.sign(axes_XP[strongest_P, np.arange(axes)])
    reach = float(np.quantile(np.linalg.norm(away_EX @ axes_XP, axis=1), _REACH))
    axes_XP /= max(reach, 1e-6)
    return CustomerSpace(centre_X=centre_X, axes_XP=axes_XP, made_up_EP=away_EX @ axes_XP)


def _vectors(model: TextModel, data: PreparedExamples) -> _Floats:
    parts = [data.examples.numeric_EF]
    if model.backbone is not None:
        parts.insert(0, data.vectors(model))
    return np.concatenate(parts, axis=1).astype(np.float64)
