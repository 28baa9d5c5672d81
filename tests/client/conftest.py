"""A model of two random small layers and made-up silos, without files and tokenizer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from client.prepared import PreparedExamples
from client.trainer import train_private
from privacy.dp_sgd import DPConfig
from privacy.randomness import SeededSource
from silotune.models.adapter import AdapterLayout, LoraSettings, inject_lora
from silotune.models.last_layer import PooledLastLayer
from silotune.models.prefix import FrozenPrefix
from silotune.models.text_model import Head, ModelConfig, TextModel
from silotune.tasks.base import Examples

WORDS, NUMERIC, LONGEST = 50, 3, 12
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def _tiny(family, precision="float32", *, top_layers=None, outputs=1, **lora):
    """A TextModel on a random base of two small layers, without files and tokenizer."""
    model = TextModel(
        ModelConfig(use_text=False, precision=precision), numeric_size=NUMERIC, outputs=outputs
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        cfg = getattr(transformers, f"{family}Config")(**SHAPE)
        base = transformers.AutoModel.from_config(cfg, attn_implementation="eager")
    base.eval().requires_grad_(False)
    known = {"targets": ("all-linear",), "rank": 2, "train_a": True, "top_layers": top_layers}
    generator = torch.Generator().manual_seed(4)
    model.backbone = inject_lora(base, LoraSettings(**known | lora))
    model.pooling = "mean" if family == "Bert" else "last"
    model.prefix = FrozenPrefix(base, 0 if top_layers is None else 2 - top_layers)
    model.last_layer = PooledLastLayer(base, model.pooling)
    public = nn.functional.normalize(torch.randn(40, 16, generator=generator), dim=1)
    model.head = Head(public, NUMERIC, outputs, model.cfg)
    model.layout = AdapterLayout.of(model)
    model.load_adapter(0.3 * torch.randn(model.layout.size, generator=generator))
    return model


def _examples_of(tokens, numeric, label, user):
    count = len(tokens)
    length = np.array([len(t) for t in tokens], dtype=np.int64)
    examples = Examples(
        text=[""] * count,
        context=[],
        numeric_EF=np.asarray(numeric, dtype=np.float32).reshape(count, NUMERIC),
        label_EK=np.asarray(label, dtype=np.float32).reshape(count, 1),
        user_E=np.asarray(user, dtype=np.int64),
        visit_E=np.arange(count),
        group=["g"] * count,
        test_E=np.zeros(count, dtype=bool),
    )
    start = np.concatenate([[0], np.cumsum(length)[:-1]]).astype(np.int64)
    ids = torch.from_numpy(np.concatenate([np.asarray(t, dtype=np.int32) for t in tokens]))
    return PreparedExamples(examples, ids, start, length, length, None)


def _crowd(users=5, seed=0):
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), 3)
    tokens = [random.integers(0, WORDS, random.integers(1, LONGEST)) for _ in user]
    return tokens, random.random((len(user), NUMERIC)), random.integers(0, 2, len(user)), user


_DATA = _examples_of(*_crowd())


def _private(model, data=_DATA, source=None, **changes):
    known = {"clip_norm": 0.5, "noise_multiplier": 1.0, "sampling_rate": 1.0}
    before = model.adapter()
    train_private(
        model,
        data,
        DPConfig(**known | changes, examples_per_user=64),
        steps=1,
        learning_rate=1.0,
        nominal_users=20,
        source=source or SeededSource(0),
    )
    return model.adapter() - before


@pytest.fixture(scope="session")
def small():
    """The functions of this file, for tests of several files."""
    return SimpleNamespace(
        tiny=_tiny, examples_of=_examples_of, crowd=_crowd, private=_private, data=_DATA
    )
