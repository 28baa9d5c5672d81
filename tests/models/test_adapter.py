import re
import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from silotune.errors import ConfigError, ModelError
from silotune.models.adapter import AdapterLayout, LoraSettings, inject_lora
from silotune.models.base import base_digest, layer_list, load_base

LINEAR = {
    "minilm": ("query", "value"),
    "Llama": ("q_proj", "v_proj"),
    "GPT2": ("c_attn",),
    "Qwen2": ("q_proj", "down_proj"),
    "Qwen3": ("q_proj", "v_proj"),
    "MPNet": ("q", "v"),
    "GPTJ": ("q_proj", "fc_in"),
}
LAYOUT = AdapterLayout(("a", "b.c"), ((2, 3), (4,)))


def tensors():
    return {"a": torch.arange(6.0).view(2, 3), "b.c": torch.arange(4.0) + 10}


def test_a_target_that_is_no_linear_layer_lists_those_that_are(base_of):
    with pytest.raises(ModelError, match=r"'q_proj' .*BertModel.*: dense, key, query, value\.$"):
        inject_lora(base_of("minilm"), LoraSettings(targets=("query", "q_proj")))


@pytest.mark.parametrize(
    ("family", "target"),
    [("minilm", "word_embeddings"), ("Llama", "embed_tokens"), ("GPT2", "wte"), ("GPT2", "wpe")],
)
def test_an_embedding_is_refused_as_such(family, target, base_of):
    with pytest.raises(ModelError, match=f"'{target}' is an embedding"):
        inject_lora(base_of(family), LoraSettings(targets=(LINEAR[family][0], target)))


def test_more_layers_than_there_are_is_refused(base_of):
    with pytest.raises(ModelError, match="top_layers is 7; BertModel has 6 layers"):
        inject_lora(base_of("minilm"), LoraSettings(top_layers=7))


@pytest.mark.parametrize("top", [1, 2, None])
@pytest.mark.parametrize("family", LINEAR)
def test_only_named_layers_of_the_top_get_factors(family, top, base_of):
    base = base_of(family)
    count = len(layer_list(base))
    model = inject_lora(base, LoraSettings(targets=LINEAR[family], top_layers=top, rank=2))
    found = set()
    for name in AdapterLayout.of(model).names:
        *_, layer, leaf = re.fullmatch(
            r".*?\.(\d+)\..*?(\w+)\.lora_B\.default\.weight", name
        ).groups()
        found.add((int(layer), leaf))
    layers = range(count - (top or count), count)
    assert found == {(layer, leaf) for layer in layers for leaf in LINEAR[family]}


@pytest.mark.parametrize("family", LINEAR)
def test_all_linear_covers_every_linear_layer_of_the_stack_and_nothing_else(family, base_of):
    base = base_of(family)
    stack = layer_list(base)
    linear = sum(isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D" for m in stack.modules())
    model = inject_lora(base, LoraSettings(targets=("all-linear",), rank=2))
    inside = AdapterLayout.of(stack).names
    assert len(inside) == linear
    assert len(AdapterLayout.of(model).names) == linear


def test_b_alone_trains_unless_a_is_asked_for(base_of):
    frozen = AdapterLayout.of(inject_lora(base_of("Llama"), LoraSettings(targets=("q_proj",))))
    both = LoraSettings(targets=("q_proj",), train_a=True)
    free = AdapterLayout.of(inject_lora(base_of("Llama"), both))
    assert all("lora_B" in n for n in frozen.names)
    assert {n.replace("lora_A", "lora_B") for n in free.names} == set(frozen.names)
    assert len(free.names) == 2 * len(frozen.names)


@pytest.mark.parametrize("family", LINEAR)
def test_a_fresh_adapter_changes_no_output(family, base_of, tokens):
    ids, mask = tokens(family)
    base = base_of(family)
    with torch.inference_mode():
        before = base(input_ids=ids, attention_mask=mask).last_hidden_state
        model = inject_lora(base, LoraSettings(targets=("all-linear",)))
        after = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(before, after)


DIGEST = """
import sys, torch
from silotune.models.adapter import LoraSettings, inject_lora
from silotune.models.base import base_digest, load_base
torch.randn(1000)
settings = LoraSettings(targets=("q_proj",), seed=int(sys.argv[2]))
print(base_digest(inject_lora(load_base(sys.argv[1]), settings)))
"""


def test_a_is_the_same_in_two_processes_with_the_same_seed_and_another_with_another(folder_of):
    def here(seed):
        settings = LoraSettings(targets=("q_proj",), seed=seed)
        return base_digest(inject_lora(load_base(folder_of("Llama")), settings))

    command = [sys.executable, "-c", DIGEST, folder_of("Llama"), "4"]
    there = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    assert there == here(4)
    assert there != here(5)


def test_drawing_a_leaves_the_callers_generator_alone(base_of):
    torch.manual_seed(9)
    expected = torch.randn(3)
    torch.manual_seed(9)
    inject_lora(base_of("Llama"), LoraSettings(targets=("q_proj",)))
    assert torch.equal(torch.randn(3), expected)


def test_flatten_and_split_are_inverse_in_the_order_of_the_names():
    flat = LAYOUT.flatten(tensors())
    assert flat.tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12, 13]
    back = LAYOUT.split(flat)
    assert list(back) == ["a", "b.c"]
    assert all(torch.equal(back[n], t) for n, t in tensors().items())


@given(st.lists(st.lists(st.integers(1, 4), max_size=3), min_size=1, max_size=5))
def test_any_layout_brings_back_what_it_flattened(shapes):
    layout = AdapterLayout(tuple(f"p{i}" for i in range(len(shapes))), tuple(map(tuple, shapes)))
    flat = torch.arange(float(layout.size))
    assert torch.equal(layout.flatten(layout.split(flat)), flat)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("a"), r"missing \['a'\]"),
        (lambda t: t.update(d=torch.ones(1)), r"not known \['d'\]"),
        (lambda t: t.update(a=torch.ones(3, 2)), r"'a' is .*\(3, 2\).* must be float32 \(2, 3\)"),
        (lambda t: t.update(a=torch.ones(6)), r"'a' is"),
        (lambda t: t.update(a=torch.ones(2, 3).double()), r"'a' is torch\.float64"),
        (lambda t: t.update(a=torch.ones(2, 3).bfloat16()), r"'a' is torch\.bfloat16"),
        (lambda t: t.update(a=torch.ones(2, 3).int()), r"'a' is torch\.int32"),
    ],
)
def test_tensors_of_another_name_shape_or_type_are_refused(change, message):
    wrong = tensors()
    change(wrong)
    with pytest.raises(ModelError, match=message):
        LAYOUT.flatten(wrong)


@pytest.mark.parametrize(
    "flat",
    [
        torch.ones(9),
        torch.ones(11),
        torch.ones(0),
        torch.ones(1, 10),
        torch.ones(10).double(),
        torch.ones(10).half(),
        torch.ones(10, dtype=torch.int32),
        torch.tensor([torch.nan, *[1.0] * 9]),
        torch.tensor([*[1.0] * 9, torch.inf]),
        torch.tensor([*[1.0] * 9, -torch.inf]),
    ],
)
def test_a_vector_of_another_length_type_or_not_finite_is_refused(flat):
    with pytest.raises(ModelError, match="adapter vector"):
        LAYOUT.split(flat)


@pytest.mark.parametrize(
    "other",
    [
        AdapterLayout(("a", "b.d"), ((2, 3), (4,))),
        AdapterLayout(("a", "b.c"), ((3, 2), (4,))),
        AdapterLayout(("a", "b.c"), ((6,), (4,))),
        AdapterLayout(("b.c", "a"), ((4,), (2, 3))),
        AdapterLayout(("a",), ((2, 3),)),
    ],
)
def test_the_digest_of_a_layout_tells_names_shapes_and_order(other):
    assert LAYOUT.digest == AdapterLayout(("a", "b.c"), ((2, 3), (4,))).digest
    assert LAYOUT.digest != other.digest


@pytest.mark.parametrize(
    "wrong",
    [
        {"rank": 0},
        {"alpha": 0.0},
        {"alpha": -1.0},
        {"alpha": float("nan")},
        {"alpha": float("inf")},
        {"top_layers": 0},
        {"targets": ()},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LoraSettings(**wrong)
