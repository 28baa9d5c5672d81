"""Examples as the model takes them: token ids, activations, and padded batches of both.

Shape suffixes: E examples, T tokens, H hidden size, F features, K outputs, N tokens of all
texts one after another, X numbers per token.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from client.prefix_choice import Choice
from silotune.errors import ConfigError
from silotune.models.batching import token_batches
from silotune.models.text_model import TextModel
from silotune.tasks.base import Examples

__all__ = ["FORWARD_BUDGET", "Batch", "PreparedExamples"]

FORWARD_BUDGET = 4096
"""Padded tokens per batch without a backward pass: enough for the processor's units."""


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """What one forward pass takes. Padded on the right."""

    ids_ET: Tensor | None
    mask_ET: Tensor | None
    pool_ET: Tensor | None
    """1 for the tokens of the text, 0 for its context and padding."""
    numeric_EF: Tensor
    stored_ETH: Tensor | None
    label_EK: Tensor

    def logits(self, model: TextModel) -> Tensor:
        """Run ``model`` on the batch, (E, K)."""
        logits_EK: Tensor = model(
            self.ids_ET, self.mask_ET, self.numeric_EF, self.pool_ET, self.stored_ETH
        )
        return logits_EK

    def vectors(self, model: TextModel) -> Tensor:
        """Return what the adapted encoder of ``model`` makes of the texts, (E, H)."""
        if self.mask_ET is None:
            raise ConfigError("use_text is false; a model without text has no vectors of it.")
        return model.pooled(self.ids_ET, self.mask_ET, self.pool_ET, self.stored_ETH)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedExamples:
    """Examples with their token ids and, where layers are frozen, the activations above them.

    Examples of the same tokens share them.
    """

    examples: Examples
    ids_N: Tensor | None
    start_E: NDArray[np.int64]
    """Where each example's tokens begin in ``ids_N`` and ``stored_NH``."""
    length_E: NDArray[np.int64]
    pooled_E: NDArray[np.int64]
    """How many tokens, from the first, are pooled over."""
    stored_NH: Tensor | None
    choice: Choice | None = None
    """Why there are activations or none; None where there was nothing to choose."""

    @property
    def nbytes(self) -> int:
        """Bytes of tokens, activations and features, whether in memory or mapped."""
        tensors = [t for t in (self.ids_N, self.stored_NH) if t is not None]
        arrays = (self.start_E, self.length_E, self.pooled_E, self.examples.numeric_EF)
        return sum(t.nbytes for t in tensors) + sum(a.nbytes for a in arrays)

    def batch(self, rows: NDArray[np.int64], device: torch.device) -> Batch:
        """Gather ``rows`` into one padded batch on ``device``."""
        numeric_EF = torch.from_numpy(self.examples.numeric_EF[rows]).to(device)
        label_EK = torch.from_numpy(self.examples.label_EK[rows]).to(device)
        if self.ids_N is None:
            return Batch(None, None, None, numeric_EF, None, label_EK)
        length_E = torch.from_numpy(self.length_E[rows])
        offset_T = torch.arange(int(length_E.max()))
        mask_ET = offset_T < length_E[:, None]
        # Padding repeats the example's first token: its mask is 0, so it is never read.
        index_ET = torch.from_numpy(self.start_E[rows])[:, None] + offset_T * mask_ET
        return Batch(
            self.ids_N[index_ET].long().to(device),
            mask_ET.long().to(device),
            (offset_T < torch.from_numpy(self.pooled_E[rows])[:, None]).to(device),
            numeric_EF,
            None if self.stored_NH is None else _gather(self.stored_NH, index_ET).to(device),
            label_EK,
        )

    @torch.inference_mode()
    def scores(
        self, model: TextModel, rows: NDArray[np.int64], *, budget: int = FORWARD_BUDGET
    ) -> NDArray[np.float32]:
        """Return the logits of ``rows``, (len(rows), K), in their order."""
        device = next(model.parameters()).device
        out = np.empty((len(self.examples), model.outputs), dtype=np.float32)
        for part in token_batches(rows, self.length_E, budget):
            out[part] = self.batch(part, device).logits(model).float().cpu().numpy()
        return out[rows]

    @torch.inference_mode()
    def vectors(self, model: TextModel) -> NDArray[np.float32]:
        """Return what the adapted encoder makes of every text, (E, H), of unit length.

        Raises:
            ConfigError: the model has no text.
        """
        device = next(model.parameters()).device
        rows = np.arange(len(self.examples))
        parts = list(token_batches(rows, self.length_E, FORWARD_BUDGET))
        found = [self.batch(p, device).vectors(model).cpu().numpy() for p in parts]
        order = np.argsort(np.concatenate(parts), kind="stable")
        return np.concatenate(found)[order]


def _gather(rows_NX: Tensor, index_ET: Tensor) -> Tensor:
    # Nine times as fast as indexing by a matrix, with the same result.
    flat = rows_NX.index_select(0, index_ET.reshape(-1))
    return flat.view(*index_ET.shape, *rows_NX.shape[1:])
