"""Adapters read back from disk: what was written, or a refusal that says what is wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from silotune.errors import ModelError
from silotune.models.adapter import LoraSettings
from silotune.models.export import export_adapter
from silotune.models.stored import about_of, adapter_file, read_adapter

NAMES = ("one", "two", "three")
SMALL = LoraSettings(targets=("q_proj", "v_proj"), rank=3, top_layers=2)
# peft asks transformers for an attribute under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


@pytest.mark.parametrize(
    "settings",
    [
        {"lora": SMALL},
        {"lora": LoraSettings(targets=("all-linear",), rank=2, train_a=True)},
        {"use_text": False},
    ],
    ids=["frozen A", "both factors", "numbers alone"],
)
def test_an_exported_adapter_comes_back_as_it_was(settings, text_model, tmp_path):
    model = text_model("Llama", outputs=2, **settings)
    export_adapter(model, tmp_path, numeric_names=NAMES, task={"name": "t"})
    other = text_model("Llama", outputs=2, moved=False, **settings)
    assert not torch.allclose(other.adapter(), model.adapter(), atol=1e-3)
    found = read_adapter(adapter_file(tmp_path), other)
    torch.testing.assert_close(found, model.adapter(), rtol=1e-4, atol=1e-5)
    assert about_of(tmp_path)["task"] == {"name": "t"}


@pytest.fixture
def exported(text_model, tmp_path):
    export_adapter(text_model("Llama", lora=SMALL), tmp_path / "a", numeric_names=NAMES)
    return tmp_path / "a"


@pytest.mark.parametrize(
    ("family", "settings", "words"),
    [
        ("Qwen2", {"lora": SMALL}, "base model"),
        ("Llama", {"lora": SMALL, "outputs": 3}, "another task"),
        ("Llama", {"lora": SMALL, "numeric": 4}, "another task"),
        ("Llama", {"lora": SMALL, "max_tokens": 32}, "max_tokens = 32"),
        ("Llama", {"lora": SMALL, "pooling": "first"}, "pools 'last'"),
        ("Llama", {"lora": {"rank": 2}}, "lora.rank = 2"),
        ("Llama", {"lora": {"alpha": 4.0}}, "lora.alpha = 4.0"),
        ("Llama", {"lora": {"seed": 9}}, "lora.seed = 9"),
        ("Llama", {"lora": {"top_layers": 1}}, "other layers"),
        ("Llama", {"lora": {"train_a": True}}, None),
    ],
)
def test_an_adapter_of_another_base_rank_or_task_is_refused(
    family, settings, words, exported, text_model
):
    from dataclasses import replace

    lora = settings["lora"]
    lora = lora if isinstance(lora, LoraSettings) else replace(SMALL, **lora)
    model = text_model(family, **settings | {"lora": lora})
    if words is None:
        # A model that would train A reads one whose A was frozen: nothing of it is lost.
        assert read_adapter(exported, model).isfinite().all()
        return
    with pytest.raises(ModelError, match=words) as error:
        read_adapter(exported, model)
    assert str(exported) in str(error.value)


def test_a_damaged_missing_or_infinite_export_is_refused(exported, text_model):
    model = text_model("Llama", lora=SMALL)
    head = exported / "head.safetensors"
    tensors = load_file(head)
    save_file(tensors | {"bias": torch.tensor([float("inf")])}, head)
    with pytest.raises(ModelError, match="not finite"):
        read_adapter(exported, model)
    head.write_bytes(head.read_bytes()[:-5])
    with pytest.raises(ModelError, match=r"head\.safetensors: damaged"):
        read_adapter(exported, model)
    head.unlink()
    with pytest.raises(ModelError, match=r"head\.safetensors: missing"):
        read_adapter(exported, model)
    (exported / "silotune.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"silotune\.json: must be a JSON object"):
        read_adapter(exported, model)


def test_a_run_folder_means_its_last_round(text_model, tmp_path):
    model = text_model(use_text=False)
    rounds = tmp_path / "run" / "rounds"
    rounds.mkdir(parents=True)
    for round_ in (0, 1, 2):
        flat = torch.full((model.layout.size,), float(round_))
        about = {"layout": model.layout.digest}
        save_file({"flat": flat}, rounds / f"round-{round_:04d}.safetensors", about)
    for given in (tmp_path / "run", rounds, rounds / "round-0002.safetensors"):
        assert read_adapter(adapter_file(given), model)[0] == 2.0
    with pytest.raises(ModelError, match="another layout"):
        read_adapter(adapter_file(rounds), text_model(use_text=False, outputs=2))
    short = {"flat": torch.ones(2)}
    save_file(short, rounds / "round-0003.safetensors", {"layout": model.layout.digest})
    with pytest.raises(ModelError, match=r"round-0003\.safetensors: adapter vector is"):
        read_adapter(adapter_file(rounds), model)


def test_a_path_without_an_adapter_says_what_to_give(tmp_path):
    with pytest.raises(ModelError, match="no such file or folder"):
        adapter_file(tmp_path / "none")
    with pytest.raises(ModelError, match="holds no adapter"):
        adapter_file(tmp_path)
    (tmp_path / "silotune.json").write_text(json.dumps({"base": "x"}))
    assert adapter_file(tmp_path) == tmp_path
