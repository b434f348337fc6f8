"""What a training script saved, taken apart into dictionaries that hold tensors, and what each of them looks like."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from redheart.core.errors import BadInput
from redheart.snapshots.foreign_names import MOMENTS, OPTIMIZER_WORDS, TRAINING_WORDS, words
from redheart.snapshots.safe_load import InertArray
from redheart.snapshots.tensor_file import TensorSpec, spec_of

MAX_DEPTH = 64
MAX_ENTRIES = 1_000_000
"""Dictionaries may hold one another many times over, or themselves; no model has so many tensors."""
_MODEL_WORDS = frozenset(("model", "module", "net", "network", "params", "weights"))
_MODEL_KEYS = frozenset(("state", "state_dict"))


@dataclass(frozen=True, eq=False)
class Part:
    """A dictionary or list with tensors in it, at any depth."""

    file: Path
    path: str = ""
    """Its keys from the top of the file, joined by dots; empty for all of it."""
    key: str = ""
    """The last of them; empty for all of a file."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    parts: "dict[str, Part]" = field(default_factory=dict)
    arrays: tuple[str, ...] = ()
    """Keys of arrays of numpy, which are not read."""
    is_list: bool = False
    has_settings: bool = False
    """Whether numbers or texts lie beside the tensors, as in what a script keeps of a training."""
    is_optimizer: bool = False

    def at(self, key: str) -> str:
        """The path of an entry."""
        return f"{self.path}.{key}" if self.path else key

    def paths_but(self, taken: str) -> list[str]:
        """The paths of all entries but one."""
        return [self.at(key) for key in (*self.parts, *self.tensors, *self.arrays) if key != taken]

    def paths_of_arrays(self) -> list[str]:
        """The paths of all arrays of numpy, at any depth."""
        return [part.at(key) for part in self.below() for key in part.arrays]

    def below(self) -> "Iterator[Part]":
        """This part and all parts in it that are not the training's."""
        yield self
        for part in self.parts.values():
            if not part.is_training:
                yield from part.below()

    def all_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All tensors at any depth, by their path within this part."""
        yield from self.tensors.items()
        for key, part in self.parts.items():
            for name, tensor in part.all_tensors():
                yield f"{key}.{name}", tensor

    def by_name(self) -> dict[str, Tensor]:
        """All tensors by their path within this part.

        Raises:
            BadInput: two have one.
        """
        found: dict[str, Tensor] = {}
        for name, tensor in self.all_tensors():
            if name in found:
                raise BadInput("two tensors of the file have one name", where=self.file, got=self.at(name))
            found[name] = tensor
        return found

    @property
    def num_tensors(self) -> int:
        return sum(1 for _ in self.all_tensors())

    @property
    def specs(self) -> dict[str, TensorSpec]:
        """Types and shapes of all tensors by their path within this part."""
        return {name: spec_or_empty(tensor) for name, tensor in self.all_tensors()}

    @property
    def is_flat(self) -> bool:
        """Whether it is what `state_dict()` gives of a model of several parts: names with dots, side by side."""
        return any("." in name and not is_number(tensor) for name, tensor in self.tensors.items())

    @property
    def holds_flat(self) -> bool:
        return any(part.is_flat for part in self.below())

    @property
    def is_training(self) -> bool:
        """Whether it is an optimizer, a scheduler, states of random generators, or a list of anything but models."""
        if self.is_optimizer or (OPTIMIZER_WORDS | TRAINING_WORDS) & set(words(self.key)):
            return True
        if self.is_list and self.key and not any(part.holds_flat for part in self.parts.values()):
            return True
        tensors = dict(self.all_tensors())
        moments = {name for name in tensors if name.rpartition(".")[2] in MOMENTS}
        if moments:
            return all(name in moments or is_number(tensor) for name, tensor in tensors.items())
        return bool(tensors) and all(map(is_generator_state, tensors.values()))

    @property
    def holds_numbers_only(self) -> bool:
        """Whether there are single numbers in it and nothing else, as in what callbacks and metrics keep."""
        return all(is_number(tensor) for _, tensor in self.all_tensors())

    @property
    def has_matrices(self) -> bool:
        return any(len(spec.shape) > 1 for spec in self.specs.values())

    @property
    def is_called_model(self) -> bool:
        """Whether its key says that it is a model; where structure leaves it open, this decides."""
        return self.key in _MODEL_KEYS or bool(_MODEL_WORDS & set(words(self.key)))


def read_parts(content: object, file: Path) -> Part:
    """What a file held as parts, without dictionaries that hold no tensors.

    Raises:
        BadInput: there are no tensors with names, two entries have one name, or it is nested without end.
    """
    if not isinstance(content, Mapping | list | tuple):
        raise BadInput("the file holds no dictionary of tensors", where=file, got=type(content).__name__)
    root = _Reader().part(content, Part(file, is_list=not isinstance(content, Mapping)), depth=0)
    if root is None or (root.is_list and root.tensors):
        keys = list(content)[:10] if isinstance(content, Mapping) else [type(item).__name__ for item in content[:10]]
        got = ", ".join(map(str, keys)) or "nothing"
        raise BadInput("there are no tensors with names in the file", where=file, got=got)
    return root


def is_beside_weights(key: str, tensor: Tensor) -> bool:
    """Whether a tensor on its own, in what a script keeps of a training, is a score or a random generator's state."""
    return is_number(tensor) or is_generator_state(tensor) or bool(TRAINING_WORDS & set(words(key)))


def is_number(tensor: Tensor) -> bool:
    """Whether it has one element."""
    return spec_or_empty(tensor).num_elements == 1


def is_generator_state(tensor: Tensor) -> bool:
    """Whether it may be a random generator's: a row of bytes."""
    return tensor.dtype == torch.uint8 and tensor.ndim == 1


def spec_or_empty(tensor: Tensor) -> TensorSpec:
    """Type and shape; none of a nested tensor, whose parts differ in theirs."""
    return TensorSpec(tensor.dtype, (0,)) if tensor.is_nested else spec_of(tensor)


_Entries = Mapping[object, object] | list[object] | tuple[object, ...]


class _Reader:
    """Counts entries over all that is nested."""

    def __init__(self) -> None:
        self._num_entries = 0

    def part(self, value: _Entries, empty: Part, *, depth: int) -> Part | None:
        """A part with what holds tensors in `value`; None where nothing does."""
        entries = list(value.items()) if isinstance(value, Mapping) else list(enumerate(value))
        self._num_entries += len(entries)
        if self._num_entries > MAX_ENTRIES or depth > MAX_DEPTH:
            raise BadInput(
                "the file's dictionaries lie in one another without end", where=empty.file, got=empty.path[:200]
            )
        tensors: dict[str, Tensor] = {}
        parts: dict[str, Part] = {}
        arrays: list[str] = []
        has_settings = False
        seen: set[str] = set()
        for name, item in entries:
            key = str(name)
            if key in seen:
                raise BadInput("two entries of the file have one name", where=empty.file, got=empty.at(key))
            seen.add(key)
            if isinstance(item, Tensor):
                tensors[key] = item
            elif isinstance(item, InertArray):
                arrays.append(key)
            elif isinstance(item, Mapping | list | tuple):
                is_list = not isinstance(item, Mapping)
                inner = self.part(item, Part(empty.file, empty.at(key), key, is_list=is_list), depth=depth + 1)
                if inner is not None:
                    parts[key] = inner
                has_settings = has_settings or (inner is None and bool(item))
            else:
                has_settings = True
        if not tensors and not parts and not arrays:
            return None
        return replace(
            empty,
            tensors=tensors,
            parts=parts,
            arrays=tuple(arrays),
            has_settings=has_settings,
            is_optimizer="param_groups" in seen,
        )
