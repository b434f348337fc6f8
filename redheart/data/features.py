"""Token features of a data set, computed once and memory-mapped.

A cache lies in a folder named by the digest of everything that decides its content (encoder weights, texts, cut,
sequence length, format), so a stale cache cannot be opened. It is made chunk by chunk; a killed run goes on after
the last whole chunk.

Shape suffixes: N records, R states of all records one after the other, S tokens of a record, D 768.
"""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from redheart.core.config import FeatureConfig, digest
from redheart.core.errors import BadInput, CorruptFile
from redheart.core.files import (
    disk_errors,
    new_folder,
    read_sealed,
    remove_leftovers,
    sha256_file,
    write_bytes,
    write_sealed,
)
from redheart.core.lock import folder_lock
from redheart.data.encoders import FEATURE_WIDTH, Encoder, average_to, open_encoder
from redheart.data.records import Record

_FORMAT = 1
_CHUNK_RECORDS = 256
_DIGEST_BYTES = hashlib.sha256().digest_size


class FeatureManifest(msgspec.Struct, frozen=True):
    """What a feature folder holds."""

    key: str
    encoder: str
    seq_len_tokens: int
    num_records: int
    num_states: int
    states_sha256: str
    offsets_sha256: str


@dataclass(frozen=True)
class FeatureCache:
    """Read-only features of a data set."""

    manifest: FeatureManifest
    states_RD: np.ndarray
    """float16, memory-mapped."""
    offsets_N: np.ndarray
    """First state of every record, and the end: N + 1 numbers, int64."""

    def row(self, index: int) -> np.ndarray:
        """Features of one record, (S, 768) float16."""
        states: np.ndarray = self.states_RD[self.offsets_N[index] : self.offsets_N[index + 1]]
        return states

    def __len__(self) -> int:
        return len(self.offsets_N) - 1


def input_text(record: Record, *, text_chars: int) -> str:
    """What the encoder reads of a record: title, action and the start of the text, a line each."""
    parts = (record.title, record.action, record.text[:text_chars])
    return "\n".join(part.strip() for part in parts if part.strip())


def encode_texts(encoder: Encoder, texts: Sequence[str], *, seq_len_tokens: int) -> list[np.ndarray]:
    """Features of texts, (S, 768) float16 each, S at most `seq_len_tokens`."""
    # Beyond float16 they become infinite, which is refused with the record's number.
    with np.errstate(over="ignore"):
        return [average_to(states, seq_len_tokens).astype(np.float16) for states in encoder.encode(texts)]


def make_features(
    records: Sequence[Record], *, config: FeatureConfig, root: Path, show_progress: bool = False
) -> FeatureCache:
    """Open the features of these records below `root`, computing what is not there yet.

    Raises:
        BadInput: the encoder cannot be loaded.
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
        return _make_features(records, config, root, show_progress=show_progress)


def _make_features(
    records: Sequence[Record], config: FeatureConfig, root: Path, *, show_progress: bool
) -> FeatureCache:
    remove_leftovers(root)
    encoder = open_encoder(config.encoder)
    texts = [input_text(record, text_chars=config.text_chars) for record in records]
    key = digest({"format": _FORMAT, "encoder": encoder.identity, "texts": texts, "tokens": config.seq_len_tokens})
    folder = root / key
    if not (folder / "manifest.json").exists():
        chunks = _encode_chunks(
            encoder, texts, config=config, folder=root / f"{key}.partial", show_progress=show_progress
        )
        _assemble(chunks, folder=folder, key=key, encoder=encoder, config=config)
    # Also where a killed run had the cache whole and the chunks still there.
    shutil.rmtree(root / f"{key}.partial", ignore_errors=True)
    return open_features(folder)


def open_features(folder: Path) -> FeatureCache:
    """Map a feature folder into memory.

    Raises:
        CorruptFile: a file is missing or does not match its digest; it is named.
    """
    manifest = read_sealed(folder / "manifest.json", FeatureManifest)
    states, offsets = folder / "states.f16", folder / "offsets.i64"
    # A second per gigabyte, against hours on features that are not those of the run.
    for path, expected in ((states, manifest.states_sha256), (offsets, manifest.offsets_sha256)):
        found = sha256_file(path) if path.is_file() else "no file"
        if found != expected:
            raise CorruptFile(
                "the feature cache is damaged",
                where=path,
                got=found,
                expected=expected,
                mend=f"remove the folder {folder}; it will be computed again",
            )
    states_RD = np.memmap(states, dtype=np.float16, mode="r", shape=(manifest.num_states, FEATURE_WIDTH))
    return FeatureCache(manifest, states_RD, np.fromfile(offsets, dtype=np.int64))


def _encode_chunks(
    encoder: Encoder, texts: Sequence[str], *, config: FeatureConfig, folder: Path, show_progress: bool
) -> list[Path]:
    paths = []
    starts = range(0, len(texts), _CHUNK_RECORDS)
    for start in _progress(starts, total=len(starts), shown=show_progress):
        path = folder / f"{start:08d}.chunk"
        paths.append(path)
        if path.exists() and _chunk(path) is not None:
            continue
        rows = encode_texts(encoder, texts[start : start + _CHUNK_RECORDS], seq_len_tokens=config.seq_len_tokens)
        _refuse_non_finite(rows, encoder, start)
        # One chunk: how many records, their lengths, all states, and the digest of these.
        header = np.array([len(rows), *[len(row) for row in rows]], dtype=np.int64)
        content = header.tobytes() + np.concatenate(rows).tobytes()
        write_bytes(path, content + hashlib.sha256(content).digest())
    return paths


def _chunk(path: Path) -> bytes | None:
    """What was written into a chunk, None where that has changed since."""
    content = path.read_bytes()
    content, digest = content[:-_DIGEST_BYTES], content[-_DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest else None


def _refuse_non_finite(rows: Sequence[np.ndarray], encoder: Encoder, start: int) -> None:
    wrong = [start + index for index, row in enumerate(rows) if not np.isfinite(row).all()]
    if wrong:
        raise BadInput(
            "the encoder gives states that are no numbers in float16",
            where=f"--features.encoder {encoder.identity}",
            got=f"record {wrong[0]} of the prepared ones" + (f" and {len(wrong) - 1} near it" if wrong[1:] else ""),
            mend="choose another encoder, or load its weights anew",
        )


def _assemble(chunks: list[Path], *, folder: Path, key: str, encoder: Encoder, config: FeatureConfig) -> None:
    lengths = []
    with new_folder(folder) as temporary, disk_errors(folder):
        with (temporary / "states.f16").open("wb") as file:
            for chunk in chunks:
                content = _chunk(chunk)
                if content is None:
                    raise CorruptFile("a chunk of the feature cache changed on the disk", where=chunk, mend="run again")
                count = int(np.frombuffer(content, dtype=np.int64, count=1)[0])
                lengths.append(np.frombuffer(content, dtype=np.int64, offset=8, count=count))
                file.write(content[8 * (count + 1) :])
        offsets = np.concatenate(([0], np.cumsum(np.concatenate(lengths)))).astype(np.int64)
        write_bytes(temporary / "offsets.i64", offsets.tobytes())
        manifest = FeatureManifest(
            key=key,
            encoder=encoder.identity,
            seq_len_tokens=config.seq_len_tokens,
            num_records=len(offsets) - 1,
            num_states=int(offsets[-1]),
            states_sha256=sha256_file(temporary / "states.f16"),
            offsets_sha256=sha256_file(temporary / "offsets.i64"),
        )
        write_sealed(temporary / "manifest.json", manifest)


def _progress(items: Any, *, total: int, shown: bool) -> Any:
    if not shown or total < 4:
        return items
    from rich.progress import track

    return track(items, description="features", total=total)
