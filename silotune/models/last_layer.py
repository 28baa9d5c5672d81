"""In the last layer, compute only the tokens that are pooled.

What the last layer gives for other tokens is thrown away by the pooling, so neither its
values nor its gradients matter: keys and values are computed for every token, queries, the
attention's output and the feed-forward part for the pooled ones alone. Nothing is approximated.

Layers of the BERT family are cut after the last pooled token. In causal models, where one token
is pooled, the feed-forward part takes that token. Other layers are left as they are.

Shape suffixes: E examples, T tokens, P tokens up to the last pooled one, H hidden size.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from silotune.models.base import Pooling, layer_list

__all__ = ["PooledLastLayer"]

# By name, not by shape: another architecture may hold the same parts and do something else.
_ENCODERS = frozenset({"BertLayer", "RobertaLayer", "XLMRobertaLayer", "CamembertLayer"})
_DECODERS = frozenset(
    {
        "LlamaDecoderLayer",
        "MistralDecoderLayer",
        "Qwen2DecoderLayer",
        "Qwen3DecoderLayer",
        "GPT2Block",
    }
)


@dataclass(slots=True)
class _Cut:
    """What is pooled, for the time of one forward pass; None: everything."""

    length: int | None = None
    last_E: Tensor | None = None


class PooledLastLayer:
    """The last layer of ``model``, which within `only` leaves out what is not pooled.

    Args:
        model: bare transformer, as `load_base` returns it; LoRA may be in it.
        pooling: how its output is pooled.
    """

    def __init__(self, model: nn.Module, pooling: Pooling) -> None:
        self._pooling = pooling
        self._cut = _Cut()
        layer: Any = layer_list(model)[-1]
        kind = type(layer).__name__
        self._encoder = kind in _ENCODERS and not layer.is_decoder
        if self._encoder:
            config: Any = model.config
            self._patch_attention(layer.attention, str(config._attn_implementation))  # noqa: SLF001
        elif kind in _DECODERS and pooling == "last":
            self._patch_feed_forward(layer.mlp)

    @contextmanager
    def only(self, over_ET: Tensor) -> Iterator[None]:
        """Within the context the model's output counts only where ``over_ET`` is pooled.

        Args:
            over_ET: as `silotune.models.base.pool` takes it. Encoders return the tokens up to
                the last pooled one, (E, P, H); causal models all, whose others mean nothing.
        """
        if self._pooling == "last":
            self._cut.last_E = over_ET.sum(1) - 1
            # Left-out tokens of an encoder would shift nothing: the last one is pooled.
            self._cut.length = over_ET.shape[1]
        elif self._pooling == "first":
            self._cut.length = 1
        else:
            self._cut.length = int(over_ET.bool().any(0).nonzero().max()) + 1
        try:
            yield
        finally:
            self._cut.length = self._cut.last_E = None

    def _patch_attention(self, attention: Any, how: str) -> None:
        def forward(
            attention: Any, hidden_states: Tensor, attention_mask: Any = None, **kwargs: Any
        ) -> Any:
            length, inner = attention.pooled_cut.length, attention.self
            if length is None or length >= hidden_states.shape[1]:
                whole = type(attention).forward
                return whole(attention, hidden_states, attention_mask, **kwargs)

            def heads(x_ETH: Tensor) -> Tensor:
                split = x_ETH.view(*x_ETH.shape[:-1], -1, inner.attention_head_size)
                return split.transpose(1, 2)

            # The feed-forward part takes what it is given: cut here, all below is cut.
            # Contiguous: a product with a strided batch copies the weight for every example.
            cut_EPH = hidden_states[:, :length].contiguous()
            query = heads(inner.query(cut_EPH))
            key, value = heads(inner.key(hidden_states)), heads(inner.value(hidden_states))
            mask = _rows(attention_mask, length)
            chance = inner.dropout.p if inner.training else 0.0
            mixed = _attend(query, key, value, mask, inner.scaling, chance, how)
            return attention.output(mixed.transpose(1, 2).flatten(2), cut_EPH), None

        self._replace(attention, forward)

    def _patch_feed_forward(self, part: Any) -> None:
        def forward(part: Any, hidden_states: Tensor) -> Tensor:
            last_E, whole = part.pooled_cut.last_E, type(part).forward
            if last_E is None:
                every_ETH: Tensor = whole(part, hidden_states)
                return every_ETH
            row_E = torch.arange(len(hidden_states), device=hidden_states.device)
            one_E1H: Tensor = whole(part, hidden_states[row_E, last_E].unsqueeze(1))
            out_ETH = one_E1H.new_zeros(*hidden_states.shape[:2], one_E1H.shape[-1])
            return out_ETH.index_put((row_E, last_E), one_E1H.squeeze(1))

        self._replace(part, forward)

    def _replace(self, module: Any, forward: Callable[..., Any]) -> None:
        # Bound to the module, which holds the state: a deep copy of the model then has a method
        # and a state of its own. A closure would train the model it was copied from.
        module.__dict__["pooled_cut"] = self._cut
        module.__dict__["forward"] = MethodType(forward, module)


def _rows(mask: Any, length: int) -> Any:
    """Return the rows of the queries that are left; a mask that all queries share is whole."""
    if not isinstance(mask, Tensor) or mask.shape[-2] == 1:
        return mask
    return mask[..., :length, :]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, chance: float, how: str
) -> Tensor:
    if how == "sdpa":
        return nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=chance, scale=scaling
        )
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if mask is not None:
        weights = weights + mask
    weights = nn.functional.dropout(weights.softmax(-1), p=chance)
    return torch.matmul(weights, value)
