"""The head: a linear layer on what the text's vector and the numeric features say.

Shape suffixes: E examples, H hidden size, F numeric features, K outputs, P public texts.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from silotune.errors import ModelError

__all__ = ["Head"]

# Of the numeric features: the head takes it away before its scale.
_NUMERIC_CENTRE = 0.1
_FLOOR = 0.1


class Head(nn.Module):
    """Linear head on whitened text and bounded numeric features; starts at zero.

    ``logits = score([(pooled - centre) @ whitening, numeric_scale * (numeric - 0.1)])``.
    Centre and whitening come from public texts: sentence vectors of one model share a large
    common part, and gradient descent under a clip spends its steps on that part otherwise.
    """

    centre_H: Tensor
    whitening_HH: Tensor

    def __init__(
        self,
        public_PH: Tensor | None,
        numeric: int,
        outputs: int,
        *,
        text_scale: float,
        numeric_scale: float,
    ) -> None:
        """Build from pooled public texts, (P, H); None for a model without text."""
        super().__init__()
        self.numeric_scale = numeric_scale
        text_size = 0
        if public_PH is not None:
            centre_H, whitening_HH = _whitening(public_PH, text_scale)
            # Constants, derived alike on every machine: no part of the adapter.
            self.register_buffer("centre_H", centre_H, persistent=False)
            self.register_buffer("whitening_HH", whitening_HH, persistent=False)
            text_size = len(centre_H)
        self.score = nn.Linear(text_size + numeric, outputs)
        nn.init.zeros_(self.score.weight)
        nn.init.zeros_(self.score.bias)

    def forward(self, pooled_EH: Tensor | None, numeric_EF: Tensor) -> Tensor:
        """Return logits, (E, K)."""
        parts = [self.numeric_scale * (numeric_EF - _NUMERIC_CENTRE)]
        if pooled_EH is not None:
            parts.insert(0, (pooled_EH - self.centre_H) @ self.whitening_HH)
        logits: Tensor = self.score(torch.cat(parts, dim=1))
        return logits

    def folded(self) -> dict[str, Tensor]:
        """Return weight (K, H + F) and bias (K,) for [pooled, numeric] as they come.

        Centre, whitening and scales are folded in: what any other program needs.
        """
        weight = self.score.weight.detach().double()
        bias = self.score.bias.detach().double()
        size = weight.shape[1]
        text = len(self.centre_H) if hasattr(self, "centre_H") else 0
        numeric_KF = self.numeric_scale * weight[:, text:]
        bias = bias - _NUMERIC_CENTRE * numeric_KF.sum(1)
        parts = [numeric_KF]
        if text:
            text_KH = weight[:, :text] @ self.whitening_HH.double().T
            bias = bias - text_KH @ self.centre_H.double()
            parts.insert(0, text_KH)
        folded = torch.cat(parts, dim=1)
        if folded.shape[1] != size:
            raise ModelError(f"head folds to {folded.shape[1]} columns, not {size}.")
        return {"weight": folded.float(), "bias": bias.float()}

    def unfolded(self, folded: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Undo `folded`: weight and bias of ``score``, by this head's constants, up to rounding."""
        weight, bias = folded["weight"].double(), folded["bias"].double()
        text = len(self.centre_H) if hasattr(self, "centre_H") else 0
        bias = bias + _NUMERIC_CENTRE * weight[:, text:].sum(1)
        parts = [weight[:, text:] / self.numeric_scale]
        if text:
            bias = bias + weight[:, :text] @ self.centre_H.double().cpu()
            # The whitening is symmetric, and its smallest eigenvalue is near the text's scale.
            root_HH = self.whitening_HH.double().cpu()
            parts.insert(0, torch.linalg.solve(root_HH, weight[:, :text].T).T)
        return {"weight": torch.cat(parts, dim=1).float(), "bias": bias.float()}


def _whitening(public_PH: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Return the centre (H,) and a symmetric whitening (H, H) of pooled public texts.

    The symmetric root (ZCA) is a continuous function of the texts' covariance, so that two
    machines whose arithmetic differs in the last bit agree; eigenvectors would not.
    """
    public_PH = public_PH.double()
    centre_H = public_PH.mean(0)
    covariance_HH = (public_PH - centre_H).T @ (public_PH - centre_H) / len(public_PH)
    values_H, vectors_HH = torch.linalg.eigh(covariance_HH)
    top = values_H[-1]
    # Directions below a tenth of the largest variance are not blown up to noise.
    root_H = (top / (values_H.clamp_min(0) + _FLOOR * top)).sqrt()
    whitening_HH = scale * (vectors_HH * root_H) @ vectors_HH.T
    return centre_H.float(), whitening_HH.float()
