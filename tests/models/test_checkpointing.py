"""Activations computed twice: the same gradients of every user, for less memory."""

import copy

import pytest
import torch

from privacy.gradients import UserGradients
from silotune.models.adapter import LoraSettings

LORA = LoraSettings(targets=("all-linear",), rank=2, train_a=True)


def rows(model, ids, mask):
    """Return every user's gradient, and the bytes that the backward pass kept."""
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    numeric = torch.full((len(ids), 3), 0.5)
    gradients = UserGradients(model)
    with gradients.collect(torch.arange(len(ids)), len(ids)):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            out = model(ids, mask, numeric)
        out.square().sum().backward()
    found = gradients.take()
    gradients.remove()
    return found, sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("family", ["minilm", "Llama", "GPT2", "Qwen3"])
@pytest.mark.parametrize("top", [None, 2])
def test_every_users_gradient_is_the_same_and_less_is_kept(family, top, text_model, tokens):
    ids, mask = tokens(family)
    lora = LoraSettings(targets=LORA.targets, rank=2, train_a=True, top_layers=top)
    plain, kept = rows(text_model(family, lora=lora), ids, mask)
    again, less = rows(text_model(family, lora=lora, activation_checkpointing=True), ids, mask)
    assert plain.abs().max() > 1e-4
    torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-7)
    assert less < kept * (0.45 if family == "minilm" and top is None else 0.9)


def test_one_trained_layer_is_left_as_it_is(text_model):
    lora = LoraSettings(targets=LORA.targets, top_layers=1)
    model = text_model("minilm", lora=lora, activation_checkpointing=True)
    assert not [n for n, m in model.named_modules() if "_again" in str(m.__dict__.get("forward"))]


def test_a_copy_trains_its_own_weights(text_model, tokens):
    ids, mask = tokens("minilm")
    first = text_model("minilm", lora=LORA, activation_checkpointing=True)
    other = copy.deepcopy(first)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.fill_(float("nan"))
    found, _ = rows(other, ids, mask)
    assert found.isfinite().all()
