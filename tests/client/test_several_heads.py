"""Attacks on an adapter with several heads: one user's bound, and what a policy allows."""

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from client.prepared import PreparedExamples, load_or_prepare
from client.self_check import check_once
from client.silo import Silo
from client.trainer import train_private
from privacy.dp_sgd import DPConfig
from privacy.gradients import UserGradients
from privacy.policy import Policy
from privacy.randomness import SecureSource
from silotune.errors import MessageError, PolicyError
from silotune.federation import model_for, read_federation
from silotune.messages import TrainRequest
from silotune.models.adapter import AdapterLayout
from silotune.models.head import Head
from silotune.models.heads import Heads, HeadShape
from silotune.models.text_model import ModelConfig
from silotune.tables.silo_folder import SiloFolder
from silotune.tasks.base import Examples
from silotune.tasks.objective import Binary, Bounded, Classes
from silotune.tasks.several_objective import SeveralObjectives
from tests.tasks.test_several_heads import BOTH, CHURN, SEGMENT

WORDS, LONGEST, NOMINAL = 50, 12, 20
SIZES = (2, 3, 1)
"""Numeric features of the tasks."""
OBJECTIVE = SeveralObjectives(
    names=("yes", "class", "value"),
    parts=(Binary(), Classes(names=("a", "b", "c")), Bounded()),
    weights=(1.0, 3.0, 0.5),
)
ODD = [np.nan, np.inf, -np.inf, 3e38, -3e38, 1e20, 1e-40, 0.0]
NUMBERS = st.one_of(st.sampled_from(ODD), st.floats(-1e4, 1e4, width=32))
EXAMPLE = st.tuples(
    st.integers(0, 2),
    st.lists(st.integers(0, WORDS - 1), min_size=1, max_size=LONGEST),
    st.lists(NUMBERS, min_size=3, max_size=3),
    st.lists(NUMBERS, min_size=3, max_size=3),
)


class Silent:
    """Everybody sampled, no noise: the sum that the noise would hide."""

    is_private = False

    def uniform(self, count):
        return np.linspace(0, 0.999, count) if count else np.empty(0)

    def gaussian(self, count):
        return np.zeros(count)


@pytest.fixture(scope="module")
def model(small):
    """A small random text model with a head for each of three tasks."""
    model = small.tiny("Bert")
    generator = torch.Generator().manual_seed(5)
    shapes, heads = [], []
    for size, part in zip(SIZES, OBJECTIVE.parts, strict=True):
        public = nn.functional.normalize(torch.randn(40, 16, generator=generator), dim=1)
        heads.append(Head(public, size, part.outputs, text_scale=2.0, numeric_scale=2.0))
        shapes.append(HeadShape(numeric=size, outputs=part.outputs))
    model.head = Heads(heads, shapes)
    model.numeric_size, model.outputs = sum(SIZES), OBJECTIVE.outputs
    model.layout = AdapterLayout.of(model)
    model.load_adapter(0.3 * torch.randn(model.layout.size, generator=generator))
    return model


def examples_of(rows, user):
    """Rows are (task, tokens, numbers of its features, numbers of its label)."""
    count = len(rows)
    numeric = np.zeros((count, sum(SIZES)), dtype=np.float32)
    label = np.full((count, OBJECTIVE.outputs), np.nan, dtype=np.float32)
    for row, (task, _, features, outcome) in enumerate(rows):
        first, block = sum(SIZES[:task]), OBJECTIVE.columns(task)
        with np.errstate(over="ignore"):
            numeric[row, first : first + SIZES[task]] = features[: SIZES[task]]
            label[row, block] = outcome[: block.stop - block.start]
    length = np.array([len(tokens) for _, tokens, _, _ in rows], dtype=np.int64)
    examples = Examples(
        text=[""] * count,
        context=[],
        numeric_EF=numeric,
        label_EK=label,
        user_E=np.asarray(user, dtype=np.int64),
        visit_E=np.arange(count),
        group=["g"] * count,
        test_E=np.zeros(count, dtype=bool),
        objective=OBJECTIVE,
    )
    ids = torch.from_numpy(np.concatenate([np.asarray(r[1], dtype=np.int32) for r in rows]))
    start = np.concatenate([[0], np.cumsum(length)[:-1]]).astype(np.int64)
    return PreparedExamples(examples, ids, start, length, length, None)


def crowd():
    random = np.random.default_rng(0)
    rows = []
    for _ in range(5):
        for task in range(3):
            tokens = random.integers(0, WORDS, random.integers(1, LONGEST)).tolist()
            label = random.integers(0, 2, 3).tolist() if task != 1 else [0, 1, 0]
            rows.append((task, tokens, random.random(3).tolist(), label))
    return rows, np.repeat(np.arange(5), 3).tolist()


def step(model, data, clip, start):
    model.load_adapter(start)
    train_private(
        model,
        data,
        DPConfig(clip_norm=clip, noise_multiplier=1.0, sampling_rate=1.0, examples_per_user=64),
        steps=1,
        learning_rate=1.0,
        nominal_users=NOMINAL,
        source=Silent(),
    )
    return (model.adapter() - start).double()


def moved_by(model, user, clip):
    """Step with the user minus step without, in units of clip over normaliser."""
    rows, who = crowd()
    both = examples_of([*rows, *user], [*who, *[99] * len(user)])
    gone = replace(both, examples=replace(both.examples, test_E=both.examples.user_E == 99))
    start = model.adapter()
    found = [step(model, data, clip, start) for data in (both, gone)]
    model.load_adapter(start)
    assert all(torch.isfinite(f).all() for f in found)
    return float((found[0] - found[1]).norm() / (clip / NOMINAL)), start


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    user=st.integers(1, 30).flatmap(lambda n: st.lists(EXAMPLE, min_size=n, max_size=n)),
    clip=st.sampled_from([0.01, 0.3, 5.0]),
)
def test_a_users_examples_of_all_tasks_move_a_step_by_at_most_one_clip(model, user, clip):
    moved, start = moved_by(model, user, clip)
    # The update is read off as the difference of two float32 adapters.
    reading = 4 * float(torch.finfo(torch.float32).eps * start.double().norm()) / (clip / NOMINAL)
    assert moved <= 1 + reading


def large(task, count=8):
    far = [50.0, -50.0, 50.0]
    return [(task, [3 + task] * 4, far, [0.0, 0.0, 1.0] if task == 1 else [0.0] * 3)] * count


def test_a_user_of_all_tasks_reaches_the_bound_and_does_not_get_one_for_each_head(model):
    users = [large(task) for task in range(3)]
    for user in (*users, [row for rows in users for row in rows]):
        assert moved_by(model, user, 0.05)[0] == pytest.approx(1, abs=1e-3)


def test_the_gradients_of_every_head_pass_the_self_test(model):
    gradients = UserGradients(model)
    try:
        check_once(model, gradients, OBJECTIVE)
    finally:
        gradients.remove()


def test_a_row_of_one_task_has_no_gradient_in_the_head_of_another(model):
    for task in range(3):
        gradients = UserGradients(model)
        data = examples_of(large(task, 2), [0, 1])
        batch = data.batch(np.arange(2), torch.device("cpu"))
        try:
            with gradients.collect(torch.arange(2), 2):
                torch.autograd.backward(OBJECTIVE.loss(batch.logits(model), batch.label_EK))
            rows = gradients.take()
        finally:
            gradients.remove()
        for row in rows:
            named = model.layout.split(row.float())
            moved = {n.split(".")[2] for n, g in named.items() if "head." in n and g.any()}
            assert moved == {str(task)}
            assert any(g.any() for n, g in named.items() if "lora" in n)


PRIVATE = {
    "clip_norm": 2.0,
    "noise_multiplier": 1.5,
    "sampling_rate": 0.5,
    "examples_per_user": 8,
    "steps": 2,
    "learning_rate": 0.5,
}


@pytest.fixture(scope="module")
def merchant(small_federation, tmp_path_factory):
    path = small_federation(tmp_path_factory.mktemp("heads"), "numeric")
    folder = SiloFolder.open(next(iter(map(_path, read_federation(path).silos))))
    model = model_for(ModelConfig(use_text=False), BOTH)
    return SimpleNamespace(model=model, data=load_or_prepare(folder, BOTH, model))


def _path(text):
    from pathlib import Path

    return Path(text)


def opened(merchant, folder, tasks, epsilon=20.0):
    return Silo(
        "m",
        merchant.data,
        task=BOTH.name,
        nominal_users=40,
        ledger=folder / "ledger.db",
        policy=Policy(
            epsilon=epsilon, delta=1e-3, base_digests=("none",), servers=("s",), tasks=tasks
        ),
        source=SecureSource(),
        server="s",
    )


def asked(merchant, task):
    return TrainRequest(
        job="j",
        round=0,
        task=task,
        model="text",
        base_digest="none",
        layout_digest=merchant.model.layout.digest,
        private=PRIVATE,
    )


@pytest.mark.parametrize(
    ("allowed", "task", "error"),
    [
        ((CHURN.name,), BOTH.name, PolicyError),
        ((SEGMENT.name,), BOTH.name, PolicyError),
        ((CHURN.name, SEGMENT.name), f"{BOTH.name}+discount-depth", PolicyError),
        ((BOTH.name,), BOTH.name, PolicyError),
        # Named alone, all would be trained.
        ((CHURN.name,), CHURN.name, MessageError),
        ((CHURN.name, SEGMENT.name), CHURN.name, MessageError),
        ((CHURN.name, SEGMENT.name), f"{SEGMENT.name}+{CHURN.name}", MessageError),
        ((CHURN.name, SEGMENT.name), f"{BOTH.name}+{CHURN.name}", MessageError),
    ],
)
def test_a_request_with_one_task_that_is_not_allowed_is_refused_whole(
    merchant, tmp_path, allowed, task, error
):
    start = merchant.model.adapter()
    with opened(merchant, tmp_path, allowed) as silo:
        with pytest.raises(error, match="task"):
            silo.train(asked(merchant, task), start, merchant.model)
        assert not [e for e in silo.ledger.entries if e.kind == "reserve"]
        assert torch.equal(merchant.model.adapter(), start)


def test_one_release_of_all_heads_is_charged_once_and_moves_every_head(merchant, tmp_path):
    start = torch.zeros(merchant.model.layout.size)
    with opened(merchant, tmp_path, (CHURN.name, SEGMENT.name)) as silo:
        out = silo.train(asked(merchant, BOTH.name), start, merchant.model)
        reserved = [e for e in silo.ledger.entries if e.kind == "reserve"]
    assert len(reserved) == 1
    assert reserved[0].body["what"]["task"] == BOTH.name
    parts = merchant.model.layout.split(out.vector())
    assert all(math.isfinite(float(p.norm())) and p.any() for p in parts.values())
