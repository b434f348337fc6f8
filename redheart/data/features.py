"""Token features of a data set, computed once and memory-mapped.

A cache lies in a folder named by the digest of everything that decides its content (encoder weights, texts, cut,
sequence length, format), so a stale cache cannot be opened. It is made chunk by chunk; a killed run goes on after
the last whole chunk.

A narrow encoder's cache holds token states 384 wide and a summary of every record; the summaries are projected to the
other 384 when the cache is opened, by a fit on the training records that lies beside it (see `summary`).

Shape suffixes: N records, R states of all records one after the other, S tokens of a record, D 768, W width of the
encoder, L summary numbers, P 384.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from safetensors.numpy import load, save

from redheart.core.config import FEATURE_WIDTH, Device, FeatureConfig, digest
from redheart.core.errors import BadInput, CorruptFile
from redheart.core.files import (
    disk_errors,
    read_checked,
    read_sealed,
    sha256_file,
    write_bytes,
    write_checked,
    write_sealed,
)
from redheart.core.folders import new_folder, remove_leftovers, remove_names
from redheart.core.lock import folder_lock
from redheart.core.progress import SILENT, Display
from redheart.data.encoders import MINILM_LAYERS, Encoded, Encoder, average_to, open_encoder
from redheart.data.input_text import input_text
from redheart.data.records import Record
from redheart.data.scripts import counted
from redheart.data.summary import SummaryFit, load_fit, load_or_fit
from redheart.data.words import WORDS_WIDTH, Labels

_FORMAT = 2
_CHUNK_RECORDS = 256
_FILES = ("states.f16", "summaries.f32", "offsets.i64")


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

    def row(self, index: int) -> np.ndarray:
        """Features of one record, (S, 768) float16."""
        states_SW: np.ndarray = self.states_RW[self.offsets_N[index] : self.offsets_N[index + 1]]
        return _beside(states_SW, self.pooled_NP[index])

    def __len__(self) -> int:
        return len(self.offsets_N) - 1


def encode_texts(encoder: Encoder, texts: Sequence[str], *, seq_len_tokens: int) -> list[Encoded]:
    """Token states of texts, (S, W) float16 each, S at most `seq_len_tokens`, and their summaries, float32."""
    # Beyond float16 they become infinite, which is refused with the record's number.
    with np.errstate(over="ignore"):
        return [
            Encoded(average_to(item.states_SW, seq_len_tokens).astype(np.float16), item.summary_L.astype(np.float32))
            for item in encoder.encode(texts)
        ]


def widened(encoded: Encoded, text: str, fit: SummaryFit | None) -> np.ndarray:
    """Features of one text, (S, 768) float16, as a cache with this fit would hold them.

    Raises:
        BadInput: the encoder is narrow and there is no fit, or it is the other way round.
    """
    if (fit is None) != (len(encoded.summary_L) == 0):
        raise BadInput(
            "the fit of the features is not this encoder's",
            got=f"{len(encoded.summary_L)} summary numbers, {'no' if fit is None else 'a'} fit",
        )
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
        records: whose features.
        config: encoder, cut and length.
        root: folder of caches.
        fit: file of the summaries' fit.
        labels: targets, and the training records that the fit is made on; without them it must be there already.
        identity: of the encoder, where it is known; what is there already is then opened without the encoder.
        device: where the encoder computes.
        display: where it is told how far this is.

    Raises:
        BadInput: the encoder cannot be loaded, or is not the one that is known.
        DiskError: the cache cannot be written.
    """
    if not 1 <= config.seq_len_tokens <= 512:
        raise BadInput(
            "sequence length out of range",
            where="--features.seq-len-tokens",
            got=config.seq_len_tokens,
            expected="1 to 512",
        )
    with folder_lock(root, name="features", wait=True):
        texts = [input_text(record, text_chars=config.text_chars) for record in records]
        folder = _encoded_folder(texts, config, root, identity=identity, device=device, display=display)
        with display.working("features"):
            return open_features(folder, texts, fit=fit, labels=labels, reads_words=config.words)


def _encoded_folder(
    texts: Sequence[str],
    config: FeatureConfig,
    root: Path,
    *,
    identity: str | None,
    device: Device,
    display: Display,
) -> Path:
    remove_leftovers(root)

    def key_with(encoder: str) -> str:
        return digest({"format": _FORMAT, "encoder": encoder, "texts": texts, "tokens": config.seq_len_tokens})

    if identity is not None and (root / key_with(identity) / "manifest.json").exists():
        return root / key_with(identity)
    encoder = open_encoder(config.encoder, identity=identity, device=device)
    key = key_with(encoder.identity)
    folder, chunk_folder = root / key, root / f"{key}.partial"
    if not (folder / "manifest.json").exists():
        chunks = _encode_chunks(encoder, texts, config=config, folder=chunk_folder, display=display)
        unread = counted(encoder.unread(texts))
        _assemble(chunks, folder=folder, key=key, encoder=encoder, config=config, unread=unread)
    # Also where a killed run had the cache whole and the chunks still there.
    remove_leftovers(chunk_folder)
    remove_names(chunk_folder, [path.name for path in chunk_folder.glob("*.chunk")])
    return folder


def known_manifest(root: Path) -> FeatureManifest | None:
    """What the features below `root` were made with, None where there are none.

    Raises:
        BadInput: they are of several encoders.
    """
    found = [read_sealed(path, FeatureManifest) for path in sorted(root.glob("*/manifest.json"))]
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
    return {"manifest.json", *_FILES}


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
    for path, expected in zip((states, summaries, offsets), digests, strict=True):
        actual = sha256_file(path) if path.is_file() else "no file"
        if actual != expected:
            hint = f"remove the folder {folder}; it will be computed again"
            raise CorruptFile("the feature cache is damaged", where=path, got=actual, expected=expected, hint=hint)
    states_RW = np.memmap(states, dtype=np.float16, mode="r", shape=(manifest.num_states, manifest.state_width))
    summaries_NL = np.fromfile(summaries, dtype=np.float32).reshape(manifest.num_records, manifest.summary_width)
    has_words = False
    if manifest.summary_width == 0:
        key, pooled_NP = manifest.key, np.zeros((manifest.num_records, 0), dtype=np.float16)
    elif labels is None:
        found = load_fit(fit)
        key, pooled_NP = digest([manifest.key, found.key]), found.apply(summaries_NL, texts)
        has_words = found.words is not None
    else:
        fitted_on = {"summaries": manifest.summaries_sha256, "rows": labels.train.tolist()}
        if reads_words:
            fitted_on["words"] = [WORDS_WIDTH, labels.digest]
        fit_key, has_words = digest(fitted_on), reads_words
        pooled_NP = load_or_fit(fit, fit_key, summaries_NL, texts, labels, reads_words=reads_words)
        key = digest([manifest.key, fit_key])
    offsets_N = np.fromfile(offsets, dtype=np.int64)
    return FeatureCache(manifest, key, states_RW, offsets_N, pooled_NP, has_words, summaries_NL)


def _encode_chunks(
    encoder: Encoder, texts: Sequence[str], *, config: FeatureConfig, folder: Path, display: Display
) -> list[Path]:
    paths = []
    with display.track("features", len(texts), unit="records") as advance:
        for start in range(0, len(texts), _CHUNK_RECORDS):
            path = folder / f"{start:08d}.chunk"
            paths.append(path)
            chunk = texts[start : start + _CHUNK_RECORDS]
            if read_checked(path) is None:
                rows = encode_texts(encoder, chunk, seq_len_tokens=config.seq_len_tokens)
                _refuse_non_finite(rows, encoder, start)
                # One chunk is one file: the lengths, the summaries, all states, and the digest of these.
                lengths = np.array([len(row.states_SW) for row in rows], dtype=np.int64)
                summaries_NL = np.stack([row.summary_L for row in rows])
                states_RW = np.concatenate([row.states_SW for row in rows])
                write_checked(path, save({"lengths": lengths, "summaries": summaries_NL, "states": states_RW}))
            advance(len(chunk))
    return paths


def _refuse_non_finite(rows: Sequence[Encoded], encoder: Encoder, start: int) -> None:
    wrong = [start + index for index, row in enumerate(rows) if not all(np.isfinite(part).all() for part in row)]
    if wrong:
        raise BadInput(
            "the encoder gives states that are no numbers in float16",
            where=f"--features.encoder {encoder.identity}",
            got=f"record {wrong[0]} of the prepared ones" + (f" and {len(wrong) - 1} near it" if wrong[1:] else ""),
            hint="choose another encoder, or load its weights anew",
        )


def _assemble(
    chunks: list[Path],
    *,
    folder: Path,
    key: str,
    encoder: Encoder,
    config: FeatureConfig,
    unread: dict[str, int],
) -> None:
    lengths = []
    with new_folder(folder, feature_contents) as temporary, disk_errors(folder):
        states, summaries, offsets = (temporary / name for name in _FILES)
        with states.open("wb") as states_file, summaries.open("wb") as summaries_file:
            for chunk in chunks:
                content = read_checked(chunk)
                if content is None:
                    raise CorruptFile("a chunk of the feature cache changed on the disk", where=chunk, hint="run again")
                tensors = load(content)
                lengths.append(tensors["lengths"])
                states_file.write(tensors["states"].tobytes())
                summaries_file.write(tensors["summaries"].tobytes())
        offsets_N = np.concatenate(([0], np.cumsum(np.concatenate(lengths)))).astype(np.int64)
        write_bytes(offsets, offsets_N.tobytes())
        manifest = FeatureManifest(
            key=key,
            encoder=encoder.identity,
            seq_len_tokens=config.seq_len_tokens,
            num_records=len(offsets_N) - 1,
            num_states=int(offsets_N[-1]),
            state_width=tensors["states"].shape[1],
            summary_width=tensors["summaries"].shape[1],
            states_sha256=sha256_file(states),
            offsets_sha256=sha256_file(offsets),
            summaries_sha256=sha256_file(summaries),
            unread=unread,
        )
        write_sealed(temporary / "manifest.json", manifest)
