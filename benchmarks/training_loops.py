"""Three ways to train the same model on the same records: Red Heart, a raw loop, the Hugging Face Trainer.

Each takes a configuration, its data and a number of optimizer steps, and gives the seconds of every step.
"""

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from redheart.core.config import FeatureConfig, StudyConfig, TrainConfig, resolved

if TYPE_CHECKING:
    import torch

    from redheart.memory.ledger import Strategy
    from redheart.study.phases import Study

RATE = 1e-4


def one_epoch(options: argparse.Namespace, train: TrainConfig) -> StudyConfig:
    """One epoch that holds more steps than are timed, without a snapshot before its end."""
    return resolved(
        StudyConfig(
            data=str(options.work / "records.json"),
            out=options.work / "run",
            preset=options.preset,
            epochs=1,
            features=FeatureConfig(seq_len_tokens=options.seq_len_tokens),
            train=dataclasses.replace(train, learning_rate=RATE, sample_every_s=0.0),
        )
    )


def red_heart(study: "Study", steps: int) -> list[float]:
    """The product's own loop, with its event log; the seconds of every step."""
    from redheart.study.phases import new_learner, run_settings
    from redheart.train.loop import train

    ends_s = [time.perf_counter()]

    class Clock:
        wants_past = False

        def write(self, event: Any) -> None:
            if event["event"] == "step":
                ends_s.append(time.perf_counter())

        def close(self, *, exit_code: int) -> None:
            pass

    with tempfile.TemporaryDirectory(prefix="redheart-") as folder:
        settings = dataclasses.replace(run_settings(study, RATE, epochs=1), max_steps=steps, snapshots=False)
        train(new_learner(study), settings, folder=Path(folder), sinks=[Clock()])
    return _differences(ends_s)


def at_once(study: "Study") -> "Study":
    """The study of a loop as one writes it, which computes a batch at once and not in halves."""
    train = dataclasses.replace(study.config.train, num_threads=1)
    return dataclasses.replace(study, config=dataclasses.replace(study.config, train=train))


def raw_loop(study: "Study", steps: int) -> list[float]:
    """The thirty lines that one would write: batches, loss, backward, clip, step."""
    import torch

    from redheart.data.loader import split
    from redheart.study.phases import new_learner
    from redheart.train.strategy import strategy_named

    learner, config, train = new_learner(at_once(study)), study.config, study.config.train
    strategy = strategy_named(train.strategy)
    order = learner.epoch_rows(0)
    if not strategy.is_zero:
        optimizer = torch_adamw(learner.model, config)
        engine = None
    else:
        engine = deepspeed_engine(learner.model, config, strategy)
    ends_s = [time.perf_counter()]
    for step_rows in split([order], train.effective_batch)[:steps]:
        for first in range(0, len(step_rows), train.micro_batch):
            rows = step_rows[first : first + train.micro_batch]
            if engine:
                engine.set_gradient_accumulation_boundary(first + train.micro_batch >= len(step_rows))
                engine.backward(learner.loss(engine, rows, step_rows=step_rows).total, scale_wrt_gas=False)
            else:
                learner.loss(learner.model, rows, step_rows=step_rows).total.backward()
        if engine:
            engine.step()
        else:
            torch.nn.utils.clip_grad_norm_(learner.model.parameters(), train.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        ends_s.append(time.perf_counter())
    return _differences(ends_s)


def hugging_face_trainer(study: "Study", steps: int) -> list[float]:
    """transformers.Trainer around the same model and loss."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments
    from transformers.utils import logging

    from redheart.study.phases import new_learner
    from redheart.train.strategy import strategy_named

    logging.set_verbosity_error()
    config, train = study.config, study.config.train
    strategy = strategy_named(train.strategy)
    if strategy.is_zero:
        _without_shared_memory_op()
    learner = new_learner(at_once(study))
    rows_N = learner.epoch_rows(0)
    ends_s: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *given: object, **named: object) -> None:
            ends_s.append(time.perf_counter())

        def on_train_end(self, *given: object, **named: object) -> None:
            ends_s.append(time.perf_counter())

    class EmotionTrainer(Trainer):  # type: ignore[misc]
        def compute_loss(self, model: "torch.nn.Module", inputs: Any, **named: object) -> "torch.Tensor":
            rows = inputs["rows"].numpy()
            # Trainer divides by the number of micro-batches itself.
            return learner.loss(model, rows, step_rows=rows).total

        def _get_train_sampler(self, *given: object) -> "torch.utils.data.Sampler[int]":
            return torch.utils.data.SequentialSampler(rows_N)

    with tempfile.TemporaryDirectory(prefix="redheart-") as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=steps,
            per_device_train_batch_size=train.micro_batch,
            gradient_accumulation_steps=train.effective_batch // train.micro_batch,
            learning_rate=RATE,
            lr_scheduler_type="constant",
            weight_decay=train.weight_decay,
            max_grad_norm=train.clip_norm,
            optim="adamw_torch_fused" if strategy.state_bits == 32 else "adamw_8bit",
            bf16=strategy.is_zero,
            deepspeed=trainer_deepspeed(config, strategy) if strategy.is_zero else None,
            use_cpu=not torch.cuda.is_available(),
            dataloader_pin_memory=False,
            remove_unused_columns=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        trainer = EmotionTrainer(
            model=learner.model,
            args=arguments,
            train_dataset=[{"rows": int(row)} for row in rows_N],
            data_collator=lambda items: {"rows": torch.tensor([item["rows"] for item in items])},
            callbacks=[Clock()],
        )
        trainer.train()
        if strategy.is_zero and not hasattr(trainer.model_wrapped, "set_gradient_accumulation_boundary"):
            raise RuntimeError("Trainer has trained without DeepSpeed")
    return _differences(ends_s)


WAYS: dict[str, Callable[["Study", int], list[float]]] = {
    "Red Heart": red_heart,
    "raw loop": raw_loop,
    "Hugging Face Trainer": hugging_face_trainer,
}


def torch_adamw(model: "torch.nn.Module", config: StudyConfig) -> "torch.optim.Optimizer":
    """Torch's AdamW on the groups of the product, at the rate of the benchmark."""
    import torch

    from redheart.train.zero.groups import parameter_groups

    groups = parameter_groups(model, weight_decay=config.train.weight_decay)
    return torch.optim.AdamW(groups, lr=RATE, betas=(config.train.beta1, config.train.beta2))


def deepspeed_engine(model: "torch.nn.Module", config: StudyConfig, strategy: "Strategy") -> Any:
    """DeepSpeed by itself, with the strategy's configuration and an optimizer from the shelf."""
    import deepspeed

    from redheart.train.strategy import deepspeed_config
    from redheart.train.zero.groups import parameter_groups

    _without_shared_memory_op()
    groups = parameter_groups(model, weight_decay=config.train.weight_decay)
    if strategy.state_bits == 8:
        from bitsandbytes.optim import AdamW8bit

        optimizer = AdamW8bit(groups, lr=RATE)
    else:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        optimizer = DeepSpeedCPUAdam(groups, lr=RATE, adamw_mode=True)
    return deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config(strategy, config.train))[0]


def trainer_deepspeed(config: StudyConfig, strategy: "Strategy") -> dict[str, object]:
    """The strategy's configuration as Trainer wants it: its own numbers must be the same or absent."""
    from redheart.train.strategy import deepspeed_config

    found = deepspeed_config(strategy, config.train)
    found["gradient_accumulation_steps"] = config.train.effective_batch // config.train.micro_batch
    return found


def _without_shared_memory_op() -> None:
    """It is compiled at start under a lock that a killed compiler leaves behind, where every later start waits."""
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False


def _differences(ends_s: list[float]) -> list[float]:
    return [end - start for start, end in pairwise(ends_s)]
