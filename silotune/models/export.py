"""An adapter in peft's own format, with the head beside it: usable without silotune.

``PeftModel.from_pretrained(AutoModel.from_pretrained(base), folder)`` loads the LoRA part.
``head.safetensors`` holds ``weight`` (K, H + F) and ``bias`` (K,); the score of an example is
``weight @ [pooled, numeric] + bias``, where ``pooled`` is what `silotune.json` says (for
'mean': the mean of the last hidden states over the tokens of the text without its context,
scaled to unit length) and ``numeric`` are the named features in [0, 1].
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from silotune.models.text_model import TextModel

__all__ = ["export_adapter"]


def export_adapter(
    model: TextModel,
    folder: Path,
    *,
    numeric_names: Sequence[str],
    task: Mapping[str, Any] | None = None,
) -> None:
    """Write the current adapter of ``model`` into ``folder``, which may exist.

    Args:
        model: whose adapter.
        folder: to write into.
        numeric_names: of the task's features, in order.
        task: the task as a table of a file has it: `silotune client score` then needs no other.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if model.backbone is not None:
        model.backbone.save_pretrained(str(folder))
    save_file(
        {k: v.contiguous() for k, v in model.head.folded().items()}, folder / "head.safetensors"
    )
    about = {
        "base": model.cfg.base,
        "base_digest": model.base_digest,
        "pooling": model.pooling if model.backbone is not None else None,
        "max_tokens": model.cfg.max_tokens,
        "numeric": list(numeric_names),
        "model": asdict(model.cfg),
        "task": None if task is None else dict(task),
    }
    text = json.dumps(about, indent=2, default=str)
    (folder / "silotune.json").write_text(text + "\n", encoding="utf-8")
