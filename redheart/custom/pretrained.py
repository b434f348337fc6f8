"""Does training a Hugging Face model fit, from its configuration alone: the model on `meta`, and a plan of it."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import cache, partial
from pathlib import Path
from typing import Any

import msgspec
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers.models.auto import modeling_auto as auto

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput, one_line
from redheart.core.units import GIB
from redheart.custom.planning import set_checkpointing
from redheart.data.hub_encoder import reaches_hub
from redheart.memory.ledger import model_sizes
from redheart.memory.plan import Plan, Planner
from redheart.memory.trace import Workload
from redheart.train.choice import Choice, choose
from redheart.train.zero.groups import parameter_groups

Inputs = dict[str, Tensor]
WHAT_LIBRARIES_RAISE = (AssertionError, AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError)
"""At a configuration that does not make a model, and at a model that looks at values, of which `meta` has none."""


def read_config(source: str) -> Any:
    """The configuration in a folder, or of a hub id from the cache or the hub.

    Raises:
        BadInput: there is none, or it is of no architecture that transformers has.
    """
    transformers.logging.set_verbosity_error()
    is_folder = Path(source).is_dir()
    is_offline = not is_folder and not reaches_hub()
    try:
        # Code that lies beside a configuration is not run, and nobody is asked whether to.
        return transformers.AutoConfig.from_pretrained(
            source, local_files_only=is_folder or is_offline, trust_remote_code=False
        )
    except (OSError, StrictDataclassError, *WHAT_LIBRARIES_RAISE) as error:
        raise BadInput(
            "the model's configuration cannot be read",
            where="--model",
            got=f"{source} ({one_line(error)})",
            expected="a folder with a config.json, or a hub id",
            hint="give the folder that the file lies in"
            if Path(source).is_file()
            else "the hub does not answer from here: fetch config.json elsewhere and give its folder"
            if is_offline
            else None,
        ) from error


def build(config: Any, *, dtype: torch.dtype, freeze: Sequence[str] = ()) -> nn.Module:
    """The module of a configuration in training mode on `meta`; tied weights are one parameter.

    `freeze` has names of parameters or of modules that are not trained, or patterns of parameters' names.

    Raises:
        BadInput: there is no class with a loss for it, it cannot be built, or a pattern fits nothing or everything.
    """
    kind = _class_of(config)
    config.use_cache = False
    try:
        with torch.device("meta"):
            module: nn.Module = kind(config).to(dtype).train()
    except WHAT_LIBRARIES_RAISE as error:
        raise BadInput("the model cannot be built", where=kind.__name__, got=one_line(error)) from error
    named = dict(module.named_parameters(remove_duplicate=False))
    for pattern in freeze:
        fitting = [item for name, item in named.items() if name.startswith(f"{pattern}.") or fnmatchcase(name, pattern)]
        if not fitting:
            modules = ", ".join(name for name, _ in module.named_children())
            raise BadInput("nothing has that name", where="--freeze", got=pattern, hint=f"begin with one of: {modules}")
        for parameter in fitting:
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise BadInput("nothing is left to train", where="--freeze", got=", ".join(freeze))
    return module


def inputs(module: Any, records: int, *, seq_len_tokens: int) -> Inputs:
    """A batch as the architecture takes it: (B, S) tokens with a mask or (B, C, H, W) pixels, and labels.

    The mask is there as where records differ in length; without one some kernels take less.
    """

    def empty(*shape: int, dtype: torch.dtype = torch.long) -> Tensor:
        return torch.empty(*shape, dtype=dtype, device=module.device)

    config = module.config
    is_per_record = re.search("(Sequence|Image)Classification", type(module).__name__)
    labels = empty(records) if is_per_record else empty(records, seq_len_tokens)
    if is_per_record and config.problem_type == "multi_label_classification":
        labels = empty(records, config.num_labels, dtype=torch.float)
    if module.main_input_name == "pixel_values":
        return {"pixel_values": empty(records, *_image_shape(config), dtype=module.dtype), "labels": labels}
    tokens = {name: empty(records, seq_len_tokens) for name in ("input_ids", "attention_mask")}
    return {**tokens, "labels": labels}


def most_tokens(module: Any) -> int:
    """So many tokens have a place each, 0 where there is no end to them."""
    # XLNet says -1 of any number.
    places = max(0, getattr(module.config, "max_position_embeddings", None) or 0)
    # RoBERTa and its like count on from the place of the padding.
    before = [
        item.padding_idx + 1
        for name, item in module.named_modules()
        if name.endswith("position_embeddings") and type(item) is nn.Embedding and item.padding_idx is not None
    ]
    return places - max(before, default=0)


def record_text(module: Any, *, seq_len_tokens: int) -> str:
    """What a record is."""
    if module.main_input_name == "pixel_values":
        return " x ".join(map(str, _image_shape(module.config))) + " pixels"
    twice = f", and {seq_len_tokens:,} of the answer" if module.config.is_encoder_decoder else ""
    return f"{seq_len_tokens:,} tokens{twice}"


def own_loss(module: nn.Module, batch: Inputs) -> Tensor:
    """The loss that the model computes itself.

    Raises:
        BadInput: the model cannot be traced without values, or has no loss for such a batch.
    """
    try:
        loss: Tensor | None = module(**batch).loss
    except WHAT_LIBRARIES_RAISE as error:
        raise BadInput(
            "the model cannot be planned: it needs more than its configuration to run",
            where=type(module).__name__,
            got=one_line(error),
            hint="planned is what takes tokens or pixels with labels, decides nothing by the values of its tensors "
            "and finds all that it asks for in config.json",
        ) from error
    if loss is None:
        raise BadInput("the model has no loss for tokens or pixels with labels", where=type(module).__name__)
    return loss


def _class_of(config: Any) -> Any:
    """The class that the configuration names, or the first with a loss for its architecture where that is the bare
    network or none."""
    mappings = (
        auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_MASKED_LM_MAPPING,
        auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    )
    bare = auto.MODEL_MAPPING_NAMES.get(config.model_type, ())
    names = [name for name in config.architectures or () if name not in bare]
    kinds: list[Any] = [getattr(transformers, name, None) for name in names]
    for mapping in () if names else mappings:
        found = mapping.get(type(config), ())
        kinds += found if isinstance(found, tuple) else (found,)
    kind = next((item for item in kinds if item and "labels" in inspect.signature(item.forward).parameters), None)
    is_mixed = any(hasattr(config, name) for name in ("vision_config", "audio_config"))
    if kind is None or is_mixed or kind.main_input_name not in ("input_ids", "pixel_values"):
        raise BadInput(
            "transformers has no class with a loss of tokens or pixels for it",
            where="--model",
            got=f"{config.model_type}, architectures {config.architectures}",
            expected="a language model, an encoder, an encoder-decoder or an image classifier",
            hint="`architectures` of its config.json names the class that is planned" if names else None,
        )
    return kind


def _image_shape(config: Any) -> tuple[int, int, int]:
    size = getattr(config, "image_size", None)
    if size is None:
        raise BadInput("the configuration does not say how large an image is", got=config.model_type)
    height, width = (size, size) if isinstance(size, int) else size
    return config.num_channels, height, width


class ModelFacts(msgspec.Struct, frozen=True):
    """What was planned."""

    architecture: str
    parameters: int
    """Elements; tied weights count once."""
    trained_parameters: int
    record: str
    seq_len_tokens: int | None
    """None where a record is an image."""


def plan_pretrained(
    source: str, train: TrainConfig, *, seq_len_tokens: int, epochs: int, freeze: Sequence[str] = (), **limits: Any
) -> tuple[Choice, ModelFacts]:
    """Plan the training of a model from its configuration; weights are neither read nor allocated.

    Args:
        source: a folder with a `config.json`, or a hub id.
        train: strategy (`auto` for the cheapest that fits), effective batch, micro-batch (0 for the best that fits) and
            checkpointing (as transformers does it; False leaves it open where the micro-batch is).
        seq_len_tokens: tokens of a record; an encoder-decoder's answer is as long.
        epochs: for the disk of the snapshots.
        freeze: names or patterns of what is not trained.
        limits: the card, and what of the rest is left open, as `redheart.train.choice.choose` takes them.

    Raises:
        BadInput: the configuration or an option cannot be planned for.
    """
    config = read_config(source)

    @cache
    def planner_in(dtype: torch.dtype) -> Planner:
        module = build(config, dtype=dtype, freeze=freeze)
        return Planner(
            Workload(
                module,
                model_sizes(module, parameter_groups(module, weight_decay=train.weight_decay)),
                partial(inputs, module, seq_len_tokens=seq_len_tokens),
                own_loss,
                set_checkpointing,
                train.effective_batch,
                snapshots=-(-epochs // train.snapshot_every),
                snapshot_output_bytes=0,
                feature_bytes=0,
            )
        )

    module = planner_in(torch.bfloat16).workload.module
    most = most_tokens(module)
    if not 1 <= seq_len_tokens <= (most or seq_len_tokens):
        limit = f"1 to {most}" if most else "1 or more"
        raise BadInput("out of range", where="--seq-len", got=seq_len_tokens, expected=limit)
    can_checkpoint = bool(module.supports_gradient_checkpointing)
    if train.checkpointing and not can_checkpoint:
        raise BadInput("transformers cannot checkpoint it", where="--checkpointing", got=type(module).__name__)
    choice = choose(train, planner_in, can_checkpoint=can_checkpoint, **limits)
    plan = msgspec.structs.replace(choice.plan, time_basis="steps of this model have not been measured")
    sizes = choice.planner.workload.sizes
    facts = ModelFacts(
        type(module).__name__,
        sizes.total,
        sizes.trained,
        record_text(module, seq_len_tokens=seq_len_tokens),
        None if module.main_input_name == "pixel_values" else seq_len_tokens,
    )
    hint = None if plan.fits or choice.nearest else _hint(plan, facts)
    return replace(choice, plan=plan, hint=hint), facts


def facts_line(model: ModelFacts, plan: Plan) -> str:
    """The model and its micro-batch in a sentence."""
    trained = "all" if model.trained_parameters == model.parameters else f"{model.trained_parameters:,}"
    micro = f"{plan.micro_batch} records" if plan.micro_batch > 1 else "1 record"
    return (
        f"{model.architecture}: {model.parameters:,} parameters, {trained} trained; micro-batch of {micro} x "
        f"{model.record}"
    )


def _hint(plan: Plan, model: ModelFacts) -> str:
    if (weights_bytes := 2 * model.parameters) > plan.vram_bytes:
        return f"nothing fits this card: the weights alone take {weights_bytes / GIB:.2f} GiB in bf16"
    return "no strategy fits this card; take a shorter --seq-len, or --freeze a part of the model"
