"""Does training a Hugging Face model fit, from its configuration: the plan that is asked for or the best that fits."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial

import msgspec
import torch

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.core.units import GIB
from redheart.custom import pretrained
from redheart.memory.ledger import model_sizes
from redheart.memory.plan import COMFORT_SHARE, Plan, Planner
from redheart.memory.trace import Workload
from redheart.train.choice import Choice, choose
from redheart.train.zero.groups import parameter_groups

NO_TIMES = "steps of this model have not been measured"


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
    source: str,
    train: TrainConfig,
    *,
    vram_bytes: int,
    seq_len_tokens: int,
    epochs: int,
    freeze: Sequence[str] = (),
    ranks: int = 1,
    comfort_share: float = COMFORT_SHARE,
    shares: bool = False,
) -> tuple[Choice, ModelFacts]:
    """Plan the training of a model from its configuration; weights are neither read nor allocated.

    Args:
        source: a folder with a `config.json`, or a hub id.
        train: strategy (`auto` for the cheapest that fits), effective batch, micro-batch (0 for the best that fits) and
            checkpointing (as transformers does it; False leaves it open where the micro-batch is).
        vram_bytes: of the card.
        seq_len_tokens: tokens of a record; an encoder-decoder's answer is as long.
        epochs: for the disk of the snapshots.
        freeze: names or patterns of what is not trained.
        ranks: devices, for the strategies that divide the work.
        comfort_share: of the card that is not exceeded if anything stays below it.
        shares: whether as much of the optimizer lies on the card as there is room for; else what `train` says does.

    Raises:
        BadInput: the configuration or an option cannot be planned for.
    """
    config = pretrained.read_config(source)
    if not 0 <= train.micro_batch <= 1024 or train.effective_batch < 1:
        raise BadInput(
            "out of range",
            got=f"micro-batch {train.micro_batch}, effective batch {train.effective_batch}",
            expected="micro-batch 0-1024, effective batch 1 or more",
        )

    @cache
    def planner_in(dtype: torch.dtype) -> Planner:
        module = pretrained.build(config, dtype=dtype, freeze=freeze)
        return Planner(
            Workload(
                module,
                model_sizes(module, parameter_groups(module, weight_decay=train.weight_decay)),
                partial(pretrained.inputs, module, seq_len_tokens=seq_len_tokens),
                pretrained.own_loss,
                pretrained.set_checkpointing,
                train.effective_batch,
                snapshots=-(-epochs // train.snapshot_every),
                snapshot_output_bytes=0,
                feature_bytes=0,
            )
        )

    module = planner_in(torch.bfloat16).workload.module
    most = pretrained.most_tokens(module)
    if not 1 <= seq_len_tokens <= (most or seq_len_tokens):
        limit = f"1 to {most}" if most else "1 or more"
        raise BadInput("out of range", where="--seq-len", got=seq_len_tokens, expected=limit)
    can_checkpoint = bool(module.supports_gradient_checkpointing)
    if train.checkpointing and not can_checkpoint:
        raise BadInput("transformers cannot checkpoint it", where="--checkpointing", got=type(module).__name__)
    choice = choose(
        train,
        planner_in,
        vram_bytes=vram_bytes,
        ranks=ranks,
        comfort_share=comfort_share,
        can_checkpoint=can_checkpoint,
        shares=shares,
    )
    plan = msgspec.structs.replace(choice.plan, time_basis=NO_TIMES)
    facts = _facts(choice.planner, seq_len_tokens)
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


def _facts(planner: Planner, seq_len_tokens: int) -> ModelFacts:
    module, sizes = planner.workload.module, planner.workload.sizes
    return ModelFacts(
        type(module).__name__,
        sizes.total,
        sizes.trained,
        pretrained.record_text(module, seq_len_tokens=seq_len_tokens),
        None if module.main_input_name == "pixel_values" else seq_len_tokens,
    )


def _hint(plan: Plan, model: ModelFacts) -> str:
    if (weights_bytes := 2 * model.parameters) > plan.vram_bytes:
        return f"nothing fits this card: the weights alone take {weights_bytes / GIB:.2f} GiB in bf16"
    return "no strategy fits this card; take a shorter --seq-len, or --freeze a part of the model"
