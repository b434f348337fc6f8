"""Checkpoint folders of DeepSpeed's ZeRO stages 1 and 2 (`engine.save_checkpoint`), of any number of ranks.

Every rank's file holds its part of every group's flat float32 masters, without the padding at the end; the model's file
says which parameters, in which order and of which shape, a group was flattened from.
"""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from redheart.core.errors import BadInput, CorruptFile
from redheart.snapshots.safe_load import Inert, load_torch_file, refuse_unwritable
from redheart.snapshots.states import pieces
from redheart.snapshots.tensors import Tensors, TensorSpec, spec_of

_LATEST = "latest"
_MODEL = "mp_rank_00_model_states.pt"
_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")


def is_zero_folder(folder: Path) -> bool:
    """Whether a folder is one of `save_checkpoint`, or the folder of one tag in it."""
    return (folder / _LATEST).is_file() or any(folder.glob("*mp_rank_*_model_states.pt"))


def open_zero(folder: Path) -> Tensors:
    """Masters in float32, then buffers and frozen parameters as they were saved, of the newest tag of a folder.

    Raises:
        BadInput: stage 3 or model parallelism, which keep parameters otherwise; or a file would run code.
        CorruptFile: a rank's file is missing, or the files do not belong together; the tensor or file is named.
    """
    folder = _tag_folder(folder)
    if any(folder.glob("zero_pp_rank_*_model_states.pt")) or (folder / "mp_rank_01_model_states.pt").is_file():
        raise BadInput(
            "a checkpoint of ZeRO stage 3 or of model parallelism is not read here",
            where=folder,
            expected="stage 1 or 2, one model-parallel rank",
            hint="turn it into one file with the zero_to_fp32.py beside it, and import that",
        )
    model = _dictionary(load_torch_file(folder / _MODEL), folder / _MODEL)
    weights = _tensors(model.get("module"), folder / _MODEL, "module")
    groups, paddings = _groups(folder)
    shapes = model.get("param_shapes")
    if not isinstance(shapes, list) or len(shapes) != len(groups) or not all(isinstance(s, Mapping) for s in shapes):
        raise CorruptFile(
            "the model's file does not say what the optimizer's groups were flattened from",
            where=folder / _MODEL,
            got=f"{len(shapes) if isinstance(shapes, list) else 'no'} groups",
            expected=f"{len(groups)} groups, as in the optimizer's files",
        )
    places = _places(folder, shapes, groups, paddings)
    others = _others(model, weights)
    # A tensor of several names is named once in the lists above: tied weights, or a module that is called twice.
    firsts = {_memory(weights[name]): name for name in (*places, *others) if name in weights}
    for name in weights.keys() - places.keys() - others.keys():
        first = firsts.get(_memory(weights[name]))
        if first in places:
            places[name] = places[first]
        elif first is not None:
            others[name] = weights[name]
    if missing := [name for name in weights if name not in places and name not in others]:
        raise CorruptFile("a parameter has no masters", where=f"{folder}, {missing[0]}", got=f"{len(missing)} such")
    if extra := [name for name in places if name not in weights]:
        raise CorruptFile("masters of a parameter that the model lacks", where=f"{folder}, {extra[0]}")
    for name, (_, _, shape) in places.items():
        if tuple(weights[name].shape) != shape:
            raise CorruptFile(
                "a parameter's shape is not that of its masters",
                where=f"{folder}, {name}",
                got=list(shape),
                expected=list(weights[name].shape),
            )
    specs = {name: TensorSpec(torch.float32, tuple(tensor.shape)) for name, tensor in weights.items()}
    specs |= {name: spec_of(tensor) for name, tensor in others.items()}

    def read(name: str) -> Tensor:
        if name in others:
            return others[name]
        group, offset, shape = places[name]
        wanted = pieces([part.numel() for part in groups[group]], offset, specs[name].num_elements)
        return torch.cat([torch.empty(0), *(groups[group][rank][part] for rank, part in wanted)]).reshape(shape)

    return Tensors(specs, read)


def _places(
    folder: Path, shapes: list[Mapping[str, torch.Size]], groups: list[list[Tensor]], paddings: object
) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    """Group, offset and shape of every parameter."""
    places: dict[str, tuple[int, int, tuple[int, ...]]] = {}
    # Elements behind every parameter of every group, where parameters were aligned.
    between = paddings if isinstance(paddings, list) else [[0] * len(group) for group in shapes]
    for index, group in enumerate(shapes):
        where = f"{folder}, group {index}, {next(iter(group), 'without parameters')} and others"
        is_known = len(between) == len(shapes) and isinstance(between[index], list)
        after = between[index] if is_known else []
        if len(after) != len(group) or not all(isinstance(value, int) and value >= 0 for value in after):
            raise CorruptFile(
                "a group's paddings do not have the size of its parameters", where=where, expected=len(group)
            )
        offset = end = 0
        for (name, shape), padding in zip(group.items(), after, strict=True):
            places[str(name)] = (index, offset, tuple(shape))
            end = offset + TensorSpec(torch.float32, tuple(shape)).num_elements
            offset = end + padding
        held = sum(part.numel() for part in groups[index])
        # The padding at the end, twice the number of ranks at most, is there or not.
        if not end <= held <= end + 2 * len(groups[index]):
            raise CorruptFile(
                "a group's masters do not have the size of its parameters",
                where=where,
                got=f"{held} elements",
                expected=end,
            )
    return places


def _groups(folder: Path) -> tuple[list[list[Tensor]], object]:
    """Flat masters by group and rank, and what the first rank's file says of paddings."""
    names = ((path, _OPTIMIZER.fullmatch(path.name)) for path in folder.iterdir())
    files = {int(found[1]): path for path, found in names if found}
    if not files:
        raise BadInput(
            "the checkpoint lacks the optimizer's files, which hold the float32 weights",
            where=folder,
            expected="*zero_pp_rank_*_mp_rank_00_optim_states.pt",
            hint=f"import {_MODEL} alone for its bf16 weights",
        )
    groups: list[list[Tensor]] = []
    paddings = None
    for rank in range(max(files) + 1):
        if rank not in files:
            raise CorruptFile("the file of a rank is missing", where=folder, expected=f"zero_pp_rank_{rank}_*")
        path = files[rank]
        content = _dictionary(load_torch_file(path), path)
        state = _dictionary(content.get("optimizer_state_dict"), path, "optimizer_state_dict")
        stage = state.get("zero_stage")
        # The number of a member of its enum, or where Python 3.11.2 wrote it the name.
        number = stage.arguments[-1] if isinstance(stage, Inert) and stage.arguments else stage
        if number not in (1, 2, "optimizer_states", "gradients"):
            raise BadInput("not a checkpoint of ZeRO stage 1 or 2", where=path, got=f"stage {number}")
        ranks = state.get("partition_count")
        ranks = max(ranks) if isinstance(ranks, list) and ranks else ranks
        if ranks != len(files):
            raise CorruptFile("files of ranks are missing", where=folder, got=f"{len(files)} ranks", expected=ranks)
        parts = state.get("single_partition_of_fp32_groups")
        if not isinstance(parts, list) or not all(
            isinstance(part, Tensor) and part.dtype == torch.float32 and part.ndim == 1 for part in parts
        ):
            raise CorruptFile("a rank's file holds no flat float32 masters", where=path)
        if rank == 0:
            groups, paddings = [[] for _ in parts], state.get("param_alignment_paddings")
        if len(parts) != len(groups):
            raise CorruptFile("ranks differ in groups", where=path, got=len(parts), expected=len(groups))
        for group, part in zip(groups, parts, strict=True):
            group.append(part)
    return groups, paddings


def _others(model: Mapping[str, object], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Buffers and frozen parameters, which have no masters."""
    named = [model.get(key) for key in ("buffer_names", "frozen_param_shapes")]
    names = [str(name) for part in named if isinstance(part, list | Mapping) for name in part]
    return {name: weights[name] for name in names if name in weights}


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """What two names of one tensor have in common."""
    return tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride()


def _tag_folder(folder: Path) -> Path:
    latest = folder / _LATEST
    if not latest.is_file():
        return folder
    tag = latest.read_text(encoding="utf-8", errors="replace").strip()
    if not tag or Path(tag).name != tag or not (folder / tag).is_dir():
        raise CorruptFile("`latest` names a folder that is not there", where=latest, got=tag)
    return folder / tag


def _dictionary(value: object, where: Path, key: str = "") -> Mapping[str, object]:
    if not isinstance(value, Mapping):
        raise CorruptFile("not what DeepSpeed writes", where=f"{where} {key}".strip(), got=type(value).__name__)
    return value


def _tensors(value: object, where: Path, key: str) -> dict[str, Tensor]:
    found = {str(name): item for name, item in _dictionary(value, where, key).items() if isinstance(item, Tensor)}
    if not found:
        raise CorruptFile("the model's file holds no tensors", where=where)
    refuse_unwritable(found, where)
    return found
