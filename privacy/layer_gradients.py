"""Per-example gradients of layers that are not linear, by the functions of Opacus.

Opacus keeps one function per kind of layer (`opacus.grad_sample`), which gets the layer, its
input and the gradient of its output. Each is used here only where it is right: what a layer
does beyond what the function assumes is refused, not approximated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["LayerGradient", "layer_gradient"]

_NORMS = (
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
)
_CONVOLUTIONS: dict[type[nn.Module], int] = {nn.Conv1d: 3, nn.Conv2d: 4, nn.Conv3d: 5}


@dataclass(frozen=True, slots=True)
class LayerGradient:
    """The gradient of one kind of layer, per example."""

    sampler: Callable[[Any, list[Tensor], Tensor], dict[nn.Parameter, Tensor]]
    """Opacus' function."""
    least_dimensions: int
    """Of the input with its batch; one fewer would be a single example without a batch."""

    def __call__(self, layer: nn.Module, x: Tensor, grad_out: Tensor) -> dict[str, Tensor]:
        """Return the gradient of each trainable parameter by name, (E, …), float32.

        Args:
            layer: of the kind this was made for.
            x: its input, first dimension E.
            grad_out: gradient of its output.
        """
        inp = x.float() if x.is_floating_point() else x
        found = self.sampler(layer, [inp], grad_out.float())
        rows = {n: found[p] for n, p in layer.named_parameters(recurse=False) if p.requires_grad}
        if isinstance(layer, nn.Embedding) and layer.padding_idx is not None:
            # torch keeps this row out of training; Opacus does not.
            rows["weight"][:, layer.padding_idx] = 0
        return rows


def layer_gradient(layer: nn.Module) -> LayerGradient | str:
    """Return how to find the gradient of ``layer``, or why there is no way, as a clause."""
    kind = type(layer)
    if kind not in (*_NORMS, *_CONVOLUTIONS, nn.Embedding):
        return (
            f"{kind.__name__} is no kind of layer with a known per-example gradient "
            "(DoRA and LoRA on embeddings have none)"
        )
    reason = _unlike_opacus(layer)
    if reason:
        return f"this {kind.__name__} {reason}"
    # Here and not on top: only models that train such a layer pay for the import.
    from opacus.grad_sample import GradSampleHooks

    least = 2 if isinstance(layer, (*_NORMS, nn.Embedding)) else _CONVOLUTIONS[kind]
    return LayerGradient(GradSampleHooks.GRAD_SAMPLERS[kind], least)


def _unlike_opacus(layer: nn.Module) -> str:
    if next(layer.buffers(), None) is not None:
        return "keeps running statistics of the data, which no clip covers"
    if isinstance(layer, nn.LayerNorm) and getattr(layer, "bias", None) is None:
        return "has no bias, which Opacus expects"
    if isinstance(layer, torch.nn.modules.conv._ConvNd) and layer.padding_mode != "zeros":  # noqa: SLF001
        return f"pads by '{layer.padding_mode}', which Opacus does not follow"
    if isinstance(layer, nn.Embedding) and layer.max_norm is not None:
        return "rescales its rows by what was looked up (max_norm)"
    if isinstance(layer, nn.Embedding) and layer.scale_grad_by_freq:
        return "scales its gradient by what the whole batch holds (scale_grad_by_freq)"
    return ""
