"""Adapters from disk: a folder in peft's format, or a flat vector with its layout.

The second is what a run keeps after each round and what a merchant's daemon keeps of a run: one
safetensors file with the vector ``flat`` and the digest of its layout beside it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from silotune.errors import ModelError
from silotune.models.text_model import TextModel

__all__ = ["about_of", "adapter_file", "read_adapter"]

_ABOUT, _CONFIG = "silotune.json", "adapter_config.json"
_HEAD, _LORA = "head.safetensors", "adapter_model.safetensors"
_AGAIN = "Fetch it again from where it was made"


def adapter_file(path: Path) -> Path:
    """Return the adapter that ``path`` means: an export, a flat file, a run folder's last round.

    Raises:
        ModelError: there is none.
    """
    if path.is_file() or (path / _ABOUT).is_file():
        return path
    rounds = sorted(path.glob("round-*.safetensors")) or sorted(
        (path / "rounds").glob("round-*.safetensors")
    )
    if not rounds:
        what = "holds no adapter" if path.exists() else "no such file or folder"
        raise ModelError(
            f"{path}: {what}. Give a folder with silotune.json, as a run exports one, the folder "
            "of a run with its rounds, or a file round-NNNN.safetensors."
        )
    return rounds[-1]


def about_of(path: Path) -> dict[str, Any]:
    """Return what an adapter says of itself, as far as it does: job, task, model, base, layout.

    Raises:
        ModelError: the file is damaged.
    """
    if path.is_dir():
        return _json(path / _ABOUT)
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: damaged ({error}). {_AGAIN}.") from error


def read_adapter(path: Path, model: TextModel) -> Tensor:
    """Return the adapter at ``path`` (from `adapter_file`) for ``model``, float32, (D,).

    Raises:
        ModelError: it is damaged, or for another base, rank, layers, A, features or outputs.
    """
    about = about_of(path)
    base = about.get("base_digest")
    if base is not None and base != model.base_digest:
        raise ModelError(
            f"{path}: is for base model {str(base)[:12]}…, and this model's base, "
            f"'{model.cfg.base}', is {model.base_digest[:12]}…. Configure the base that it was "
            "trained on."
        )
    return _exported(path, model, about) if path.is_dir() else _flat(path, model, about)


def _flat(path: Path, model: TextModel, about: Mapping[str, Any]) -> Tensor:
    layout = about.get("layout")
    if layout is not None and layout != model.layout.digest:
        raise ModelError(
            f"{path}: holds an adapter of another layout (rank, layers, targets, features or "
            "outputs differ). Give the task and model of its run."
        )
    adapter_D = _tensors(path).get("flat")
    if adapter_D is None:
        raise ModelError(f"{path}: has no tensor 'flat'. {_AGAIN}.")
    _refuse(path, model, {"flat": adapter_D})
    return adapter_D


def _refuse(path: Path, model: TextModel, tensors: Mapping[str, Tensor]) -> None:
    try:
        if "flat" in tensors:
            model.layout.split(tensors["flat"])
        else:
            model.layout.check(tensors)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from None


def _exported(path: Path, model: TextModel, about: Mapping[str, Any]) -> Tensor:
    pooling = about.get("pooling")
    if model.backbone is not None and pooling != model.pooling:
        raise ModelError(f"{path}: pools '{pooling}'; this model pools '{model.pooling}'.")
    tokens = about.get("max_tokens")
    if model.backbone is not None and tokens != model.cfg.max_tokens:
        raise ModelError(
            f"{path}: reads {tokens} tokens of a text; this model has max_tokens = "
            f"{model.cfg.max_tokens}. Configure the model of its run."
        )
    found = _head(path, model, _tensors(path / _HEAD))
    if model.backbone is not None:
        found |= _lora(path, model)
    _refuse(path, model, found)
    adapter_D = model.layout.flatten(found)
    _refuse(path, model, {"flat": adapter_D})
    return adapter_D


def _head(path: Path, model: TextModel, folded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    wanted = tuple(model.head.score.weight.shape)
    shapes = {name: tuple(tensor.shape) for name, tensor in folded.items()}
    if shapes != {"weight": wanted, "bias": wanted[:1]}:
        raise ModelError(
            f"{path / _HEAD}: is {shapes}; this task's head has a weight of {wanted}: (outputs, "
            "text and numeric features). Is it the adapter of another task?"
        )
    own = model.head.unfolded(folded)
    return {f"head.score.{name}": tensor for name, tensor in own.items()}


def _lora(path: Path, model: TextModel) -> dict[str, Tensor]:
    """Return the trained factors by the model's names; the frozen ones must be the model's own."""
    _refuse_config(path / _CONFIG, model)
    named = dict(model.named_parameters())
    stored = {
        # peft leaves the adapter's name out of its files.
        f"backbone.{key}".replace(".weight", ".default.weight"): value
        for key, value in _tensors(path / _LORA).items()
    }
    known = {name for name in named if "lora_" in name}
    if stored.keys() != known:
        some = sorted(stored.keys() ^ known)[0]
        raise ModelError(
            f"{path / _LORA}: adapts other layers than this model (first: {some}). Check "
            "lora.targets, top_layers and dora."
        )
    for name, tensor in stored.items():
        if tensor.shape != named[name].shape:
            raise ModelError(
                f"{path / _LORA}: '{name}' is {tuple(tensor.shape)}; this model's is "
                f"{tuple(named[name].shape)}. Check lora.rank."
            )
        if not named[name].requires_grad and not torch.equal(
            tensor.float(), named[name].detach().float().cpu()
        ):
            raise ModelError(
                f"{path / _LORA}: '{name}' is not what lora.seed = {model.cfg.lora.seed} draws. "
                "Configure the seed of its run."
            )
    return {name: t.float() for name, t in stored.items() if named[name].requires_grad}


def _refuse_config(path: Path, model: TextModel) -> None:
    raw = _json(path)
    lora = model.cfg.lora
    for key, name, wanted in (
        ("r", "rank", lora.rank),
        ("lora_alpha", "alpha", lora.alpha),
        ("use_dora", "dora", lora.dora),
    ):
        if raw.get(key) != wanted:
            raise ModelError(
                f"{path}: {key} is {raw.get(key)}; this model has lora.{name} = {wanted}. "
                "Configure the model of its run."
            )


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{path}: missing. {_AGAIN}.") from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: damaged ({error}). {_AGAIN}.") from error
    if not isinstance(found, dict):
        raise ModelError(f"{path}: must be a JSON object. {_AGAIN}.")
    return found


def _tensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise ModelError(f"{path}: missing. {_AGAIN}.") from None
    except (OSError, SafetensorError) as error:
        raise ModelError(f"{path}: damaged ({error}). {_AGAIN}.") from error
