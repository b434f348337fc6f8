"""Checkpoint folders of DeepSpeed's ZeRO stages 1 and 2 (`engine.save_checkpoint`), of any number of ranks.

Every rank's file holds its part of every group's flat float32 masters, without the padding at the end; the model's file
says which parameters, in which order and of which shape, a group was flattened from.
"""

import math
import re
from pathlib import Path
from typing import TypeVar

import msgspec
import torch
from torch import Tensor

from redheart.core.errors import BadInput, CorruptFile
from redheart.snapshots.safe_load import Inert, load_torch_file, refuse_unwritable
from redheart.snapshots.states import pieces
from redheart.snapshots.tensors import Tensors, TensorSpec, check_specs, spec_of

_LATEST = "latest"
_MODEL = "mp_rank_00_model_states.pt"
_OPTIMIZER = re.compile(r"(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_(\d+)_optim_states\.pt")
T = TypeVar("T")


class _Model(msgspec.Struct, frozen=True):
    """What is read of the model's file."""

    module: dict[str, object]
    param_shapes: list[dict[str, tuple[int, ...]]] | None = None
    """Of every group, in the order in which it was flattened; None without an optimizer."""
    buffer_names: list[str] = []
    frozen_param_shapes: dict[str, object] | None = None


class _Optimizer(msgspec.Struct, frozen=True):
    """What is read of a rank's file."""

    partition_count: int | list[int]
    single_partition_of_fp32_groups: list[Tensor]
    zero_stage: object = None
    param_alignment_paddings: list[list[int]] = []
    """Elements behind every parameter of every group, where parameters were aligned."""


class _Rank(msgspec.Struct, frozen=True):
    optimizer_state_dict: _Optimizer


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
    model = _read(folder / _MODEL, _Model)
    weights = {name: item for name, item in model.module.items() if isinstance(item, Tensor)}
    refuse_unwritable(weights, folder / _MODEL)
    places = _places(folder, model.param_shapes or [], _ranks(folder))
    without_masters = (*model.buffer_names, *(model.frozen_param_shapes or ()))
    others = {name: weights[name] for name in without_masters if name in weights}
    # A tensor of several names is named once in the lists above: tied weights, or a module that is called twice.
    firsts = {_memory(weights[name]): name for name in (*places, *others) if name in weights}
    for name in weights.keys() - places.keys() - others.keys():
        first = firsts.get(_memory(weights[name]))
        if first in places:
            places[name] = places[first]
        elif first is not None:
            others[name] = weights[name]
    specs = {name: TensorSpec(torch.float32, tuple(tensor.shape)) for name, tensor in weights.items()}
    kept_as_they_are = {name: spec_of(tensor) for name, tensor in others.items()}
    masters = {name: TensorSpec(torch.float32, shape) for name, (_, _, shape) in places.items()}
    specs |= kept_as_they_are
    check_specs(masters | kept_as_they_are, specs, where=folder)

    def read(name: str) -> Tensor:
        if name in others:
            return others[name]
        ranks, offset, shape = places[name]
        wanted = pieces([part.numel() for part in ranks], offset, specs[name].num_elements)
        return torch.cat([torch.empty(0), *(ranks[rank][part] for rank, part in wanted)]).reshape(shape)

    return Tensors(specs, read)


def _places(
    folder: Path, shapes: list[dict[str, tuple[int, ...]]], ranks: list[_Optimizer]
) -> dict[str, tuple[tuple[Tensor, ...], int, tuple[int, ...]]]:
    """By parameter, all ranks' parts of its group's masters, its offset in them, and its shape."""
    groups = list(zip(*(rank.single_partition_of_fp32_groups for rank in ranks), strict=False))
    paddings = ranks[0].param_alignment_paddings or [[0] * len(group) for group in shapes]
    if not len(shapes) == len(groups) == len(paddings):
        raise CorruptFile(
            "the model's file does not say what the optimizer's groups were flattened from",
            where=folder / _MODEL,
            got=f"{len(shapes)} groups",
            expected=f"{len(groups)} groups, as in the optimizer's files",
        )
    places = {}
    for group, parts, after in zip(shapes, groups, paddings, strict=True):
        offset = end = 0
        for (name, shape), padding in zip(group.items(), after, strict=False):
            places[name] = (parts, offset, shape)
            end = offset + math.prod(shape)
            offset = end + padding
        held = sum(part.numel() for part in parts)
        # The padding at the end, twice the number of ranks at most, is there or not.
        if not end <= held <= end + 2 * len(parts):
            raise CorruptFile(
                "a group's masters do not have the size of its parameters",
                where=f"{folder}, the group of {', '.join([*group][:1])} and others",
                got=f"{held} elements",
                expected=end,
            )
    return places


def _ranks(folder: Path) -> list[_Optimizer]:
    """What every rank has kept, in their order."""
    names = ((path, _OPTIMIZER.fullmatch(path.name)) for path in folder.iterdir())
    files = {int(found[1]): path for path, found in names if found}
    if not files:
        raise BadInput(
            "the checkpoint lacks the optimizer's files, which hold the float32 weights",
            where=folder,
            expected="*zero_pp_rank_*_mp_rank_00_optim_states.pt",
            hint=f"import {_MODEL} alone for its bf16 weights",
        )
    ranks = []
    for rank in sorted(files):
        state = _read(files[rank], _Rank).optimizer_state_dict
        stage = state.zero_stage
        # The number of a member of its enum, or where Python 3.11.2 wrote it the name.
        number = stage.arguments[-1] if isinstance(stage, Inert) and stage.arguments else stage
        if number not in (1, 2, "optimizer_states", "gradients"):
            raise BadInput("not a checkpoint of ZeRO stage 1 or 2", where=files[rank], got=f"stage {number}")
        count = state.partition_count if isinstance(state.partition_count, int) else max(state.partition_count)
        if sorted(files) != list(range(count)):
            raise CorruptFile(
                "the file of a rank is missing", where=folder, got=f"ranks {sorted(files)}", expected=f"{count} of them"
            )
        if not all(part.dtype == torch.float32 and part.ndim == 1 for part in state.single_partition_of_fp32_groups):
            raise CorruptFile("a rank's file holds no flat float32 masters", where=files[rank])
        ranks.append(state)
    return ranks


def _memory(tensor: Tensor) -> tuple[object, ...]:
    """What two names of one tensor have in common."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _tag_folder(folder: Path) -> Path:
    latest = folder / _LATEST
    if not latest.is_file():
        return folder
    tag = latest.read_text(encoding="utf-8", errors="replace").strip()
    if not tag or Path(tag).name != tag or not (folder / tag).is_dir():
        raise CorruptFile("`latest` names a folder that is not there", where=latest, got=tag)
    return folder / tag


def _read(path: Path, kind: type[T]) -> T:
    try:
        return msgspec.convert(load_torch_file(path), kind)
    except msgspec.ValidationError as error:
        raise CorruptFile("not what DeepSpeed writes", where=path, got=error) from error
