"""Losses of models that were evaluated before, in one file that grows: a search that was killed goes on from it.

The file is a row of records, each 32 bytes of key, F x N float64 losses and a CRC-32. A record that a kill has cut off
is dropped when the file is opened; a changed one ends the part that is believed.
"""

import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from redheart.core.files import disk_errors

KEY_BYTES = 32
_CRC_BYTES = 4


class LossStore:
    """Losses by key; what is put is handed to the operating system at once, so that a kill loses nothing of it.

    The file is made when there is something to put; the losses of a key lie in the order of `finals`.
    """

    def __init__(self, path: Path, *, finals: Sequence[str], num_records: int) -> None:
        self._path, self._finals, self._num_records = path, tuple(finals), num_records
        self._size = KEY_BYTES + len(finals) * num_records * 8 + _CRC_BYTES
        self._losses = self._load() if path.exists() else {}

    def __len__(self) -> int:
        return len(self._losses)

    def get(self, key: bytes) -> dict[str, np.ndarray] | None:
        """(N,) losses by predictor, or None."""
        found_FN = self._losses.get(key)
        return None if found_FN is None else dict(zip(self._finals, found_FN, strict=True))

    def put(self, key: bytes, losses: Mapping[str, np.ndarray]) -> None:
        """Append losses under a new key.

        Raises:
            DiskError: the file cannot be written; what it held is intact.
        """
        assert len(key) == KEY_BYTES
        losses_FN = np.stack([losses[name] for name in self._finals]).astype(np.float64)
        content = key + losses_FN.tobytes()
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("ab") as file:
                file.write(content + zlib.crc32(content).to_bytes(_CRC_BYTES, "little"))
        self._losses[key] = losses_FN

    def _load(self) -> dict[bytes, np.ndarray]:
        content, found, good = self._path.read_bytes(), {}, 0
        for start in range(0, len(content) - self._size + 1, self._size):
            record = content[start : start + self._size - _CRC_BYTES]
            if zlib.crc32(record).to_bytes(_CRC_BYTES, "little") != content[start + len(record) : start + self._size]:
                break
            losses_N = np.frombuffer(record[KEY_BYTES:], dtype=np.float64)
            found[record[:KEY_BYTES]] = losses_N.reshape(len(self._finals), self._num_records)
            good = start + self._size
        if good < len(content):
            with disk_errors(self._path):
                os.truncate(self._path, good)
        return found
