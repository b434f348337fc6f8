"""Names of a model's tensors without what wrappers put before them, and which tensors beside them are no weights."""

import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from redheart.core.errors import BadInput
from redheart.snapshots.tensor_file import MAX_PROBLEMS, TensorSpec

WRAPS_ALL = "module."
"""What DistributedDataParallel puts before every name."""
PREFIXES = (WRAPS_ALL, "model.")
"""That, and what stands before every name in most checkpoints of Lightning."""
_RESERVED = frozenset(("_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"))
"""What torch.compile, Fabric, FSDP and checkpointing put before the names of a model or of a part that they wrap."""
_OF_TRAINING = frozenset(
    (
        *("acc", "accuracy", "averaged", "best", "epoch", "epochs", "iteration", "iterations", "loss", "losses", "lr"),
        *("metric", "metrics", "rng", "score", "scores", "seed", "step", "steps"),
    )
)
"""Words in the names of single numbers that scripts keep beside weights."""
_LOSS_WORDS = frozenset(("auc", "auroc", "confusion", "criterion", "f1"))
"""Further words in the names of a Lightning module's losses and metrics."""
TRAINING_WORDS = frozenset(("rng", "scaler", "sched", "scheduler", "schedulers"))
"""Words in the keys of what else is kept of a training."""
OPTIMIZER_WORDS = frozenset(("opt", "optim", "optimiser", "optimisers", "optimizer", "optimizers"))
MOMENTS = frozenset(("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"))
"""What torch's optimizers keep of a weight."""
_METADATA = "__metadata__"


@dataclass(frozen=True)
class Names:
    """How the tensors of a model are called once wrappers are gone."""

    by_key: dict[str, str]
    """The model's own name by that in the source."""
    prefix: str = ""
    """What stood before every name, apart from what no model can be called."""
    strays: tuple[str, ...] = ()
    """Tensors among the weights that are none, by their names in the source."""


def model_names(
    specs: Mapping[str, TensorSpec],
    *,
    prefixes: Sequence[str] = (WRAPS_ALL,),
    is_in_order: bool = False,
    expected: Collection[str] = (),
) -> Names:
    """The model's own names.

    Args:
        specs: types and shapes by name in the source, in its order.
        prefixes: what may be taken from before all names.
        is_in_order: whether the source keeps the order in which a model lists its tensors, its own before its parts'.
        expected: the names that there should be; where given they decide what is taken away.
    """
    everything = {key: ".".join(word for word in key.split(".") if word not in _RESERVED) for key in specs}
    of_optimizer = _of_optimizer(everything)
    plain = {key: name for key, name in everything.items() if key not in of_optimizer}
    single = {key for key, name in plain.items() if "." not in name and name not in expected}
    behind = single & _behind_parts(plain) if is_in_order else set()
    small = {key for key in single if _is_small(plain[key], specs[key])}
    strays = {key for key in small if key in behind or _is_of_training(plain[key])}
    beside = {key for key, name in plain.items() if name not in expected and _is_of_loss(name, specs[key])}
    dotted = [name for key, name in plain.items() if "." in name and key not in beside]
    prefix = _expected_prefix(dotted, expected)
    if prefix is None:
        # DistributedDataParallel wraps all of a model; a module of Lightning may have weights beside its `model`.
        prefix = _common_prefix(dotted, prefixes)
        left = strays | behind | (small if prefix.startswith(WRAPS_ALL) else set())
        strays, prefix = (left | beside, prefix) if prefix and left == single else (strays, "")
    elif prefix:
        strays = small | beside
    taken = {key: name.removeprefix(prefix) for key, name in plain.items() if key not in strays}
    return Names(taken, prefix, tuple(key for key in specs if key not in taken))


def words(name: str) -> list[str]:
    """The words of a key, in small letters."""
    return re.findall(r"[a-z]+|\d+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())


def _is_of_training(name: str) -> bool:
    return bool(_OF_TRAINING & set(words(name)))


def _is_of_loss(name: str, spec: TensorSpec) -> bool:
    """Whether a tensor is one of a part called as a loss or metric is, and no matrix of weights."""
    top, _, rest = name.partition(".")
    is_matrix = len(spec.shape) > 1 and spec.dtype.is_floating_point
    return bool(rest) and not is_matrix and (_is_of_training(top) or bool(_LOSS_WORDS & set(words(top))))


def _of_optimizer(plain: Mapping[str, str]) -> set[str]:
    """Keys of what an optimizer keeps, where all that was saved lies side by side."""
    moments = {name.rpartition(".")[0] for name in plain.values() if name.rpartition(".")[2] in MOMENTS}
    tops = {name.partition(".")[0] for name in moments}
    tops = {top for top in tops if OPTIMIZER_WORDS & set(words(top))}
    return {key for key, name in plain.items() if name.rpartition(".")[0] in moments or name.partition(".")[0] in tops}


def _is_small(name: str, spec: TensorSpec) -> bool:
    """Whether a tensor may be a number or a generator's state; a batch norm's counter has the name torch gave it."""
    is_state = spec.dtype == torch.uint8 and len(spec.shape) == 1
    return (spec.num_elements == 1 or is_state) and name != "num_batches_tracked"


def _behind_parts(plain: Mapping[str, str]) -> frozenset[str]:
    """Keys without a dot behind one with a dot; none where names are sorted, which puts any of them anywhere."""
    names = list(plain.values())
    first = next((index for index, name in enumerate(names) if "." in name), len(names))
    return frozenset() if names == sorted(names) else frozenset(key for key in list(plain)[first:] if "." not in key)


def _common_prefix(names: Sequence[str], prefixes: Sequence[str]) -> str:
    """All that may be taken from before all of these names."""
    found = ""
    while names and (more := next((i for i in prefixes if all(n.startswith(found + i) for n in names)), None)):
        found += more
    return found


def _expected_prefix(names: Sequence[str], expected: Collection[str]) -> str | None:
    """The beginning, whole words of it, without which most names are expected ones; None where none is in any way."""
    counts = Counter({"": sum(name in expected for name in names)})
    for name in names if expected else ():
        for end in (position for position, letter in enumerate(name) if letter == "."):
            if name[end + 1 :] in expected:
                counts[name[: end + 1]] += 1
    best, num_best = max(counts.items(), key=lambda item: item[1])
    return best if num_best else None


def keys_by_name(names: Names, where: Path) -> dict[str, str]:
    """The name in the source by the model's own.

    Raises:
        BadInput: two tensors would have one name, or a name cannot be written; all are named.
    """
    by_name: dict[str, list[str]] = {}
    for key, name in names.by_key.items():
        by_name.setdefault(name, []).append(key)
    twice = [f"{name}: {' and '.join(keys)}" for name, keys in by_name.items() if len(keys) > 1]
    if twice:
        raise BadInput(
            f"{len(twice)} names would stand for several tensors without what wrappers put before them",
            where=where,
            got="; ".join(twice[:MAX_PROBLEMS]),
            hint="save the state_dict() of the model alone, or remove one of each",
        )
    for name in by_name:
        if name in ("", _METADATA) or not _is_text(name):
            raise BadInput("a safetensors file cannot hold a tensor of this name", where=where, got=ascii(name))
    return {name: keys[0] for name, keys in by_name.items()}


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True
