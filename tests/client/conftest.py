"""A small random model, made-up examples, and silos that train, measure or are audited."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from torch import nn

from client.audit import AuditConfig
from client.audit_canaries import Subject, widen
from client.audit_run import subject_of
from client.prepared import PreparedExamples, load_or_prepare, prepare
from client.silo import Silo
from client.trainer import train_private
from privacy.dp_sgd import DPConfig
from privacy.policy import Policy
from privacy.randomness import SecureSource, SeededSource
from silotune.federation import build_model, read_federation
from silotune.messages import MetricsRequest, TrainRequest
from silotune.models.adapter import AdapterLayout, LoraSettings, inject_lora
from silotune.models.head import Head
from silotune.models.last_layer import PooledLastLayer
from silotune.models.prefix import FrozenPrefix
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples
from tests.client.real_node import daemon, node  # noqa: F401  # fixtures
from tests.client.scoring import made, silo  # noqa: F401  # fixtures

WORDS, NUMERIC, LONGEST = 50, 3, 12
SHAPE = {
    "vocab_size": WORDS,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def _tiny(family, precision="float32", *, top_layers=None, outputs=1, **lora):
    """A TextModel on a random base of two small layers, without files and tokenizer."""
    model = TextModel(
        ModelConfig(use_text=False, precision=precision), numeric_size=NUMERIC, outputs=outputs
    )
    with torch.random.fork_rng():
        torch.manual_seed(2)
        cfg = getattr(transformers, f"{family}Config")(**SHAPE)
        base = transformers.AutoModel.from_config(cfg, attn_implementation="eager")
    base.eval().requires_grad_(False)
    known = {"targets": ("all-linear",), "rank": 2, "train_a": True, "top_layers": top_layers}
    generator = torch.Generator().manual_seed(4)
    model.backbone = inject_lora(base, LoraSettings(**known | lora))
    model.pooling = "mean" if family == "Bert" else "last"
    model.prefix = FrozenPrefix(base, 0 if top_layers is None else 2 - top_layers)
    model.last_layer = PooledLastLayer(base, model.pooling)
    public = nn.functional.normalize(torch.randn(40, 16, generator=generator), dim=1)
    model.head = Head(
        public,
        NUMERIC,
        outputs,
        text_scale=model.cfg.text_scale,
        numeric_scale=model.cfg.numeric_scale,
    )
    model.layout = AdapterLayout.of(model)
    model.load_adapter(0.3 * torch.randn(model.layout.size, generator=generator))
    return model


def _examples_of(tokens, numeric, label, user):
    count = len(tokens)
    length = np.array([len(t) for t in tokens], dtype=np.int64)
    examples = Examples(
        text=[""] * count,
        context=[],
        numeric_EF=np.asarray(numeric, dtype=np.float32).reshape(count, NUMERIC),
        label_EK=np.asarray(label, dtype=np.float32).reshape(count, 1),
        user_E=np.asarray(user, dtype=np.int64),
        visit_E=np.arange(count),
        group=["g"] * count,
        test_E=np.zeros(count, dtype=bool),
    )
    start = np.concatenate([[0], np.cumsum(length)[:-1]]).astype(np.int64)
    ids = torch.from_numpy(np.concatenate([np.asarray(t, dtype=np.int32) for t in tokens]))
    return PreparedExamples(examples, ids, start, length, length, None)


def _crowd(users=5, seed=0):
    random = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), 3)
    tokens = [random.integers(0, WORDS, random.integers(1, LONGEST)) for _ in user]
    return tokens, random.random((len(user), NUMERIC)), random.integers(0, 2, len(user)), user


_DATA = _examples_of(*_crowd())


def _private(model, data=_DATA, source=None, **changes):
    known = {"clip_norm": 0.5, "noise_multiplier": 1.0, "sampling_rate": 1.0}
    before = model.adapter()
    train_private(
        model,
        data,
        DPConfig(**known | changes, examples_per_user=64),
        steps=1,
        learning_rate=1.0,
        nominal_users=20,
        source=source or SeededSource(0),
    )
    return model.adapter() - before


@pytest.fixture(scope="session")
def small():
    """The functions of this file, for tests of several files."""
    return SimpleNamespace(
        tiny=_tiny, examples_of=_examples_of, crowd=_crowd, private=_private, data=_DATA
    )


_POLICY = {"delta": 1e-3, "base_digests": ("none",), "servers": ("s",)}


def _merchant(path):
    """Examples, model and task of the first merchant of a federation file."""
    federation = read_federation(path)
    model = build_model(federation.models, "numeric", federation.task)
    folder = SiloFolder.open(Path(federation.silos[0]))
    return load_or_prepare(folder, federation.task, model), model, federation.task


def _addressed(model, task):
    """The part of a request that says which model it means."""
    return {
        "job": "j",
        "task": task.name,
        "model": "numeric",
        "base_digest": model.base_digest,
        "layout_digest": model.layout.digest,
    }


@pytest.fixture
def training(small_federation, tmp_path):
    """A function that opens the silo, a request for it, and the model."""
    data, model, task = _merchant(small_federation(tmp_path, "numeric"))

    def make(policy=None, source=None, *, nominal_users=40, server="s", name="ledger"):
        return Silo(
            "m",
            data,
            task=task.name,
            nominal_users=nominal_users,
            ledger=tmp_path / f"{name}.db",
            policy=Policy(**(_POLICY | {"epsilon": 6.0} | (policy or {}))),
            source=source or SecureSource(),
            server=server,
        )

    private = {
        "clip_norm": 2.0,
        "noise_multiplier": 1.5,
        "sampling_rate": 0.5,
        "examples_per_user": 8,
        "steps": 2,
        "learning_rate": 0.5,
    }
    return make, TrainRequest(**_addressed(model, task), round=0, private=private), model


@pytest.fixture(scope="module")
def _measured_merchant(small_federation, tmp_path_factory):
    return _merchant(small_federation(tmp_path_factory.mktemp("measure"), "numeric"))


@pytest.fixture
def measuring(_measured_merchant, tmp_path):
    """A function that opens the silo, a request for its metrics, an adapter and the model."""
    data, model, task = _measured_merchant

    def make(policy=None, source=None, *, name="ledger", data=data):
        fields = {"epsilon": 2.0, "metrics": {"scores": 0.5}}
        return Silo(
            "m",
            data,
            task=task.name,
            nominal_users=40,
            ledger=tmp_path / name / "ledger.db",
            policy=Policy(**(_POLICY | fields | (policy or {}))),
            source=source or SecureSource(),
            server="s",
        )

    metrics = {"noise_multiplier": 8.0, "bins": 10, "negative_weight": 0.25}
    ask = MetricsRequest(**_addressed(model, task), round=1, metrics=metrics)
    return make, ask, torch.linspace(-1, 1, model.layout.size), model


_ROOM = 400
_SLOW = pytest.param("text_subject", marks=[pytest.mark.slow, pytest.mark.long], id="text")


@pytest.fixture(scope="session")
def claim():
    """What the audited training claims of itself."""
    return AuditConfig(
        privacy=DPConfig(clip_norm=4.0, noise_multiplier=2.0, sampling_rate=0.5),
        steps=4,
        learning_rate=1.0,
        delta=1e-5,
    )


@pytest.fixture(scope="module", params=[pytest.param("made_up_subject", id="made_up"), _SLOW])
def subject(request):
    """Model and data under audit, with room for canaries."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def made_up_subject():
    """Users with a few examples each of wide features, and a head alone."""
    generator, users, width = np.random.default_rng(0), 30, 60
    user_E = np.repeat(np.arange(users), 3)
    rows = len(user_E)
    examples = Examples(
        text=[""] * rows,
        context=[],
        numeric_EF=generator.random((rows, width)).astype(np.float32),
        label_EK=(generator.random((rows, 1)) < 0.5).astype(np.float32),
        user_E=user_E,
        visit_E=user_E,
        group=[""] * rows,
        test_E=np.zeros(rows, np.bool_),
    )
    model = TextModel(ModelConfig(use_text=False), numeric_size=width + _ROOM, outputs=1)
    return Subject(model, widen(prepare(examples, model), _ROOM), users, _ROOM)


@pytest.fixture(scope="module")
def text_subject(small_federation, tmp_path_factory):
    federation = read_federation(small_federation(tmp_path_factory.mktemp("a"), "plain"))
    folder = SiloFolder.open(Path(federation.silos[0]))
    return subject_of(folder, federation.task, federation.models["text"], canaries=_ROOM)
