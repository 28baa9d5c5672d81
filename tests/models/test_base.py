import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from silotune.errors import ModelError
from silotune.models.base import (
    base_digest,
    default_pooling,
    layer_list,
    load_base,
    load_tokenizer,
    pool,
    resolve_base,
)


@pytest.fixture(scope="module")
def minilm():
    return load_base("minilm")


def test_loading_prints_nothing_and_leaves_the_settings_of_the_caller(capfd):
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    load_base("minilm")
    load_tokenizer("minilm")
    assert capfd.readouterr() == ("", "")
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before


def test_a_base_is_frozen_float32_and_in_evaluation_mode(minilm):
    assert not minilm.training
    parameters = list(minilm.parameters())
    assert {p.dtype for p in parameters} == {torch.float32}
    assert not any(p.requires_grad for p in parameters)


@pytest.mark.parametrize("load", [load_base, load_tokenizer])
@pytest.mark.parametrize("kind", ["missing", "empty", "damaged"])
def test_a_folder_that_holds_no_model_is_named(load, kind, tmp_path):
    folder = tmp_path / "base"
    if kind != "missing":
        folder.mkdir()
    if kind == "damaged":
        for name in ("config.json", "tokenizer.json", "model.safetensors"):
            (folder / name).write_text("{")
    with pytest.raises(ModelError, match=str(folder)):
        load(str(folder))


def test_weights_that_do_not_fit_the_configuration_are_refused(folder_of, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(folder_of("Llama"), folder)
    config = folder / "config.json"
    config.write_text(
        config.read_text().replace('"intermediate_size": 48', '"intermediate_size": 64')
    )
    with pytest.raises(ModelError, match=str(folder)):
        load_base(str(folder))


def test_weights_that_are_missing_are_not_drawn_at_random(folder_of, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "base"
    shutil.copytree(folder_of("Llama"), folder)
    weights = load_file(folder / "model.safetensors")
    del weights["layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"layers\.1\.mlp\.up_proj\.weight"):
        load_base(str(folder))


def test_an_encoder_published_without_pooler_is_the_same_in_every_silo(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "base"
    shutil.copytree(resolve_base("minilm"), folder)
    weights = load_file(folder / "model.safetensors")
    kept = {n: w for n, w in weights.items() if "pooler" not in n}
    assert len(kept) < len(weights)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    assert base_digest(load_base(str(folder))) == base_digest(load_base(str(folder)))


def test_a_base_loaded_twice_has_one_digest(minilm):
    assert base_digest(minilm) == base_digest(load_base("minilm"))


@pytest.mark.parametrize("change", ["last bit", "bias", "sign of zero", "dtype", "name", "shape"])
def test_the_digest_changes_with_one_weight(change, base_of):
    model = base_of("Llama")
    before = base_digest(model)
    weight = model.layers[2].mlp.down_proj.weight
    with torch.no_grad():
        if change == "last bit":
            weight[3, 4] = torch.nextafter(weight[3, 4], torch.tensor(torch.inf))
        elif change == "bias":
            model.norm.weight[0] += 1
        elif change == "sign of zero":
            weight[0, 0] = 0.0
            before = base_digest(model)
            weight[0, 0] = -0.0
        elif change == "dtype":
            # The same bytes, read as another kind of number.
            integers = model.norm.weight.data.view(torch.int32)
            model.norm.weight = nn.Parameter(integers, requires_grad=False)
        elif change == "name":
            model.layers[0].mlp.renamed = model.layers[0].mlp.gate_proj
            del model.layers[0].mlp.gate_proj
        else:
            model.norm.weight.data = model.norm.weight.data[None]
    assert base_digest(model) != before


def test_a_digest_tells_two_weights_that_changed_places(base_of):
    model = base_of("Llama")
    before = base_digest(model)
    up, gate = model.layers[0].mlp.up_proj, model.layers[0].mlp.gate_proj
    up.weight.data, gate.weight.data = gate.weight.data, up.weight.data
    assert base_digest(model) != before


def test_a_digest_covers_numbers_without_dimensions():
    module = nn.BatchNorm1d(2)
    before = base_digest(module)
    module.num_batches_tracked += 1
    assert base_digest(module) != before


def test_layers_come_bottom_first(minilm):
    layers = layer_list(minilm)
    assert len(layers) == 6
    assert layers[0] is minilm.encoder.layer[0]


def test_a_model_without_a_stack_of_layers_is_refused(minilm):
    model = nn.Sequential(nn.Linear(2, 2))
    model.config = minilm.config
    with pytest.raises(ModelError, match="no list of 6 layers"):
        layer_list(model)


@pytest.mark.parametrize(
    ("family", "pooling"),
    [("minilm", "mean"), ("MPNet", "mean")]
    + [(f, "last") for f in ("Llama", "GPT2", "Qwen2", "Qwen3", "GPTJ")],
)
def test_a_model_whose_tokens_see_only_the_past_is_pooled_at_the_last(family, pooling, base_of):
    assert default_pooling(base_of(family)) == pooling


def test_pooling_reads_no_token_outside_its_mask():
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 4, generator=generator)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    garbage = torch.where(mask[..., None].bool(), hidden, torch.full_like(hidden, 1e6))
    for pooling in ("mean", "last", "first"):
        assert torch.equal(pool(hidden, mask, pooling), pool(garbage, mask, pooling))


def test_pooling_takes_the_mean_the_last_or_the_first_at_unit_length():
    hidden = torch.tensor([[[3.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0]])
    assert torch.allclose(pool(hidden, mask, "mean"), torch.tensor([[0.6, 0.8]]))
    assert torch.allclose(pool(hidden, mask, "last"), torch.tensor([[0.0, 1.0]]))
    assert torch.allclose(pool(hidden, mask, "first"), torch.tensor([[1.0, 0.0]]))
    assert pool(hidden.bfloat16(), mask, "mean").dtype == torch.float32


@pytest.mark.parametrize("family", ["minilm", "Llama", "GPT2"])
def test_tokens_are_padded_on_the_right(family, tokens):
    _, mask = tokens(family)
    assert (mask[:, 0] == 1).all()
    assert (mask.diff(dim=1) <= 0).all()
    assert mask.min() == 0


def test_a_tokenizer_without_padding_pads_with_its_end(folder_of, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(folder_of("Llama"), folder)
    vocabulary = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary | {"padding": None}))
    plain = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(plain))
    (folder / "special_tokens_map.json").unlink()
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.pad_token == tokenizer.eos_token == "[SEP]"


def test_a_folder_whose_tokenizer_is_missing_is_not_given_an_empty_one(folder_of, tmp_path):
    folder = tmp_path / "base"
    shutil.copytree(resolve_base("minilm"), folder)
    for path in (*folder.glob("*token*"), folder / "vocab.txt"):
        path.unlink()
    with pytest.raises(ModelError, match="knows no word"):
        load_tokenizer(str(folder))


def test_only_the_packaged_name_is_resolved():
    assert (Path(resolve_base("minilm")) / "config.json").is_file()
    assert resolve_base("some/hub-id") == "some/hub-id"
