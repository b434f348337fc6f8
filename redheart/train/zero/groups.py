"""Parameter groups: who decays, whose optimizer states are 8-bit, and no group larger than a bound.

ZeRO flattens every group into one tensor, and an optimizer's temporaries are as large as a group, so the bound is what
keeps both small.
"""

from collections.abc import Sequence

from torch import nn

from redheart.core.errors import BadInput
from redheart.optim.host_adamw8bit import MIN_8BIT_ELEMENTS
from redheart.pipeline.bucket import bounded
from redheart.snapshots.manifests import ParameterPlace

MAX_GROUP_ELEMENTS = 16_777_216


def parameter_groups(
    module: nn.Module, *, weight_decay: float, max_elements: int = MAX_GROUP_ELEMENTS
) -> list[dict[str, object]]:
    """Groups for an optimizer; each has `params`, `weight_decay` and `state_bits` (8 or 32).

    Matrices of linear maps, convolutions and embeddings (a `weight` of two dimensions or more, of whichever class)
    decay and, unless small, allow 8-bit states; norms, biases and learned queries do neither. A parameter larger than
    the bound has a group of its own; one that is used twice is there once, and one that is not trained is in none.

    Raises:
        BadInput: no parameter requires a gradient.
    """
    large: list[nn.Parameter] = []
    small: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.rpartition(".")[2] == "weight" and parameter.ndim > 1:
            (large if parameter.numel() >= MIN_8BIT_ELEMENTS else small).append(parameter)
        else:
            others.append(parameter)
    if not large and not small and not others:
        raise BadInput("there is nothing to train", got="no parameter requires a gradient", hint="requires_grad_(True)")
    return [
        {"params": part, "weight_decay": decay, "state_bits": bits}
        for parameters, decay, bits in ((large, weight_decay, 8), (small, weight_decay, 32), (others, 0.0, 32))
        for part in bounded(parameters, max_elements)
    ]


def parameter_places(
    module: nn.Module, groups: Sequence[Sequence[nn.Parameter]], offsets: Sequence[Sequence[int]]
) -> dict[str, ParameterPlace]:
    """Where every parameter of a module lies in its group's flat tensor, in the module's order.

    One that is used twice is there under both names. `groups` are flattened as they come, with so many elements before
    each parameter.
    """
    places = {
        id(parameter): (index, offset)
        for index, (group, starts) in enumerate(zip(groups, offsets, strict=True))
        for parameter, offset in zip(group, starts, strict=True)
    }
    return {
        name: ParameterPlace(*places[id(parameter)], list(parameter.shape))
        for name, parameter in module.named_parameters(remove_duplicate=False)
        if id(parameter) in places
    }
