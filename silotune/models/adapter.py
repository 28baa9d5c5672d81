"""LoRA configuration, and the adapter as one flat float32 vector with a strict layout."""

import hashlib
import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from silotune.config import config
from silotune.errors import ConfigError, ModelError
from silotune.models.base import layer_list

__all__ = ["AdapterLayout", "LoraSettings", "inject_lora"]


@config
class LoraSettings:
    """Which linear layers get a LoRA adapter, and how large it is (Hu et al. 2021)."""

    rank: int = 8
    alpha: float = 16.0
    """The product of the factors is scaled by ``alpha / rank``."""
    targets: tuple[str, ...] = ("query", "value")
    """Last part of the names of linear layers; 'all-linear' for every one of them."""
    top_layers: int | None = None
    """Only the topmost layers; those below are run once per example. None: all layers."""
    train_a: bool = False
    """False: A is drawn from ``seed``, shared and frozen, only B is trained (FFA-LoRA, Sun
    et al. 2024, arXiv:2403.12313): the mean of the adapters is then the adapter of the mean,
    and noise in B meets no noise in A."""
    dora: bool = False
    """Weight-decomposed LoRA. Refused with privacy: it has no per-sample gradient."""
    seed: int = 0
    """Draws A, the same in every silo."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if self.rank < 1:
            raise ConfigError(f"rank is {self.rank}; it must be at least 1.")
        if not (self.alpha > 0 and math.isfinite(self.alpha)):
            raise ConfigError(f"alpha is {self.alpha}; it must be > 0.")
        if self.top_layers is not None and self.top_layers < 1:
            raise ConfigError(f"top_layers is {self.top_layers}; it must be at least 1.")
        if not self.targets:
            raise ConfigError("targets is empty; name linear layers or 'all-linear'.")


def inject_lora(model: nn.Module, settings: LoraSettings) -> Any:
    """Wrap ``model`` with peft and return the PeftModel; only the chosen factors train.

    Raises:
        ModelError: a target is not a linear layer of the model; the message lists those
            that are. An embedding layer is named so: it would train without a
            per-sample gradient, silently.
    """
    from peft import LoraConfig, get_peft_model

    linear, embeddings = _leaf_names(model)
    wanted = linear if settings.targets == ("all-linear",) else set(settings.targets)
    for target in sorted(wanted & embeddings):
        raise ModelError(f"LoRA target '{target}' is an embedding; it has no per-sample gradient.")
    for target in sorted(wanted - linear):
        raise ModelError(
            f"LoRA target '{target}' is no linear layer of {type(model).__name__}; "
            f"it has: {', '.join(sorted(linear))}."
        )
    stack = layer_list(model)
    count = len(stack)
    top = count if settings.top_layers is None else settings.top_layers
    if top > count:
        raise ModelError(f"top_layers is {top}; {type(model).__name__} has {count} layers.")
    # A is drawn on the CPU from a generator of its own: the same in every silo, and the
    # global generator of the caller is left as it was.
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # peft asks transformers for an attribute under its old name.
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing.*", FutureWarning)
        warnings.filterwarnings("ignore", ".*fan_in_fan_out.*", UserWarning)
        torch.manual_seed(settings.seed)
        peft_model = get_peft_model(
            model,
            LoraConfig(
                r=settings.rank,
                lora_alpha=settings.alpha,
                target_modules=_pattern(model, stack, range(count - top, count), wanted),
                lora_dropout=0.0,
                use_dora=settings.dora,
            ),
        )
    for name, parameter in peft_model.named_parameters():
        trains = "lora_" in name and (settings.train_a or "lora_A" not in name)
        parameter.requires_grad_(trains)
    return peft_model


def _pattern(model: nn.Module, stack: nn.ModuleList, layers: range, leaves: set[str]) -> str:
    # Spelled out: peft finds the number of a layer in a name only below another part, so not
    # in `layers.0.self_attn.q_proj` of a bare decoder.
    path = next(name for name, module in model.named_modules() if module is stack)
    numbers, ends = "|".join(map(str, layers)), "|".join(map(re.escape, sorted(leaves)))
    return rf"{re.escape(path)}\.({numbers})\.(.*\.)?({ends})"


def _leaf_names(model: nn.Module) -> tuple[set[str], set[str]]:
    layers = layer_list(model)
    # GPT-2 calls its linear layers Conv1D.
    linear = {
        name.rsplit(".", 1)[-1]
        for name, module in layers.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    }
    embeddings = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    }
    return linear, embeddings


@dataclass(frozen=True, slots=True)
class AdapterLayout:
    """Names and shapes of the trainable tensors, in the order of the flat vector."""

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, module: nn.Module) -> "AdapterLayout":
        """Layout of the parameters of ``module`` that train, ordered by name."""
        found = sorted((n, tuple(p.shape)) for n, p in module.named_parameters() if p.requires_grad)
        return cls(tuple(n for n, _ in found), tuple(s for _, s in found))

    @property
    def size(self) -> int:
        """Numbers in the flat vector, D."""
        return sum(_product(s) for s in self.shapes)

    @property
    def digest(self) -> str:
        """SHA-256 of names and shapes: both sides compare it before a vector is read."""
        text = "\n".join(f"{n}:{s}" for n, s in zip(self.names, self.shapes, strict=True))
        return hashlib.sha256(text.encode()).hexdigest()

    def flatten(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Return the tensors as one float32 vector, (D,). Raises ModelError as `check` does."""
        self.check(tensors)
        return torch.cat([tensors[n].detach().reshape(-1).float() for n in self.names])

    def split(self, flat_D: Tensor) -> dict[str, Tensor]:
        """Return named views into ``flat_D``.

        Raises:
            ModelError: not a float32 vector of ``size`` finite numbers.
        """
        if flat_D.dtype != torch.float32 or flat_D.shape != (self.size,):
            raise ModelError(
                f"adapter vector is {flat_D.dtype} {tuple(flat_D.shape)}; "
                f"this adapter is float32 ({self.size},)."
            )
        if not torch.isfinite(flat_D).all():
            raise ModelError("adapter vector holds a number that is not finite.")
        parts = torch.split(flat_D, [_product(s) for s in self.shapes])
        return {n: p.view(s) for n, p, s in zip(self.names, parts, self.shapes, strict=True)}

    def check(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise ModelError unless names, shapes and dtypes are exactly this layout's."""
        missing = [n for n in self.names if n not in tensors]
        extra = [n for n in tensors if n not in self.names]
        if missing or extra:
            raise ModelError(f"adapter tensors differ: missing {missing}, not known {extra}.")
        for name, shape in zip(self.names, self.shapes, strict=True):
            tensor = tensors[name]
            if tuple(tensor.shape) != shape or tensor.dtype != torch.float32:
                raise ModelError(
                    f"adapter tensor '{name}' is {tensor.dtype} {tuple(tensor.shape)}; "
                    f"it must be float32 {shape}."
                )


def _product(shape: tuple[int, ...]) -> int:
    size = 1
    for s in shape:
        size *= s
    return size
