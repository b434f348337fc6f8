"""What the words of a text say of its targets, which an encoder of meanings blurs: a ridge's predictions from them.

Of a training record they are those of a fit on other training records (stacking, Wolpert 1992): a fit knows its own
records better than it will know any other, and whoever reads its predictions would come to trust them too much.

Shape suffixes: N texts, M training records, V terms, T targets, S strengths, K 64.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

WORDS_WIDTH = 64
"""Numbers of a text: its targets' predictions as often as they fit in, as channels are dropped in training."""
_LEAST_TEXTS, _MOST_TERMS = 2, 50_000
_FOLDS = 5
_STRENGTHS = (1.0, 3.0, 10.0, 30.0)
_SMALLEST_STD = 1e-6
# scikit-learn's: what it counts in the training texts is counted here in others.
_WORD = re.compile(r"\b\w\w+\b")


@dataclass(frozen=True)
class Labels:
    """The targets of all records, and which of these are the training records that a fit is made on."""

    train: np.ndarray
    """Rows."""
    values_NT: np.ndarray
    mask_NT: np.ndarray
    """True where a target is present."""
    group_N: np.ndarray
    """Records of equal number are near-duplicates: none of them is predicted by a fit on another."""

    @property
    def digest(self) -> str:
        """Of the training records' targets, and of what hangs together."""
        found = hashlib.sha256(np.ascontiguousarray(self.values_NT[self.train]).tobytes())
        found.update(np.ascontiguousarray(self.mask_NT[self.train]).tobytes())
        groups_M = numbered(self.group_N[self.train])
        if len(groups_M) and groups_M.max() + 1 < len(groups_M):
            found.update(groups_M.tobytes())
        return found.hexdigest()


@dataclass(frozen=True)
class WordFit:
    """Terms, and how much each weighs in the prediction of every target; fitted on training records."""

    terms: tuple[str, ...]
    """Words, and pairs of neighbours with a blank between them."""
    idf_V: np.ndarray
    """float32."""
    weights_VT: np.ndarray
    """float16; the standardisation's scale is inside."""
    offset_T: np.ndarray
    """float32."""

    def apply(self, texts: Sequence[str]) -> np.ndarray:
        """Numbers of texts, (N, 64) float16: standardised predictions.

        A term that stands c times weighs (1 + ln c) idf, and the weights of a text have length 1 (TF-IDF).
        """
        return laid_out(np.stack([self._one(text) for text in texts]) if texts else self.offset_T[None][:0])

    def _one(self, text: str) -> np.ndarray:
        words = _WORD.findall(text.lower())
        counts = Counter(term for term in (*words, *map(" ".join, pairwise(words))) if term in self._row_of)
        rows = [self._row_of[term] for term in counts]
        weights = (1 + np.log(np.fromiter(counts.values(), np.float32, len(counts)))) * self.idf_V[rows]
        numbers_T: np.ndarray = weights / (np.linalg.norm(weights) or 1) @ self.weights_VT[rows].astype(np.float32)
        return numbers_T + self.offset_T

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {term: row for row, term in enumerate(self.terms)}


def laid_out(numbers_NT: np.ndarray) -> np.ndarray:
    """Numbers by target as columns of the features, (N, 64) float16; targets that do not fit in are left out."""
    count, targets = numbers_NT.shape
    columns_NK = np.zeros((count, WORDS_WIDTH), np.float16)
    if targets:
        found_NK = np.tile(numbers_NT, max(1, WORDS_WIDTH // targets))[:, :WORDS_WIDTH]
        columns_NK[:, : found_NK.shape[1]] = found_NK
    return columns_NK


def fit_words(texts: Sequence[str], labels: Labels) -> tuple[WordFit, np.ndarray]:
    """The fit on the training records, and their own numbers, (M, 64) float16, by fits that have not seen them.

    A term stands in two training texts at least; of these the 50,000 most frequent are kept. Each target has the
    strength that predicts it best in five folds. Targets that fewer than ten training records have, or near-duplicates
    of one alone, are not predicted. The texts are those of all records.
    """
    values_MT, mask_MT = labels.values_NT[labels.train].astype(np.float64), labels.mask_NT[labels.train]
    targets = values_MT.shape[1]
    counted = word_counts([texts[row] for row in labels.train])
    if counted is None:
        nothing = WordFit((), np.zeros(0, np.float32), np.zeros((0, 0), np.float16), np.zeros(0, np.float32))
        return nothing, laid_out(np.zeros((len(values_MT), 0)))
    vectorizer, weights_MV = counted
    coefficients_VT, intercept_T = np.zeros((weights_MV.shape[1], targets)), np.zeros(targets)
    unseen_MT = np.zeros_like(values_MT)
    for group in columns_of_equal_rows(mask_MT, range(targets)):
        columns = np.array(group)
        present = np.flatnonzero(mask_MT[:, columns[0]])
        group_M = numbered(labels.group_N[labels.train][present])
        # One group of near-duplicates leaves nothing to fit the other folds on.
        if len(present) >= 2 * _FOLDS and group_M.any():
            inputs_MV, wanted_MT = weights_MV[present], values_MT[np.ix_(present, columns)]
            found_MT, strength_T = _out_of_fold(inputs_MV, wanted_MT, group_M)
            ridge = _ridge(inputs_MV, wanted_MT, strength_T)
            coefficients_VT[:, columns] = ridge.coef_.reshape(len(columns), -1).T
            intercept_T[columns] = ridge.intercept_
            unseen_MT[:, columns] = ridge.predict(weights_MV).reshape(-1, len(columns))
            unseen_MT[np.ix_(present, columns)] = found_MT
    mean_T, std_T = unseen_MT.mean(0), unseen_MT.std(0)
    told = np.flatnonzero(std_T > _SMALLEST_STD)
    mean_T, std_T = mean_T[told], std_T[told]
    fit = WordFit(
        tuple(vectorizer.get_feature_names_out()),
        vectorizer.idf_.astype(np.float32),
        # safetensors would write another order's bytes under the shape of this one's.
        np.ascontiguousarray(coefficients_VT[:, told] / std_T, dtype=np.float16),
        ((intercept_T[told] - mean_T) / std_T).astype(np.float32),
    )
    return fit, laid_out((unseen_MT[:, told] - mean_T) / std_T)


def word_counts(texts: Sequence[str]) -> tuple[Any, Any] | None:
    """scikit-learn's TF-IDF of words and pairs of words, fitted, and what it makes of these texts, (N, V) sparse.

    None where no word stands in two of them.
    """
    # A prediction applies a fit and waits for no more libraries than it needs.
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, min_df=_LEAST_TEXTS, ngram_range=(1, 2), max_features=_MOST_TERMS)
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError:
        return None


def numbered(group_N: np.ndarray) -> np.ndarray:
    """Groups numbered from 0 in the order in which they first come, (N,) int64."""
    _, first_G, index_N = np.unique(group_N, return_index=True, return_inverse=True)
    numbers_N: np.ndarray = np.argsort(np.argsort(first_G))[index_N]
    return numbers_N


def _out_of_fold(inputs_MV: Any, values_MT: np.ndarray, group_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Predictions of records by fits on other groups, (M, T), and the strength that is best for every target, (T,)."""
    fold_M = (np.random.default_rng(0).permutation(group_M.max() + 1) % _FOLDS)[group_M]
    found_SMT = np.zeros((len(_STRENGTHS), *values_MT.shape))
    for fold in range(_FOLDS):
        held_M = fold_M == fold
        if not held_M.any():
            continue
        for index, strength in enumerate(_STRENGTHS):
            ridge = _ridge(inputs_MV[~held_M], values_MT[~held_M], strength)
            found_SMT[index, held_M] = ridge.predict(inputs_MV[held_M]).reshape(-1, values_MT.shape[1])
    best_T = np.square(found_SMT - values_MT).mean(1).argmin(0)
    return np.take_along_axis(found_SMT, best_T[None, None], axis=0)[0], np.array(_STRENGTHS)[best_T]


def _ridge(inputs_MV: Any, values_MT: np.ndarray, strength: float | np.ndarray) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(strength, solver="lsqr").fit(inputs_MV, values_MT)


def columns_of_equal_rows(mask_NT: np.ndarray, columns: Sequence[int]) -> list[list[int]]:
    """Columns that the same records have, together: one fit does for them."""
    groups: dict[bytes, list[int]] = {}
    for column in columns:
        groups.setdefault(mask_NT[:, column].tobytes(), []).append(column)
    return list(groups.values())
