"""The kernel's threads: they stay, serve several callers at once, and are there again after a fork."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from redheart.kernel.bindings import Kernel
from redheart.optim.host_adamw8bit import backend

THREADS = 4
pytestmark = pytest.mark.skipif(
    not isinstance(backend(), Kernel) or not Path("/proc/self/task").is_dir(), reason="no kernel or no Linux"
)


def sum_squares(seed: int, num_threads: int = THREADS) -> float:
    grad = torch.randn(300_000, generator=torch.Generator().manual_seed(seed))
    kernel = backend()
    assert isinstance(kernel, Kernel)
    return kernel.with_threads(num_threads).sum_squares(grad)


def num_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def test_threads_are_started_once() -> None:
    sum_squares(0)
    before = num_threads()
    for seed in range(200):
        sum_squares(seed)
    assert num_threads() <= before


def test_several_callers_at_once_get_what_each_gets_alone() -> None:
    alone = [sum_squares(seed, num_threads=1) for seed in range(40)]
    begin = threading.Barrier(4)

    def all_sums(_caller: int) -> list[float]:
        begin.wait()
        return [sum_squares(seed) for seed in range(40)]

    with ThreadPoolExecutor(4) as callers:
        assert list(callers.map(all_sums, range(4))) == [alone] * 4


def test_a_fork_has_threads_of_its_own() -> None:
    expected = sum_squares(1)
    child = os.fork()
    if child == 0:
        # It says whether it is right and had helpers by how it exits: nothing of pytest's may run in it.
        is_right = sum_squares(1) == expected and num_threads() >= THREADS
        os._exit(0 if is_right else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sum_squares(1) == expected
