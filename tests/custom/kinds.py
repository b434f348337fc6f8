"""Kinds of models that people bring, tiny and without a download, and one life of each: `kinds.py FOLDER MODE NAME…`.

A life is planned, trained, stopped in an epoch, resumed to the bits of an unbroken run, chosen, reloaded, and saved for
transformers where it is one of its models. MODE `killed` ends with a SIGKILL in the middle of training; `rest` goes on
behind that, or behind a SIGTERM of its own; `trained` trains, chooses and no more.
"""

import copy
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from redheart.core.config import TrainConfig
from redheart.core.errors import Interrupted
from redheart.custom import TensorLearner, choose, fit, plan, token_losses
from redheart.snapshots.consolidate import load_assembly

CONFIG = TrainConfig(effective_batch=16, cycle_epochs=2, snapshot_every=1, state_every_steps=2)
STOP_AT = 7
"""In the second of two epochs of 4 steps, behind a state."""
SIZES = {"vocab_size": 64, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
LLAMA = {**SIZES, "intermediate_size": 32, "num_key_value_heads": 1, "max_position_embeddings": 32, "use_cache": False}
ENCODER = {**SIZES, "intermediate_size": 32, "max_position_embeddings": 32, "num_labels": 3}

random = torch.Generator().manual_seed(0)
TOKENS = torch.randint(1, 64, (96, 12), generator=random)
LABELS, IMAGES = TOKENS.sum(1) % 3, torch.randn(96, 3, 8, 8, generator=random)
INPUTS = torch.randn(96, 8, generator=random)
SUMS = INPUTS.sum(1)


class Perceptron(nn.Module):
    """Two maps with something between them."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.first, self.between, self.last = nn.Linear(8, 16), between or nn.Identity(), nn.Linear(16, 1)

    def forward(self, inputs_ND: Tensor) -> Tensor:
        hidden = relu(self.between(self.first(inputs_ND.to(self.first.weight.dtype))))
        return self.last(hidden.to(self.last.weight.dtype)).squeeze(1)


class Sometimes(Perceptron):
    """A map that few batches use."""

    def __init__(self) -> None:
        super().__init__()
        self.seldom = nn.Linear(16, 1)

    def forward(self, inputs_ND: Tensor) -> Tensor:
        hidden = relu(self.first(inputs_ND.to(self.first.weight.dtype)))
        found = self.last(hidden)
        return (found + self.seldom(hidden) if inputs_ND.is_meta or inputs_ND[0, 0] > 0 else found).squeeze(1)


class RootParameter(Perceptron):
    """A parameter and a table of whole numbers that lie in no submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, inputs_ND: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        return super().forward(inputs_ND) * self.scale


class LowRank(nn.Module):
    """A frozen map with a trained one of rank 2 beside it (Hu et al., 2021)."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Parameter(0.1 * torch.randn(2, base.in_features))
        self.up = nn.Parameter(torch.zeros(base.out_features, 2))

    def forward(self, inputs: Tensor) -> Tensor:
        return self.base(inputs) + inputs @ self.down.T @ self.up.T


def frozen() -> nn.Module:
    model = Perceptron()
    model.first.requires_grad_(False)
    return model


def odd_types() -> nn.Module:
    model = Perceptron()
    model.last.double()
    model.first.register_buffer("ids", torch.arange(1000))
    return model


def llama(**more: Any) -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA, tie_word_embeddings=False, **more))


def low_rank() -> nn.Module:
    model = llama().requires_grad_(False)
    for layer in model.model.layers:
        layer.self_attn.q_proj = LowRank(layer.self_attn.q_proj)
    return model


def checkpointed() -> nn.Module:
    model = llama()
    model.gradient_checkpointing_enable()
    return model


def gpt2() -> nn.Module:
    sizes = {"vocab_size": 64, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2, "use_cache": False}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))


def qwen3() -> nn.Module:
    return transformers.Qwen3ForCausalLM(transformers.Qwen3Config(**LLAMA, head_dim=8, tie_word_embeddings=True))


def bert(dropout: float = 0.0) -> nn.Module:
    drops = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return transformers.BertForSequenceClassification(transformers.BertConfig(**ENCODER, **drops))


def t5() -> nn.Module:
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    return transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0))


def vit() -> nn.Module:
    sizes = {key: value for key, value in ENCODER.items() if key not in ("vocab_size", "max_position_embeddings")}
    return transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=8, patch_size=4))


def squares(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return (module(batch[0]).float() - batch[1]) ** 2


def of_class(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    weight = next(module.parameters())
    inputs = {key: item.to(weight.dtype) if key == "pixel_values" else item for key, item in batch.items()}
    return cross_entropy(module(**inputs).logits.float(), inputs.pop("labels"), reduction="none")


def translated(module: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    logits = module(**batch).logits.float()
    return cross_entropy(logits.transpose(1, 2), batch["labels"], reduction="none").mean(1)


@dataclass(frozen=True)
class Kind:
    """How to make a model, its loss and its data, as columns."""

    make: Callable[[], nn.Module]
    losses: Callable[..., Any]
    columns: Any


TEXTS, CLASSES = {"input_ids": TOKENS}, {"input_ids": TOKENS, "labels": LABELS}
NUMBERS = (INPUTS, SUMS)
KINDS = {
    "gpt2": Kind(gpt2, token_losses, TEXTS),
    "qwen3_tied": Kind(qwen3, token_losses, TEXTS),
    "llama": Kind(llama, token_losses, TEXTS),
    "checkpointed": Kind(checkpointed, token_losses, TEXTS),
    "low_rank": Kind(low_rank, token_losses, TEXTS),
    "bert": Kind(bert, of_class, CLASSES),
    "bert_dropout": Kind(lambda: bert(0.1), of_class, CLASSES),
    "t5_tied": Kind(t5, translated, {"input_ids": TOKENS, "labels": TOKENS[:, :6].contiguous()}),
    "vit": Kind(vit, of_class, {"pixel_values": IMAGES, "labels": LABELS}),
    "batch_norm": Kind(lambda: Perceptron(nn.BatchNorm1d(16)), squares, NUMBERS),
    "frozen": Kind(frozen, squares, NUMBERS),
    "sometimes": Kind(Sometimes, squares, NUMBERS),
    "odd_types": Kind(odd_types, squares, NUMBERS),
    "root_parameter": Kind(RootParameter, squares, NUMBERS),
}


def learner(name: str) -> TensorLearner:
    kind = KINDS[name]
    torch.manual_seed(0)
    train, validation = (part(kind.columns, rows) for rows in (slice(64), slice(64, None)))
    return TensorLearner(kind.make(), kind.losses, train=train, validation=validation)


def part(columns: Any, rows: slice) -> Any:
    if isinstance(columns, dict):
        return {name: item[rows] for name, item in columns.items()}
    return [item[rows] for item in columns]


class StopAt:
    """A sink that sends this process a signal behind a step."""

    wants_past = False

    def __init__(self, which: int) -> None:
        self._signal = which

    def write(self, event: Mapping[str, object]) -> None:
        if event["event"] == "step" and event["step"] == STOP_AT:
            os.kill(os.getpid(), self._signal)

    def close(self, *, exit_code: int) -> None:
        pass


def train(name: str, folder: Path, *sinks: StopAt) -> TensorLearner:
    made = learner(name)
    fit(made, CONFIG, folder, epochs=2, learning_rate=2e-3, sinks=sinks)
    return made


def check(name: str, root: Path) -> None:
    """The life of a kind; AssertionError where it goes wrong."""
    if not (root / "parts").exists():
        with suppress(Interrupted):
            train(name, root / "parts", StopAt(signal.SIGTERM))
            raise AssertionError("not stopped")
    whole, resumed = train(name, root / "whole"), train(name, root / "parts")
    assert same(resumed.model, whole.model), f"{name}: another result than the unbroken run"
    # The model that was trained before may be planned as well as a new one.
    assert plan(whole, CONFIG, vram_bytes=8 << 30) == plan(learner(name), CONFIG, vram_bytes=8 << 30)
    another = learner(name)
    another.model = copy.deepcopy(whole.model)
    for made, folder in ((whole, "again"), (another, "another")):
        fit(made, CONFIG, root / folder, max_steps=2, learning_rate=2e-3)
    assert same(whole.model, another.model), f"{name}: the first engine has not let go of the model"
    chosen = choose(resumed, root / "parts")
    fresh = learner(name)
    load_assembly(fresh.model, chosen.folder)
    assert same(fresh.model, resumed.model, as_float32=True), f"{name}: reloaded as something else"
    rows = fresh.epoch_rows(0)[:8]
    if name != "low_rank" and isinstance(fresh.model, transformers.PreTrainedModel):
        resumed.model.save_pretrained(root / "saved")
        back = type(fresh.model).from_pretrained(root / "saved")
        expected, found = (
            fresh.loss(model.eval(), rows, step_rows=rows).total.item() for model in (resumed.model, back)
        )
        assert found == expected, f"{name}: transformers loads something else"


def same(model: nn.Module, other: nn.Module, *, as_float32: bool = False) -> bool:
    pairs = zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(*(item.float() if as_float32 else item for item in pair)) for pair in pairs)


if __name__ == "__main__":
    transformers.utils.logging.disable_progress_bar()
    for name in sys.argv[3:]:
        if sys.argv[2] == "killed":
            train(name, Path(sys.argv[1]) / name / "parts", StopAt(signal.SIGKILL))
        if sys.argv[2] == "trained":
            folder = Path(sys.argv[1]) / name / "parts"
            choose(train(name, folder), folder)
            continue
        check(name, Path(sys.argv[1]) / name)
        print("lived", name)
