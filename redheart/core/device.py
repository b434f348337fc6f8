"""Where everything after training computes, and in which type."""

import gc

import torch

from redheart.core.config import Device, StudyConfig
from redheart.core.errors import BadInput

CARD_TYPE = torch.bfloat16
"""Of weights and activations on a card, as in training there; the weights of snapshots are bf16 and lose nothing."""

CARD_RECORDS = 128
"""Records of a pass without gradients on a card. A pass of `full` is 1,313 operators and, for training's 16 records of
128 tokens, 1.0 TFLOP: at 10 microseconds a launch and 400 TFLOPS that is 13 ms of launching for 3 ms of computing."""


def chosen_device(asked: Device) -> torch.device:
    """The CPU or the first CUDA device; `auto` takes the latter where there is one.

    Raises:
        BadInput: a CUDA device is asked for and there is none.
    """
    if asked == "cpu":
        return torch.device("cpu")
    is_there = torch.cuda.is_available()
    if asked == "cuda" and not is_there:
        raise BadInput(
            "there is no CUDA device that torch can use",
            where="--device",
            got=asked,
            expected="cpu, or auto",
            hint="`redheart doctor` says what torch finds",
        )
    return torch.device("cuda" if is_there else "cpu")


def study_device(asked: Device) -> torch.device:
    """`chosen_device` for a study's phases after training; `auto` is the CPU: none of them has run on a card yet."""
    return chosen_device("cpu" if asked == "auto" else asked)


def weights_type(device: torch.device) -> torch.dtype:
    """What a model is held and computed in on a device: bf16 on a card, float32 on the CPU."""
    return CARD_TYPE if device.type == "cuda" else torch.float32


def records_at_once(config: StudyConfig) -> int:
    """Records of a pass of the phases after training; callers take fewer where memory runs out."""
    on_card = study_device(config.device).type == "cuda"
    return max(CARD_RECORDS, config.train.micro_batch) if on_card else config.train.micro_batch


def free_bytes(device: torch.device) -> int:
    """What this process may still take of a CUDA device, once what it holds for nothing is given back.

    That is what nobody holds there, or less under `torch.cuda.set_per_process_memory_fraction`.
    """
    gc.collect()
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info(device)
    allowed = int(torch.cuda.get_per_process_memory_fraction(device) * total)
    return max(0, min(free, allowed - torch.cuda.memory_reserved(device)))
