"""The engines: one optimizer step on a module, with DeepSpeed (through accelerate) or without.

The only file that imports deepspeed and accelerate. Weights and optimizer states enter and leave as plain
tensors by name, so that the savers need to know nothing of an engine.
"""

import logging
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.core.progress import note
from redheart.core.ranks import Ranks, launched
from redheart.memory.host import available_cores
from redheart.memory.ledger import Strategy
from redheart.optim.offloaded import Offloaded
from redheart.train.device.compute_type import compute_type, in_float32, let_norms_compute_in_float32
from redheart.train.device.graphs import Graphs
from redheart.train.strategy import check_switches, deepspeed_config, strategy_named
from redheart.train.zero import pipelined_step, startup
from redheart.train.zero.groups import parameter_groups, parameter_places
from redheart.train.zero.optimizer_state import Repartitioned, held_bytes, load_buffers, load_tensors, tensors_of

COLLECTIVES_TIMEOUT = timedelta(hours=12)
"""NCCL gives up after 10 minutes, gloo after 30, while the first rank validates for as long as that takes. Whether the
others are there at all is known otherwise: see peers.py."""
SECOND_THREAD_FROM = 1 << 18
"""Records of a micro-batch times elements of a mean parameter from which a second thread pays: with 141,000 (`small`,
16 records) a step takes as long with one, with 564,000 (64 records) 1.3 times as long. Below it threads only wait for
each other: beside two busy processes a step of `tiny` (61,000) takes three times as long with two threads."""


def set_threads(module: nn.Module, config: TrainConfig, local_world_size: int) -> None:
    """Fix the number of CPU threads: launchers set different ones, and sums depend on it in the last bit.

    It follows from the model and the settings alone, whatever else the machine does; one where operators are too small
    for two.
    """
    sizes = [parameter.numel() for parameter in module.parameters()]
    is_small = config.micro_batch * sum(sizes) < SECOND_THREAD_FROM * len(sizes)
    cores = available_cores()
    torch.set_num_threads(config.num_threads or (1 if is_small else max(1, cores // local_world_size)))


class PlainEngine:
    """One process, no DeepSpeed, float32: for debugging and as a reference. What it says of itself holds for all."""

    def __init__(self, module: nn.Module, config: TrainConfig, strategy: Strategy):
        set_threads(module, config, 1)
        self.rank, self.world_size = 0, 1
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = torch.float32
        in_float32(module)
        self.module = module.to(self.device)
        self._clip_norm, self._parameters = config.clip_norm, list(module.parameters())
        self._optimizer = strategy.optimizer(parameter_groups(module, weight_decay=config.weight_decay), config)
        self._masters = [item for group in self._optimizer.param_groups for item in group["params"]]
        self.places = parameter_places(module, [[item] for item in self._masters], [[0]] * len(self._masters))
        """Where every parameter lies in the masters of `state_tensors`."""

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Accumulate gradients; `last` marks the last micro-batch of the step."""
        loss.backward()

    def step(self, learning_rate: float) -> float:
        """Clip, update, clear the gradients; the L2 norm of the whole gradient before clipping.

        Where that is not finite the weights are left alone.
        """
        total = nn.utils.get_total_norm([item.grad for item in self._parameters if item.grad is not None])
        norm = float(total)
        # Torch divides by the norm and a millionth more: below this it would multiply by 1.
        if 1.01 * norm + 1e-6 > self._clip_norm:
            nn.utils.clip_grads_with_norm_(self._parameters, self._clip_norm, total)
        if math.isfinite(norm):
            for group in self._optimizer.param_groups:
                group["lr"] = learning_rate
            self._optimizer.step()
        self._optimizer.zero_grad()
        return norm

    def finish(self) -> None:
        """Until the module's weights are those of the last step, where they come beside what follows it."""

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's master weights, optimizer states and buffers of the module, by name."""
        yield from tensors_of(self._masters, self._optimizer, self.module)

    def load_state_tensors(self, ranks: Sequence[Mapping[str, Tensor]]) -> None:
        """Restore what `state_tensors` gave on every rank of the run, of which there may have been another number.

        The module's weights follow from the masters.
        """
        load_tensors(self._masters, self._optimizer, ranks[0])
        load_buffers(self.module, ranks[0])

    def host_bytes(self) -> dict[str, int]:
        """Bytes that this rank's optimizer holds on the host, by role."""
        return held_bytes(self._masters, self._optimizer, [])

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Elementwise sum over all ranks."""
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""

    def close(self) -> None:
        """Let go of the module, which keeps its weights: another engine may be built around it."""


class ZeroEngine:
    """DeepSpeed ZeRO with the optimizer on the host, weights in bf16 or float32, one or more ranks."""

    def __init__(self, module: nn.Module, config: TrainConfig, strategy: Strategy):
        ranks = launched()
        _set_up_environment(ranks)
        import deepspeed
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import DeepSpeedPlugin, InitProcessGroupKwargs

        # Their warnings are about choices that the strategies make on purpose, and a user can do nothing about them.
        for library in ("DeepSpeed", "bitsandbytes"):
            logging.getLogger(library).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        # Compiled at start under a lock that a killed compiler leaves behind, where every later start waits for
        # ever; gloo reduces a gradient between CPU ranks as well.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        startup.return_freed_memory(module)
        world_size = ranks.world_size
        set_threads(module, config, ranks.local_world_size)
        if world_size == 1:
            startup.start_group_of_one()
            deepspeed.init_distributed(dist_backend="gloo", auto_mpi_discovery=False, verbose=False)
        deepspeed_settings = deepspeed_config(strategy, config)
        if compute_type(config) == torch.float32:
            deepspeed_settings["bf16"] = {"enabled": False}
            in_float32(module)
        self._put_hooks_back = remembered_hooks(module)
        # A process's first Accelerator decides for all later ones otherwise, of another run or of the user's own.
        AcceleratorState._reset_state(reset_partial_state=True)
        optimizer = strategy.optimizer(parameter_groups(module, weight_decay=config.weight_decay), config)
        # It notes in the environment that it uses DeepSpeed, which a later one of the user's own would obey.
        with (
            mock.patch.dict(os.environ),
            mock.patch.object(deepspeed.DeepSpeedEngine, "_broadcast_model", startup.send_weights),
        ):
            accelerator = Accelerator(
                deepspeed_plugin=DeepSpeedPlugin(hf_ds_config=deepspeed_settings),
                kwargs_handlers=[InitProcessGroupKwargs(timeout=COLLECTIVES_TIMEOUT)],
            )
            prepared, _ = accelerator.prepare(module, optimizer)
        AcceleratorState._reset_state(reset_partial_state=True)
        if not isinstance(prepared, deepspeed.DeepSpeedEngine):
            raise BadInput(
                "accelerate did not hand the model to DeepSpeed",
                got=type(prepared).__name__,
                hint="unset ACCELERATE_USE_CPU; to leave a card alone set CUDA_VISIBLE_DEVICES to nothing",
            )
        self._engine = prepared
        self._zero = prepared.optimizer
        self._pipeline: Offloaded | None = None
        if world_size == 1:
            # The sum over one rank is there already; DeepSpeed copies every gradient twice for it.
            self._zero.allreduce_and_scatter = self._zero.allreduce_no_retain = lambda *_, **__: None
        if strategy.home == "host" and self._zero.dtype == torch.float32:
            startup.let_weights_be_masters(self._zero)
        accumulates = config.micro_batch * world_size < config.effective_batch
        if config.pipeline:
            self._pipeline = pipelined_step.install(self._zero, module, accumulates=accumulates)
        elif strategy.install_step:
            strategy.install_step(self._zero, accumulates=accumulates, card_share=config.card_share)
        self._has_graphs = config.graphs and torch.cuda.is_available()
        if self._has_graphs:
            # One pool: shapes run one after the other.
            make = partial(torch.cuda.make_graphed_callables, pool=torch.cuda.graph_pool_handle())
            whole = self._pipeline.runs_whole if self._pipeline else None
            Graphs(module, make=make, before_capture=self.finish, on_segment=whole)
        elif config.graphs:
            note("without a CUDA device passes are not captured as graphs, they run as ever")
        if self._zero.dtype == torch.bfloat16:
            let_norms_compute_in_float32(module)
        self.module, self._model = prepared, module
        self.places = parameter_places(
            module, self._zero.round_robin_bit16_groups, self._zero.round_robin_bit16_offsets
        )
        # Not the accelerator's own numbers: on the CPU it calls every rank the first of one.
        self.rank, self.world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self.device, self.dtype = prepared.device, self._zero.dtype

    def backward(self, loss: Tensor, *, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        # As its forward pass does, through which a batch in halves does not go.
        self._zero.clear_backward_seen_flag()
        if self._pipeline and self._has_graphs:
            self._pipeline.reuse_gradients()
        # DeepSpeed averages over the ranks; the loss is already each rank's share of the whole.
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self, learning_rate: float) -> float:
        for group in self._zero.param_groups:
            group["lr"] = learning_rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def finish(self) -> None:
        if self._pipeline:
            self._pipeline.finish()

    def state_tensors(self) -> Iterator[tuple[str, Tensor]]:
        self.finish()
        yield from tensors_of(self._zero.single_partition_of_fp32_groups, self._zero.optimizer, self._model)

    def load_state_tensors(self, ranks: Sequence[Mapping[str, Tensor]]) -> None:
        self.finish()
        masters = self._zero.single_partition_of_fp32_groups
        if len(ranks) == self.world_size:
            mine = ranks[self.rank]
        else:
            mine = Repartitioned(ranks, sizes=[master.numel() for master in masters], rank=self.rank)
        load_tensors(masters, self._zero.optimizer, mine)
        # Statistics are every rank's own; a new number of ranks goes on with the first one's.
        load_buffers(self._model, ranks[self.rank if len(ranks) == self.world_size else 0])
        self._zero.update_lp_params()

    def host_bytes(self) -> dict[str, int]:
        zero = self._zero
        staging = [*zero.param_buffer_of_bit16_for_cpu_offload_groups, *zero.accumulated_grads_in_cpu.values()]
        staging += self._pipeline.buffers() if self._pipeline else []
        return held_bytes(zero.single_partition_of_fp32_groups, zero.optimizer, staging)

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        if self.world_size == 1:
            return values
        # NCCL takes tensors of its device only.
        shared = values.to(self.device, copy=True)
        torch.distributed.all_reduce(shared)
        return shared.to(values.device)

    def barrier(self) -> None:
        # Not torch's own, which on a card returns before the others have come and guesses the device.
        self.sum_over_ranks(torch.zeros(1))

    def close(self) -> None:
        self._engine.destroy()
        self._put_hooks_back()


Engine = PlainEngine | ZeroEngine


def start_engine(module: nn.Module, config: TrainConfig) -> Engine:
    """Build the engine that `config.strategy` names around a module with its initial weights."""
    strategy = strategy_named(config.strategy)
    check_switches(strategy, config, ranks=launched().world_size)
    if torch.cuda.is_available():
        _fix_kernels(deterministic=config.deterministic)
    return ZeroEngine(module, config, strategy) if strategy.is_zero else PlainEngine(module, config, strategy)


def _fix_kernels(*, deterministic: bool) -> None:
    """Let a CUDA device compute by the kernels that the planner counts, the same bits at every call if asked to."""
    # The only workspace but a tiny one for which torch believes cuBLAS to be deterministic.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # Without it the backward of memory-efficient attention adds up keys in any order.
    torch.use_deterministic_algorithms(deterministic)
    # It would overwrite every new tensor for the sake of programs that read what they did not write.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    # torch prefers cuDNN's attention from Hopper on only.
    torch.backends.cuda.enable_cudnn_sdp(False)


def _set_up_environment(ranks: Ranks) -> None:
    """Let DeepSpeed and accelerate see the same ranks, and use the CPU where there is no GPU."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # `accelerate launch --cpu` asks for what is done anyway, and accelerate would leave DeepSpeed out for it.
        os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ.update(ranks.as_variables())
    # Left over in a shell under MPI it ends DeepSpeed, which holds it against the other.
    os.environ.pop("OMPI_COMM_WORLD_LOCAL_RANK", None)


def remembered_hooks(module: nn.Module) -> Callable[[], None]:
    """A function that gives every submodule the hooks and the `forward` back that it has now.

    DeepSpeed, the pipeline and the graphs leave theirs, which would act on another engine's passes.
    """
    before = []
    for item in module.modules():
        hooks = [held for name, held in vars(item).items() if "_hooks" in name and isinstance(held, dict)]
        before.append((item, [(held, dict(held)) for held in hooks], vars(item).get("forward")))

    def put_back() -> None:
        for item, hooks, forward in before:
            for held, own in hooks:
                held.clear()
                held.update(own)
            vars(item).pop("forward", None)
            if forward is not None:
                item.forward = forward

    return put_back
