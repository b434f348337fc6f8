"""The pooled half of the features: the means of all encoder layers, brought to 384 numbers by a fitted projection.

Layers before the last hold more of what these targets ask for than the last one, which was trained to tell topics
apart. Ridge on the means of one layer or of all, cross-validated on 7,086 real records: emotion KL .0775 (last layer)
and .0736 (all), regret R2 .17 and .21, Bentham R2 .30 and .35 (`benchmarks/quality.py`).

Shape suffixes: N records, L summary numbers (layers times width), P 384.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from redheart.core.errors import CorruptFile
from redheart.core.files import read_checked, write_checked

POOLED_WIDTH = 384
_SMALLEST_STD = 1e-6


@dataclass(frozen=True)
class SummaryFit:
    """Standardisation and projection of summaries, fitted on training records."""

    key: str
    """Digest of the summaries that it was fitted on."""
    mean_L: np.ndarray
    """float32."""
    projection_LP: np.ndarray
    """float32; the standardisation's scale is inside."""

    def apply(self, summaries_NL: np.ndarray) -> np.ndarray:
        """Project summaries to (N, 384) float16; their mean square over the training records is 1."""
        projected_NP: np.ndarray = ((summaries_NL - self.mean_L) @ self.projection_LP).astype(np.float16)
        return projected_NP


def fit_summary(summaries_NL: np.ndarray, *, key: str) -> SummaryFit:
    """Principal components of standardised summaries, each divided by the root of its standard deviation.

    Half-way between plain and whitened components. In ridge it does as well as plain ones (emotion KL .0742 and
    .0746; all 2,688 numbers .0736), and leaves small components large enough for float16 and a network to see.
    """
    # A prediction applies a fit and waits for no more libraries than it needs.
    from scipy.linalg import eigh

    mean_L = summaries_NL.mean(0, dtype=np.float64)
    std_L = np.maximum(summaries_NL.std(0, dtype=np.float64), _SMALLEST_STD)
    scaled_NL = (summaries_NL - mean_L) / std_L
    covariance_LL = scaled_NL.T @ scaled_NL / len(scaled_NL)
    last = len(covariance_LL) - 1
    variances_P, axes_LP = eigh(covariance_LL, subset_by_index=(max(0, last - POOLED_WIDTH + 1), last))
    variances_P, axes_LP = variances_P[::-1], axes_LP[:, ::-1]
    # Components without variance, where there are fewer records than components, stay at zero.
    is_alive_P = variances_P > 1e-9 * variances_P[0]
    spread_P = np.sqrt(np.where(is_alive_P, variances_P, 1))
    gain_P = np.where(is_alive_P, spread_P**-0.5, 0)
    # Records that are all the same, or a single one, have nothing to tell them apart: zeros.
    gain_P /= np.sqrt(np.mean(np.square(gain_P * spread_P))) or 1
    # The axes come in Fortran's order, of which safetensors writes the bytes under the shape of C's.
    projection_LP = np.ascontiguousarray(axes_LP / std_L[:, None] * gain_P, dtype=np.float32)
    return SummaryFit(key, mean_L.astype(np.float32), projection_LP)


def load_or_fit(path: Path, key: str, summaries_NL: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Projected summaries, (N, 384) float16, by the fit on the rows `train` that lies in a file of this key.

    They lie there too: projected anew, with another number of threads, a last bit could be another, and a resumed run
    would no longer end with the bytes of an unbroken one. A file of another key, or a damaged one, is made anew.
    """
    content = read_checked(path)
    tensors = load(content) if content else {}
    if not tensors or _key(tensors) != key:
        fit = fit_summary(summaries_NL[train], key=key)
        tensors = {
            "mean_L": fit.mean_L,
            "projection_LP": fit.projection_LP,
            "pooled_NP": fit.apply(summaries_NL),
            "key": np.frombuffer(key.encode(), dtype=np.uint8),
        }
        write_checked(path, save(tensors))
    return tensors["pooled_NP"]


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
    tensors = load(content)
    return SummaryFit(_key(tensors), tensors["mean_L"], tensors["projection_LP"])


def _key(tensors: dict[str, np.ndarray]) -> str:
    return tensors["key"].tobytes().decode()
