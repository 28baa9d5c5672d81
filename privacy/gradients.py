"""Per-user gradients of the layers that train, in the one backward pass that training needs.

LoRA factors and the head are linear layers. Their forward is replaced by one whose backward
computes each example's gradient from the layer's input and the gradient of its output, adds
it to its user's row, and leaves the summed gradient uncomputed (the outer-product rule of
Goodfellow 2015, arXiv:1510.01799, kept apart per user). Layers of other kinds go through the
functions that Opacus has for them (`privacy.layer_gradients`), in the same backward pass.

Shape suffixes: U users, E examples, N positions, I in features, O out features, D parameters.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from privacy.layer_gradients import LayerGradient, layer_gradient
from privacy.lora_gradients import LoraParts, PerUserLora, lora_parts
from silotune.errors import PrivacyError

__all__ = ["UserGradients"]


class UserGradients:
    """Collects the gradient of every trainable parameter of ``module``, one row per user.

    A layer must be called as a module, on a batch whose first dimension is the examples, and
    must keep examples apart. `privacy.gradient_check` tests that they do.

    Raises:
        PrivacyError: a parameter trains that belongs to a layer of no known kind, or to two
            layers, so that its per-user gradient would be missing from the clip.
    """

    def __init__(self, module: nn.Module) -> None:
        self._user_E: Tensor | None = None
        self._one_to_one = False
        self._users = 0
        self._rows_UD: Tensor | None = None
        self._fresh: set[str] = set()
        self._patched: list[nn.Module] = []
        layers = _trainable_layers(module)
        wanted = sorted((n, p) for n, p in module.named_parameters() if p.requires_grad)
        _refuse_shared(module)
        kinds = [(name, layer, _kind(name, layer)) for name, layer in layers]
        self._columns: dict[str, slice] = {}
        start = 0
        for name, parameter in wanted:
            self._columns[name] = slice(start, start + parameter.numel())
            start += parameter.numel()
        self._size = start
        for name, layer, kind in kinds:
            if kind is None and isinstance(layer, nn.Linear):
                self._patch_linear(name, layer)
            elif kind is not None:
                self._patch_other(name, layer, kind)
        for name, layer in module.named_modules():
            parts = lora_parts(layer)
            if parts is not None and "forward" not in layer.__dict__:
                self._patch_lora(name, layer, parts)

    def _patch_linear(self, name: str, layer: nn.Linear) -> None:
        original = layer.forward

        def forward(x: Tensor) -> Tensor:
            if self._user_E is None:
                return original(x)
            self._check_batch(name, x, least=2)
            out: Tensor = _PerUserLinear.apply(  # type: ignore[no-untyped-call]  # torch leaves it untyped
                x, layer.weight, layer.bias, self, name
            )
            return out

        self._replace(layer, forward)

    def _patch_lora(self, name: str, layer: nn.Module, parts: LoraParts) -> None:
        original = layer.forward
        factor = f"{name}.lora_{{}}.{parts.adapter}.weight"

        def forward(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            # Where this is not the whole truth the layer computes in parts, and each of the
            # two linear layers within collects its own.
            if self._user_E is None or args or kwargs or not parts.usable(x):
                return original(x, *args, **kwargs)  # type: ignore[no-any-return]
            self._check_batch(name, x, least=2)
            base_out = parts.layer.base_layer(x)
            how = (parts.scaling, self, factor)
            out: Tensor = PerUserLora.apply(base_out, x, parts.a, parts.b, how)  # type: ignore[no-untyped-call]
            return out

        self._replace(layer, forward)

    def _patch_other(self, name: str, layer: nn.Module, kind: LayerGradient) -> None:
        original = layer.forward
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad]

        def forward(x: Tensor) -> Tensor:
            if self._user_E is None:
                return original(x)  # type: ignore[no-any-return]
            self._check_batch(name, x, least=kind.least_dimensions)
            # Autograd then finds the gradient of the input only.
            for parameter in own:
                parameter.requires_grad_(False)
            try:
                out = original(x)
            finally:
                for parameter in own:
                    parameter.requires_grad_(True)
            tapped: Tensor = _Tap.apply(out, x.detach(), own[0], kind, self, layer, name)  # type: ignore[no-untyped-call]
            return tapped

        self._replace(layer, forward)

    def _replace(self, layer: nn.Module, forward: Any) -> None:
        # On the instance; `remove` deletes it and the class's own forward is back.
        layer.__dict__["forward"] = forward
        self._patched.append(layer)

    def _check_batch(self, name: str, x: Tensor, *, least: int) -> None:
        # Flattened tokens, or one row for all examples, would land in the wrong users' rows.
        examples = 0 if self._user_E is None else len(self._user_E)
        if x.dim() < least or x.shape[0] != examples:
            raise PrivacyError(
                f"layer '{name}' is called on a batch whose first dimension is not the "
                "examples, so their gradients cannot be told apart."
            )

    def remove(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._patched:
            del layer.__dict__["forward"]
        self._patched = []

    @contextmanager
    def collect(self, user_E: Tensor, users: int, *, into: Tensor | None = None) -> Iterator[None]:
        """Within the context, a backward pass fills the rows of ``users`` users.

        Args:
            user_E: row of each example, 0 to ``users`` - 1, in the order of the batch.
            users: rows, U.
            into: what an earlier `take` gave for the same users, to be added to in place;
                None starts at zero.
        """
        if into is None:
            # Zero pages that are touched only when written, while activations are let go.
            into = torch.zeros(users, self._size, device=user_E.device)
            self._fresh = set(self._columns)
        else:
            self._fresh = set()
        self._user_E, self._users, self._rows_UD = user_E, users, into
        self._one_to_one = len(user_E) == users and torch.equal(
            user_E, torch.arange(users, device=user_E.device)
        )
        try:
            yield
        finally:
            self._user_E = None

    def take(self) -> Tensor:
        """Return the collected gradients, (U, D), float32, and forget them.

        Columns follow the parameters' names in order, each flattened. A layer that the
        backward pass did not reach contributes zeros.
        """
        rows_UD = self._rows_UD
        self._rows_UD = None
        return torch.zeros(self._users, self._size) if rows_UD is None else rows_UD

    def add_product(self, name: str, out: Tensor, inp: Tensor) -> None:
        """Add the gradients of weight ``name`` from a layer's output gradients and inputs."""
        self.add(name, _outer(out, inp))

    def add(self, name: str, per_example: Tensor) -> None:
        """Add per-example gradients (E, …) of parameter ``name`` to their users' rows."""
        if self._user_E is None or self._rows_UD is None:
            raise PrivacyError("a backward pass reached a layer outside `collect`.")
        block = self._rows_UD[:, self._columns[name]].view(self._users, *per_example.shape[1:])
        if not self._one_to_one:
            block.index_add_(0, self._user_E, per_example)
        elif name in self._fresh:
            block.copy_(per_example)
        else:
            block.add_(per_example)
        self._fresh.discard(name)


def _trainable_layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    return [
        (name, layer)
        for name, layer in module.named_modules()
        if any(p.requires_grad for p in layer.parameters(recurse=False))
    ]


def _refuse_shared(module: nn.Module) -> None:
    every = [(n, p) for n, p in module.named_parameters(remove_duplicate=False) if p.requires_grad]
    for name, parameter in sorted(every, key=lambda pair: pair[0]):
        if sum(p is parameter for _, p in every) > 1:
            raise PrivacyError(
                f"parameter '{name}' trains under two names: its gradient would be "
                "collected in parts, so it cannot be trained privately."
            )


def _kind(name: str, layer: nn.Module) -> LayerGradient | None:
    """Return how the gradient of ``layer`` is found; None for a plain linear layer."""
    prefix = f"{name}." if name else ""
    own = [n for n, p in layer.named_parameters(recurse=False) if p.requires_grad]
    if "forward" in layer.__dict__:
        raise PrivacyError(
            f"layer '{name}' has a forward that something else replaced already: its per-user "
            "gradient would not be that of what it computes."
        )
    # By class and not by ancestry: a subclass may compute something else.
    if type(layer).forward is nn.Linear.forward:
        return None
    kind = layer_gradient(layer)
    if isinstance(kind, str):
        raise PrivacyError(
            f"parameter '{prefix}{sorted(own)[0]}' trains but {kind}: it has no per-user "
            "gradient, so it cannot be trained privately."
        )
    return kind


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
        # A caller may run the backward pass under autocast, which would round the products.
        with torch.autocast(grad_out.device.type, enabled=False):
            grad_in = None
            if ctx.needs_input_grad[0]:
                # Transposed first: products with a narrow factor run over its long side.
                weight_IO = weight.to(grad_out.dtype).T.contiguous()
                grad_in = nn.functional.linear(grad_out, weight_IO).to(x.dtype)
            # float32: a norm of bfloat16 sums can round below the true one, and the clip leaks.
            out, inp = grad_out.float(), x.float()
            if weight.requires_grad:
                ctx.owner.add_product(f"{ctx.name}.weight", out, inp)
            if ctx.has_bias:
                summed = out.flatten(1, -2).sum(1) if out.dim() > 2 else out
                ctx.owner.add(f"{ctx.name}.bias", summed)
        return grad_in, None, None, None, None


def _outer(out: Tensor, inp: Tensor) -> Tensor:
    """Return the weight gradient of each example, (E, O, I)."""
    if out.dim() == 2:
        return out.unsqueeze(2) * inp.unsqueeze(1)
    out_ENO, inp_ENI = out.flatten(1, -2), inp.flatten(1, -2)
    # The narrow factor first, whichever it is: up to four times as fast (docs/log.md).
    if out_ENO.shape[2] > inp_ENI.shape[2]:
        return torch.bmm(inp_ENI.transpose(1, 2), out_ENO).transpose(1, 2)
    return torch.bmm(out_ENO.transpose(1, 2), inp_ENI)


class _Tap(torch.autograd.Function):
    """Passes a layer's output on, and on the way back hands its gradient to ``kind``."""

    @staticmethod
    def forward(
        ctx: Any,
        out: Tensor,
        x: Tensor,
        anchor: Tensor,  # noqa: ARG004  # makes the output need a gradient where the input does not
        kind: LayerGradient,
        owner: UserGradients,
        layer: nn.Module,
        name: str,
    ) -> Tensor:
        ctx.save_for_backward(x)
        ctx.kind, ctx.owner, ctx.layer, ctx.name = kind, owner, layer, name
        return out.view_as(out)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        with torch.autocast(grad_out.device.type, enabled=False):
            found = ctx.kind(ctx.layer, x, grad_out)
        for name, per_example in found.items():
            ctx.owner.add(f"{ctx.name}.{name}", per_example)
        return grad_out, None, None, None, None, None, None
