"""Token features of a data set, computed once and memory-mapped.

A cache lies in a folder named by the digest of everything that decides its content (encoder weights, texts, cut,
sequence length, format), so a stale cache cannot be opened. It is made chunk by chunk, in the files that it will have;
a killed run goes on after the last whole chunk.

A narrow encoder's cache holds token states 384 wide and a summary of every record; the summaries are projected to the
other 384 when the cache is opened, by a fit on the training records that lies beside it (see `summary`).

Shape suffixes: N records, R states of all records one after the other, S tokens of a record, D 768, W width of the
encoder, L summary numbers, P 384.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from redheart.core.config import FEATURE_WIDTH, Device, FeatureConfig, digest
from redheart.core.errors import BadInput, CorruptFile
from redheart.core.files import (
    check_digests,
    disk_errors,
    read_sealed,
    sha256_file,
    temporary_path,
    write_bytes,
    write_sealed,
)
from redheart.core.folders import folder_lock, foreign_names, refuse_foreign, remove_leftovers, remove_names, take_place
from redheart.core.progress import SILENT, Display
from redheart.data.encoders import MINILM_LAYERS, Encoded, Encoder, open_encoder
from redheart.data.encoding import NOTE, STATES, SUMMARIES, encode_into
from redheart.data.input_text import input_text
from redheart.data.records import Record
from redheart.data.scripts import counted
from redheart.data.summary import SummaryFit, load_fit, load_or_fit
from redheart.data.words import WORDS_WIDTH, Labels

_FORMAT = 2
_FILES = (STATES, SUMMARIES, "offsets.i64")
_NAMES = {"manifest.json", *_FILES, NOTE}
"""Of all files of a feature folder."""
_PARTIAL = ".partial"
_MADE = re.compile(rf"[0-9a-f]{{16}}({re.escape(_PARTIAL)})?")
"""Names of the folders that are made here."""


class FeatureManifest(msgspec.Struct, frozen=True):
    """What a feature folder holds."""

    key: str
    encoder: str
    seq_len_tokens: int
    num_records: int
    num_states: int
    state_width: int
    summary_width: int
    """0 where the encoder's states are 768 wide."""
    states_sha256: str
    offsets_sha256: str
    summaries_sha256: str
    unread: dict[str, int] | None = None
    """Records that the encoder cannot be expected to make sense of, by script; None where no version looked."""


@dataclass(frozen=True)
class FeatureCache:
    """Read-only features of a data set."""

    manifest: FeatureManifest
    key: str
    """Digest of everything that decides the features, the fit included."""
    states_RW: np.ndarray
    """float16, memory-mapped."""
    offsets_N: np.ndarray
    """First state of every record, and the end: N + 1 numbers, int64."""
    pooled_NP: np.ndarray
    """float16, the projected summaries and what the words say; no columns where the states are 768 wide."""
    has_words: bool
    """Whether the last 64 of the pooled columns are what the words say."""
    summaries_NL: np.ndarray
    """float32, the summaries themselves."""

    @property
    def layers_NP(self) -> np.ndarray:
        """The projected summaries alone."""
        return self.pooled_NP[:, :-WORDS_WIDTH] if self.has_words else self.pooled_NP

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of records."""
        lengths_B: np.ndarray = self.offsets_N[rows + 1] - self.offsets_N[rows]
        return lengths_B

    def row(self, index: int) -> np.ndarray:
        """Features of one record, (S, 768) float16."""
        states_SW: np.ndarray = self.states_RW[self.offsets_N[index] : self.offsets_N[index + 1]]
        return _beside(states_SW, self.pooled_NP[index])

    def __len__(self) -> int:
        return len(self.offsets_N) - 1


def widened(encoded: Encoded, text: str, fit: SummaryFit | None) -> np.ndarray:
    """Features of one text, (S, 768) float16, as a cache with this fit would hold them; None of a wide encoder."""
    if fit is None:
        return encoded.states_SW
    return _beside(encoded.states_SW, fit.apply(encoded.summary_L[None], [text])[0])


def _beside(states_SW: np.ndarray, pooled_P: np.ndarray) -> np.ndarray:
    return np.concatenate((states_SW, np.broadcast_to(pooled_P, (len(states_SW), len(pooled_P)))), axis=1)


def record_bytes(config: FeatureConfig) -> int:
    """Bytes on disk of a record as long as features may be, before any encoder is loaded.

    An encoder from elsewhere is taken for 768 wide, the most that there is.
    """
    half = FEATURE_WIDTH // 2
    states, offset = 2 * config.seq_len_tokens * FEATURE_WIDTH, 8
    if config.encoder != "minilm":
        return states + offset
    return states // 2 + offset + half * (4 * MINILM_LAYERS + 2)


def make_features(
    records: Sequence[Record],
    *,
    config: FeatureConfig,
    root: Path,
    fit: Path,
    labels: Labels | None = None,
    identity: str | None = None,
    device: Device = "auto",
    display: Display = SILENT,
) -> FeatureCache:
    """Open the features of these records below `root`, computing what is not there yet.

    Args:
        fit: file of the summaries' fit.
        labels: targets, and the training records that the fit is made on; without them it must be there already.
        identity: of the encoder, where it is known; what is there already is then opened without the encoder.

    Raises:
        BadInput: the encoder cannot be loaded, or is not the one that is known.
        DiskError: the cache cannot be written.
    """
    texts = [input_text(record, text_chars=config.text_chars) for record in records]

    def folder_of(encoder: str) -> Path:
        key = digest({"format": _FORMAT, "encoder": encoder, "texts": texts, "tokens": config.seq_len_tokens})
        return root / key

    with folder_lock(root, name="features", wait=True):
        remove_leftovers(root)
        folder = None if identity is None else folder_of(identity)
        if folder is None or not (folder / "manifest.json").exists():
            encoder = open_encoder(config.encoder, identity=identity, device=device)
            folder = folder_of(encoder.identity)
            if not (folder / "manifest.json").exists():
                _write_features(encoder, texts, config=config, folder=folder, display=display)
        # Also where a killed run had the cache whole and this still there.
        remove_leftovers(_partial(folder))
        remove_names(_partial(folder), _NAMES)
        with display.working("features"):
            return open_features(folder, texts, fit=fit, labels=labels, reads_words=config.words)


def forget_others(root: Path, key: str) -> None:
    """Remove all features below `root` but those of a key, whole or not; who has them open can read them to the end.

    A folder that holds anything else stays as it is, for what is left of it could not be made whole again.

    Raises:
        DiskError: they cannot be removed.
    """
    with folder_lock(root, name="features", wait=True), disk_errors(root):
        for other in root.iterdir():
            if _MADE.fullmatch(other.name) and not other.name.startswith(key) and _is_ours(other):
                # Half removed it is known by its name, and the next start ends it.
                other.rename(temporary_path(other))
        remove_leftovers(root)


def _is_ours(folder: Path) -> bool:
    """Whether features lie there, whole or not, and nothing else."""
    try:
        is_partial = folder.name.endswith(_PARTIAL)
        return folder.is_dir() and not foreign_names(folder, (lambda _: _NAMES) if is_partial else feature_contents)
    except CorruptFile:
        return False


def known_manifest(root: Path) -> FeatureManifest | None:
    """What the features below `root` were made with, None where there are none.

    Raises:
        BadInput: they are of several encoders.
    """
    found = [read_sealed(path, FeatureManifest) for path in sorted(root.glob("[!.]*/manifest.json"))]
    encoders = sorted({manifest.encoder for manifest in found})
    if len(encoders) > 1:
        raise BadInput(
            "the run's features do not name one encoder",
            where=root,
            got=", ".join(encoders),
            hint="remove the features of other encoders; the next command makes the run's own again",
        )
    return found[0] if found else None


def feature_contents(folder: Path) -> set[str]:
    """Names of the files of a feature folder.

    Raises:
        BadInput: it has no manifest.
    """
    read_sealed(folder / "manifest.json", FeatureManifest)
    return _NAMES


def open_features(
    folder: Path, texts: Sequence[str], *, fit: Path, labels: Labels | None = None, reads_words: bool = True
) -> FeatureCache:
    """Map a feature folder of these texts into memory and project its summaries; see `make_features` for the rest.

    `reads_words` is for a fit that is made anew; one that is there says itself what it holds.

    Raises:
        CorruptFile: a file is missing or does not match its digest; it is named.
    """
    manifest = read_sealed(folder / "manifest.json", FeatureManifest)
    digests = (manifest.states_sha256, manifest.summaries_sha256, manifest.offsets_sha256)
    states, summaries, offsets = (folder / name for name in _FILES)
    # A second per gigabyte, against hours on features that are not those of the run.
    hint = f"remove the folder {folder}; it will be computed again"
    check_digests(folder, dict(zip(_FILES, digests, strict=True)), what="the feature cache is damaged", hint=hint)
    states_RW = np.memmap(states, dtype=np.float16, mode="r", shape=(manifest.num_states, manifest.state_width))
    key, has_words = manifest.key, False
    summaries_NL = np.zeros((manifest.num_records, 0), dtype=np.float32)
    pooled_NP = summaries_NL.astype(np.float16)
    if manifest.summary_width:
        summaries_NL = np.memmap(summaries, np.float32, mode="r", shape=(manifest.num_records, manifest.summary_width))
        if labels is None:
            found = load_fit(fit)
            fit_key, pooled_NP, has_words = found.key, found.apply(summaries_NL, texts), found.words is not None
        else:
            fitted_on = {"summaries": manifest.summaries_sha256, "rows": labels.train.tolist()}
            if reads_words:
                fitted_on["words"] = [WORDS_WIDTH, labels.digest]
            source, has_words = digest(fitted_on | {"summaries": manifest.key}), reads_words
            fit_key, pooled_NP = load_or_fit(
                fit, digest(fitted_on), summaries_NL, texts, labels, reads_words=reads_words, source=source
            )
        key = digest([manifest.key, fit_key])
    offsets_N = np.fromfile(offsets, dtype=np.int64)
    return FeatureCache(manifest, key, states_RW, offsets_N, pooled_NP, has_words, summaries_NL)


def _partial(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}{_PARTIAL}")


def _write_features(
    encoder: Encoder, texts: Sequence[str], *, config: FeatureConfig, folder: Path, display: Display
) -> None:
    partial = _partial(folder)
    chunks = encode_into(partial, encoder, texts, seq_len_tokens=config.seq_len_tokens, display=display)
    lengths = [length for chunk in chunks for length in chunk.lengths]
    states, summaries, offsets = (partial / name for name in _FILES)
    with disk_errors(folder):
        remove_leftovers(partial)
        write_bytes(offsets, np.cumsum([0, *lengths], dtype=np.int64).tobytes())
        manifest = FeatureManifest(
            key=folder.name,
            encoder=encoder.identity,
            seq_len_tokens=config.seq_len_tokens,
            num_records=len(lengths),
            num_states=sum(lengths),
            state_width=states.stat().st_size // (2 * sum(lengths)),
            summary_width=summaries.stat().st_size // (4 * len(lengths)),
            states_sha256=sha256_file(states),
            offsets_sha256=sha256_file(offsets),
            summaries_sha256=sha256_file(summaries),
            unread=counted(encoder.unread(texts)),
        )
        write_sealed(partial / "manifest.json", manifest)
        refuse_foreign(folder, feature_contents)
        take_place(partial, folder)
        (folder / NOTE).unlink()
