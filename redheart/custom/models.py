"""Which models are taken, and the buffers of one that is only tried."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from redheart.core.errors import BadInput, names_text
from redheart.snapshots.tensor_file import DTYPE_NAMES
from redheart.snapshots.tensors import kept_type, model_tensors


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
