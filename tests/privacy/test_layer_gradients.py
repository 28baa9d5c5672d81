"""Layers of other kinds: those that Opacus knows, and those that are refused by name."""

import copy

import pytest
import torch
from torch import nn

from privacy.gradients import UserGradients
from silotune.errors import PrivacyError


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
