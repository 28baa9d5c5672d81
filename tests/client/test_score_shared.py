"""A merchant scores one task with the adapter that several share."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from client.config import ClientConfig
from client.kept_adapters import keep_adapter, kept_adapters
from client.score import Asked, score_silo
from client.score_settings import score_settings
from silotune.errors import ModelError
from silotune.federation import model_for
from silotune.invitation import Invitation
from silotune.messages import TrainRequest
from silotune.models.text_model import ModelConfig
from silotune.tasks.several import SeveralTasks, part_of
from silotune.toml_text import toml_text
from tests.client.scoring import CHURN, PROMOTION, SEGMENT

BOTH = SeveralTasks(tasks=(CHURN, SEGMENT))


def test_each_task_is_scored_by_its_own_head_of_the_adapter_that_the_daemon_keeps(silo):
    model = model_for(ModelConfig(use_text=False), BOTH)
    flat = torch.randn(model.layout.size, generator=torch.Generator().manual_seed(0))
    known = {"base_digest": model.base_digest, "layout_digest": model.layout.digest}
    what = TrainRequest(job="j", round=1, task=BOTH.name, model="text", plain={}, **known)
    keep_adapter(silo.path, what, flat)
    server = Invitation(name="a", address="a:1", certificate_sha256="0" * 64, ca="x")
    settings = ClientConfig(server=server, task=asdict(BOTH), model={"use_text": False})
    (silo.path / "client.toml").write_text(toml_text(asdict(settings)))
    model.load_adapter(flat)
    examples = BOTH.build(silo)
    for number, task in enumerate(BOTH.tasks):
        (kept,) = kept_adapters(silo.path, task.name)
        assert kept.task == BOTH.name
        found = score_settings(silo.path, task.name)
        assert (found.task, found.shared) == (task, BOTH)
        scored = score_silo(found, silo, Asked(own_examples=True))
        _, rows = part_of(examples, BOTH, number)
        numeric = torch.from_numpy(examples.numeric_EF[rows][examples.test_E[rows]])
        with torch.no_grad():
            logits = model(None, None, numeric)[:, BOTH.objective.columns(number)]
        assert np.allclose(scored.score_EK, task.objective.scores(logits.numpy()), atol=1e-6)
    with pytest.raises(ModelError, match="holds no adapter of task 'promotion-response'"):
        score_settings(silo.path, PROMOTION.name)
