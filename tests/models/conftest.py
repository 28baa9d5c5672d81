"""Small real models: the packaged encoder, and random decoders of several families."""

import shutil
from pathlib import Path

import pytest
import torch

from silotune.models.base import load_base, load_tokenizer, resolve_base
from silotune.models.text_model import ModelConfig, TextModel

_SMALL = {
    "vocab_size": 30522,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    # Of the tokenizer's own vocabulary; GPT-2's are out of its range.
    "bos_token_id": 101,
    "eos_token_id": 102,
    "pad_token_id": 0,
}
_GATED = {"intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES = {
    "Llama": _GATED,
    "GPT2": {},
    "Qwen2": _GATED,
    "Qwen3": {**_GATED, "head_dim": 8},
    # Their layers answer with a tuple.
    "MPNet": {"intermediate_size": 48},
    "GPTJ": {"rotary_dim": 4},
}
TEXTS = [
    "milk, national brand, display in-aisle, 20 percent off. never bought",
    "bread",
    "frozen pizza, private brand, 5 percent off. bought often, this week, these items",
    "coffee, national brand, mailer front page feature. bought once, months ago",
]


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory):
    """Return the folder of a small random model of a family; 'minilm' stays the real one."""
    made: dict[str, str] = {}

    def get(family: str) -> str:
        if family == "minilm":
            return family
        if family not in made:
            made[family] = str(_make(family, tmp_path_factory.mktemp(family)))
        return made[family]

    return get


def _make(family: str, folder: Path) -> Path:
    import transformers

    cfg = getattr(transformers, f"{family}Config")(**_SMALL, **FAMILIES[family])
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.AutoModel.from_config(cfg).save_pretrained(folder)
    source = Path(resolve_base("minilm"))
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(source / name, folder)
    return folder


@pytest.fixture(scope="session")
def text_model(folder_of):
    """Return a function that builds a model on a family's base, its adapter moved off zero."""

    def build(family="minilm", *, numeric=3, outputs=1, moved=True, **settings):
        cfg = ModelConfig(base=folder_of(family), precision="float32", **settings)
        model = TextModel(cfg, numeric_size=numeric, outputs=outputs, public_texts=TEXTS * 2)
        if moved:
            generator = torch.Generator().manual_seed(5)
            model.load_adapter(0.1 * torch.randn(model.layout.size, generator=generator))
        return model

    return build


@pytest.fixture(scope="session")
def texts():
    return list(TEXTS)


@pytest.fixture
def base_of(folder_of):
    return lambda family: load_base(folder_of(family))


@pytest.fixture(scope="session")
def tokens(folder_of):
    """Return (ids, mask) of texts for a family, padded on the right."""

    def get(family="minilm", texts=tuple(TEXTS)):
        encoded = load_tokenizer(folder_of(family))(
            list(texts), padding=True, truncation=True, max_length=40, return_tensors="pt"
        )
        return encoded["input_ids"], encoded["attention_mask"]

    return get
