"""Per-user gradients of linear layers, in the one backward pass that training needs.

LoRA factors and the head are linear layers. Their forward is replaced by one whose backward
computes each example's gradient from the layer's input and the gradient of its output, adds
it to its user's row, and leaves the summed gradient uncomputed (the outer-product rule of
Goodfellow 2015, arXiv:1510.01799, kept apart per user).

Shape suffixes: U users, E examples, T tokens, I in features, O out features, D parameters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from silotune.errors import PrivacyError

__all__ = ["UserGradients"]


class UserGradients:
    """Collects the gradient of every trainable linear layer of ``module``, one row per user.

    Raises:
        PrivacyError: a parameter trains that belongs to no linear layer, or to two, so that
            its per-user gradient would be missing from the clip.
    """

    def __init__(self, module: nn.Module) -> None:
        self._user_E: Tensor | None = None
        self._users = 0
        self._rows: dict[str, Tensor] = {}
        self._patched: list[nn.Linear] = []
        known: set[str] = set()
        linear: list[tuple[str, nn.Linear]] = []
        for name, layer in module.named_modules():
            own = [n for n, p in layer.named_parameters(recurse=False) if p.requires_grad]
            if own and isinstance(layer, nn.Linear):
                known.update(f"{name}.{n}" for n in own)
                linear.append((name, layer))
        wanted = sorted((n, p) for n, p in module.named_parameters() if p.requires_grad)
        every = [p for _, p in module.named_parameters(remove_duplicate=False) if p.requires_grad]
        for name, parameter in wanted:
            if name not in known:
                raise PrivacyError(
                    f"parameter '{name}' trains but is not part of a linear layer: "
                    "it has no per-user gradient, so it cannot be trained privately."
                )
            if sum(p is parameter for p in every) > 1:
                raise PrivacyError(
                    f"parameter '{name}' trains under two names: its gradient would be "
                    "collected in parts, so it cannot be trained privately."
                )
        for name, layer in linear:
            self._patch(name, layer)
        self._names = [n for n, _ in wanted]
        self._sizes = [p.numel() for _, p in wanted]

    def _patch(self, name: str, layer: nn.Linear) -> None:
        original = layer.forward

        def forward(x: Tensor) -> Tensor:
            if self._user_E is None:
                return original(x)
            out: Tensor = _PerUserLinear.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
                x, layer.weight, layer.bias, self, name
            )
            return out

        # On the instance; `remove` deletes it and the class's own forward is back.
        layer.__dict__["forward"] = forward
        self._patched.append(layer)

    def remove(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._patched:
            del layer.__dict__["forward"]
        self._patched = []

    @contextmanager
    def collect(self, user_E: Tensor, users: int) -> Iterator[None]:
        """Within the context, a backward pass fills the rows of ``users`` users.

        Args:
            user_E: row of each example, 0 to ``users`` - 1, in the order of the batch.
            users: rows, U.
        """
        self._user_E, self._users, self._rows = user_E, users, {}
        try:
            yield
        finally:
            self._user_E = None

    def take(self) -> Tensor:
        """Return the collected gradients, (U, D), float32, and forget them.

        Columns follow the parameters' names in order, each flattened. A layer that the
        backward pass did not reach contributes zeros.
        """
        device = next(iter(self._rows.values())).device if self._rows else None
        parts = [
            self._rows.get(n, torch.zeros(1, device=device)).reshape(self._users, -1)
            if n in self._rows
            else torch.zeros(self._users, size, device=device)
            for n, size in zip(self._names, self._sizes, strict=True)
        ]
        self._rows = {}
        return torch.cat(parts, dim=1)

    def add(self, name: str, per_example: Tensor) -> None:
        """Add per-example gradients (E, …) of parameter ``name`` to their users' rows."""
        if self._user_E is None:
            raise PrivacyError("a backward pass reached a layer outside `collect`.")
        rows = self._rows.get(name)
        if rows is None:
            rows = per_example.new_zeros((self._users, *per_example.shape[1:]))
            self._rows[name] = rows
        rows.index_add_(0, self._user_E, per_example)


class _PerUserLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, owner: UserGradients, name: str
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.owner, ctx.name, ctx.has_bias = owner, name, bias is not None and bias.requires_grad
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        grad_in = grad_out @ weight.to(grad_out.dtype) if ctx.needs_input_grad[0] else None
        # float32: a norm of bfloat16 sums can round below the true one, and the clip leaks.
        out, inp = grad_out.float(), x.float()
        if weight.requires_grad:
            ctx.owner.add(f"{ctx.name}.weight", _outer(out, inp))
        if ctx.has_bias:
            ctx.owner.add(f"{ctx.name}.bias", out.flatten(1, -2).sum(1) if out.dim() > 2 else out)
        return (None if grad_in is None else grad_in.to(x.dtype)), None, None, None, None


def _outer(out: Tensor, inp: Tensor) -> Tensor:
    """Return the weight gradient of each example, (E, O, I)."""
    if out.dim() == 2:
        return out.unsqueeze(2) * inp.unsqueeze(1)
    out_ENO, inp_ENI = out.flatten(1, -2), inp.flatten(1, -2)
    return torch.bmm(out_ENO.transpose(1, 2), inp_ENI)
