"""Per-user gradients of a whole LoRA layer at once.

peft computes ``base(x) + B(A(x)) * scaling`` in four passes over tensors as wide as the layer.
Here the product is added to the base's output directly, and the scaling is applied to the
narrow side: the step then costs no more than one without privacy (docs/log.md).

Shape suffixes: E examples, N positions, I in features, R rank, O out features.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn

__all__ = ["LoraParts", "PerUserLora", "lora_parts"]


class _Owner(Protocol):
    def add_product(self, name: str, out: Tensor, inp: Tensor) -> None: ...


class LoraParts:
    """The one active adapter of a peft layer: factors, scaling and their names."""

    def __init__(self, layer: Any, adapter: str) -> None:
        self.layer, self.adapter = layer, adapter
        self.a: Tensor = layer.lora_A[adapter].weight
        self.b: Tensor = layer.lora_B[adapter].weight

    def usable(self, x: Tensor) -> bool:
        """Whether `PerUserLora` computes what the layer would: float32, nothing unusual on."""
        layer, adapter = self.layer, self.adapter
        return (
            not layer.disable_adapters
            and not layer.merged
            and list(layer.active_adapters) == [adapter]
            and isinstance(layer.lora_dropout[adapter], nn.Identity)
            and not torch.is_autocast_enabled(x.device.type)
            and x.dtype == self.a.dtype == self.b.dtype == torch.float32
        )

    @property
    def scaling(self) -> float:
        """What the product of the factors is multiplied by."""
        return float(self.layer.scaling[self.adapter])


def lora_parts(layer: nn.Module) -> LoraParts | None:
    """Return the parts of a plain peft LoRA layer; None for any other."""
    if not hasattr(layer, "lora_A"):
        return None
    from peft.tuners.lora.layer import Linear

    if type(layer).forward is not Linear.forward or len(layer.lora_A) != 1:  # type: ignore[arg-type]
        return None
    ((adapter, a),) = layer.lora_A.items()  # type: ignore[union-attr,operator]
    factors: tuple[Any, Any] = (a, layer.lora_B[adapter])  # type: ignore[index]
    plain = all(type(f).forward is nn.Linear.forward and f.bias is None for f in factors)
    # Variants (DoRA and others) compute something else.
    return LoraParts(layer, adapter) if plain and adapter not in layer.lora_variant else None  # type: ignore[operator]


class PerUserLora(torch.autograd.Function):
    """``base_out + scaling * (x Aᵀ) Bᵀ``, whose backward pass fills the owner's rows."""

    @staticmethod
    def forward(
        ctx: Any, base_out: Tensor, x: Tensor, a: Tensor, b: Tensor, how: tuple[float, _Owner, str]
    ) -> Tensor:
        """Return the layer's output, (E, …, O)."""
        scaling = how[0]
        narrow = nn.functional.linear(x, a)
        ctx.save_for_backward(x, narrow, a, b)
        ctx.how = how
        flat_NO, flat_NR = base_out.reshape(-1, len(b)), narrow.reshape(-1, len(a))
        return torch.addmm(flat_NO, flat_NR, b.T, alpha=scaling).view(base_out.shape)

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        """Fill the rows of A and B; pass the gradients of base and input on."""
        x, narrow, a, b = ctx.saved_tensors
        scaling, owner, name = ctx.how
        with torch.autocast(grad_out.device.type, enabled=False):
            grad_narrow = nn.functional.linear(grad_out, b.T.contiguous() * scaling)
            if b.requires_grad:
                owner.add_product(name.format("B"), grad_out, narrow * scaling)
            if a.requires_grad:
                owner.add_product(name.format("A"), grad_narrow, x)
            grad_x = grad_narrow @ a if ctx.needs_input_grad[1] else None
        return grad_out, grad_x, None, None, None
