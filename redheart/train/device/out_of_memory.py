"""Where a device's memory runs out: what the failed try held is let go, then less is tried, or the run ends."""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

import numpy as np
import torch

from redheart.core.errors import DoesNotFit
from redheart.core.progress import warn
from redheart.data.loader import split

T = TypeVar("T")


def tried(work: Callable[[], T]) -> T | None:
    """What a function gives, or None where the device's memory ran out; then nothing of the try is held any more."""
    try:
        return work()
    except torch.OutOfMemoryError:
        # Its traceback holds the frames of the try, and they the activations: nothing is free before this block ends.
        pass
    gc.collect()
    torch.cuda.empty_cache()
    return None


def in_parts(batches: Sequence[np.ndarray], work: Callable[[np.ndarray], T]) -> list[T]:
    """What a function gives for every batch of rows, in their order; batches are halved where memory runs out.

    Raises:
        DoesNotFit: one row does not fit.
    """
    pending, done = list(batches), []
    while pending:
        rows = pending[0]
        result = tried(lambda rows=rows: work(rows))  # type: ignore[misc]
        if result is not None:
            done.append(result)
            del pending[0]
            continue
        if len(rows) == 1:
            raise DoesNotFit(
                "out of device memory",
                where="a pass without gradients over one record",
                hint="free the device of other programs or take a smaller --preset, then run the same command again",
            )
        pending = split(pending, len(rows) // 2)
        warn(f"out of device memory; going on with batches of {len(rows) // 2} records")
    return done


@contextmanager
def no_second_try(refusal: DoesNotFit) -> Iterator[None]:
    """Raise `refusal` where the device's memory runs out in something that cannot be tried again with less."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise refusal from error
