"""Writing beside training: one thread, one write after the other."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

from redheart.core.errors import RedHeartError
from redheart.core.progress import warn


class BackgroundWriter:
    """Runs writes in a thread, in the order in which they came; behind one that failed none is begun.

    So what a later write counts on is there when it is. An error of a write is raised by the next `wait` or `is_idle`,
    or at the end of the block; where the block ends with an error of its own, a warning tells of the write's.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._pending: deque[tuple[Future[object], bool]] = deque()
        self._has_failed = False

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        try:
            self.wait()
        except RedHeartError as failed:
            if error is None:
                raise
            warn(str(failed))

    def submit(self, write: Callable[[], object], *, holds_copies: bool = True) -> None:
        """Write behind what was submitted before, without waiting for it."""
        self._pending.append((self._thread.submit(self._run, write), holds_copies))

    def is_idle(self) -> bool:
        """Whether everything is written."""
        while self._pending and self._pending[0][0].done():
            self._pending.popleft()[0].result()
        return not self._pending

    def num_copies(self) -> int:
        """Writes with copies that have not ended."""
        return sum(holds_copies and not future.done() for future, holds_copies in self._pending)

    def wait(self, *, copies: int | None = None) -> None:
        """Return when everything is written, or when no more than so many copies are held.

        Raises:
            DiskError: a write failed.
        """
        while self._pending and (copies is None or self.num_copies() > copies):
            self._pending.popleft()[0].result()

    def _run(self, write: Callable[[], object]) -> None:
        if self._has_failed:
            return
        try:
            write()
        except BaseException:
            self._has_failed = True
            raise
