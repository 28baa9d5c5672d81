"""The last layer without what is not pooled: the same scores and gradients, for less."""

import copy
from contextlib import nullcontext

import pytest
import torch

from privacy.gradients import UserGradients
from silotune.models.adapter import LoraSettings
from silotune.models.base import layer_list

CUT = {"minilm": "mean", "Llama": "last", "GPT2": "last", "Qwen2": "last", "Qwen3": "last"}
WHOLE = ("MPNet", "GPTJ")
LORA = LoraSettings(targets=("all-linear",), top_layers=2, rank=2, train_a=True)


@pytest.fixture
def numeric():
    return torch.rand(4, 3, generator=torch.Generator().manual_seed(0))


def pooled_over(mask, pooling):
    """Each example pools another share of its tokens, from the first."""
    if pooling == "last":
        return None
    share = torch.tensor([[0.2], [0.9], [0.5], [0.3]])
    place = torch.arange(mask.shape[1])
    return mask * (place < (mask.sum(1, keepdim=True) * share).clamp_min(1))


def whole(model):
    """Make the last layer compute every token."""
    model.last_layer.only = lambda _: nullcontext()
    return model


def rows(model, ids, mask, numeric, over):
    gradients = UserGradients(model)
    with gradients.collect(torch.arange(len(ids)), len(ids)):
        out = model(ids, mask, numeric, over)
        out.square().sum().backward()
    found = gradients.take()
    gradients.remove()
    return out.detach(), found


# The first token of a causal model has seen nothing: every text would be the same.
WAYS = [(f, p) for f in (*CUT, *WHOLE) for p in ("mean", "last")]
WAYS += [("minilm", "first"), ("MPNet", "first")]


@pytest.mark.parametrize(("family", "pooling"), WAYS)
def test_scores_and_every_users_gradient_are_those_of_the_whole(
    family, pooling, text_model, tokens, numeric
):
    ids, mask = tokens(family)
    over = pooled_over(mask, pooling)
    cut = rows(text_model(family, lora=LORA, pooling=pooling), ids, mask, numeric, over)
    every = whole(text_model(family, lora=LORA, pooling=pooling))
    expected = rows(every, ids, mask, numeric, over)
    torch.testing.assert_close(cut[0], expected[0], rtol=1e-5, atol=1e-6)
    norms = expected[1].norm(dim=1)
    assert (norms > 1e-3).all()
    assert ((cut[1] - expected[1]).norm(dim=1) <= 1e-5 * norms).all()


@pytest.mark.parametrize("family", CUT)
def test_the_last_layers_feed_forward_part_sees_only_what_is_pooled(
    family, text_model, tokens, numeric
):
    ids, mask = tokens(family)
    model = text_model(family, lora=LORA)
    over = pooled_over(mask, CUT[family])
    seen = []
    for layer in layer_list(model.backbone)[-2:]:
        part = layer.intermediate if family == "minilm" else layer.mlp
        inner = next(m for m in part.modules() if hasattr(m, "weight"))
        inner.register_forward_hook(lambda _, args, out: seen.append(args[0].shape[1]))
    with torch.no_grad():
        model(ids, mask, numeric, over)
    pooled = 1 if over is None else int(over.any(0).sum())
    assert seen == [ids.shape[1], pooled]
    assert pooled < ids.shape[1]


def test_queries_are_cut_and_keys_and_values_are_not(text_model, tokens, numeric):
    ids, mask = tokens("minilm")
    model = text_model("minilm")
    over = pooled_over(mask, "mean")
    inner = layer_list(model.backbone)[-1].attention.self
    seen = {}
    for name in ("query", "key", "value"):
        getattr(inner, name).register_forward_hook(
            lambda _, args, out, name=name: seen.__setitem__(name, args[0].shape[1])
        )
    with torch.no_grad():
        model(ids, mask, numeric, over)
    full = ids.shape[1]
    assert seen == {"query": int(over.any(0).sum()), "key": full, "value": full}


@pytest.mark.parametrize("how", ["eager", "sdpa"])
def test_both_ways_of_attention_are_cut_alike(how, text_model, tokens, numeric):
    ids, mask = tokens("minilm")
    over = pooled_over(mask, "mean")
    model = text_model("minilm")
    expected = whole(text_model("minilm"))(ids, mask, numeric, over)
    model.backbone.config._attn_implementation = how
    # What was asked for when the model was made is what the cut layer does.
    model.last_layer.__init__(model.backbone, "mean")
    found = model(ids, mask, numeric, over)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", CUT)
def test_a_deep_copy_trains_itself_and_not_the_model_it_was_copied_from(
    family, text_model, tokens, numeric
):
    ids, mask = tokens(family)
    first = text_model(family, lora=LORA)
    over = pooled_over(mask, CUT[family])
    copied = copy.deepcopy(first)
    expected = rows(first, ids, mask, numeric, over)
    found = rows(copied, ids, mask, numeric, over)
    torch.testing.assert_close(found, expected)
    copied(ids, mask, numeric, over).square().sum().backward()
    assert all(p.grad is None for p in first.parameters())
    assert all(p.grad.any() for n, p in copied.named_parameters() if p.requires_grad)


def test_the_cut_is_forgotten_after_an_error(text_model, tokens, numeric):
    ids, mask = tokens("minilm")
    model = text_model("minilm")
    over = pooled_over(mask, "mean")
    with pytest.raises(ZeroDivisionError), model.last_layer.only(over):
        raise ZeroDivisionError
    with torch.no_grad():
        states = model.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
    assert states.shape[1] == ids.shape[1]
