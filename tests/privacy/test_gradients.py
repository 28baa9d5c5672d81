"""Per-user gradients against those of one example at a time, by plain autograd."""

import copy

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


class Mixed(nn.Module):
    def __init__(self, other):
        super().__init__()
        self.linear, self.other = nn.Linear(3, 3), other


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("other", "name"),
    [
        (nn.ParameterList([nn.Parameter(torch.ones(2))]), "other.0"),
        (nn.BatchNorm1d(3), "other.bias"),
        (nn.InstanceNorm1d(3, affine=True, track_running_stats=True), "other.bias"),
        (nn.LayerNorm(3, bias=False), "other.weight"),
        (nn.Conv1d(3, 3, 3, padding=1, padding_mode="circular"), "other.bias"),
        (nn.Embedding(4, 3, max_norm=1.0), "other.weight"),
        (nn.Embedding(4, 3, scale_grad_by_freq=True), "other.weight"),
        (nn.EmbeddingBag(4, 3), "other.weight"),
        (nn.PReLU(), "other.weight"),
        (nn.Bilinear(3, 3, 3), "other.bias"),
        (nn.GRU(3, 3), "other.bias_hh_l0"),
        # What it computes is not what its class's name promises.
        (Doubled(3, 3), "other.bias"),
        (
            nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
            "other.parametrizations.weight.original0",
        ),
    ],
)
def test_a_parameter_of_a_layer_of_no_known_kind_is_refused_by_name(other, name):
    with pytest.raises(PrivacyError, match=f"'{name}' trains"):
        UserGradients(Mixed(other))


def test_a_refused_model_keeps_its_own_forward():
    model = Mixed(nn.PReLU())
    with pytest.raises(PrivacyError):
        UserGradients(model)
    assert "forward" not in vars(model.linear)


def test_a_layer_whose_forward_was_replaced_is_refused():
    model = Mixed(nn.Linear(3, 3))
    first = UserGradients(model)
    with pytest.raises(PrivacyError, match="'linear' has a forward"):
        UserGradients(model)
    first.remove()
    UserGradients(model).remove()


LAYERS = {
    "layer norm": (nn.LayerNorm(6), (5, 6)),
    "layer norm over two": (nn.LayerNorm((5, 6)), (5, 6)),
    "group norm": (nn.GroupNorm(2, 4), (4, 5)),
    "instance norm 1": (nn.InstanceNorm1d(4, affine=True), (4, 5)),
    "instance norm 2": (nn.InstanceNorm2d(4, affine=True), (4, 5, 6)),
    "instance norm 3": (nn.InstanceNorm3d(4, affine=True), (4, 5, 6, 2)),
    "rms norm": (nn.RMSNorm(6), (5, 6)),
    "conv 1": (nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (4, 11)),
    "conv 1 same": (nn.Conv1d(4, 6, 4, padding="same"), (4, 11)),
    "conv 1 valid, no bias": (nn.Conv1d(4, 6, 3, padding="valid", bias=False), (4, 11)),
    "conv 2": (nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), (4, 7, 6)),
    "conv 3": (nn.Conv3d(2, 3, 2, padding=1), (2, 3, 4, 5)),
    "embedding": (nn.Embedding(7, 3), ()),
    "embedding with padding": (nn.Embedding(7, 3, padding_idx=2), ()),
}


def _input(layer, shape, generator):
    if isinstance(layer, nn.Embedding):
        return torch.randint(7, (4, 9), generator=generator)
    return torch.randn(4, *shape, generator=generator)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("frozen", ["nothing", "weight", "bias"])
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kind", LAYERS)
def test_rows_of_other_layers_are_their_gradients(kind, frozen, autocast):
    layer, shape = LAYERS[kind]
    layer = copy.deepcopy(layer)
    if isinstance(getattr(layer, frozen, None), nn.Parameter):
        getattr(layer, frozen).requires_grad_(False)
    if not any(p.requires_grad for p in layer.parameters()):
        pytest.skip("nothing of it trains")
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    x, user_E = _input(layer, shape, generator), [1, 0, 3, 1]
    # A layer below, so that the gradient of the input is tested as well.
    below = nn.Linear(3, 3)
    model = Mixed(layer)
    model.linear = below
    before = torch.randn(4, 3, generator=generator)

    def loss(rows):
        inp = x[rows]
        if inp.is_floating_point():
            lift = below(before[rows]).mean(1)
            inp = inp * lift.reshape(-1, *[1] * (inp.dim() - 1))
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = layer(inp)
        return torch.sin(out.float() + 0.3).sum()

    expected = []
    for row in range(4):
        model.zero_grad(set_to_none=True)
        loss([row]).backward()
        trains = {n: p for n, p in sorted(model.named_parameters()) if p.requires_grad}
        expected.append(
            torch.cat(
                [
                    (torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1)
                    for p in trains.values()
                ]
            )
        )
    model.zero_grad(set_to_none=True)
    rows_UD = torch.zeros(5, len(expected[0]))
    rows_UD.index_add_(0, torch.tensor(user_E), torch.stack(expected))
    gradients = UserGradients(model)
    with gradients.collect(torch.tensor(user_E), 5):
        loss(list(range(4))).backward()
    found = gradients.take()
    gradients.remove()
    assert all(p.grad is None for p in model.parameters())
    assert all(p.requires_grad for n, p in layer.named_parameters() if n != frozen)
    assert found.dtype == torch.float32
    tolerance = 0.03 if autocast and "conv" in kind else 1e-5
    error, length = (found - rows_UD).norm(dim=1), rows_UD.norm(dim=1)
    assert (error <= tolerance * length).all()


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        # One row of positions for all examples, as position codes come.
        (nn.Embedding(7, 3), torch.arange(4)[None]),
        # Tokens of all examples one after another.
        (nn.Linear(3, 3), torch.ones(12, 3)),
        (nn.LayerNorm(3), torch.ones(12, 3)),
        # No batch at all: rows of the one example would pass for examples.
        (nn.Linear(4, 3), torch.ones(4)),
        (nn.Conv1d(4, 3, 1), torch.ones(4, 5)),
    ],
)
def test_a_batch_that_is_not_one_row_per_example_is_refused(layer, x):
    gradients = UserGradients(nn.Sequential(layer))
    with (
        gradients.collect(torch.arange(4), 4),
        pytest.raises(PrivacyError, match="layer '0' is called on a batch"),
    ):
        layer(x)


def test_rows_stay_float32_when_the_backward_pass_runs_under_autocast():
    layer = nn.Linear(64, 8)
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    rows = []
    for inside in (False, True):
        gradients = UserGradients(nn.Sequential(layer))
        with gradients.collect(torch.tensor([0, 1]), 2):
            with torch.autocast("cpu", torch.bfloat16):
                value = layer(x).float().square().sum()
            with torch.autocast("cpu", torch.bfloat16, enabled=inside):
                value.backward()
        rows.append(gradients.take())
        gradients.remove()
    assert torch.equal(*rows)


def test_a_parameter_that_does_not_train_may_be_anywhere():
    model = Mixed(nn.LayerNorm(3).requires_grad_(False))
    UserGradients(model)


def test_a_weight_that_two_layers_share_is_refused():
    model = Mixed(nn.Linear(3, 3))
    model.other.weight = model.linear.weight
    with pytest.raises(PrivacyError, match="weight"):
        UserGradients(model)


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
