import pytest
import torch

from silotune.errors import ConfigError, ModelError
from silotune.models.adapter import LoraSettings
from silotune.models.base import pool
from silotune.models.text_model import ModelConfig, TextModel

TOP = LoraSettings(targets=("all-linear",), top_layers=1, rank=2)


@pytest.fixture(scope="module")
def model(text_model):
    return text_model(outputs=2, lora=LoraSettings(top_layers=1, rank=4))


@pytest.fixture
def numeric(texts):
    return torch.rand(len(texts), 3, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def scores(model, tokens, numeric):
    return model(*tokens, numeric)


def test_a_fresh_model_gives_every_example_the_same_chance(text_model, tokens, numeric):
    fresh = text_model(moved=False, outputs=2, lora=TOP)
    assert torch.equal(scores(fresh, tokens(), numeric), torch.zeros(4, 2))


def test_the_folded_head_gives_the_scores_of_forward(model, tokens, numeric):
    ids, mask = tokens()
    with torch.no_grad():
        states = model.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        folded = model.head.folded()
        plain = torch.cat([pool(states, mask, model.pooling), numeric], dim=1)
        expected = plain @ folded["weight"].T + folded["bias"]
    assert folded["weight"].dtype == folded["bias"].dtype == torch.float32
    torch.testing.assert_close(scores(model, (ids, mask), numeric), expected, rtol=1e-4, atol=1e-5)


def test_the_folded_head_of_numbers_alone_gives_the_scores_of_forward(text_model, numeric):
    alone = text_model(use_text=False, numeric_scale=3.0)
    folded = alone.head.folded()
    expected = numeric @ folded["weight"].T + folded["bias"]
    torch.testing.assert_close(scores(alone, (None, None), numeric), expected)


def test_a_model_of_numbers_alone_reads_no_base_and_trains_its_head_alone():
    cfg = ModelConfig(use_text=False, base="no/such base")
    alone = TextModel(cfg, numeric_size=3, outputs=1)
    assert alone.layout.names == ("head.score.bias", "head.score.weight")
    assert alone.layout.size == 4
    assert (alone.backbone, alone.base_digest, alone.prefix_depth) == (None, "none", 0)


def test_padding_changes_no_score(model, tokens, texts, numeric):
    together = scores(model, tokens(), numeric)
    for row, text in enumerate(texts):
        alone = scores(model, tokens(texts=(text,)), numeric[row : row + 1])
        torch.testing.assert_close(alone[0], together[row], rtol=1e-5, atol=1e-5)


def test_what_stands_at_padding_is_never_read(model, tokens, numeric):
    ids, mask = tokens()
    other = torch.where(mask.bool(), ids, torch.full_like(ids, 999))
    torch.testing.assert_close(
        scores(model, (other, mask), numeric), scores(model, (ids, mask), numeric)
    )


def test_context_is_attended_to_but_not_pooled(model, tokens, numeric):
    ids, mask = tokens()
    short = torch.zeros_like(mask)
    short[:, :2] = 1
    with torch.no_grad():
        states = model.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        expected = model.head(pool(states, short, "mean"), numeric)
        found = model(ids, mask, numeric, pool_ET=short)
        cut = model(ids, short, numeric)
    # The model computes the pooled tokens alone: products of another shape round otherwise.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(found, cut, atol=1e-3)


@pytest.mark.parametrize("family", ["minilm", "Llama", "GPT2", "Qwen2", "Qwen3"])
def test_text_numbers_and_every_part_of_the_adapter_matter(family, text_model, tokens, numeric):
    built = text_model(family, lora=TOP)
    ids, mask = tokens(family)
    before = scores(built, (ids, mask), numeric)
    assert not torch.allclose(before, scores(built, (ids.flip(0), mask.flip(0)), numeric))
    assert not torch.allclose(before, scores(built, (ids, mask), numeric + 0.1))
    flat = built.adapter()
    for name, part in built.layout.split(flat.clone()).items():
        changed = built.layout.split(flat.clone())
        changed[name].copy_(part + 0.1)
        built.load_adapter(built.layout.flatten(changed))
        assert not torch.equal(before, scores(built, (ids, mask), numeric)), name
    built.load_adapter(flat)
    assert torch.equal(before, scores(built, (ids, mask), numeric))


def test_an_adapter_carried_to_another_model_gives_the_same_scores(text_model, tokens, numeric):
    one = text_model(lora=TOP)
    other = text_model(moved=False, lora=TOP)
    assert one.layout == other.layout
    assert one.base_digest == other.base_digest
    other.load_adapter(one.adapter())
    assert torch.equal(scores(one, tokens(), numeric), scores(other, tokens(), numeric))


@pytest.mark.parametrize("fault", ["long", "short", "double", "nan", "matrix"])
def test_a_vector_that_does_not_fit_is_refused_and_changes_nothing(fault, model):
    before = model.adapter()
    wrong = {
        "long": torch.cat([before, before[:1]]),
        "short": before[:-1],
        "double": before.double(),
        "nan": before.clone().index_fill_(0, torch.tensor([len(before) - 1]), torch.nan),
        "matrix": before[None],
    }[fault]
    with pytest.raises(ModelError, match="adapter vector"):
        model.load_adapter(wrong)
    assert torch.equal(model.adapter(), before)


def test_the_adapter_is_a_copy(model):
    before = model.adapter()
    model.adapter().zero_()
    assert torch.equal(model.adapter(), before)


@pytest.mark.parametrize("family", ["minilm", "Llama", "GPT2", "MPNet"])
def test_bfloat16_keeps_adapter_and_scores_in_float32(family, folder_of, texts, tokens, numeric):
    exact, rough = (
        TextModel(
            ModelConfig(base=folder_of(family), lora=TOP, precision=precision),
            numeric_size=3,
            outputs=1,
            public_texts=texts,
        )
        for precision in ("float32", "bfloat16")
    )
    assert {p.dtype for p in rough.parameters() if p.requires_grad} == {torch.float32}
    flat = 0.1 * torch.randn(rough.layout.size, generator=torch.Generator().manual_seed(2))
    exact.load_adapter(flat)
    rough.load_adapter(flat)
    assert torch.equal(rough.adapter(), flat)
    found, expected = (scores(m, tokens(family), numeric) for m in (rough, exact))
    assert found.dtype == torch.float32
    # The digest is of the weights as published, whatever they are run in.
    assert rough.base_digest == exact.base_digest
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.1)


def test_a_model_of_texts_needs_public_ones():
    with pytest.raises(ConfigError, match="public_texts"):
        TextModel(ModelConfig(), numeric_size=0, outputs=1)


def test_the_head_sees_centred_public_texts_of_the_asked_scale(model, texts, tokens):
    ids, mask = tokens()
    with torch.no_grad(), model.backbone.disable_adapter():
        states = model.backbone(input_ids=ids, attention_mask=mask).last_hidden_state
        seen = (pool(states, mask, "mean") - model.head.centre_H) @ model.head.whitening_HH
    torch.testing.assert_close(seen.mean(0), torch.zeros(384), rtol=0, atol=1e-5)
    # Whitening lifts small directions towards the largest, whose variance it about keeps.
    raw = pool(states, mask, "mean")
    top = torch.linalg.svdvals(raw - raw.mean(0))[0]
    assert torch.linalg.svdvals(seen)[0] == pytest.approx(
        model.cfg.text_scale * float(top) / (1 + 0.1) ** 0.5, rel=1e-3
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": 7},
        {"text_scale": 0.0},
        {"text_scale": float("nan")},
        {"numeric_scale": -1.0},
        {"numeric_scale": float("inf")},
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong):
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ModelConfig(**wrong)
