"""Parameter groups: no weight decay on norms, biases and learned queries; no group larger than a bound.

ZeRO flattens every group into one tensor, and the host optimizer's temporaries are as large as a group, so the
bound is what keeps both small.
"""

from torch import nn

MAX_GROUP_ELEMENTS = 16_777_216


def parameter_groups(
    module: nn.Module, *, weight_decay: float, max_elements: int = MAX_GROUP_ELEMENTS
) -> list[dict[str, object]]:
    """Groups for an optimizer, in the order of `module.parameters()`; each has `params` and `weight_decay`.

    Matrices of linear maps and convolutions decay; everything else does not. A parameter larger than the bound
    has a group of its own.
    """
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for child in module.modules():
        for name, parameter in child.named_parameters(recurse=False):
            is_matrix = isinstance(child, nn.Linear | nn.Conv1d | nn.Embedding) and name == "weight"
            (decayed if is_matrix else kept).append(parameter)
    groups: list[dict[str, object]] = []
    for parameters, decay in ((decayed, weight_decay), (kept, 0.0)):
        current: list[nn.Parameter] = []
        elements = 0
        for parameter in parameters:
            if current and elements + parameter.numel() > max_elements:
                groups.append({"params": current, "weight_decay": decay})
                current, elements = [], 0
            current.append(parameter)
            elements += parameter.numel()
        if current:
            groups.append({"params": current, "weight_decay": decay})
    return groups
