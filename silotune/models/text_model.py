"""Base + LoRA + head: text and numeric features in, logits out.

The head is linear on the pooled text and the numeric features. Scales, centre and whitening
are public constants that balance the parts under one clip norm.

Shape suffixes: E examples, T tokens, P tokens that the last layer computes, H hidden size,
F numeric features, K outputs, D adapter.
"""

import contextlib
import hashlib
import json
import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from silotune.config import config
from silotune.errors import ConfigError
from silotune.models.adapter import AdapterLayout, LoraSettings, inject_lora
from silotune.models.base import (
    DEFAULT_BASE,
    Pooling,
    base_digest,
    default_pooling,
    layer_list,
    load_base,
    load_tokenizer,
    pool,
)
from silotune.models.checkpointing import checkpoint_layers
from silotune.models.head import Head
from silotune.models.last_layer import PooledLastLayer
from silotune.models.prefix import FrozenPrefix

__all__ = ["ModelConfig", "TextModel"]


@config
class ModelConfig:
    """Base model, LoRA, head and precision. Public; the same in every silo."""

    base: str = DEFAULT_BASE
    """'minilm' (packaged), a model folder, or a hub id."""
    gguf_file: str | None = None
    """File in the folder, for a base stored as GGUF."""
    lora: LoraSettings = LoraSettings()
    use_text: bool = True
    """False: the numeric features alone, to see what the language model adds."""
    max_tokens: int = 64
    """Longer texts are cut at the end."""
    pooling: Pooling | None = None
    """None: mean of the tokens for encoders, last token for causal models."""
    text_scale: float = 2.0
    """Factor on the centred, whitened text vector before the head."""
    numeric_scale: float = 2.0
    """Factor on the numeric features, which lie in [0, 1], before the head."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the frozen layers and activations; the adapter, its gradients, norms and noise are
    float32 or better always. 'auto': bfloat16 where the processor computes in it."""
    prefix_cache: Literal["auto", "on", "off"] = "auto"
    """Whether a silo keeps what the layers below the LoRA layers give for its texts. 'auto':
    where measured times say that training gets faster."""
    prefix_cache_gb: float | None = None
    """Gigabytes of disk for it, at most, per silo. None: a quarter of what is free."""
    activation_checkpointing: bool = False
    """Compute the trained layers' activations twice in place of keeping them: less memory, about
    a third more time. For bases that do not fit otherwise."""

    def __post_init__(self) -> None:
        """Check ranges. Raises ConfigError."""
        if self.max_tokens < 8:
            raise ConfigError(f"max_tokens is {self.max_tokens}; it must be at least 8.")
        for field in ("text_scale", "numeric_scale"):
            if not (getattr(self, field) > 0 and math.isfinite(getattr(self, field))):
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be > 0.")
        if self.prefix_cache_gb is not None and not self.prefix_cache_gb > 0:
            raise ConfigError(f"prefix_cache_gb is {self.prefix_cache_gb}; it must be > 0.")


class TextModel(nn.Module):
    """A frozen base with its LoRA adapter and head. What trains is `layout`."""

    def __init__(
        self,
        cfg: ModelConfig,
        *,
        numeric_size: int,
        outputs: int,
        public_texts: Sequence[str] = (),
    ) -> None:
        """Load the base, inject LoRA, and build the head.

        Args:
            cfg: base, LoRA, precision.
            numeric_size: numeric features, F.
            outputs: K.
            public_texts: of the task; centre and scale the text part of the head.

        Raises:
            ModelError: as `load_base` and `inject_lora`.
            ConfigError: text is used and ``public_texts`` is empty.
        """
        super().__init__()
        self.cfg = cfg
        self.precision = _precision(cfg.precision)
        self.backbone: Any = None
        self.tokenizer: Any = None
        self.base_digest = "none"
        public_PH = None
        if cfg.use_text:
            base = load_base(cfg.base, gguf_file=cfg.gguf_file)
            self.tokenizer = load_tokenizer(cfg.base, gguf_file=cfg.gguf_file)
            self.base_digest = base_digest(base)
            self.pooling = cfg.pooling or default_pooling(base)
            public_PH = self._pooled(base, public_texts)
            count = len(layer_list(base))
            top = count if cfg.lora.top_layers is None else cfg.lora.top_layers
            self.backbone = inject_lora(base, cfg.lora)
            if self.precision == torch.bfloat16:
                for name, parameter in base.named_parameters():
                    if "lora_" not in name:
                        parameter.data = parameter.data.bfloat16()
            self.prefix = FrozenPrefix(base, count - top)
            self.last_layer = PooledLastLayer(base, self.pooling)
            if cfg.activation_checkpointing:
                checkpoint_layers(base, count - top)
        self.head = Head(
            public_PH,
            numeric_size,
            outputs,
            text_scale=cfg.text_scale,
            numeric_scale=cfg.numeric_scale,
        )
        self.layout = AdapterLayout.of(self)

    @torch.inference_mode()
    def _pooled(self, base: nn.Module, texts: Sequence[str]) -> Tensor:
        if not texts:
            raise ConfigError("public_texts is empty; the task must give some.")
        parts = []
        for start in range(0, len(texts), 64):
            encoded = self.tokenizer(
                list(texts[start : start + 64]),
                padding=True,
                truncation=True,
                max_length=self.cfg.max_tokens,
                return_tensors="pt",
            )
            mask_ET = encoded["attention_mask"]
            states = base(input_ids=encoded["input_ids"], attention_mask=mask_ET)
            parts.append(pool(states.last_hidden_state, mask_ET, self.pooling))
        return torch.cat(parts).clone()

    @property
    def prefix_depth(self) -> int:
        """Layers that run once per example."""
        return self.prefix.depth if self.backbone is not None else 0

    @cached_property
    def tokenizer_digest(self) -> str:
        """SHA-256 of the tokenizer; 'none' without text."""
        fast = getattr(self.tokenizer, "backend_tokenizer", None)
        if fast is None:
            known = None if self.tokenizer is None else sorted(self.tokenizer.get_vocab().items())
            return "none" if known is None else hashlib.sha256(repr(known).encode()).hexdigest()
        settings = json.loads(fast.to_str())
        # What the last call asked for, not what the tokenizer is.
        for passing in ("truncation", "padding"):
            settings.pop(passing, None)
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()

    def forward(
        self,
        ids_ET: Tensor | None,
        mask_ET: Tensor | None,
        numeric_EF: Tensor,
        pool_ET: Tensor | None = None,
        stored_ETH: Tensor | None = None,
    ) -> Tensor:
        """Return logits in float32, (E, K).

        Args:
            ids_ET: token ids, padded on the right; None for a model without text.
            mask_ET: 1 for tokens, 0 for padding.
            numeric_EF: numeric features in [0, 1].
            pool_ET: 1 for the tokens that are pooled over; None: those of ``mask_ET``.
            stored_ETH: what `FrozenPrefix.compute` gave for these tokens, to start from.
        """
        if self.backbone is None or mask_ET is None:
            plain_EK: Tensor = self.head(None, numeric_EF)
            return plain_EK
        pooled_EH = self.pooled(ids_ET, mask_ET, pool_ET, stored_ETH)
        logits_EK: Tensor = self.head(pooled_EH, numeric_EF)
        return logits_EK

    def pooled(
        self,
        ids_ET: Tensor | None,
        mask_ET: Tensor,
        pool_ET: Tensor | None = None,
        stored_ETH: Tensor | None = None,
    ) -> Tensor:
        """Return what the adapted encoder makes of texts, (E, H), float32, of unit length.

        Arguments: as `forward`.
        """
        reuse = contextlib.nullcontext() if stored_ETH is None else self.prefix.stored(stored_ETH)
        over_ET = mask_ET if pool_ET is None else pool_ET
        with reuse, self.last_layer.only(over_ET), self.autocast():
            hidden_EPH = self.backbone(input_ids=ids_ET, attention_mask=mask_ET).last_hidden_state
        return pool(hidden_EPH, over_ET[:, : hidden_EPH.shape[1]], self.pooling)

    def autocast(self) -> torch.autocast:
        """Context in which matrix products run in the model's precision."""
        device = next(self.parameters()).device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.precision == torch.bfloat16)

    def adapter(self) -> Tensor:
        """Return a copy of the trainable state as one float32 vector, (D,)."""
        return self.layout.flatten(dict(self._trainable())).clone()

    @torch.no_grad()
    def load_adapter(self, flat_D: Tensor) -> None:
        """Replace the trainable state. Raises ModelError unless length and dtype fit."""
        parameters = dict(self._trainable())
        for name, tensor in self.layout.split(flat_D).items():
            parameters[name].copy_(tensor)

    def _trainable(self) -> list[tuple[str, nn.Parameter]]:
        return [(n, p) for n, p in self.named_parameters() if p.requires_grad]


def _precision(wanted: str) -> torch.dtype:
    if wanted == "auto":
        native = (
            torch.cuda.is_bf16_supported()
            if torch.cuda.is_available()
            # No public function tells whether the processor has bfloat16 instructions.
            else torch.cpu._is_avx512_bf16_supported()  # noqa: SLF001
        )
        return torch.bfloat16 if native else torch.float32
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32
