"""Names of a model's tensors without what wrappers put before them, and which tensors beside them are no weights."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from redheart.core.errors import MAX_PROBLEMS, BadInput, names_text
from redheart.core.text import is_unicode
from redheart.snapshots.tensors import TensorSpec

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
_OF_LOSSES = _OF_TRAINING | {"auc", "auroc", "confusion", "criterion", "f1"}
"""Words in the names of a Lightning module's losses and metrics."""
OPTIMIZER_WORDS = frozenset(("opt", "optim", "optimiser", "optimisers", "optimizer", "optimizers"))
MOMENTS = frozenset(("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"))
"""What torch's optimizers keep of a weight."""


@dataclass(frozen=True)
class Names:
    """How the tensors of a model are called once wrappers are gone."""

    by_key: dict[str, str]
    """The model's own name by that in the source."""
    prefix: str
    """What stood before every name, apart from what no model can be called."""
    strays: tuple[str, ...]
    """Tensors among the weights that are none, by their names in the source."""


def model_names(
    specs: Mapping[str, TensorSpec],
    *,
    prefixes: Sequence[str] = (WRAPS_ALL,),
    expected: Collection[str] = (),
    is_model: bool = False,
) -> Names:
    """The model's own names, from types and shapes by name in the source, in its order.

    `prefixes` may be taken from before all names; the `expected` names, where given, decide. With `is_model` nothing
    lies among the weights that is none, whatever it is called.
    """
    plain = {key: ".".join(word for word in key.split(".") if word not in _RESERVED) for key in specs}
    unknown = {key: name for key, name in plain.items() if name not in expected}
    doubtful = {} if is_model else unknown
    strays = _of_optimizer(plain.values(), doubtful)
    strays |= {key for key, name in doubtful.items() if _is_number_of_training(name, specs[key])}
    of_losses = {key for key, name in doubtful.items() if _is_of_losses(name, specs[key])}
    dotted = [name for key, name in plain.items() if "." in name and key not in strays | of_losses]
    single = {key for key, name in unknown.items() if "." not in name} - strays
    prefix = _expected_prefix(dotted, expected)
    if prefix is None:
        prefix = _common_prefix(dotted, prefixes)
        # DistributedDataParallel wraps all of a model; a module of Lightning may have weights beside its `model`.
        if prefix.startswith(WRAPS_ALL):
            strays |= single
        elif single:
            prefix = ""
    if prefix:
        strays |= of_losses
    taken = {key: name.removeprefix(prefix) for key, name in plain.items() if key not in strays}
    return Names(taken, prefix, tuple(key for key in specs if key in strays))


def words(name: str) -> frozenset[str]:
    """The words of a key, in small letters."""
    return frozenset(re.findall(r"[a-z]+|\d+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()))


def _is_number_of_training(name: str, spec: TensorSpec) -> bool:
    """Whether it is a score, a counter or a generator's state; a batch norm's counter has the name torch gave it."""
    is_state = spec.dtype == torch.uint8 and len(spec.shape) == 1
    return "." not in name and (spec.num_elements == 1 or is_state) and bool(_OF_TRAINING & words(name))


def _is_of_losses(name: str, spec: TensorSpec) -> bool:
    """Whether a tensor is one of a part called as a loss or metric is, and no matrix of weights."""
    top, _, rest = name.partition(".")
    is_matrix = len(spec.shape) > 1 and spec.dtype.is_floating_point
    return bool(rest) and not is_matrix and bool(_OF_LOSSES & words(top))


def _of_optimizer(names: Iterable[str], unknown: Mapping[str, str]) -> set[str]:
    """Keys of what an optimizer keeps, where all that was saved lies side by side."""
    tops = {name.partition(".")[0] for name in names if name.rpartition(".")[2] in MOMENTS}
    tops = {top for top in tops if OPTIMIZER_WORDS & words(top)}
    return {key for key, name in unknown.items() if name.partition(".")[0] in tops}


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
            got=names_text(twice, shown=MAX_PROBLEMS, separator="; "),
            hint="save the state_dict() of the model alone, or remove one of each",
        )
    # Halves of surrogate pairs have no bytes in UTF-8.
    if unwritable := [name for name in by_name if name in ("", "__metadata__") or not is_unicode(name)]:
        raise BadInput("a safetensors file cannot hold tensors of these names", where=where, got=ascii(unwritable))
    return {name: keys[0] for name, keys in by_name.items()}
