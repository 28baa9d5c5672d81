"""Per-user gradients against one example at a time on models of several families.

The widths differ from each other and from the numbers of tokens and examples, so that a
transposed product cannot pass by chance.
"""

import pytest
import torch
import transformers
from torch import nn

from privacy.gradients import UserGradients
from silotune.errors import PrivacyError
from silotune.models.adapter import LoraSettings, inject_lora

GATED = {"intermediate_size": 40, "num_key_value_heads": 2}
CONFIGS = {
    "Bert": {"intermediate_size": 40},
    "Llama": GATED,
    "GPT2": {"n_inner": 40},
    "Qwen2": GATED,
    "Qwen3": {**GATED, "head_dim": 6},
}
ATTENTION = {
    "Bert": ("query", "key", "value"),
    "Llama": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "GPT2": ("c_attn",),
    "Qwen2": ("q_proj", "v_proj"),
    "Qwen3": ("q_proj", "v_proj"),
}
LENGTHS = [5, 9, 1, 7, 9, 3]
USERS = [2, 0, 0, 2, 4, 2]


class Net(nn.Module):
    def __init__(self, family, targets, *, implementation="eager"):
        super().__init__()
        shape = {
            "vocab_size": 90,
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 32,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }
        cfg = getattr(transformers, f"{family}Config")(**shape | CONFIGS[family])
        with torch.random.fork_rng():
            torch.manual_seed(3)
            base = transformers.AutoModel.from_config(cfg, attn_implementation=implementation)
        base.eval().requires_grad_(False)
        # Random weights are small, so gradients through two layers vanish in rounding.
        with torch.no_grad():
            for parameter in base.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4)
        self.base = inject_lora(base, LoraSettings(targets=targets, rank=3, train_a=True))
        self.head = nn.Linear(24, 2)
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            for _, parameter in sorted(self.named_parameters()):
                if parameter.requires_grad:
                    parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))

    def forward(self, ids, mask):
        hidden = self.base(input_ids=ids, attention_mask=mask).last_hidden_state.float()
        weight = mask.unsqueeze(-1).float()
        return self.head((hidden * weight).sum(1) / weight.sum(1))


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 90, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return ids, mask, torch.randint(2, (len(LENGTHS),), generator=generator)


def loss(model, batch, rows):
    """Padded as far as the longest of ``rows`` and no further."""
    longest = max(LENGTHS[r] for r in rows)
    ids, mask, label = (part[rows] for part in batch)
    logits = model(ids[:, :longest], mask[:, :longest])
    return nn.functional.cross_entropy(logits, label, reduction="sum")


def one_by_one(model, batch):
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = torch.zeros(5, size, dtype=torch.float64)
    for row, user in enumerate(USERS):
        total[user] += single(model, batch, row)
    return total


def single(model, batch, row):
    model.zero_grad(set_to_none=True)
    loss(model, batch, [row]).backward()
    found = [p.grad.reshape(-1).double() for p in trainable(model).values()]
    model.zero_grad(set_to_none=True)
    return torch.cat(found)


def trainable(model):
    return {n: p for n, p in sorted(model.named_parameters()) if p.requires_grad}


def collected(model, batch, passes):
    gradients, total = UserGradients(model), None
    try:
        for rows in passes:
            with gradients.collect(torch.tensor([USERS[r] for r in rows]), 5, into=total):
                loss(model, batch, rows).backward()
            total = gradients.take()
    finally:
        gradients.remove()
    assert all(p.grad is None for p in model.parameters())
    return total.double()


def off(found, expected):
    """Largest error of a user's row, over its length; infinite where zeros are expected."""
    error, length = (found - expected).norm(dim=1), expected.norm(dim=1)
    assert ((length > 1e-3) | (length == 0)).all()
    return float((error / length.clamp_min(1e-30)).max())


ALL = list(range(len(LENGTHS)))


@pytest.mark.parametrize("where", ["attention", "all-linear"])
@pytest.mark.parametrize("family", CONFIGS)
def test_rows_are_those_of_one_example_at_a_time(family, where, batch):
    model = Net(family, ATTENTION[family] if where == "attention" else (where,))
    expected = one_by_one(model, batch)
    assert off(collected(model, batch, [ALL]), expected) <= 1e-5
    # A user's examples spread over microbatches, padded otherwise.
    assert off(collected(model, batch, [[1, 4], [3, 0], [5, 2]]), expected) <= 1e-5
    # Every factor of every layer takes part.
    start = 0
    for name, parameter in trainable(model).items():
        assert expected[:, start : start + parameter.numel()].any(), name
        start += parameter.numel()


class Products:
    """One-by-one gradients of linear layers from what plain autograd passes through them.

    Under autocast a plain backward pass rounds each weight's gradient to bfloat16. Here inputs
    and output gradients are those very bfloat16 numbers, and their products are float64.
    """

    def __init__(self, model):
        self.rows, self.inputs = {}, {}
        self.hooks = []
        for name, layer in model.named_modules():
            if isinstance(layer, nn.Linear) and layer.weight.requires_grad:
                self.hooks.append(layer.register_forward_hook(self.forward(name)))

    def forward(self, name):
        def hook(layer, args, out):
            def backward(grad):
                x, grad_ = args[0].detach().double(), grad.double()
                x, grad_ = x.reshape(-1, x.shape[-1]), grad_.reshape(-1, grad.shape[-1])
                self.rows[f"{name}.weight"] = grad_.T @ x
                if layer.bias is not None:
                    self.rows[f"{name}.bias"] = grad_.sum(0)

            out.register_hook(backward)

        return hook

    def take(self, model):
        return torch.cat([self.rows[n].reshape(-1) for n in trainable(model)])

    def remove(self):
        for hook in self.hooks:
            hook.remove()


@pytest.mark.parametrize("where", ["attention", "all-linear"])
@pytest.mark.parametrize("family", CONFIGS)
def test_under_autocast_rows_are_the_exact_products_of_rounded_passes(family, where, batch):
    model = Net(family, ATTENTION[family] if where == "attention" else (where,))
    products = Products(model)
    expected = torch.zeros(5, sum(p.numel() for p in trainable(model).values())).double()
    with torch.autocast("cpu", torch.bfloat16):
        for row, user in enumerate(USERS):
            # The others stay in the batch: its shape decides how a pass is rounded.
            ids, mask, label = batch
            each = nn.functional.cross_entropy(model(ids, mask), label, reduction="none")
            model.zero_grad(set_to_none=True)
            each[row].backward()
            expected[user] += products.take(model)
        model.zero_grad(set_to_none=True)
        products.remove()
        found = collected(model, batch, [ALL])
        plain = one_by_one(model, batch)
    assert off(found, expected) <= 1e-5
    # Plain autograd, rounded as it is, agrees as far as bfloat16 goes, and no further.
    assert 1e-5 < off(found, plain) <= 0.05


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("family", ["Llama", "GPT2", "Bert"])
def test_gradient_checkpointing_changes_nothing(family, reentrant, batch):
    model = Net(family, ("all-linear",))
    expected = one_by_one(model, batch)
    base = model.base.get_base_model()
    base.activation_checkpointing_enable({"use_reentrant": reentrant})
    base.enable_input_require_grads()
    base.train()
    for layer in base.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
    calls = []
    layer = next(m for n, m in base.named_modules() if n.endswith("base_layer"))
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    assert off(collected(model, batch, [ALL]), expected) <= 1e-5
    assert len(calls) == 2  # it was in fact run again


@pytest.mark.parametrize("unusual", ["layer before A", "two active", "other scale"])
def test_a_lora_layer_that_is_not_plain_computes_in_its_own_way(unusual, batch):
    model = Net("Llama", ("q_proj", "down_proj"))
    for layer in (m for m in model.modules() if hasattr(m, "lora_A")):
        if unusual == "layer before A":
            layer.lora_dropout["default"] = nn.Tanh()
        elif unusual == "two active":
            layer.set_adapter(["default", "default"])
        else:
            layer.scale_layer(0.5)
    assert off(collected(model, batch, [ALL]), one_by_one(model, batch)) <= 1e-5


def test_the_fused_attention_kernel_gives_the_same_rows(batch):
    model = Net("Llama", ("all-linear",), implementation="sdpa")
    assert off(collected(model, batch, [ALL]), one_by_one(model, batch)) <= 1e-5


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_dora_and_lora_on_embeddings_are_refused(batch):
    model = Net("Llama", ("q_proj",))
    cfg = transformers.LlamaConfig(
        vocab_size=90, hidden_size=24, num_hidden_layers=2, num_attention_heads=4, **GATED
    )
    base = transformers.AutoModel.from_config(cfg).requires_grad_(False)
    dora = inject_lora(base, LoraSettings(targets=("q_proj",), rank=3, dora=True, train_a=True))
    with pytest.raises(PrivacyError, match=r"lora_magnitude_vector.*DoRA"):
        UserGradients(dora)
    import peft

    base = transformers.AutoModel.from_config(cfg)
    embedding = peft.get_peft_model(base, peft.LoraConfig(target_modules=["embed_tokens"], r=3))
    with pytest.raises(PrivacyError, match=r"lora_embedding_A.*LoRA on embeddings"):
        UserGradients(embedding)
    UserGradients(model).remove()
