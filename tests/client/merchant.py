"""A merchant that takes part and was sent an adapter: for tests of what it may release."""

from dataclasses import asdict

import torch

from client.config import ClientConfig
from client.kept_adapters import keep_adapter
from silotune.invitation import Invitation
from silotune.messages import TrainRequest
from silotune.models.text_model import ModelConfig, TextModel
from silotune.tasks.registry import task_mapping
from silotune.toml_text import toml_text
from tests.client.scoring import SEGMENT

INVITATION = Invitation(
    name="agg", address="localhost:9", certificate_sha256="0" * 64, ca="not read here"
)
POLICY = {
    "epsilon": 2.0,
    "delta": 1e-4,
    "base_digests": ["none"],
    "servers": [INVITATION.identity],
    "tasks": [SEGMENT.name],
    "metrics": {"centroids": 1.0},
}


def take_part(folder, *, sent=True, **policy):
    """Write client.toml and policy.toml, and keep an adapter as the daemon does."""
    cfg = ModelConfig(use_text=False)
    settings = ClientConfig(server=INVITATION, task=task_mapping(SEGMENT), model=asdict(cfg))
    (folder / "client.toml").write_text(toml_text(asdict(settings)))
    (folder / "policy.toml").write_text(toml_text(POLICY | policy))
    if sent:
        model = TextModel(
            cfg,
            numeric_size=len(SEGMENT.numeric_names),
            outputs=SEGMENT.outputs,
            public_texts=SEGMENT.public_texts(),
        )
        ask = TrainRequest(
            job="j",
            round=1,
            task=SEGMENT.name,
            model="text",
            base_digest=model.base_digest,
            layout_digest=model.layout.digest,
            private={},
        )
        keep_adapter(folder, ask, torch.linspace(-1, 1, model.layout.size))
