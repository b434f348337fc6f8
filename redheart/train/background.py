"""Writing beside training: one thread, one write at a time."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType


class BackgroundWriter:
    """Runs one write at a time in a thread; a second one waits for the first.

    An error of a write is raised by the next `submit` or `wait`, or at the end of the block.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._pending: deque[Future[object]] = deque()

    def __enter__(self) -> "BackgroundWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._thread.shutdown(wait=True)
        if error is None:
            self.wait()

    def submit(self, write: Callable[[], object]) -> None:
        """Write once the write before has ended."""
        self.wait()
        self.add(write)

    def add(self, work: Callable[[], object]) -> None:
        """Do something that holds no copies behind the write before, without waiting for it."""
        self._pending.append(self._thread.submit(work))

    def wait(self) -> None:
        """Return when everything is written.

        Raises:
            DiskError: the last write failed.
        """
        while self._pending:
            self._pending.popleft().result()
