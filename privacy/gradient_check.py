"""Self-test of per-user gradients: against one example at a time, by plain autograd.

A layer that is shared, recomputed, used outside its module or random can leave a gradient out
of the clip while loss and ε look as they should. The check runs on made-up examples, so that
whether it passes tells nothing of anybody.

Shape suffixes: U users, E examples, D parameters.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from privacy.gradients import UserGradients
from silotune.errors import PrivacyError

__all__ = ["check_gradients", "check_moved"]

_SPREAD = 0.05
"""Standard deviation of what is added to the parameters: LoRA's zeros hide every gradient."""

_WHOLE = {torch.float32: 1e-4, torch.bfloat16: 3e-2}
"""Difference of a user's row, over its length. bfloat16 keeps 8 bits, float32 24."""

_PART = {torch.float32: 1e-3, torch.bfloat16: 1e-1}
"""Difference of one parameter of it, over the length of that part."""


def check_gradients(
    module: nn.Module,
    gradients: UserGradients,
    loss_of: Callable[[Sequence[int]], Tensor],
    user_E: Tensor,
    *,
    precision: torch.dtype = torch.float32,
) -> None:
    """Raise unless ``gradients`` gives every user the sum of its examples' own gradients.

    The parameters are moved by a public random vector for the check and put back after.

    Args:
        module: what trains.
        gradients: attached to it, as training will use it.
        loss_of: summed loss of made-up examples, by their indices, padded no further than
            the longest of them. Each is also run alone.
        user_E: which user each example belongs to, (E,).
        precision: of the forward pass; bfloat16 allows more rounding.

    Raises:
        PrivacyError: a row differs, or a parameter's gradient is zero for all examples. The
            words are fixed and name parameters alone.
    """
    users = int(user_E.max()) + 1
    with _moved(module):
        with gradients.collect(user_E, users):
            torch.autograd.backward(loss_of(range(len(user_E))))
        found_UD = gradients.take().double()
        expected_UD = torch.zeros_like(found_UD)
        for example, user in enumerate(user_E.tolist()):
            expected_UD[user] += _alone(module, loss_of, example)
    start = 0
    bound_U = _WHOLE[precision] * expected_UD.norm(dim=1)
    for name, parameter in sorted(_trainable(module)):
        columns = slice(start, start + parameter.numel())
        start = columns.stop
        expected, found = expected_UD[:, columns], found_UD[:, columns]
        if not expected.any():
            raise PrivacyError(
                f"self-test: the loss does not depend on parameter '{name}', which should "
                "train. Nothing was trained."
            )
        error_U = (found - expected).norm(dim=1)
        # The second term: a part that is small beside the row is its rounding.
        allowed_U = _PART[precision] * expected.norm(dim=1) + _PART[precision] * bound_U
        # Turned round: a NaN is an error too.
        if not bool((error_U <= allowed_U).all()):
            _refuse(name)
    if not bool(((found_UD - expected_UD).norm(dim=1) <= bound_U).all()):
        _refuse("all")


def check_moved(before_D: Tensor, after_D: Tensor, sizes: Sequence[int]) -> None:
    """Raise if a parameter is what it was before a private training.

    Noise alone moves every parameter: one that stands still was not trained, whatever loss
    and ε say.

    Args:
        before_D: adapter before, flat.
        after_D: adapter after.
        sizes: numbers of each parameter, in the order of the vector.

    Raises:
        PrivacyError: with fixed words.
    """
    parts = zip(torch.split(before_D, list(sizes)), torch.split(after_D, list(sizes)), strict=True)
    if any(torch.equal(before, after) for before, after in parts):
        raise PrivacyError(
            "the adapter did not move in a private training: the steps do not reach the "
            "model, or the learning rate is too small for float32. Nothing may be released."
        )


def _refuse(name: str) -> None:
    raise PrivacyError(
        f"self-test: per-user gradients of parameter '{name}' are not those of one example at "
        "a time. Switch dropout and batch statistics off, and train only layers that the model "
        "calls on whole examples. Nothing was trained."
    )


def _alone(module: nn.Module, loss_of: Callable[[Sequence[int]], Tensor], example: int) -> Tensor:
    trainable = sorted(_trainable(module))
    # By `backward`, not `autograd.grad`: reentrant checkpoints do not work in the latter.
    kept = [p.grad for _, p in trainable]
    for _, parameter in trainable:
        parameter.grad = None
    torch.autograd.backward(loss_of([example]))
    parts = [
        (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1).double()
        for _, p in trainable
    ]
    for (_, parameter), grad in zip(trainable, kept, strict=True):
        parameter.grad = grad
    return torch.cat(parts)


@contextmanager
def _moved(module: nn.Module) -> Iterator[None]:
    generator = torch.Generator().manual_seed(0)
    kept = [(p, p.detach().clone()) for _, p in sorted(_trainable(module))]
    try:
        with torch.no_grad():
            for parameter, before in kept:
                noise = torch.randn(before.shape, generator=generator).to(before)
                parameter.add_(_SPREAD * noise)
        yield
    finally:
        with torch.no_grad():
            for parameter, before in kept:
                parameter.copy_(before)


def _trainable(module: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(n, p) for n, p in module.named_parameters() if p.requires_grad]
