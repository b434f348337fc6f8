"""Where the compiled kernel is taken from: the user's cache, or a temporary folder of this user's where that fails.

What can go wrong with a cache goes wrong somewhere: no home, a read-only one, a full disk, a mount from which nothing
may be loaded, a file that was damaged or is of another machine. None of it ends a run; the next place is tried.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path

from redheart.core.cache import cache_folder, private_folder, temporary_private_folder
from redheart.memory.adamw8bit.build import NoKernel, compile_in, compiled_in, compilers


def libraries(failures: list[str]) -> Iterator[Path]:
    """Compiled kernels to try, one after the other: made before, or compiled when they are asked for.

    Args:
        failures: is told why a place or a compiler gave none, in the order in which they were tried.
    """
    found = compilers()
    if not found:
        failures.append("no C++ compiler was found: install g++ or clang++")
    folders = list(usable_folders(failures))
    for compiler, folder in product((None, *found), folders):
        try:
            yield from [compile_in(folder, compiler)] if compiler else compiled_in(folder)
        except NoKernel as failure:
            failures.append(str(failure))
        except OSError as error:
            failures.append(_not_kept(error))


def usable_folders(failures: list[str]) -> Iterator[Path]:
    """The folders in which a kernel may lie, each made if it is not there.

    Args:
        failures: is told what is wrong with the others.
    """
    cache = cache_folder()
    makers: list[Callable[[], Path]] = [temporary_private_folder]
    if cache is None:
        failures.append("there is no home folder to keep a compiled kernel in")
    else:
        makers.insert(0, partial(private_folder, cache))
    for make in makers:
        try:
            yield make()
        except OSError as error:
            failures.append(_not_kept(error))


def _not_kept(error: OSError) -> str:
    return f"no compiled kernel can be kept: {error.strerror}: {error.filename}"
