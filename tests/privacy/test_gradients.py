"""Per-user gradients against those of one example at a time, by plain autograd."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from privacy.gradients import UserGradients
from silotune.errors import PrivacyError
from silotune.models.adapter import LoraSettings
from silotune.models.text_model import ModelConfig, TextModel

TEXTS = [
    "milk, national brand, display in-aisle, 20 percent off. never bought",
    "bread",
    "frozen pizza, private brand, 5 percent off. bought often, this week, these items",
    "coffee, mailer",
    "tea, national brand. bought once, months ago",
    "apples, 30 percent off",
    "dog food, private brand, display front end cap, 10 percent off. never bought",
]
# Several examples per user, not side by side; user 3 has none.
USERS = [2, 0, 1, 2, 0, 4, 2]
ADAPTERS = {
    "query and value": LoraSettings(rank=4),
    "query and value, A as well": LoraSettings(rank=4, train_a=True),
    "all linear": LoraSettings(targets=("all-linear",), rank=4, train_a=True),
    "all linear, top layer": LoraSettings(targets=("all-linear",), top_layers=1, train_a=True),
}


@pytest.fixture(scope="module", params=ADAPTERS)
def model(request):
    cfg = ModelConfig(lora=ADAPTERS[request.param], precision="float32")
    model = TextModel(cfg, numeric_size=3, outputs=2, public_texts=TEXTS)
    generator = torch.Generator().manual_seed(0)
    model.load_adapter(0.05 * torch.randn(model.layout.size, generator=generator))
    return model


@pytest.fixture(scope="module")
def batch(model):
    encoded = model.tokenizer(TEXTS, padding=True, return_tensors="pt")
    generator = torch.Generator().manual_seed(1)
    numeric = torch.rand(len(TEXTS), 3, generator=generator)
    label = (torch.rand(len(TEXTS), 2, generator=generator) < 0.5).float()
    return encoded["input_ids"], encoded["attention_mask"], numeric, label


def loss(model, batch, rows, stored=None):
    ids, mask, numeric, label = (part[rows] for part in batch)
    logits = model(ids, mask, numeric, stored_ETH=None if stored is None else stored[rows])
    return nn.functional.binary_cross_entropy_with_logits(logits, label[:], reduction="sum")


@pytest.fixture(scope="module")
def expected(model, batch):
    """One example at a time, without its padding, through autograd as it comes."""
    rows_UD = torch.zeros(5, model.layout.size)
    for row, user in enumerate(USERS):
        length = int(batch[1][row].sum())
        ids, mask = (part[row : row + 1, :length] for part in batch[:2])
        alone = (ids, mask, batch[2][row : row + 1], batch[3][row : row + 1])
        model.zero_grad(set_to_none=True)
        loss(model, alone, slice(None)).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        rows_UD[user] += model.layout.flatten(gradients)
    model.zero_grad(set_to_none=True)
    return rows_UD


@pytest.fixture
def gradients(model):
    collector = UserGradients(model)
    yield collector
    collector.remove()


def assert_same_users(found_UD, expected_UD):
    assert found_UD.shape == expected_UD.shape
    assert found_UD.dtype == torch.float32
    error_U = (found_UD - expected_UD).norm(dim=1)
    assert (error_U <= 1e-5 * expected_UD.norm(dim=1)).all()


def test_rows_are_the_gradients_of_one_example_at_a_time(model, batch, expected, gradients):
    assert (expected.norm(dim=1) > 1e-3).tolist() == [True, True, True, False, True]
    with gradients.collect(torch.tensor(USERS), 5):
        loss(model, batch, slice(None)).backward()
    assert_same_users(gradients.take(), expected)


def test_stored_states_of_the_frozen_layers_give_the_same_rows(model, batch, expected, gradients):
    if not model.prefix_depth:
        pytest.skip("nothing is frozen below this adapter")
    stored = model.prefix.compute(*batch[:2])
    with gradients.collect(torch.tensor(USERS), 5):
        loss(model, batch, slice(None), stored).backward()
    assert_same_users(gradients.take(), expected)


def test_a_user_may_be_spread_over_several_passes(model, batch, expected, gradients):
    total = torch.zeros_like(expected)
    for rows in ([0, 5], [1, 2, 6], [3, 4]):
        with gradients.collect(torch.tensor([USERS[r] for r in rows]), 5):
            loss(model, batch, rows).backward()
        total += gradients.take()
    assert_same_users(total, expected)


def test_several_passes_may_meet_in_one_collection(model, batch, expected, gradients):
    with gradients.collect(torch.tensor(USERS), 5):
        half = loss(model, batch, slice(None)) / 2
        half.backward()
        (loss(model, batch, slice(None)) / 2).backward()
    assert_same_users(gradients.take(), expected)


def test_the_summed_gradient_is_not_computed(model, batch, gradients):
    with gradients.collect(torch.tensor(USERS), 5):
        loss(model, batch, slice(None)).backward()
    assert [n for n, p in model.named_parameters() if p.grad is not None] == []


def test_one_users_row_does_not_change_with_the_company_it_has(model, batch, gradients):
    with gradients.collect(torch.tensor(USERS), 5):
        loss(model, batch, slice(None)).backward()
    together = gradients.take()
    rows = [r for r, u in enumerate(USERS) if u == 2]
    with gradients.collect(torch.zeros(len(rows), dtype=torch.long), 1):
        loss(model, batch, rows).backward()
    assert_same_users(gradients.take(), together[2:3])


def test_nothing_is_collected_outside(model, batch, expected, gradients):
    loss(model, batch, slice(None)).backward()
    summed = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    flat = model.layout.flatten(summed)
    model.zero_grad(set_to_none=True)
    assert (flat - expected.sum(0)).norm() <= 1e-5 * expected.sum(0).norm()
    with gradients.collect(torch.tensor(USERS), 5):
        pass
    assert not gradients.take().any()


def test_rows_of_an_earlier_collection_are_added_to():
    layer = nn.Linear(3, 2)
    gradients = UserGradients(nn.Sequential(layer))
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(0))
    rows, once = None, None
    # One example a user, in the users' order: the case that is written without a sum.
    for _ in range(2):
        with gradients.collect(torch.arange(2), 2, into=rows):
            layer(x).sum().backward()
        rows = gradients.take()
        once = rows.clone() if once is None else once
    assert torch.equal(rows, 2 * once)


def test_a_backward_pass_after_the_context_is_refused(model, batch, gradients):
    with gradients.collect(torch.tensor(USERS), 5):
        late = loss(model, batch, slice(None))
    with pytest.raises(PrivacyError, match="outside `collect`"):
        late.backward()
    assert not gradients.take().any()


def test_rows_are_forgotten_once_taken_and_by_a_new_collection(model, batch, gradients):
    with gradients.collect(torch.tensor(USERS), 5):
        loss(model, batch, slice(None)).backward()
    gradients.take()
    assert not gradients.take().any()
    for _ in range(2):
        with gradients.collect(torch.tensor(USERS), 5):
            loss(model, batch, slice(None)).backward()
    once = gradients.take()
    with gradients.collect(torch.tensor(USERS), 5):
        loss(model, batch, slice(None)).backward()
    assert torch.equal(once, gradients.take())


def test_removed_layers_train_as_before(model, batch, expected):
    UserGradients(model).remove()
    loss(model, batch, slice(None)).backward()
    summed = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    flat = model.layout.flatten(summed)
    model.zero_grad(set_to_none=True)
    assert (flat - expected.sum(0)).norm() <= 1e-5 * expected.sum(0).norm()


def test_the_pass_gives_the_same_scores_with_and_without_collection(model, batch, gradients):
    with gradients.collect(torch.tensor(USERS), 5):
        within = loss(model, batch, slice(None))
    assert torch.equal(within, loss(model, batch, slice(None)))


def test_a_layer_used_twice_sums_both_uses():
    layer = nn.Linear(3, 3)
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    expected = []
    for row in x:
        layer.zero_grad()
        layer(torch.tanh(layer(row[None]))).square().sum().backward()
        expected.append(torch.cat([layer.bias.grad, layer.weight.grad.reshape(-1)]))
    model = nn.Sequential(layer)
    gradients = UserGradients(model)
    with gradients.collect(torch.arange(4), 4):
        layer(torch.tanh(layer(x))).square().sum().backward()
    torch.testing.assert_close(gradients.take(), torch.stack(expected))


def test_bfloat16_passes_give_float32_rows():
    layer = nn.Linear(64, 8)
    gradients = UserGradients(nn.Sequential(layer))
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    with gradients.collect(torch.tensor([0, 1]), 2):
        with torch.autocast("cpu", torch.bfloat16):
            out = layer(x)
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    rows = gradients.take()
    assert rows.dtype == torch.float32
    # Sums of products of bfloat16 numbers, but not rounded to bfloat16 themselves.
    assert not torch.equal(rows, rows.bfloat16().float())


@given(
    st.integers(1, 6),
    st.integers(1, 5),
    st.sampled_from([(), (3,), (2, 3)]),
    st.booleans(),
    st.randoms(),
)
def test_rows_of_any_linear_layer_are_its_gradients(examples, users, between, bias, random):
    user_E = [random.randrange(users) for _ in range(examples)]
    layer = nn.Linear(4, 2, bias=bias)
    x = torch.randn(examples, *between, 4, generator=torch.Generator().manual_seed(examples))
    expected = torch.zeros(users, 10 if bias else 8)
    for row, user in zip(x, user_E, strict=True):
        layer.zero_grad()
        torch.sin(layer(row[None])).sum().backward()
        parts = [layer.bias.grad] if bias else []
        expected[user] += torch.cat([*parts, layer.weight.grad.reshape(-1)])
    gradients = UserGradients(nn.Sequential(layer))
    with gradients.collect(torch.tensor(user_E), users):
        torch.sin(layer(x)).sum().backward()
    torch.testing.assert_close(gradients.take(), expected, rtol=1e-5, atol=1e-5)
