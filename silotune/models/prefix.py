"""Run the layers below the LoRA layers once per example, and train from what they gave.

With LoRA on the top k layers only, everything below is a constant of the base model. The
lower layers are switched to return stored activations in place of computing them; masks,
position codes and the layers above stay the model's own code, so that any architecture
whose layers map hidden states to hidden states works without code of its own here.

Shape suffixes: E examples, T tokens, H hidden size.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from silotune.models.base import layer_list

__all__ = ["FrozenPrefix"]


class _Reached(Exception):  # noqa: N818  # control flow, not an error
    pass


@dataclass(slots=True)
class _Held:
    """What the lower layers return in place of computing; None: they compute."""

    states: Tensor | None = None
    tuple: bool = False
    """Whether this architecture's layers answer with a tuple."""


class FrozenPrefix:
    """The lowest ``depth`` layers of ``model`` as a function of the tokens alone.

    Args:
        model: bare transformer, as `load_base` returns it.
        depth: layers that nothing is trained in, counted from the bottom; 0 switches it off.
    """

    def __init__(self, model: nn.Module, depth: int) -> None:
        self.model = model
        self.depth = depth
        self._held = _Held()
        self._layers = layer_list(model)
        for index in range(depth):
            self._patch(index)
        if depth:
            # One token shows whether the layers answer with bare states or with a tuple: a
            # process that reads stored states may never run them otherwise.
            one = torch.ones(1, 1, dtype=torch.long, device=next(model.parameters()).device)
            self.compute(one, one)

    def _patch(self, index: int) -> None:
        layer: Any = self._layers[index]

        def forward(layer: Any, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            held = layer.held_prefix
            if held.states is None:
                out = type(layer).forward(layer, hidden_states, *args, **kwargs)
                held.tuple = isinstance(out, tuple)
                return out
            out = held.states if index == 0 else hidden_states
            return (out,) if held.tuple else out

        # On the instance: the module keeps its name, so peft and state dicts see no change.
        # Bound to it, with the state: a deep copy of the model then has its own of both.
        layer.__dict__["held_prefix"] = self._held
        layer.__dict__["forward"] = MethodType(forward, layer)

    @property
    def fingerprint(self) -> str:
        """What the activations depend on beside tokens, weights and precision.

        A model's configuration holds what its weights do not tell: position codes, activation
        functions, epsilons. Versions count because a kernel's rounding does.
        """
        import transformers  # takes half a second that `load_base` pays too

        config: Any = self.model.config
        settings = config.to_dict()
        for about in ("_name_or_path", "transformers_version", "architectures"):
            settings.pop(about, None)
        attention = getattr(config, "_attn_implementation", None)
        device = next(self.model.parameters()).device.type
        versions = (torch.__version__, transformers.__version__)
        return json.dumps(
            [settings, attention, self.depth, device, versions], sort_keys=True, default=str
        )

    @torch.no_grad()
    def compute(self, ids_ET: Tensor, mask_ET: Tensor) -> Tensor:
        """Return the activations that enter layer ``depth``, (E, T, H).

        Nothing drops out, whatever mode the model is in: what is stored is used many times.
        """
        with _evaluating(self.model):
            return self._compute(ids_ET, mask_ET)

    def _compute(self, ids_ET: Tensor, mask_ET: Tensor) -> Tensor:
        caught: list[Tensor] = []

        def catch(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            caught.append(args[0] if args else kwargs["hidden_states"])
            raise _Reached

        hook = self._layers[self.depth].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            self.model(input_ids=ids_ET, attention_mask=mask_ET, **_no_cache(self.model))
        except _Reached:
            pass
        finally:
            hook.remove()
        return caught[0]

    @contextmanager
    def stored(self, hidden_ETH: Tensor) -> Iterator[None]:
        """Within the context the lower layers return ``hidden_ETH`` and compute nothing."""
        self._held.states = hidden_ETH
        try:
            yield
        finally:
            self._held.states = None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modules = [m for m in model.modules() if m.training]
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


def _no_cache(model: nn.Module) -> dict[str, bool]:
    return {"use_cache": False} if hasattr(model.config, "use_cache") else {}
