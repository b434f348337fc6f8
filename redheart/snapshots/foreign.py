"""Models that other tools wrote: DeepSpeed's and accelerate's folders, `.pt` and `.safetensors` files."""

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import torch

from redheart.core.errors import MAX_PROBLEMS, BadInput, listed, names_text
from redheart.core.files import read_json
from redheart.snapshots.foreign_model import Foreign, find_model, read_parts
from redheart.snapshots.foreign_names import keys_by_name, model_names
from redheart.snapshots.foreign_zero import is_zero_folder, open_zero
from redheart.snapshots.safe_load import refuse_unwritable
from redheart.snapshots.tensor_file import TensorReader
from redheart.snapshots.tensors import Tensors, TensorSpec, differences

_WHOLE = ("model.safetensors", "pytorch_model.bin")
_INDEX_SUFFIX = ".index.json"
_READ_NAMES = ("model*.safetensors", "pytorch_model*.bin", "*_states.pt", "*/*_states.pt")
"""Patterns of the files in a folder that weights are read from, beside those that an index names."""


class _Index(msgspec.Struct, frozen=True):
    weight_map: dict[str, str]
    """File of the folder by tensor."""


def open_foreign(source: Path, *, part: str = "", expected: Collection[str] = ()) -> Foreign:
    """Find out what a file or folder is and open the model in it; names lose what wrappers put before all of them.

    `part` is the path of the model in a file of torch.save, where there are several; empty looks for it. `expected`
    names, where given, tell the model from what else there is.

    Raises:
        BadInput: it is nothing that is known here, holds no model, several, or tensors that cannot be written, or it
            would run code; the cause is named.
        CorruptFile: a part of it is missing, cut or changed.
    """
    found = (_open_folder if source.is_dir() else _open_file)(source, part, expected)
    if not found.tensors.specs:
        raise BadInput(
            "there are no weights", where=source, got=names_text(found.ignored, shown=MAX_PROBLEMS) or "nothing"
        )
    return found


def files_read(source: Path) -> list[Path]:
    """The files that `open_foreign` may read weights from."""
    found = [source, *(item for name in _READ_NAMES for item in source.glob(name))]
    indices = [source / f"{name}{_INDEX_SUFFIX}" for name in _WHOLE]
    maps = [read_json(index, _Index).weight_map for index in indices if index.is_file()]
    return found + indices + [source / file for weight_map in maps for file in weight_map.values()]


def problems_against(
    tensors: Tensors, expected: Mapping[str, TensorSpec] | None, *, dtype: torch.dtype | None
) -> list[str]:
    """What does not fit, one line a tensor with what was expected and found; empty where all is well.

    None asks for no particular names and shapes. `dtype` is what floating-point tensors will be converted to; None
    wants one type for all of them but those of 8 bits, beside which there are always others.
    """
    found, known = tensors.specs, expected or {}
    problems = [] if expected is None else differences(found, expected, compare_types=False)
    floats = [spec.dtype for spec in found.values() if spec.dtype.is_floating_point and spec.dtype.itemsize > 1]
    wanted = dtype or max(sorted(set(floats), key=str), key=floats.count, default=torch.float32)
    for name, spec in found.items():
        wants_float = name in known and known[name].dtype.is_floating_point
        is_other_float = spec.dtype in floats and dtype is None and spec.dtype != wanted
        if is_other_float or (wants_float and not spec.dtype.is_floating_point):
            problems.append(f"{name}: got {spec}, expected {str(wanted).removeprefix('torch.')}")
        # What a weight of 8 bits is to be multiplied by lies beside it.
        owner = name.rpartition(".")[0]
        places = (f"{name}_scale", f"{name}_scale_inv", f"{name}.scale", f"{owner}.scale", f"{owner}.scale_inv")
        scale = next((place for place in places if place in found), None)
        if dtype and scale and spec.dtype.is_floating_point and spec.dtype.itemsize == 1:
            problems.append(f"{name}: {spec} is a weight only once {scale} is applied, which --dtype does not do")
    return problems


def refuse_problems(problems: list[str], source: Path) -> None:
    """Raise one `BadInput` with all problems, if there are any."""
    if problems:
        raise BadInput(
            f"{len(problems)} tensors are not what they must be{listed(problems)}",
            where=source,
            hint="check --preset or --like; other floating-point types are converted by --dtype",
        )


def _open_file(path: Path, part: str, expected: Collection[str]) -> Foreign:
    if path.suffix == ".safetensors" and path.is_file():
        return _named("safetensors file", TensorReader(path), path, part, expected)
    return find_model(read_parts(path), path=part, expected=expected)


def _named(
    kind: str, tensors: Tensors, where: Path, part: str, expected: Collection[str], *, is_model: bool = False
) -> Foreign:
    """Tensors that lie side by side, with no parts and in no order of the model's."""
    if part:
        raise BadInput("only a file of torch.save has parts", where=where, got=f"--part {part}")
    names = model_names(tensors.specs, expected=expected, is_model=is_model)
    places = {name: (tensors, key) for name, key in keys_by_name(names, where).items()}
    return Foreign(kind, Tensors.joined(places), list(names.strays), names.prefix)


def _open_folder(folder: Path, part: str, expected: Collection[str]) -> Foreign:
    if is_zero_folder(folder):
        return _named("DeepSpeed ZeRO folder", open_zero(folder), folder, part, expected, is_model=True)
    for name in _WHOLE:
        path, index = folder / name, folder / f"{name}{_INDEX_SUFFIX}"
        several = sorted(folder.glob(f"{path.stem}*{path.suffix}"))
        is_beside = index.is_file() and path.is_file() and name not in read_json(index, _Index).weight_map.values()
        if is_beside or (len(several) > 1 and not index.is_file()):
            raise BadInput(
                "the folder holds several models",
                where=folder,
                got=", ".join(item.name for item in [*several, *([index] if is_beside else [])]),
                hint="give the file that you mean, or move what you do not mean elsewhere",
            )
        if index.is_file():
            return _named("accelerate folder", _sharded(folder, index), folder, part, expected)
        if path.is_file():
            return replace(_open_file(path, part, expected), kind="accelerate folder")
    raise BadInput(
        "not a folder that is known here",
        where=folder,
        got=", ".join(sorted(item.name for item in folder.iterdir())[:10]) or "an empty folder",
        expected=f"DeepSpeed's `latest`, or {' or '.join(_WHOLE)}",
    )


def _sharded(folder: Path, index: Path) -> Tensors:
    weight_map = read_json(index, _Index).weight_map
    if elsewhere := next((file for file in weight_map.values() if Path(file).name != file), None):
        raise BadInput("an index names a file of another folder", where=index, got=elsewhere)
    shards = {file: _shard(folder / file) for file in dict.fromkeys(weight_map.values())}
    absent = [f"{name}: expected in {file}" for name, file in weight_map.items() if name not in shards[file].specs]
    extra = [f"{key}: not in the index" for shard in shards.values() for key in shard.specs if key not in weight_map]
    if absent or extra:
        raise BadInput("the files are not what their index says", where=index, got="; ".join(absent + extra))
    return Tensors.joined({name: (shards[file], name) for name, file in weight_map.items()})


def _shard(path: Path) -> Tensors:
    """All tensors of a file, which alone cannot say what is the model's."""
    if path.suffix == ".safetensors" and path.is_file():
        return TensorReader(path)
    tensors = dict(read_parts(path).all_tensors())
    refuse_unwritable(tensors, path)
    return Tensors.of(tensors)
