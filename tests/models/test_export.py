import json

import pytest
import torch
from safetensors.torch import load_file

from silotune.models.adapter import LoraSettings
from silotune.models.export import export_adapter

NAMES = ("one", "two", "three")
FAMILIES = ("minilm", "Llama", "GPT2", "Qwen2", "Qwen3")


def numbers(count):
    return torch.rand(count, 3, generator=torch.Generator().manual_seed(1))


def pooled(states, mask, how):
    # Written anew from what `silotune.json` says, not with silotune's own function.
    if how == "last":
        states = states[torch.arange(len(mask)), mask.sum(1) - 1]
    else:
        states = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return states / states.norm(dim=1, keepdim=True)


# peft asks transformers for an attribute under its old name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("family", FAMILIES)
def test_an_exported_adapter_gives_the_same_scores_with_transformers_and_peft_alone(
    family, text_model, tokens, folder_of, tmp_path
):
    from peft import PeftModel
    from transformers import AutoModel

    from silotune.models.base import resolve_base

    ids, mask = tokens(family)
    lora = LoraSettings(targets=("all-linear",), top_layers=2, rank=3, train_a=True)
    model = text_model(family, lora=lora, outputs=2)
    export_adapter(model, tmp_path, numeric_names=NAMES)
    about = json.loads((tmp_path / "silotune.json").read_text())
    base = AutoModel.from_pretrained(resolve_base(folder_of(family)), dtype=torch.float32)
    plain = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    head = load_file(tmp_path / "head.safetensors")
    with torch.no_grad():
        states = plain(input_ids=ids, attention_mask=mask).last_hidden_state
        features = torch.cat([pooled(states, mask, about["pooling"]), numbers(len(ids))], dim=1)
        found = features @ head["weight"].T + head["bias"]
        expected = model(ids, mask, numbers(len(ids)))
        with plain.disable_adapter():
            without = plain(input_ids=ids, attention_mask=mask).last_hidden_state
        bare = torch.cat([pooled(without, mask, about["pooling"]), numbers(len(ids))], dim=1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    # The adapter has a part in it.
    assert not torch.allclose(bare @ head["weight"].T + head["bias"], expected, atol=1e-3)
    assert about["numeric"] == list(NAMES)
    assert about["base_digest"] == model.base_digest


def test_a_model_of_numbers_alone_exports_its_head(text_model, tmp_path):
    model = text_model(use_text=False)
    export_adapter(model, tmp_path / "new" / "folder", numeric_names=NAMES)
    head = load_file(tmp_path / "new" / "folder" / "head.safetensors")
    with torch.no_grad():
        expected = model(None, None, numbers(4))
    torch.testing.assert_close(numbers(4) @ head["weight"].T + head["bias"], expected)


def test_an_export_over_another_one_leaves_nothing_of_it(text_model, tmp_path):
    export_adapter(text_model(lora=LoraSettings(rank=2)), tmp_path, numeric_names=NAMES)
    first = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    export_adapter(text_model(lora=LoraSettings(rank=4)), tmp_path, numeric_names=NAMES)
    second = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert first.keys() == second.keys()
    assert first["adapter_model.safetensors"] != second["adapter_model.safetensors"]
    assert json.loads(second["adapter_config.json"])["r"] == 4
