"""A cache of tensors under a bound of bytes: what was used longest ago makes room."""

from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Memo(Generic[T]):
    """Values by key with their sizes; the least recently used are evicted.

    A value that is larger than the whole bound is not kept.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.held_bytes = 0
        self._values: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        """The value, now the most recently used one, or None."""
        entry = self._values.get(key)
        if entry is None:
            return None
        self._values.move_to_end(key)
        return entry[0]

    def put(self, key: Hashable, value: T, *, size_bytes: int) -> None:
        """Keep a value; older ones go until it fits."""
        self.held_bytes -= self._values.pop(key, (None, 0))[1]
        if size_bytes > self.limit_bytes:
            return
        while self.held_bytes + size_bytes > self.limit_bytes:
            _, (_, size) = self._values.popitem(last=False)
            self.held_bytes -= size
        self._values[key] = (value, size_bytes)
        self.held_bytes += size_bytes
