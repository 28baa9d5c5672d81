"""Simple methods that read an example's text: a linear model on words, or on a frozen encoder.

As in `simulations.baselines`: each learns from training rows alone and returns the logits of the
test rows, one column for each class, or one for a yes or no. None is private. They need examples
with their texts, which a silo's cache drops.

Shape suffixes: E examples, U distinct texts, K outputs, C classes that were seen, H hidden size.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold

from silotune.models.base import DEFAULT_BASE, load_base, load_tokenizer, pool
from silotune.models.batching import token_batches
from silotune.tasks.base import Examples

__all__ = ["TEXT_METHODS", "frozen", "tfidf"]

_Floats = NDArray[np.float64]
_Features = Any
"""A matrix, dense or sparse: (U, features)."""
_INVERSE_PENALTIES = (0.3, 3.0, 30.0, 300.0)
"""Candidates for C of `LogisticRegression`, strongest penalty first."""
_FOLDS = 3
_TOKENS_AT_ONCE = 4096
_LONGEST = 64


def tfidf(examples_list: Sequence[Examples], *, pooled: bool) -> list[_Floats]:
    """Score by logistic regression on words and pairs of words, weighed by TF-IDF.

    Args:
        examples_list: one entry per merchant, with texts.
        pooled: one vocabulary and regression on everyone's training rows; False: each its own.
    """

    def features(train: list[str], texts: list[str]) -> _Features:
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        words.fit(train)
        return words.transform(texts)

    return _scores(examples_list, features, pooled=pooled)


def frozen(examples_list: Sequence[Examples], *, pooled: bool) -> list[_Floats]:
    """Score by logistic regression on what the default base makes of the texts, not adapted.

    Arguments: as `tfidf`.
    """
    known = _embedded(tuple(sorted({t for e in examples_list for t in _texts(e)})))

    def features(train: list[str], texts: list[str]) -> _Features:
        del train
        return np.stack([known[t] for t in texts])

    return _scores(examples_list, features, pooled=pooled)


def _scores(
    examples_list: Sequence[Examples],
    features: Callable[[list[str], list[str]], _Features],
    *,
    pooled: bool,
) -> list[_Floats]:
    if not pooled:
        return [s for e in examples_list for s in _scores([e], features, pooled=True)]
    texts = [_texts(e) for e in examples_list]
    number = {t: i for i, t in enumerate(dict.fromkeys(t for some in texts for t in some))}
    text_E = np.array([number[t] for some in texts for t in some])
    label_EK = np.concatenate([e.label_EK for e in examples_list])
    test_E = np.concatenate([e.test_E for e in examples_list])
    groups = [g for e in examples_list for g in e.group]
    group_E = np.unique(np.array(groups, dtype=object), return_inverse=True)[1]
    distinct = list(number)
    # Rows of one text and class count together: a few thousand in place of tens of thousands.
    class_E = label_EK.argmax(1) if label_EK.shape[1] > 1 else label_EK[:, 0].astype(int)
    rows = np.flatnonzero(~test_E)
    key = np.stack([text_E[rows], class_E[rows]], axis=1)
    _, first, count = np.unique(key, axis=0, return_index=True, return_counts=True)
    train = rows[first]
    features_U = features([distinct[i] for i in text_E[rows]], distinct)
    fit = _Linear(label_EK.shape[1])
    fit.choose(features_U[text_E[train]], class_E[train], count, group_E[train])
    logits_UK = fit.logits(features_U)
    ends = np.cumsum([len(e) for e in examples_list])[:-1]
    return [
        logits_UK[text][test]
        for text, test in zip(np.split(text_E, ends), np.split(test_E, ends), strict=True)
    ]


TEXT_METHODS: Mapping[str, Callable[[Sequence[Examples]], list[_Floats]]] = {
    "tfidf-local": lambda silos: tfidf(silos, pooled=False),
    "tfidf-pooled": lambda silos: tfidf(silos, pooled=True),
    "frozen-local": lambda silos: frozen(silos, pooled=False),
    "frozen-pooled": lambda silos: frozen(silos, pooled=True),
}
"""Of `simulations.baselines.METHODS`, those that read texts."""


class _Linear:
    """Logistic regression whose penalty is chosen on groups that it was not fitted on.

    Args:
        outputs: K; 1 for a yes or no.
    """

    def __init__(self, outputs: int) -> None:
        self._outputs = outputs
        self._model: Any = None
        self._constant_K: _Floats = np.zeros(outputs)

    def choose(
        self,
        features: _Features,
        class_E: NDArray[np.int64],
        count_E: NDArray[np.int64],
        group_E: NDArray[np.int64],
    ) -> None:
        """Fit with the penalty of the least log loss in cross-validation over groups."""
        penalties = _INVERSE_PENALTIES
        folds = min(_FOLDS, np.unique(group_E).size)
        best = penalties[len(penalties) // 2]
        if folds > 1 and np.unique(class_E).size > 1:
            parts = list(GroupKFold(folds).split(class_E, groups=group_E))
            best = min(penalties, key=lambda c: self._loss(features, class_E, count_E, parts, c))
        self._fit(features, class_E, count_E, best)

    def logits(self, features: _Features) -> _Floats:
        """Return logits, (rows, K)."""
        out_EK = np.repeat(self._constant_K[None], features.shape[0], axis=0)
        if self._model is None or not features.shape[0]:
            return out_EK
        found = self._model.decision_function(features)
        if self._outputs == 1:
            return np.asarray(found, np.float64)[:, None]
        if found.ndim == 1:
            found = np.stack([np.zeros_like(found), found], axis=1)
        # Classes that training never saw keep the little that smoothing gives them.
        out_EK[:, self._model.classes_] = found - np.logaddexp.reduce(found, axis=1, keepdims=True)
        return out_EK

    def _loss(
        self,
        features: _Features,
        class_E: NDArray[np.int64],
        count_E: NDArray[np.int64],
        parts: Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]],
        penalty: float,
    ) -> float:
        total = 0.0
        for fit, rest in parts:
            self._fit(features[fit], class_E[fit], count_E[fit], penalty)
            logits_EK = self.logits(features[rest])
            if self._outputs == 1:
                logits_EK = np.concatenate([np.zeros_like(logits_EK), logits_EK], axis=1)
            log_chance_EK = logits_EK - np.logaddexp.reduce(logits_EK, axis=1, keepdims=True)
            total -= float(
                (count_E[rest] * log_chance_EK[np.arange(len(rest)), class_E[rest]]).sum()
            )
        return total

    def _fit(
        self,
        features: _Features,
        class_E: NDArray[np.int64],
        count_E: NDArray[np.int64],
        penalty: float,
    ) -> None:
        classes = max(2, self._outputs)
        seen_C = np.bincount(class_E, weights=count_E, minlength=classes)
        log_rate_C = np.log(seen_C + 1) - np.log(seen_C.sum() + classes)
        several = self._outputs > 1
        self._constant_K = log_rate_C if several else log_rate_C[1:] - log_rate_C[:1]
        self._model = None
        if np.unique(class_E).size > 1:
            model = LogisticRegression(C=penalty, max_iter=1000)
            self._model = model.fit(features, class_E, sample_weight=count_E)


def _texts(examples: Examples) -> list[str]:
    return [f"{t}. {c}" for t, c in zip(examples.text, examples.context, strict=True)]


@lru_cache(maxsize=1)
@torch.inference_mode()
def _embedded(texts: tuple[str, ...]) -> dict[str, NDArray[np.float32]]:
    """Return the pooled vector of each text, (H,), unit length."""
    base, tokenizer = load_base(DEFAULT_BASE), load_tokenizer(DEFAULT_BASE)
    encoded = tokenizer(list(texts), truncation=True, max_length=_LONGEST)["input_ids"]
    length_U = np.array([len(i) for i in encoded], dtype=np.int64)
    found: dict[str, NDArray[np.float32]] = {}
    for part in token_batches(np.arange(len(texts)), length_U, _TOKENS_AT_ONCE):
        padded = tokenizer.pad({"input_ids": [encoded[i] for i in part]}, return_tensors="pt")
        mask_ET = padded["attention_mask"]
        states = base(input_ids=padded["input_ids"], attention_mask=mask_ET).last_hidden_state
        pooled_EH = pool(states, mask_ET, "mean").numpy()
        found |= {texts[i]: vector for i, vector in zip(part, pooled_EH, strict=True)}
    return found
