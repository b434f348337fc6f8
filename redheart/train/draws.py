"""Random draws of a pass (dropout, noise in a loss) that follow from names alone: no generator is part of a state."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

import torch

from redheart.core.seeds import stream_seed

T = TypeVar("T")


def drawn(work: Callable[[], T], *names: object) -> T:
    """What a function gives with torch's generators, of the CPU and the card in use, seeded from names.

    Afterwards they are as before.
    """
    with generators_kept():
        torch.manual_seed(stream_seed(0, *names))
        return work()


def generators_kept() -> AbstractContextManager[None]:
    """Torch's generators are afterwards as before; those of other cards are not touched, which would need a context."""
    return torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_initialized() else [])
