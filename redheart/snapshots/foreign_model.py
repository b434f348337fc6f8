"""The model in what a training script saved, found by how it is built and not by what it is called.

Scripts differ in every name that they give: `state_dict`, `net` or `learner`, beside callbacks, an optimizer's moments,
states of random generators and best scores. What they have in common is made by torch: the names of a `state_dict()`
have dots in them and lie side by side in one dictionary, an optimizer has `param_groups`, a generator's state is a row
of bytes, a score is a single number. Dictionaries within dictionaries, one for every part of a model, are read too.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from redheart.core.errors import BadInput
from redheart.snapshots.foreign_names import Names
from redheart.snapshots.foreign_parts import Part, is_beside_weights, is_number
from redheart.snapshots.tensor_file import MAX_PROBLEMS, TensorSpec

_ALIKE = 0.5
"""Two parts hold one model twice where they share this much of the smaller one's names and shapes."""

NamesOf = Callable[[Mapping[str, TensorSpec]], Names]
"""From types and shapes by name in the source to the model's own names."""


@dataclass(frozen=True)
class FoundModel:
    """What was taken for the model."""

    part: Part
    ignored: list[str]
    """Paths of what holds tensors too and is not the model."""
    together: list[str]
    """Paths of complete models that were taken as the parts of one."""


def find_model(root: Part, *, path: str, names_of: NamesOf, expected: Collection[str]) -> FoundModel:
    """Find the model in what a file held.

    Args:
        root: all of a file.
        path: of the part that the user named; empty looks for it.
        names_of: gives the model's own names of tensors.
        expected: names that the model should have, which tell it from others; empty where unknown.

    Raises:
        BadInput: there is none, or several that could be meant; they are named.
    """
    start = _part_at(root, path) if path else root
    found = None
    if not start.is_training:
        found = (_expected_model(start, names_of, expected) if expected else None) or _search(start, names_of)
    if found is not None and found.part.num_tensors:
        return found
    if arrays := start.paths_of_arrays():
        raise BadInput(
            "weights are arrays of numpy, which are not read",
            where=root.file,
            got=", ".join(arrays[:MAX_PROBLEMS]),
            hint="turn them into tensors where the file was made: torch.from_numpy",
        )
    raise BadInput(
        "the file holds no model, only what is kept of a training",
        where=root.file,
        got=", ".join([*start.parts, *start.tensors][:MAX_PROBLEMS]),
        hint="give the file that holds the weights",
    )


def _search(part: Part, names_of: NamesOf) -> FoundModel:
    """Go down from a part to the model in it."""
    ignored: list[str] = []
    while not part.is_flat:
        rest = {key: item for key, item in part.parts.items() if not item.is_training}
        has_flat = any(item.holds_flat for item in rest.values())
        keeps_training = part.has_settings or len(rest) < len(part.parts) or any(map(is_number, part.tensors.values()))
        models = [item for item in rest.values() if not item.holds_numbers_only]
        if has_flat or keeps_training or sum(item.is_called_model for item in models) == 1:
            rest = {item.key: item for item in models}
        main = _main(list(rest.values()), keeps_training=keeps_training, names_of=names_of)
        if main is None:
            found = _joined(part, list(rest.values()), keeps_training=keeps_training, names_of=names_of)
            return replace(found, ignored=ignored + found.ignored)
        ignored += part.paths_but(main.key)
        part = main
    ignored += [part.at(key) for key in (*part.parts, *part.arrays)]
    return FoundModel(replace(part, parts={}), ignored, [])


def _main(rest: Sequence[Part], *, keeps_training: bool, names_of: NamesOf) -> Part | None:
    """The entry that is all of the model; None where each is a part of it."""
    flat = [item for item in rest if item.holds_flat]
    named = [item for item in flat or rest if item.is_called_model]
    if len(flat) > 1 or (named and len(rest) > 1):
        _refuse_twins(flat or rest, names_of)
    if len(flat) == 1 and not (keeps_training or named):
        # Where nothing speaks of a training, matrices beside a `state_dict` belong to the same model.
        return None if any(item.has_matrices for item in rest if item is not flat[0]) else flat[0]
    if len(flat) == 1:
        return flat[0]
    if len(named) == 1 and (flat or keeps_training or len(rest) == 1):
        return named[0]
    return rest[0] if len(rest) == 1 and keeps_training else None


def _joined(part: Part, rest: Sequence[Part], *, keeps_training: bool, names_of: NamesOf) -> FoundModel:
    """A part as the model itself and its entries as the model's parts."""
    flat = {item.key: _search(item, names_of) for item in rest if item.holds_flat}
    parts = {item.key: item for item in rest if not flat or item.has_matrices}
    parts |= {key: replace(item.part, key=key) for key, item in flat.items()}
    tensors = part.tensors
    if flat:
        tensors = {}
    elif keeps_training and rest:
        tensors = {key: tensor for key, tensor in tensors.items() if not is_beside_weights(key, tensor)}
    ignored = [part.at(key) for key in (*part.parts, *part.tensors) if key not in parts and key not in tensors]
    ignored += [path for item in flat.values() for path in item.ignored]
    ignored += replace(part, parts={key: item for key, item in parts.items() if key not in flat}).paths_of_arrays()
    together = [part.at(key) for key in flat] if len(flat) > 1 else []
    return FoundModel(replace(part, parts=parts, tensors=tensors), ignored, together)


def _expected_model(start: Part, names_of: NamesOf, expected: Collection[str]) -> FoundModel | None:
    """The part that has the most of the names that there should be; None where none has any."""
    scores = [(_num_expected(item, names_of, expected), item) for item in start.below()]
    most = max(score for score, _ in scores)
    if not most:
        return None
    best = [item for score, item in scores if score == most]
    # Of a part and what it is wrapped in the inner one is meant.
    inner = [item for item in best if not any(other is not item for other in item.below() if other in best)]
    if len(inner) > 1:
        raise _twins(inner)
    found = _search(inner[0], names_of)
    if _num_expected(found.part, names_of, expected) < most:
        found = FoundModel(inner[0], [], [])
    return replace(found, ignored=_paths_beside(start, inner[0]) + found.ignored)


def _num_expected(part: Part, names_of: NamesOf, expected: Collection[str]) -> int:
    return sum(name in expected for name in names_of(part.specs).by_key.values())


def _paths_beside(start: Part, target: Part) -> list[str]:
    """What is left out on the way from one part to another in it."""
    if start is target:
        return []
    way = next(item for item in start.parts.values() if target in item.below())
    return start.paths_but(way.key) + _paths_beside(way, target)


def _part_at(root: Part, path: str) -> Part:
    parts = list(root.below())
    for item in parts:
        if item.path == path:
            return item
    raise BadInput(
        "the file has no such part",
        where=root.file,
        got=path,
        expected=", ".join(item.path for item in parts if item.path)[:1000] or "nothing: the file has no parts",
    )


def _refuse_twins(parts: Sequence[Part], names_of: NamesOf) -> None:
    """Raise where two of several parts are the same model twice, as weights and their running mean are."""
    found = [_search(item, names_of).part for item in parts]
    contents = []
    for specs in (item.specs for item in found):
        contents.append({(name, specs[key].shape) for key, name in names_of(specs).by_key.items()})
    for index, content in enumerate(contents):
        for other in contents[:index]:
            if len(content & other) >= max(1, _ALIKE * min(len(content), len(other))):
                raise _twins(found)


def _twins(parts: Sequence[Part]) -> BadInput:
    found = [f"{item.path} ({item.num_tensors} tensors)" for item in parts]
    return BadInput(
        "the file holds several models, and which is meant is not guessed",
        where=parts[0].file,
        got=", ".join(found),
        expected="one",
        hint=f"name it: --part {parts[0].path}",
    )
