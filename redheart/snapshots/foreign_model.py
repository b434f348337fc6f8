"""The model in what a training script saved, found by how it is built and not by what it is called.

Scripts differ in every name that they give: `state_dict`, `net` or `learner`, beside callbacks, an optimizer's moments,
states of random generators and best scores. What they have in common is made by torch: the names of a `state_dict()`
have dots in them and lie side by side in one dictionary, an optimizer has `param_groups`, a generator's state is a row
of bytes, a score is a single number. Dictionaries within dictionaries, one for every part of a model, are read too.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, takewhile
from pathlib import Path

import torch
from torch import Tensor

from redheart.core.errors import MAX_PROBLEMS, BadInput, names_text
from redheart.snapshots.foreign_names import MOMENTS, OPTIMIZER_WORDS, PREFIXES, Names, model_names, words
from redheart.snapshots.safe_load import InertArray
from redheart.snapshots.tensors import TensorSpec, spec_of

MAX_DEPTH = 64
MAX_ENTRIES = 1_000_000
"""Dictionaries may hold one another many times over, or themselves; no model has so many tensors."""
_ALIKE = 0.5
"""Two parts hold one model twice where they share this much of the smaller one's names and shapes."""
_TRAINING_WORDS = OPTIMIZER_WORDS | {"rng", "scaler", "sched", "scheduler", "schedulers"}
_MODEL_WORDS = frozenset(("dict", "model", "module", "net", "network", "params", "weights"))
"""Words in the keys of models, and of `state_dict`; where structure leaves it open, these decide."""


@dataclass(frozen=True, eq=False)
class Part:
    """A dictionary or list with tensors in it, at any depth."""

    file: Path
    path: tuple[str, ...] = ()
    """Its keys from the top of the file."""
    tensors: dict[str, Tensor] = field(default_factory=dict)
    parts: "dict[str, Part]" = field(default_factory=dict)
    arrays: list[str] = field(default_factory=list)
    """Keys of arrays of numpy, which are not read."""
    is_list: bool = False
    is_optimizer: bool = False
    has_settings: bool = False
    """Whether numbers or texts lie beside the tensors, as in what a script keeps of a training."""

    def __str__(self) -> str:
        return ".".join(self.path)

    def at(self, key: str) -> str:
        """The path of an entry."""
        return ".".join((*self.path, key))

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

    @property
    def is_flat(self) -> bool:
        """Whether it is what `state_dict()` gives of a model of several parts: names with dots, side by side."""
        return any("." in name and not _is_number(tensor) for name, tensor in self.tensors.items())

    @property
    def is_training(self) -> bool:
        """Whether it is an optimizer, a scheduler, states of random generators, or a list of anything but models."""
        if self.is_optimizer or (self.path and _TRAINING_WORDS & words(self.path[-1])):
            return True
        inner = [part for item in self.parts.values() for part in item.below()]
        if self.is_list and self.path and not any(part.is_flat for part in inner):
            return True
        tensors = dict(self.all_tensors())
        moments = {name for name in tensors if name.rpartition(".")[2] in MOMENTS}
        if moments:
            return all(name in moments or _is_number(tensor) for name, tensor in tensors.items())
        return bool(tensors) and all(map(_is_generator_state, tensors.values()))

    def weights(self) -> "list[Part]":
        """The outermost dictionaries that are a `state_dict()` each, or else those with tensors of several numbers."""
        if self.is_flat:
            return [self]
        inner = [part.weights() for part in self.parts.values() if not part.is_training]
        holds_flat = [any(part.is_flat for part in found) for found in inner]
        if any(holds_flat):
            # Beside the only `state_dict` in what is kept of a training, matrices are statistics, but for a layer's.
            numbers = any(map(_is_number, self.tensors.values()))
            keeps_training = self.has_settings or numbers or any(part.is_training for part in self.parts.values())
            is_alone = keeps_training and sum(holds_flat) == 1
            groups = zip(inner, holds_flat, strict=True)
            return [part for found, flat in groups for part in found if flat or part.is_layer(is_alone=is_alone)]
        own = (key for key, tensor in self.tensors.items() if not _is_beside_weights(key, tensor))
        return [self] if any(own) else [part for found in inner for part in found]

    def is_layer(self, *, is_alone: bool) -> bool:
        """Whether it may be the `state_dict` of a single layer, whose names have no dots."""
        has_matrices = any(len(spec_or_empty(tensor).shape) > 1 for _, tensor in self.all_tensors())
        return has_matrices and ("weight" in self.tensors or not is_alone)


@dataclass(frozen=True)
class FoundModel:
    named: dict[str, tuple[Tensor, str]]
    """Tensors and where they lie in the file, by their names in the source."""
    ignored: list[str]
    """Paths of what holds tensors too and is not the model."""
    together: list[str]
    """Paths of complete models that were taken as the parts of one."""


def find_model(root: Part, *, path: str, expected: Collection[str]) -> FoundModel:
    """Find the model in all that a file held; `path` and `expected` as for `open_foreign`.

    Raises:
        BadInput: there is none, or several that could be meant; they are named.
    """
    start = _part_at(root, path) if path else root
    weights = [] if start.is_training else start.weights()
    if weights:
        taken = _meant(weights, expected)
        flat = [str(part) for part in taken if part.is_flat]
        return FoundModel(_named(taken), _ignored(start, taken), together=flat if len(flat) > 1 else [])
    if arrays := [part.at(key) for part in start.below() for key in part.arrays]:
        raise BadInput(
            "weights are arrays of numpy, which are not read",
            where=root.file,
            got=names_text(arrays, shown=MAX_PROBLEMS),
            hint="turn them into tensors where the file was made: torch.from_numpy",
        )
    raise BadInput(
        "the file holds no model, only what is kept of a training",
        where=root.file,
        got=names_text([*start.parts, *start.tensors], shown=MAX_PROBLEMS),
        hint="give the file that holds the weights",
    )


def _meant(weights: list[Part], expected: Collection[str]) -> list[Part]:
    """Which of several dictionaries of weights are the model; none where some are it twice, as a running mean is."""
    if expected:
        scores = [_num_expected([part], expected) for part in weights]
        if (most := max(scores)) and most >= _num_expected(weights, expected):
            best = [part for part, score in zip(weights, scores, strict=True) if score == most]
            if len(best) > 1:
                raise _several(best)
            return best
    named = [part for part in weights if any(_MODEL_WORDS & words(key) for key in part.path)]
    flat = [part for part in weights if part.is_flat]
    contents = []
    for part in flat or (weights if named else []):
        tensors = dict(part.all_tensors())
        names = own_names(tensors, expected).by_key
        contents.append({(name, spec_or_empty(tensors[key]).shape) for key, name in names.items()})
    for one, other in combinations(contents, 2):
        if len(one & other) >= max(1, _ALIKE * min(len(one), len(other))):
            raise _several(flat or weights)
    return named or weights


def _num_expected(weights: Sequence[Part], expected: Collection[str]) -> int:
    tensors = {name: tensor for name, (tensor, _) in _named(weights).items()}
    return sum(name in expected for name in own_names(tensors, expected).by_key.values())


def own_names(tensors: Mapping[str, Tensor], expected: Collection[str]) -> Names:
    """How the tensors of a file of torch.save are called once wrappers are gone."""
    specs = {key: spec_or_empty(tensor) for key, tensor in tensors.items()}
    return model_names(specs, prefixes=PREFIXES, expected=expected)


def _named(weights: Sequence[Part]) -> dict[str, tuple[Tensor, str]]:
    """Tensors and their paths by their names below what all these parts lie in; one part's are its own."""
    levels = zip(*(part.path for part in weights), strict=False)
    num_shared = len(list(takewhile(lambda keys: len(set(keys)) == 1, levels)))
    found: dict[str, tuple[Tensor, str]] = {}
    for part in weights:
        # What lies below names with dots is not of the same model.
        for key, tensor in part.tensors.items() if part.is_flat else part.all_tensors():
            name = ".".join((*part.path[num_shared:], key))
            if name in found:
                raise BadInput("two tensors of the file have one name", where=part.file, got=part.at(key))
            found[name] = tensor, part.at(key)
    return found


def _ignored(part: Part, weights: list[Part]) -> list[str]:
    """Paths of what is left out of a part, the outermost each."""
    if part in weights:
        nested = [] if not part.is_flat else [part.at(key) for key in part.parts]
        return nested + [inner.at(key) for inner in part.below() for key in inner.arrays if inner is part or not nested]
    found = [part.at(key) for key in (*part.tensors, *part.arrays)]
    for key, inner in part.parts.items():
        holds_weights = any(item.path[: len(inner.path)] == inner.path for item in weights)
        found += _ignored(inner, weights) if holds_weights else [part.at(key)]
    return found


def _part_at(root: Part, path: str) -> Part:
    by_path = {str(part): part for part in root.below()}
    if path in by_path:
        return by_path[path]
    raise BadInput(
        "the file has no such part",
        where=root.file,
        got=path,
        expected=", ".join(filter(None, by_path))[:1000] or "nothing: the file has no parts",
    )


def _several(parts: Sequence[Part]) -> BadInput:
    return BadInput(
        "the file holds several models, and which is meant is not guessed",
        where=parts[0].file,
        got=", ".join(f"{part} ({sum(1 for _ in part.all_tensors())} tensors)" for part in parts),
        expected="one",
        hint=f"name it: --part {parts[0]}",
    )


def read_parts(content: object, file: Path) -> Part:
    """What a file held as parts, without dictionaries that hold no tensors.

    Raises:
        BadInput: there are no tensors with names, two entries have one name, or it is nested without end.
    """
    if not isinstance(content, Mapping | list | tuple):
        raise BadInput("the file holds no dictionary of tensors", where=file, got=type(content).__name__)
    left = iter(range(MAX_ENTRIES))

    def read(value: Mapping[object, object] | list[object] | tuple[object, ...], path: tuple[str, ...]) -> Part:
        entries = list(value.items()) if isinstance(value, Mapping) else list(enumerate(value))
        tensors: dict[str, Tensor] = {}
        parts: dict[str, Part] = {}
        arrays: list[str] = []
        has_settings = False
        keys = [str(key) for key, _ in entries]
        if len(set(keys)) < len(keys):
            twice = Counter(keys).most_common(1)[0][0]
            raise BadInput("two entries of the file have one name", where=file, got=".".join((*path, twice)))
        for key, (_, item) in zip(keys, entries, strict=True):
            if len(path) > MAX_DEPTH or next(left, None) is None:
                got = ".".join(path)[:200]
                raise BadInput("the file's dictionaries lie in one another without end", where=file, got=got)
            if isinstance(item, Tensor):
                tensors[key] = item
            elif isinstance(item, InertArray):
                arrays.append(key)
            elif isinstance(item, Mapping | list | tuple):
                inner = read(item, (*path, key))
                if inner.tensors or inner.parts or inner.arrays:
                    parts[key] = inner
                else:
                    has_settings = has_settings or bool(item)
            else:
                has_settings = True
        is_list = not isinstance(value, Mapping)
        return Part(file, path, tensors, parts, arrays, is_list, "param_groups" in keys, has_settings)

    root = read(content, ())
    if not (root.tensors or root.parts or root.arrays) or (root.is_list and root.tensors):
        keys = list(content)[:10] if isinstance(content, Mapping) else [type(item).__name__ for item in content[:10]]
        got = ", ".join(map(str, keys)) or "nothing"
        raise BadInput("there are no tensors with names in the file", where=file, got=got)
    return root


def _is_beside_weights(key: str, tensor: Tensor) -> bool:
    """Whether a tensor on its own, in what a script keeps of a training, is a score or a random generator's state."""
    return _is_number(tensor) or _is_generator_state(tensor) or bool(_TRAINING_WORDS & words(key))


def _is_number(tensor: Tensor) -> bool:
    return spec_or_empty(tensor).num_elements == 1


def _is_generator_state(tensor: Tensor) -> bool:
    """Whether it may be a random generator's: a row of bytes."""
    return tensor.dtype == torch.uint8 and tensor.ndim == 1


def spec_or_empty(tensor: Tensor) -> TensorSpec:
    """Type and shape; none of a nested tensor, whose parts differ in theirs."""
    return TensorSpec(tensor.dtype, (0,)) if tensor.is_nested else spec_of(tensor)
