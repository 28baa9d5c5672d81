"""Self-test before private training: once per process and model, on made-up examples."""

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from client.prepared import Batch
from privacy.gradient_check import check_gradients
from privacy.gradients import UserGradients
from silotune.models.text_model import TextModel
from silotune.tasks.objective import Objective

__all__ = ["check_once"]

_LENGTHS = (3, 8, 5)
"""Tokens of the made-up examples; no two padded alike, none as many as there are examples."""
_USERS = (1, 0, 1)

_checked: WeakKeyDictionary[TextModel, tuple[str, str, int, Objective]] = WeakKeyDictionary()


def check_once(model: TextModel, gradients: UserGradients, objective: Objective) -> None:
    """Check ``gradients`` on ``model`` unless this process has seen the same model pass.

    Args:
        model: its adapter is moved for the check and put back.
        gradients: attached to it.
        objective: its loss.

    Raises:
        PrivacyError: as `privacy.gradient_check.check_gradients`.
    """
    device = next(model.parameters()).device
    # A layer put into training mode may drop out or keep statistics.
    training = sum(m.training for m in model.modules())
    kind = (model.layout.digest, str(device), training, objective)
    if _checked.get(model) == kind:
        return
    whole = _made_up(model, device, objective)

    def loss_of(rows: Sequence[int]) -> Tensor:
        batch = _rows(whole, list(rows))
        return objective.loss(batch.logits(model), batch.label_EK)

    check_gradients(
        model, gradients, loss_of, torch.tensor(_USERS, device=device), precision=model.precision
    )
    _checked[model] = kind


def _made_up(model: TextModel, device: torch.device, objective: Objective) -> Batch:
    generator = torch.Generator().manual_seed(0)
    count = len(_LENGTHS)
    numeric_EF = torch.rand(count, model.numeric_size, generator=generator)
    label_EK = objective.made_up_labels(count, generator)
    if model.backbone is None:
        return Batch(None, None, None, numeric_EF.to(device), None, label_EK.to(device))
    words = int(model.backbone.get_input_embeddings().num_embeddings)
    ids_ET = torch.randint(words, (count, max(_LENGTHS)), generator=generator).to(device)
    length_E = torch.tensor(_LENGTHS, device=device)
    mask_ET = (torch.arange(max(_LENGTHS), device=device) < length_E[:, None]).long()
    stored_ETH = None
    if model.prefix_depth:
        with model.autocast():
            stored_ETH = model.prefix.compute(ids_ET, mask_ET).to(model.precision)
    return Batch(
        ids_ET, mask_ET, mask_ET.bool(), numeric_EF.to(device), stored_ETH, label_EK.to(device)
    )


def _rows(whole: Batch, rows: list[int]) -> Batch:
    longest = max(_LENGTHS[r] for r in rows)

    def cut(part: Tensor | None) -> Tensor | None:
        return None if part is None else part[rows, :longest]

    return Batch(
        cut(whole.ids_ET),
        cut(whole.mask_ET),
        cut(whole.pool_ET),
        whole.numeric_EF[rows],
        cut(whole.stored_ETH),
        whole.label_EK[rows],
    )
