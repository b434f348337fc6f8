"""Which of a launcher's processes this one is: read once from the environment, where it is whole; else alone."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from redheart.core.errors import BadInput

_NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
_ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
_NEEDED = ("RANK", "LOCAL_RANK", *_ADDRESS)
"""What several ranks cannot do without; a launcher that does not say it leaves LOCAL_WORLD_SIZE to be all of them."""
_DEEPSPEED_SIZE = "LOCAL_SIZE"
"""What its launcher sets in the place of LOCAL_WORLD_SIZE."""
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
_LAST_PORT = (1 << 16) - 1


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    """Among those of this host."""
    local_world_size: int = 1
    address: tuple[str, int] | None = None
    """Where the first rank is met; None for one that is alone."""
    leftovers: tuple[str, ...] = ()
    """What is set of a launcher's variables without the rest, as `NAME=value`: it means nothing."""

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0

    def as_variables(self) -> dict[str, str]:
        """The numbers as launchers give them, for libraries that read the environment by themselves."""
        numbers = (self.rank, self.world_size, self.local_rank, self.local_world_size)
        return dict(zip(_NUMBERS, map(str, numbers), strict=True))


@cache
def launched() -> Ranks:
    """This process's place, as its environment had it when this was first asked; raises as `read_ranks`."""
    return read_ranks(os.environ)


def read_ranks(environment: Mapping[str, str]) -> Ranks:
    """The place that an environment gives a process.

    Half of what a launcher sets is left over in many a shell. What says of itself that there is one process, or
    nothing at all, is such a leftover; what says that there are others, and not who or where, is refused. An empty
    value and -1 count as not set.

    Raises:
        BadInput: a value is no number, or they contradict each other; all that is wrong is named.
    """
    given = {
        name: value for name in (*_NUMBERS, *_ADDRESS) if (value := environment.get(name, "").strip()) not in ("", "-1")
    }
    numbers = {name: int(text) for name, text in given.items() if _is_number(text)}
    wrong = [f"{name}={given[name]!r} is no number" for name in _NUMBERS if name in given and name not in numbers]
    wrong = wrong or _contradictions(numbers)
    world_size = numbers.get("WORLD_SIZE", 1)
    if world_size > 1:
        wrong += [f"{name} is not set" for name in _NEEDED if name not in given]
        if "MASTER_PORT" in given and not 0 < numbers.get("MASTER_PORT", 0) <= _LAST_PORT:
            wrong.append(f"MASTER_PORT={given['MASTER_PORT']!r} is no port")
    if wrong:
        raise BadInput(
            "what the environment says of ranks does not fit together",
            where=", ".join(f"{name}={value}" for name, value in given.items()),
            got="; ".join(wrong),
            expected=f"for several processes WORLD_SIZE, {', '.join(_NEEDED)}; for one none of them",
            hint=f"start with a launcher (docs/several-devices.md), or: unset {' '.join(given)}",
        )
    if world_size > 1:
        local_size = environment.get(_DEEPSPEED_SIZE, "").strip()
        told = int(local_size) if _is_number(local_size) else 0
        told = told if numbers["LOCAL_RANK"] < told <= world_size else world_size
        local_world_size = numbers.get("LOCAL_WORLD_SIZE", told)
        address = given["MASTER_ADDR"], numbers["MASTER_PORT"]
        return Ranks(numbers["RANK"], world_size, numbers["LOCAL_RANK"], local_world_size, address)
    is_whole = {"RANK", "WORLD_SIZE"} <= given.keys()
    leftovers = [] if is_whole else [f"{name}={value}" for name, value in given.items()]
    # Of MPI's ranks nothing is read; each would be alone and find the folder taken.
    leftovers += [f"{name}={environment[name]}" for name in _MPI_SIZES if environment.get(name, "1") not in ("", "1")]
    return Ranks(leftovers=tuple(leftovers))


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) < 10


def _contradictions(numbers: Mapping[str, int]) -> list[str]:
    rank, local_rank = numbers.get("RANK", 0), numbers.get("LOCAL_RANK", 0)
    world_size = numbers.get("WORLD_SIZE", 1)
    local_world_size = numbers.get("LOCAL_WORLD_SIZE", world_size)
    size = f"WORLD_SIZE={world_size}" if "WORLD_SIZE" in numbers else "WORLD_SIZE, which is not set"
    checks = [
        (world_size > 0, f"{size} is no number of processes"),
        (local_world_size > 0, f"LOCAL_WORLD_SIZE={local_world_size} is no number of processes"),
        (rank < world_size, f"RANK={rank} is not below {size}"),
        (local_world_size <= world_size, f"LOCAL_WORLD_SIZE={local_world_size} is above {size}"),
        (local_rank < local_world_size, f"LOCAL_RANK={local_rank} is not below the number of processes on its host"),
        ("RANK" not in numbers or local_rank <= rank, f"LOCAL_RANK={local_rank} is above RANK={rank}"),
    ]
    return [what for holds, what in checks if not holds]
