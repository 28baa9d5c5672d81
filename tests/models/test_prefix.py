import copy

import pytest
import torch

from silotune.models.base import layer_list, load_base
from silotune.models.prefix import FrozenPrefix

FAMILIES = ("minilm", "Llama", "GPT2", "Qwen2", "Qwen3", "MPNet", "GPTJ")


def gradient(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("top", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_gradients_are_those_of_running_everything(family, top, text_model, tokens):
    from silotune.models.adapter import LoraSettings

    ids, mask = tokens(family)
    numeric = torch.rand(len(ids), 3, generator=torch.Generator().manual_seed(0))
    lora = LoraSettings(targets=("all-linear",), top_layers=top, rank=2, train_a=True)
    model = text_model(family, lora=lora)
    plain = model(ids, mask, numeric)
    plain.square().sum().backward()
    expected = gradient(model)
    model.zero_grad(set_to_none=True)
    # Another process may have stored the states: this one has never run the lower layers.
    states = text_model(family, lora=lora).prefix.compute(ids, mask)
    fresh = text_model(family, lora=lora)
    stored = fresh(ids, mask, numeric, stored_ETH=states)
    stored.square().sum().backward()
    torch.testing.assert_close(stored, plain, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient(fresh), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_states_are_what_enters_the_first_trained_layer(family, folder_of, tokens):
    ids, mask = tokens(family)
    model = load_base(folder_of(family))
    seen = []
    layer_list(model)[2].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
        states = FrozenPrefix(load_base(folder_of(family)), 2).compute(ids, mask)
    torch.testing.assert_close(states, seen[0])


@pytest.mark.parametrize("family", ["minilm", "Llama"])
def test_with_stored_states_the_lower_layers_compute_nothing(family, folder_of, tokens):
    ids, mask = tokens(family)
    model = load_base(folder_of(family))
    prefix = FrozenPrefix(model, 2)
    states = prefix.compute(ids, mask)
    ran = []
    for index, layer in enumerate(layer_list(model)):
        linear = next(m for m in layer.modules() if isinstance(m, torch.nn.Linear))
        linear.register_forward_hook(lambda *_, index=index: ran.append(index))
    with prefix.stored(states), torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    assert ran == list(range(2, len(layer_list(model))))


@pytest.mark.parametrize("family", ["minilm", "Llama"])
def test_computing_states_runs_no_layer_above(family, folder_of, tokens):
    ids, mask = tokens(family)
    model = load_base(folder_of(family))
    prefix = FrozenPrefix(model, 1)
    layer_list(model)[1].register_forward_hook(lambda *_: pytest.fail("ran"))
    prefix.compute(ids, mask)


def test_stored_states_are_forgotten_even_after_an_error(folder_of, tokens):
    ids, mask = tokens()
    model = load_base(folder_of("minilm"))
    prefix = FrozenPrefix(model, 3)
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).last_hidden_state
        with pytest.raises(KeyError), prefix.stored(torch.zeros(*ids.shape, 384)):
            raise KeyError
        after = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.equal(before, after)


def test_an_error_within_the_model_leaves_no_hook_behind(folder_of, tokens):
    ids, mask = tokens()
    model = load_base(folder_of("minilm"))
    prefix = FrozenPrefix(model, 2)
    with pytest.raises(IndexError):
        prefix.compute(ids + 10**6, mask)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)


def test_depth_zero_changes_nothing(folder_of, tokens):
    ids, mask = tokens()
    model = load_base(folder_of("minilm"))
    with torch.no_grad():
        before = model(input_ids=ids, attention_mask=mask).last_hidden_state
        FrozenPrefix(model, 0)
        assert torch.equal(model(input_ids=ids, attention_mask=mask).last_hidden_state, before)


@pytest.mark.parametrize("family", ["minilm", "MPNet"])
def test_the_names_of_the_weights_stay(family, folder_of):
    model = load_base(folder_of(family))
    before = list(model.state_dict())
    FrozenPrefix(model, 2)
    assert list(model.state_dict()) == before


@pytest.mark.parametrize("family", ["minilm", "MPNet", "Llama"])
def test_a_deep_copy_starts_from_its_own_stored_states(family, text_model, tokens):
    from silotune.models.adapter import LoraSettings

    ids, mask = tokens(family)
    numeric = torch.rand(len(ids), 3, generator=torch.Generator().manual_seed(0))
    lora = LoraSettings(targets=("all-linear",), top_layers=1, rank=2)
    model = text_model(family, lora=lora)
    expected = model(ids, mask, numeric)
    states = model.prefix.compute(ids, mask)
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in copied.backbone.named_parameters():
            if "lora" not in name:
                parameter.zero_()
    # The copy's own lower layers are zero now; the original's are as they were.
    assert not copied.prefix.compute(ids, mask).equal(states)
    torch.testing.assert_close(model(ids, mask, numeric, stored_ETH=states), expected)
    with model.prefix.stored(states):
        assert not copied.prefix.compute(ids, mask).equal(states)
