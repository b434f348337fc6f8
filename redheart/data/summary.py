"""The pooled half of the features: the means of all encoder layers in 320 numbers and what the words say in 64.

Layers before the last hold more of what these targets ask for than the last one, which was trained to tell topics
apart. Ridge on the means of one layer or of all, cross-validated on 7,086 real records: emotion KL .0775 (last layer)
and .0736 (all), regret R2 .17 and .21, Bentham R2 .30 and .35 (`benchmarks/quality.py`).

Shape suffixes: N records, L summary numbers (layers times width), P columns of the projection, 384 with the words.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from redheart.core.errors import CorruptFile
from redheart.core.files import read_checked, write_checked
from redheart.core.progress import note
from redheart.data.words import WORDS_WIDTH, Labels, WordFit, fit_words

POOLED_WIDTH = 384
_BLOCK_RECORDS = 1024
_SMALLEST_STD = 1e-6


@dataclass(frozen=True)
class SummaryFit:
    """Standardisation and projection of summaries, and the words' fit; made on training records."""

    key: str
    """Digest of what it was fitted on."""
    mean_L: np.ndarray
    """float32."""
    projection_LP: np.ndarray
    """float32; the standardisation's scale is inside."""
    words: WordFit | None = None
    """None where no words are read."""

    def apply(self, summaries_NL: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Pooled numbers of records that it was not made on, (N, 384) float16."""
        projected_NP = np.empty((len(summaries_NL), self.projection_LP.shape[1]), dtype=np.float16)
        for start in range(0, len(summaries_NL), _BLOCK_RECORDS):
            block = slice(start, start + _BLOCK_RECORDS)
            projected_NP[block] = (summaries_NL[block] - self.mean_L) @ self.projection_LP
        return projected_NP if self.words is None else np.hstack([projected_NP, self.words.apply(texts)])

    def tensors(self) -> dict[str, np.ndarray]:
        """What a file holds of it."""
        found = {"mean_L": self.mean_L, "projection_LP": self.projection_LP, "key": _as_bytes(self.key)}
        if self.words is not None:
            words = self.words
            found |= {"terms": _as_bytes("\n".join(words.terms)), "idf_V": words.idf_V}
            found |= {"weights_VT": words.weights_VT, "offset_T": words.offset_T}
        return found

    @staticmethod
    def of(tensors: Mapping[str, np.ndarray]) -> "SummaryFit":
        """The fit that a file holds."""
        words = None
        if "terms" in tensors:
            terms = tuple(_text(tensors["terms"]).split("\n")) if len(tensors["terms"]) else ()
            words = WordFit(terms, tensors["idf_V"], tensors["weights_VT"], tensors["offset_T"])
        return SummaryFit(_text(tensors["key"]), tensors["mean_L"], tensors["projection_LP"], words)


def fit_projection(summaries_NL: np.ndarray, rows: np.ndarray, *, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and projection of summaries: principal components, each divided by the root of its standard deviation.

    `rows` are those of the records that it is made on, read a block at a time: all of them may be larger than memory.
    Half-way between plain and whitened components, with a mean square of 1 over these records. In ridge it does as
    well as plain ones (emotion KL .0742 and .0746; all 2,688 numbers .0736), and leaves small components large enough
    for float16 and a network to see.
    """
    # A prediction applies a fit and waits for no more libraries than it needs.
    from scipy.linalg import eigh

    blocks = [rows[start : start + _BLOCK_RECORDS] for start in range(0, len(rows), _BLOCK_RECORDS)]
    mean_L = np.sum([summaries_NL[block].sum(0, dtype=np.float64) for block in blocks], axis=0) / len(rows)
    covariance_LL = np.zeros((len(mean_L), len(mean_L)))
    for block in blocks:
        centred_NL = summaries_NL[block] - mean_L
        covariance_LL += centred_NL.T @ centred_NL / len(rows)
    std_L = np.maximum(np.sqrt(np.diag(covariance_LL)), _SMALLEST_STD)
    covariance_LL /= np.outer(std_L, std_L)
    last = len(covariance_LL) - 1
    variances_P, axes_LP = eigh(covariance_LL, subset_by_index=(max(0, last - width + 1), last))
    variances_P, axes_LP = variances_P[::-1], axes_LP[:, ::-1]
    # Components without variance, where there are fewer records than components, stay at zero.
    is_alive_P = variances_P > 1e-9 * variances_P[0]
    spread_P = np.sqrt(np.where(is_alive_P, variances_P, 1))
    gain_P = np.where(is_alive_P, spread_P**-0.5, 0)
    # Records that are all the same, or a single one, have nothing to tell them apart: zeros.
    gain_P /= np.sqrt(np.mean(np.square(gain_P * spread_P))) or 1
    # The axes come in Fortran's order, of which safetensors writes the bytes under the shape of C's.
    projection_LP = np.ascontiguousarray(axes_LP / std_L[:, None] * gain_P, dtype=np.float32)
    return mean_L.astype(np.float32), projection_LP


def load_or_fit(
    path: Path,
    key: str,
    summaries_NL: np.ndarray,
    texts: Sequence[str],
    labels: Labels,
    *,
    reads_words: bool,
    source: str,
) -> tuple[str, np.ndarray]:
    """The key of a file's fit on the training records, and all records' pooled numbers by it, (N, 384) float16.

    Both lie in the file: fits of five folds are behind the training records' words, and projected anew, with another
    number of threads, a last bit could be another, and a resumed run would no longer end with the bytes of an unbroken
    one. A file of another key, or a damaged one, is made anew; but not one of the same `source` (a digest of the
    encoder, the texts and the labels): those are the same summaries of another machine, and models rest on the first.
    """
    content = read_checked(path)
    tensors = load(content) if content else {}
    known = _text(tensors["key"]) if tensors else None
    if known not in (None, key) and "source" in tensors and _text(tensors["source"]) == source:
        note(f"the features were computed anew and have other last bits; the fit of the first ones stays: {path}")
    elif known != key:
        width = POOLED_WIDTH - WORDS_WIDTH * reads_words
        fit = SummaryFit(key, *fit_projection(summaries_NL, labels.train, width=width))
        if reads_words:
            words, unseen_MK = fit_words(texts, labels)
            fit = replace(fit, words=words)
        pooled_NP = fit.apply(summaries_NL, texts)
        if reads_words:
            pooled_NP[labels.train, -WORDS_WIDTH:] = unseen_MK
        tensors = fit.tensors() | {"pooled_NP": pooled_NP, "source": _as_bytes(source)}
        write_checked(path, save(tensors))
    return _text(tensors["key"]), tensors["pooled_NP"]


def load_fit(path: Path) -> SummaryFit:
    """Read a fit.

    Raises:
        CorruptFile: it is not there, or not what was written.
    """
    content = read_checked(path)
    if content is None:
        raise CorruptFile(
            "the fit of the features is missing or was changed",
            where=path,
            hint="remove it and run the command that trains again; it is made anew from the training records",
        )
    return SummaryFit.of(load(content))


def _as_bytes(text: str) -> np.ndarray:
    return np.frombuffer(text.encode(), dtype=np.uint8)


def _text(encoded: np.ndarray) -> str:
    return encoded.tobytes().decode()
