"""Token states of texts appended to files chunk by chunk: what a killed run has encoded is not encoded again."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from redheart.core.errors import BadInput, CorruptFile
from redheart.core.files import disk_errors, read_sealed, to_disk, write_sealed
from redheart.core.progress import Display
from redheart.data.encoders import Encoded, Encoder, average_to

STATES, SUMMARIES = "states.f16", "summaries.f32"
_PROGRESS = "progress.json"
UNFINISHED = (STATES, SUMMARIES, _PROGRESS)
"""What lies in the folder meanwhile."""
_CHUNK_RECORDS = 256


class Chunk(msgspec.Struct, frozen=True):
    """What is whole of features that are being made: records one behind the other."""

    lengths: list[int]
    """States of every record."""
    states_bytes: int
    summaries_bytes: int
    sha256: str
    """Of the states and the summaries behind them."""


class _Progress(msgspec.Struct, frozen=True):
    """How far features have come."""

    chunks: list[Chunk]


def encode_texts(encoder: Encoder, texts: Sequence[str], *, seq_len_tokens: int) -> list[Encoded]:
    """Token states of texts, (S, W) float16 each, S at most `seq_len_tokens`, and their summaries, float32."""
    # Beyond float16 they become infinite, which is refused with the record's number.
    with np.errstate(over="ignore"):
        return [
            Encoded(average_to(item.states_SW, seq_len_tokens).astype(np.float16), item.summary_L.astype(np.float32))
            for item in encoder.encode(texts)
        ]


def encode_into(
    folder: Path, encoder: Encoder, texts: Sequence[str], *, seq_len_tokens: int, display: Display
) -> list[Chunk]:
    """Append the states and summaries of all texts to two files of a folder, from the last whole chunk on.

    Raises:
        BadInput: a state is no number in float16.
        DiskError: they cannot be written.
    """
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    chunks = _whole_chunks(folder)
    first = sum(len(chunk.lengths) for chunk in chunks)
    with (
        disk_errors(folder),
        (folder / STATES).open("ab") as states,
        (folder / SUMMARIES).open("ab") as summaries,
        display.track("features", len(texts), unit="records") as advance,
    ):
        states.truncate(sum(chunk.states_bytes for chunk in chunks))
        summaries.truncate(sum(chunk.summaries_bytes for chunk in chunks))
        advance(first)
        for start in range(first, len(texts), _CHUNK_RECORDS):
            rows = encode_texts(encoder, texts[start : start + _CHUNK_RECORDS], seq_len_tokens=seq_len_tokens)
            _refuse_non_finite(rows, encoder, start)
            parts = b"".join(row.states_SW.tobytes() for row in rows), b"".join(row.summary_L.tobytes() for row in rows)
            for file, part in zip((states, summaries), parts, strict=True):
                file.write(part)
                to_disk(file)
            lengths = [len(row.states_SW) for row in rows]
            chunks.append(Chunk(lengths, len(parts[0]), len(parts[1]), hashlib.sha256(b"".join(parts)).hexdigest()))
            write_sealed(folder / _PROGRESS, _Progress(chunks))
            advance(len(rows))
    return chunks


def _whole_chunks(folder: Path) -> list[Chunk]:
    """Chunks that a killed run has left, up to the first that is not as it was written."""
    states, summaries = (folder / name for name in (STATES, SUMMARIES))
    # Without a readable note of them, or without their files, there are none.
    try:
        chunks = read_sealed(folder / _PROGRESS, _Progress).chunks
    except (BadInput, CorruptFile):
        return []
    if not states.is_file() or not summaries.is_file():
        return []
    with states.open("rb") as states_file, summaries.open("rb") as summaries_file:
        for number, chunk in enumerate(chunks):
            content = states_file.read(chunk.states_bytes) + summaries_file.read(chunk.summaries_bytes)
            if hashlib.sha256(content).hexdigest() != chunk.sha256:
                return chunks[:number]
    return chunks


def _refuse_non_finite(rows: Sequence[Encoded], encoder: Encoder, start: int) -> None:
    wrong = [start + index for index, row in enumerate(rows) if not all(np.isfinite(part).all() for part in row)]
    if wrong:
        raise BadInput(
            "the encoder gives states that are no numbers in float16",
            where=f"--features.encoder {encoder.identity}",
            got=f"record {wrong[0]} of the prepared ones" + (f" and {len(wrong) - 1} near it" if wrong[1:] else ""),
            hint="choose another encoder, or load its weights anew",
        )
