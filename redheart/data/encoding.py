"""Token states of texts appended to files chunk by chunk: what a killed run has encoded is not encoded again."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from redheart.core.errors import BadInput
from redheart.core.files import disk_errors, to_disk
from redheart.core.progress import Display
from redheart.data.encoders import Encoded, Encoder, average_to

STATES, SUMMARIES = "states.f16", "summaries.f32"
NOTE = "chunks.jsonl"
"""What of them is whole, a `Chunk` a line."""
_CHUNK_RECORDS = 256


class Chunk(msgspec.Struct, frozen=True):
    """What is whole of features that are being made: records one behind the other."""

    lengths: list[int]
    """States of every record."""
    states_bytes: int
    summaries_bytes: int
    sha256: str
    """Of the states, the summaries and the lengths, one behind the other."""


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
        for name, size in (
            (STATES, sum(chunk.states_bytes for chunk in chunks)),
            (SUMMARIES, sum(chunk.summaries_bytes for chunk in chunks)),
            (NOTE, sum(len(_line(chunk)) for chunk in chunks)),
        ):
            with (folder / name).open("ab") as file:
                file.truncate(size)
    first = sum(len(chunk.lengths) for chunk in chunks)
    with display.track("features", len(texts), unit="records") as advance:
        advance(first)
        for start in range(first, len(texts), _CHUNK_RECORDS):
            rows = encode_texts(encoder, texts[start : start + _CHUNK_RECORDS], seq_len_tokens=seq_len_tokens)
            _refuse_non_finite(rows, encoder, start)
            states = b"".join(row.states_SW.tobytes() for row in rows)
            summaries = b"".join(row.summary_L.tobytes() for row in rows)
            lengths = [len(row.states_SW) for row in rows]
            chunk = Chunk(lengths, len(states), len(summaries), _sha256(states, summaries, lengths))
            with disk_errors(folder):
                # Noted when they are on the disk.
                for name, content in ((STATES, states), (SUMMARIES, summaries), (NOTE, _line(chunk))):
                    with (folder / name).open("ab") as file:
                        file.write(content)
                        to_disk(file)
            chunks.append(chunk)
            advance(len(rows))
    return chunks


def _whole_chunks(folder: Path) -> list[Chunk]:
    """Chunks that a killed run has left, up to the first that is not as it was written."""
    paths = [folder / name for name in (STATES, SUMMARIES, NOTE)]
    chunks: list[Chunk] = []
    if not all(path.is_file() for path in paths):
        return chunks
    with paths[0].open("rb") as states, paths[1].open("rb") as summaries, paths[2].open("rb") as note:
        for line in note:
            try:
                chunk = msgspec.json.decode(line, type=Chunk)
            except msgspec.DecodeError:
                break
            parts = states.read(chunk.states_bytes), summaries.read(chunk.summaries_bytes)
            if line != _line(chunk) or _sha256(*parts, chunk.lengths) != chunk.sha256:
                break
            chunks.append(chunk)
    return chunks


def _line(chunk: Chunk) -> bytes:
    return msgspec.json.encode(chunk) + b"\n"


def _sha256(states: bytes, summaries: bytes, lengths: Sequence[int]) -> str:
    content = hashlib.sha256(states)
    content.update(summaries)
    content.update(np.array(lengths, dtype=np.int64).tobytes())
    return content.hexdigest()


def _refuse_non_finite(rows: Sequence[Encoded], encoder: Encoder, start: int) -> None:
    wrong = [start + index for index, row in enumerate(rows) if not all(np.isfinite(part).all() for part in row)]
    if wrong:
        raise BadInput(
            "the encoder gives states that are no numbers in float16",
            where=f"--features.encoder {encoder.identity}",
            got=f"record {wrong[0]} of the prepared ones" + (f" and {len(wrong) - 1} near it" if wrong[1:] else ""),
            hint="choose another encoder, or load its weights anew",
        )
