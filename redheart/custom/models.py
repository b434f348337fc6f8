"""Which models are taken, the parts that one is cut into, and the buffers of one that is only tried."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from redheart.core.errors import BadInput, names_text
from redheart.snapshots.tensor_file import DTYPE_NAMES
from redheart.snapshots.tensors import REST, kept_type, model_tensors, parts_of


def refuse_unfit(model: nn.Module) -> None:
    """Refuse what would not be trained, or not be found again in a state.

    Raises:
        BadInput: there are no parameters, or none with a size yet; gradients are sparse; a module has a state beside
            its tensors, or a tensor of a type that a snapshot cannot hold.
    """
    if next(model.parameters(), None) is None:
        raise BadInput("the model has no parameters", where="model", got=type(model).__name__)
    tensors = [*model.named_parameters(), *model.named_buffers()]
    if lazy := [name for name, item in tensors if is_lazy(item)]:
        raise BadInput(
            "a lazy module has no sizes yet",
            where="model",
            got=names_text(lazy),
            hint="call the model once with a batch, which gives it its sizes",
        )
    parts = list(model.named_modules())
    embeddings = [item for item in parts if isinstance(item[1], nn.Embedding | nn.EmbeddingBag)]
    if sparse := [name for name, item in embeddings if item.sparse]:
        raise BadInput(
            "sparse gradients are not supported", where="model", got=", ".join(sparse), expected="sparse=False"
        )
    stateful = [name or "itself" for name, item in parts if type(item).get_extra_state is not nn.Module.get_extra_state]
    if stateful:
        raise BadInput(
            "a state of get_extra_state would not be the same in a run that goes on: states and snapshots hold tensors",
            where="model",
            got=names_text(stateful),
            hint="keep it in a buffer (register_buffer)",
        )
    unknown = [
        name for name, item in model_tensors(model).items() if kept_type(item, torch.bfloat16) not in DTYPE_NAMES
    ]
    if unknown:
        raise BadInput("tensors are of types that a snapshot cannot hold", where="model", got=names_text(unknown))


def found_parts(model: nn.Module) -> list[str]:
    """Embeddings, each block of a `ModuleList`, heads: the largest submodules without a list in them; the rest.

    Tied weights are with the first that has them. What holds nothing that is trained is with the rest.
    """
    names = list(_submodules(model, ""))
    parts = parts_of(model, names)
    trained = [name for name in names if any(tensor.requires_grad for tensor in parts[name].values())]
    _refuse_what_is_no_file_name(trained)
    return [name for name, part in parts_of(model, [*trained, REST]).items() if part]


def _submodules(module: nn.Module, name: str) -> Iterator[str]:
    children = [(f"{name}.{key}".lstrip("."), child) for key, child in module.named_children() if child.state_dict()]
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        yield from (path for path, _ in children)
        return
    for path, child in children:
        if len(children) == 1 or any(isinstance(item, nn.ModuleList | nn.ModuleDict) for item in child.modules()):
            yield from _submodules(child, path) if next(child.children(), None) is not None else (path,)
        else:
            yield path


def checked_parts(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Those of these submodules that hold anything: one whose weights are all tied to an earlier one's does not.

    Raises:
        BadInput: there is no such submodule, its name is no file's, or they do not hold every tensor exactly once.
    """
    _refuse_what_is_no_file_name(names)
    known = [name for name, _ in model.named_modules() if name]
    for name in names:
        if name not in known and name != REST:
            near = get_close_matches(name, known, n=3) or known[:5]
            raise BadInput(
                "the model has no such submodule",
                where="modules",
                got=name,
                expected=f"for example {', '.join(near)}",
                hint="leave `modules` out: they are found",
            )
    parts = parts_of(model, names)
    held = {id(tensor) for part in parts.values() for tensor in part.values()}
    missing = [name for name, tensor in model_tensors(model).items() if id(tensor) not in held]
    twice = [name for name in names if sum(f"{name}.".startswith(f"{other}.") for other in names) > 1]
    if missing or twice:
        raise BadInput(
            "the modules do not hold every tensor exactly once",
            got=f"missing: {', '.join(missing[:5]) or 'none'}; twice: {', '.join(twice[:5]) or 'none'}",
            hint="name submodules that together are the whole model, or leave `modules` out: they are found",
        )
    return [name for name, part in parts.items() if part]


def _refuse_what_is_no_file_name(names: Sequence[str]) -> None:
    if wrong := [name for name in names if "/" in name or "\0" in name]:
        raise BadInput(
            "a module is snapshotted into a file of its name, which this one cannot be",
            where="modules",
            got=", ".join(map(repr, wrong[:5])),
            hint="rename it (a key of a ModuleDict), or name the submodule around it in `modules`",
        )


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """A model's buffers are afterwards as before, the same tensors with the same values."""
    kept = [
        (part, name, item, item.clone()) for part in model.modules() for name, item in part.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for part, name, item, value in kept:
            item.data.copy_(value)
            part._buffers[name] = item
