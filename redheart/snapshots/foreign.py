"""Models that other tools wrote: DeepSpeed's and accelerate's folders, `.pt` and `.safetensors` files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from torch import Tensor

from redheart.core.errors import BadInput
from redheart.core.files import read_json
from redheart.snapshots.foreign_zero import is_zero_folder, open_zero
from redheart.snapshots.safe_load import load_torch_file
from redheart.snapshots.single_file import Tensors
from redheart.snapshots.tensor_file import TensorReader, TensorSpec, spec_of

_WRAPPERS = ("model", "module", "state_dict", "model_state_dict", "model_state", "weights")
"""Keys that a training script puts the model's tensors under, beside what it keeps of the training."""
_TRAINING = ("optim", "sched", "lr_sched", "scaler", "grad_scaler", "rng", "random")
"""Beginnings of keys that hold tensors of the training, not of the model."""
_PREFIXES = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEX_SUFFIX = ".index.json"
_MAX_PROBLEMS = 50


class _Index(msgspec.Struct, frozen=True):
    """Which file of a folder holds which tensor."""

    weight_map: dict[str, str]


@dataclass(frozen=True)
class Foreign:
    """A model of another tool, its tensors read when they are asked for."""

    kind: str
    tensors: Tensors
    ignored: list[str] = field(default_factory=list)
    """Entries beside the model that hold tensors and were left out."""


class Renamed(Mapping[str, Tensor]):
    """Tensors of several sources under names of their own."""

    def __init__(self, places: Mapping[str, tuple[Tensors, str]]):
        self._places = places
        self.specs: Mapping[str, TensorSpec] = {name: source.specs[key] for name, (source, key) in places.items()}
        """Types and shapes of all tensors."""

    def __getitem__(self, name: str) -> Tensor:
        source, key = self._places[name]
        return source[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


class Loaded(dict[str, Tensor]):
    """Tensors that are mapped already."""

    @property
    def specs(self) -> Mapping[str, TensorSpec]:
        return {name: spec_of(tensor) for name, tensor in self.items()}


def open_foreign(source: Path) -> Foreign:
    """Find out what a file or folder is and open the model in it; names lose what wrappers put before all of them.

    Raises:
        BadInput: it is nothing that is known here, holds no tensors, or would run code; the cause is named.
        CorruptFile: a part of it is missing, cut or changed.
    """
    found = _open_folder(source) if source.is_dir() else _open_file(source)
    if not found.tensors.specs:
        raise BadInput("there are no tensors", where=source)
    return Foreign(found.kind, _without_prefixes(found.tensors), found.ignored)


def model_tensors(content: object, where: Path) -> tuple[Loaded, list[str]]:
    """The model's tensors in a loaded file, flat or nested, and the entries that were left out.

    Raises:
        BadInput: there are none.
    """
    if not isinstance(content, Mapping):
        raise BadInput("the file holds no dictionary of tensors", where=where, got=type(content).__name__)
    holding = {str(key): value for key, value in content.items() if _flat(value, "")}
    ignored = [key for key in holding if key.startswith(_TRAINING)]
    rest = {key: value for key, value in holding.items() if key not in ignored}
    if len(rest) == 1 and isinstance(inner := next(iter(rest.values())), Mapping) and next(iter(rest)) in _WRAPPERS:
        tensors, more = model_tensors(inner, where)
        return tensors, ignored + more
    return Loaded(_flat(rest, "")), ignored


def problems_against(
    tensors: Tensors, expected: Mapping[str, TensorSpec] | None, *, dtype: torch.dtype | None
) -> list[str]:
    """What does not fit, one line a tensor with what was expected and found; empty where all is well.

    Args:
        tensors: what was opened.
        expected: names and shapes that there must be; None asks for no particular ones.
        dtype: the type that floating-point tensors will be converted to; None wants one type for all of them.
    """
    found = tensors.specs
    problems = []
    if expected is not None:
        absent = {name: spec for name, spec in expected.items() if name not in found}
        problems += [f"{name}: expected {_shape(spec)}, found nothing" for name, spec in absent.items()]
        problems += [f"{name}: expected nothing, found {found[name]}" for name in found if name not in expected]
        problems += [
            f"{name}: expected {_shape(spec)}, found {found[name]}"
            for name, spec in expected.items()
            if name in found and found[name].shape != spec.shape
        ]
    floats = [spec.dtype for spec in found.values() if spec.dtype.is_floating_point]
    common = max(sorted(set(floats), key=str), key=floats.count, default=torch.float32)
    for name, spec in found.items():
        wants_float = expected is not None and name in expected and expected[name].dtype.is_floating_point
        is_other_float = spec.dtype.is_floating_point and dtype is None and spec.dtype != common
        if is_other_float or (wants_float and not spec.dtype.is_floating_point):
            wanted = str(common if dtype is None else dtype).removeprefix("torch.")
            problems.append(f"{name}: expected {wanted}, found {spec}")
    return problems


def refuse_problems(problems: list[str], source: Path) -> None:
    """Raise one error with all problems.

    Raises:
        BadInput: there are any.
    """
    if problems:
        shown = "\n".join(f"    {problem}" for problem in problems[:_MAX_PROBLEMS])
        more = f"\n    and {len(problems) - _MAX_PROBLEMS} more" if len(problems) > _MAX_PROBLEMS else ""
        raise BadInput(
            f"{len(problems)} tensors are not what they must be\n{shown}{more}",
            where=source,
            mend="check --preset or --like; other floating-point types are converted by --dtype",
        )


def _open_file(path: Path) -> Foreign:
    if path.suffix == ".safetensors" and path.is_file():
        return Foreign("safetensors file", TensorReader(path))
    tensors, ignored = model_tensors(load_torch_file(path), path)
    return Foreign("file of torch.save", tensors, ignored)


def _open_folder(folder: Path) -> Foreign:
    if is_zero_folder(folder):
        return Foreign("DeepSpeed ZeRO folder", open_zero(folder))
    for name in _WHOLE:
        path, index = folder / name, folder / f"{name}{_INDEX_SUFFIX}"
        if len(several := sorted(folder.glob(f"{path.stem}*{path.suffix}"))) > 1 and not index.is_file():
            raise BadInput(
                "the folder holds several models",
                where=folder,
                got=", ".join(item.name for item in several),
                mend="give the file that you mean",
            )
        if index.is_file():
            return Foreign("accelerate folder", _sharded(folder, index))
        if path.is_file():
            opened = _open_file(path)
            return Foreign("accelerate folder", opened.tensors, opened.ignored)
    raise BadInput(
        "not a folder that is known here",
        where=folder,
        got=", ".join(sorted(item.name for item in folder.iterdir())[:10]) or "an empty folder",
        expected=f"DeepSpeed's `latest`, or {' or '.join(_WHOLE)}",
    )


def _sharded(folder: Path, index: Path) -> Renamed:
    weight_map = read_json(index, _Index).weight_map
    shards = {}
    for file in dict.fromkeys(weight_map.values()):
        if Path(file).name != file:
            raise BadInput("an index names a file of another folder", where=index, got=file)
        shards[file] = _open_file(folder / file).tensors
    absent = [f"{name}: expected in {file}" for name, file in weight_map.items() if name not in shards[file].specs]
    extra = [f"{key}: not in the index" for shard in shards.values() for key in shard.specs if key not in weight_map]
    if absent or extra:
        raise BadInput("the files are not what their index says", where=index, got="; ".join(absent + extra))
    return Renamed({name: (shards[file], name) for name, file in weight_map.items()})


def _flat(value: object, prefix: str) -> dict[str, Tensor]:
    """All tensors of nested dictionaries, keys joined by dots."""
    if isinstance(value, Tensor):
        return {prefix: value}
    if not isinstance(value, Mapping):
        return {}
    found: dict[str, Tensor] = {}
    for key, item in value.items():
        found |= _flat(item, f"{prefix}.{key}" if prefix else str(key))
    return found


def _without_prefixes(tensors: Tensors) -> Tensors:
    names = {name: name for name in tensors.specs}
    while prefix := next((item for item in _PREFIXES if all(name.startswith(item) for name in names)), None):
        names = {name.removeprefix(prefix): key for name, key in names.items()}
    return Renamed({name: (tensors, key) for name, key in names.items()})


def _shape(spec: TensorSpec) -> str:
    return f"shape {list(spec.shape)}"
