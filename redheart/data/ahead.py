"""One thing is read by a thread while the one before is worked on."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import numpy as np

T = TypeVar("T")


class Ahead(Generic[T]):
    """Reads rows when they are asked for, or before."""

    def __init__(self, read: Callable[[np.ndarray], T]):
        self._read = read
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read-ahead")
        self._coming: tuple[np.ndarray, Future[T]] | None = None

    def begin(self, rows: np.ndarray) -> None:
        """Read what will be asked for next, if there is anything."""
        if len(rows):
            self._coming = rows, self._thread.submit(self._read, rows)

    def get(self, rows: np.ndarray) -> T:
        """What was read of these rows; raises what reading them raised."""
        coming, self._coming = self._coming, None
        if coming is not None and np.array_equal(coming[0], rows):
            return coming[1].result()
        return self._read(rows)
