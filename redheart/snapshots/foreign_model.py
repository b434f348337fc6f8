"""The model in what a training script saved, found by how it is built and not by what it is called.

Scripts differ in every name that they give: `state_dict`, `net` or `learner`, beside callbacks, an optimizer's moments,
states of random generators and best scores. What they have in common is made by torch: the names of a `state_dict()`
have dots in them and lie side by side in one dictionary, an optimizer has `param_groups`, a generator's state is a row
of bytes, a score is a single number. Dictionaries within dictionaries, one for every part of a model, are read too.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, takewhile
from pathlib import Path

import torch
from torch import Tensor

from redheart.core.errors import MAX_PROBLEMS, BadInput, names_text
from redheart.snapshots.foreign_names import MOMENTS, OPTIMIZER_WORDS, PREFIXES, Names, keys_by_name, model_names, words
from redheart.snapshots.safe_load import load_torch_file, refuse_unwritable
from redheart.snapshots.tensors import Tensors, spec_of

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
    path: tuple[str, ...]
    """Its keys from the top of the file."""
    tensors: dict[str, Tensor]
    parts: "dict[str, Part]"
    is_list: bool
    is_optimizer: bool

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
        if self.is_list and self.path and not any(part.is_flat for part in self.below()):
            return True
        tensors = dict(self.all_tensors())
        moments = {name for name in tensors if name.rpartition(".")[2] in MOMENTS}
        if moments:
            return all(name in moments or _is_number(tensor) for name, tensor in tensors.items())
        return bool(tensors) and all(map(_is_generator_state, tensors.values()))

    @property
    def is_layer(self) -> bool:
        """Whether it may be the `state_dict()` of a single layer, whose names have no dots."""
        return any(len(spec_of(item).shape) > 1 and "weight" in words(key) for key, item in self.tensors.items())

    def weights(self) -> "list[Part]":
        """The outermost dictionaries that are a `state_dict()` each, or else those with tensors of several numbers."""
        if self.is_flat:
            return [self]
        inner = [found for part in self.parts.values() if not part.is_training for found in part.weights()]
        if any(part.is_flat for part in inner):
            # Beside a `state_dict()`, matrices may be statistics of a training.
            return [part for part in inner if part.is_flat or part.is_layer]
        return [self] if any(not _is_beside_weights(key, item) for key, item in self.tensors.items()) else inner


@dataclass(frozen=True)
class Foreign:
    """A model of another tool, its tensors read when they are asked for."""

    kind: str
    tensors: Tensors
    ignored: list[str] = field(default_factory=list)
    """Entries beside the model that hold tensors and were left out."""
    prefix: str = ""
    """What stood before every name and was taken away."""
    together: list[str] = field(default_factory=list)
    """Complete models in one file that were taken as the parts of one."""


def find_model(root: Part, *, path: str, expected: Collection[str]) -> Foreign:
    """Find the model in all that a file held; `path` and `expected` as for `open_foreign`.

    Raises:
        BadInput: there is none, several that could be meant, or tensors that cannot be written; they are named.
    """
    start = _part_at(root, path) if path else root
    weights = [] if start.is_training else start.weights()
    if not weights:
        raise BadInput(
            "the file holds no model, only what is kept of a training",
            where=root.file,
            got=names_text([*start.parts, *start.tensors], shown=MAX_PROBLEMS),
            hint="give the file that holds the weights",
        )
    taken = _meant(weights, expected)
    found, common_path = _tensors(taken)
    names = own_names(found, expected)
    tensors = {name: found[key] for name, key in keys_by_name(names, root.file).items()}
    refuse_unwritable(tensors, root.file)
    ignored = _ignored(start, taken) + [".".join((*common_path, key)) for key in names.strays]
    flat = [str(part) for part in taken if part.is_flat]
    together = flat if len(flat) > 1 else []
    return Foreign("file of torch.save", Tensors.of(tensors), ignored, names.prefix, together)


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
        contents.append({(name, spec_of(tensors[key]).shape) for key, name in names.items()})
    for one, other in combinations(contents, 2):
        if len(one & other) >= max(1, _ALIKE * min(len(one), len(other))):
            raise _several(flat or weights)
    return named or weights


def _num_expected(weights: Sequence[Part], expected: Collection[str]) -> int:
    return sum(name in expected for name in own_names(_tensors(weights)[0], expected).by_key.values())


def own_names(tensors: Mapping[str, Tensor], expected: Collection[str]) -> Names:
    """How the tensors of a file of torch.save are called once wrappers are gone."""
    specs = {key: spec_of(tensor) for key, tensor in tensors.items()}
    return model_names(specs, prefixes=PREFIXES, expected=expected)


def _tensors(weights: Sequence[Part]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """Tensors by their names below what all these parts lie in, and the path of that; one part's are its own."""
    levels = zip(*(part.path for part in weights), strict=False)
    path = tuple(keys[0] for keys in takewhile(lambda keys: len(set(keys)) == 1, levels))
    found: dict[str, Tensor] = {}
    for part in weights:
        # What lies below names with dots is not of the same model.
        for key, tensor in part.tensors.items() if part.is_flat else part.all_tensors():
            name = ".".join((*part.path[len(path) :], key))
            if name in found:
                raise BadInput("two tensors of the file have one name", where=part.file, got=part.at(key))
            found[name] = tensor
    return found, path


def _ignored(part: Part, weights: list[Part]) -> list[str]:
    """Paths of what is left out of a part, the outermost each."""
    if part in weights:
        return [part.at(key) for key in part.parts] if part.is_flat else []
    found = [part.at(key) for key in part.tensors]
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


def read_parts(file: Path) -> Part:
    """What a file of torch.save holds as parts, without dictionaries that hold no tensors.

    Raises:
        BadInput: there are no tensors with names, two entries have one name, or it is nested without end.
    """
    content = load_torch_file(file)
    left = iter(range(MAX_ENTRIES))

    def read(value: Mapping[object, object] | list[object] | tuple[object, ...], path: tuple[str, ...]) -> Part:
        tensors: dict[str, Tensor] = {}
        parts: dict[str, Part] = {}
        entries: Iterable[tuple[object, object]] = value.items() if isinstance(value, Mapping) else enumerate(value)
        for key, item in entries:
            name = str(key)
            if len(path) > MAX_DEPTH or next(left, None) is None:
                got = ".".join(path)[:200]
                raise BadInput("the file's dictionaries lie in one another without end", where=file, got=got)
            if name in tensors or name in parts:
                raise BadInput("two entries of the file have one name", where=file, got=".".join((*path, name)))
            if isinstance(item, Tensor):
                tensors[name] = item
            elif isinstance(item, Mapping | list | tuple):
                inner = read(item, (*path, name))
                if inner.tensors or inner.parts:
                    parts[name] = inner
        is_list = not isinstance(value, Mapping)
        return Part(file, path, tensors, parts, is_list, is_optimizer=not is_list and "param_groups" in value)

    root = read(content if isinstance(content, Mapping | list | tuple) else (), ())
    if not (root.tensors or root.parts) or (root.is_list and root.tensors):
        keys = ", ".join(map(str, list(content)[:10])) if isinstance(content, Mapping) else ""
        raise BadInput(
            "there are no tensors with names in the file",
            where=file,
            got=keys or type(content).__name__,
            hint="save the model's state_dict() there; of arrays of numpy torch.from_numpy makes tensors",
        )
    return root


def _is_beside_weights(key: str, tensor: Tensor) -> bool:
    """Whether a tensor on its own, in what a script keeps of a training, is a score or a random generator's state."""
    return _is_number(tensor) or _is_generator_state(tensor) or bool(_TRAINING_WORDS & words(key))


def _is_number(tensor: Tensor) -> bool:
    return spec_of(tensor).num_elements == 1


def _is_generator_state(tensor: Tensor) -> bool:
    """Whether it may be a random generator's: a row of bytes."""
    return tensor.dtype == torch.uint8 and tensor.ndim == 1
