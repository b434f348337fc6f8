"""Where everything after training computes, and in which type."""

import gc

import torch

from redheart.core.config import Device
from redheart.core.errors import BadInput

CARD_TYPE = torch.bfloat16
"""Of weights and activations on a card, as in training there; the weights of snapshots are bf16 and lose nothing."""


def chosen_device(asked: Device) -> torch.device:
    """The CPU or the first CUDA device; `auto` takes the latter where there is one.

    Raises:
        BadInput: a CUDA device is asked for and there is none.
    """
    is_there = torch.cuda.is_available()
    if asked == "cuda" and not is_there:
        raise BadInput(
            "there is no CUDA device that torch can use",
            where="--device",
            got=asked,
            expected="cpu, or auto",
            hint="`redheart doctor` says what torch finds",
        )
    return torch.device("cuda" if is_there and asked != "cpu" else "cpu")


def weights_type(device: torch.device) -> torch.dtype:
    """What a model is held and computed in on a device: bf16 on a card, float32 on the CPU."""
    return CARD_TYPE if device.type == "cuda" else torch.float32


def free_bytes(device: torch.device) -> int:
    """Memory of a CUDA device that nothing holds, once what this process holds for nothing is given back."""
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
