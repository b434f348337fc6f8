"""The offloaded optimizer in a plain loop: the engine's bits, torch's contract, and nothing lost on the way."""

import copy
import hashlib
import json
import math
import pickle
import re
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from launching import ROOT, launch
from torch import Tensor, nn

from redheart import optim
from redheart.model.losses import multitask_loss, task_counts
from redheart.model.network import build
from redheart.optim.host_adamw8bit import HostAdamW8bit
from redheart.train.zero.groups import parameter_groups

sys.path.append(str(Path(__file__).parents[1] / "train"))
from fixed_batch import DIMS, RECORDS, fixed_batch

OffloadAdamW8bit = partial(optim.OffloadAdamW8bit, max_grad_norm=None)
SCRIPT = Path(__file__).parents[1] / "train" / "engine_steps.py"


@cache
def engine_steps(num_micro_batches: int) -> dict[str, object]:
    done = launch([sys.executable, str(SCRIPT)], "zero2_offload_adam8bit", num_micro_batches)
    assert done.returncode == 0, done.stderr[-2000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    found: dict[str, object] = json.loads(line.removeprefix("RESULT "))
    return found


@pytest.mark.parametrize("num_micro_batches", [1, 2])
@pytest.mark.parametrize("ring_bytes", [1, 1 << 30])
def test_a_plain_loop_has_the_bits_of_the_engine(num_micro_batches: int, ring_bytes: int) -> None:
    """The loop of `engine_steps.py`, without DeepSpeed."""
    features_BSD, mask_BS, targets_BT, present_BT = fixed_batch()
    features_BSD = features_BSD.bfloat16()
    model = build(DIMS, seed=0).bfloat16()
    optimizer = OffloadAdamW8bit(
        parameter_groups(model, weight_decay=0.01), lr=1e-3, max_grad_norm=1.0, ring_bytes=ring_bytes
    )
    counts_K, share = task_counts(present_BT, DIMS.outputs), RECORDS // num_micro_batches
    expected = engine_steps(num_micro_batches)
    for step in expected["steps"]:  # type: ignore[attr-defined]
        for part in range(num_micro_batches):
            rows = slice(part * share, (part + 1) * share)
            predictions = model(features_BSD[rows], mask_BS[rows])
            multitask_loss(
                predictions, targets_BT[rows], present_BT[rows], outputs=DIMS.outputs, step_counts_K=counts_K
            ).total.backward()
            assert all(parameter.grad is None for parameter in model.parameters())
        optimizer.step()
        assert optimizer.grad_norm == step["grad_norm"]
    weights = torch.cat([item.detach().float().flatten() for item in model.parameters()]).numpy()
    assert hashlib.sha256(weights).hexdigest() == expected["weights"]


def small_model(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(64, 128), nn.GELU(), nn.Linear(128, 1)).to(dtype)


def loss_of(model: nn.Module, scale: float = 1.0) -> Tensor:
    inputs = torch.randn(32, 64, generator=torch.Generator().manual_seed(2)).to(next(model.parameters()).dtype)
    return scale * (model(inputs).float() - inputs.float().sum(1, keepdim=True)).square().mean()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_it_trains_as_torch_s_adamw_within_what_8_bits_cost() -> None:
    losses = {}
    for kind in (OffloadAdamW8bit, torch.optim.AdamW):
        model = small_model()
        losses[kind] = train(model, kind(model.parameters(), lr=1e-3), 60)
    ours, theirs = losses.values()
    assert ours[0] == theirs[0] and ours[-1] < 0.5 * ours[0]
    assert ours[-1] == pytest.approx(theirs[-1], rel=0.05)


def test_a_schedule_of_torch_s_sets_the_rate() -> None:
    models = [small_model(), small_model()]
    rates = (1e-3, 5e-4, 2.5e-4)
    optimizer = OffloadAdamW8bit(models[0].parameters(), lr=rates[0])
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    other = OffloadAdamW8bit(models[1].parameters(), lr=rates[0])
    for rate in rates:
        train(models[0], optimizer, 1)
        schedule.step()
        other.param_groups[0]["lr"] = rate
        train(models[1], other, 1)
    assert same_weights(*models)


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(one, two) for one, two in zip(first.parameters(), second.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_run_goes_on_from_its_state_with_the_same_bits(dtype: torch.dtype, tmp_path: Path) -> None:
    unbroken, first, second = (small_model(dtype) for _ in range(3))
    train(unbroken, OffloadAdamW8bit(unbroken.parameters(), lr=1e-3), 4)
    optimizer = OffloadAdamW8bit(first.parameters(), lr=1e-3)
    train(first, optimizer, 2)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    going_on = OffloadAdamW8bit(second.parameters(), lr=9.0)
    going_on.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same_weights(first, second)
    train(second, going_on, 2)
    assert same_weights(unbroken, second)
    with pytest.raises(ValueError, match="other parameters"):
        OffloadAdamW8bit(second[0].parameters()).load_state_dict(optimizer.state_dict())  # type: ignore[index]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_nan_or_inf_changes_nothing(bad: float) -> None:
    model, reference = small_model(torch.bfloat16), small_model(torch.bfloat16)
    optimizer = OffloadAdamW8bit(model.parameters(), lr=1e-3)
    train(model, optimizer, 1)
    before = [item.clone() for item in model.parameters()]
    loss_of(model, bad).backward()
    optimizer.step()
    assert not math.isfinite(optimizer.grad_norm)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))
    train(model, optimizer, 1)
    train(reference, OffloadAdamW8bit(reference.parameters(), lr=1e-3), 2)
    assert same_weights(model, reference)


def test_zero_grad_forgets_what_has_left_already() -> None:
    model, reference = small_model(), small_model()
    optimizer = OffloadAdamW8bit(model.parameters(), lr=1e-3)
    for _ in range(3):
        loss_of(model, 7.0).backward()
    train(model, optimizer, 2)
    train(reference, OffloadAdamW8bit(reference.parameters(), lr=1e-3), 2)
    assert same_weights(model, reference)


def test_what_is_frozen_or_unused_is_left_alone_or_counts_as_zero() -> None:
    model = nn.ModuleDict({"frozen": nn.Linear(8, 8), "used": nn.Linear(8, 1), "unused": nn.Linear(8, 1)})
    model["frozen"].requires_grad_(False)
    before = {name: item.detach().clone() for name, item in model.named_parameters()}
    optimizer = OffloadAdamW8bit(model.parameters(), lr=1e-2, weight_decay=0.5)
    assert sum(len(flat.master) for flat in optimizer._work.flats) == 18
    model["used"](model["frozen"](torch.ones(4, 8))).sum().backward()
    optimizer.step()
    after = dict(model.named_parameters())
    assert all(torch.equal(before[f"frozen.{name}"], after[f"frozen.{name}"]) for name in ("weight", "bias"))
    assert not torch.equal(before["used.weight"], after["used.weight"])
    # As under ZeRO: it decays.
    torch.testing.assert_close(after["unused.weight"], before["unused.weight"] * (1 - 1e-2 * 0.5))
    with pytest.raises(ValueError, match="requires a gradient"):
        OffloadAdamW8bit(model["frozen"].parameters())


@pytest.mark.parametrize("is_trained", [True, False])
def test_what_is_frozen_or_trained_later_is_refused_at_the_step(is_trained: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    model[0].requires_grad_(is_trained)
    optimizer = OffloadAdamW8bit(model.parameters(), lr=1e-2)
    model[0].requires_grad_(not is_trained)
    before = [item.detach().clone() for item in model.parameters()]
    model(torch.ones(4, 8)).sum().backward()
    with pytest.raises(ValueError, match="make a new one"):
        optimizer.step()
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))


def test_gradients_that_it_cannot_take_are_told_by_name() -> None:
    sparse = nn.Embedding(8, 4, sparse=True)
    optimizer = OffloadAdamW8bit(sparse.parameters())
    with pytest.raises(ValueError, match="sparse=False"):
        sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match="another optimizer"):
        optimizer.load_state_dict(torch.optim.AdamW(sparse.parameters()).state_dict())
    model = nn.Linear(4, 1).bfloat16()
    optimizer = OffloadAdamW8bit(model.parameters())
    with pytest.raises(ValueError, match="no longer in bfloat16"):
        model.float()(torch.ones(1, 4)).sum().backward()
    with pytest.raises(ValueError, match="no parameter with elements"):
        OffloadAdamW8bit([nn.Parameter(torch.empty(0))])


def test_one_flat_parameter_has_the_bits_of_the_host_optimizer() -> None:
    random = torch.Generator().manual_seed(3)
    weights, grads = torch.randn(10_000, generator=random), torch.randn(3, 10_000, generator=random)
    ours, theirs = nn.Parameter(weights.clone()), nn.Parameter(weights.clone())
    optimizer, host = OffloadAdamW8bit([ours], lr=1e-2), HostAdamW8bit([theirs], lr=1e-2)
    for grad in grads:
        (ours * grad).sum().backward()
        optimizer.step()
        theirs.grad = grad
        host.step()
    assert torch.equal(ours, theirs)


def test_the_lines_of_the_page_run_as_they_stand(tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "step.md").read_text(), flags=re.S)
    (tmp_path / "loop.py").write_text(code)
    done = launch([sys.executable, "loop.py"], cwd=tmp_path)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert float(done.stdout) < 30  # of 64 at first


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_a_type_that_the_kernel_does_not_read_is_refused(dtype: torch.dtype) -> None:
    """float16 was read as float32, past its end; float64 never moved."""
    with pytest.raises(ValueError, match=f"{dtype}, expected bfloat16 or float32"):
        OffloadAdamW8bit(small_model(dtype).parameters())


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"eps": -1e-3}, {"weight_decay": -1.0}, {"betas": (0.9, 1.0)}, {"betas": (1.0, 0.9)}]
)
@pytest.mark.parametrize("kind", [OffloadAdamW8bit, HostAdamW8bit])
def test_hyper_parameters_have_the_ranges_of_torch_s_adamw(kind: type, wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        kind(small_model().parameters(), **wrong)


@pytest.mark.parametrize("max_grad_norm", [0.0, -1.0])
def test_a_norm_of_zero_or_less_clips_nothing_as_none_does(max_grad_norm: float) -> None:
    """A negative one made steps uphill."""
    weights = []
    for norm in (None, max_grad_norm):
        model = small_model()
        train(model, OffloadAdamW8bit(model.parameters(), max_grad_norm=norm), 3)
        weights.append(nn.utils.parameters_to_vector(model.parameters()))
    assert torch.equal(*weights)


def test_an_optimizer_of_another_class_finds_the_gradients_once_this_one_is_gone() -> None:
    model, other = small_model(), small_model()
    optimizer = OffloadAdamW8bit(model.parameters())
    loss_of(model).backward()
    optimizer.step()
    del optimizer
    other.load_state_dict(model.state_dict())
    for trained in (model, other):
        train(trained, torch.optim.AdamW(trained.parameters(), lr=1e-2), 2)
    assert torch.equal(*(nn.utils.parameters_to_vector(item.parameters()) for item in (model, other)))


def test_a_state_that_is_refused_changes_nothing() -> None:
    model = small_model()
    optimizer = OffloadAdamW8bit(model.parameters(), lr=1e-3)
    train(model, optimizer, 1)
    state = optimizer.state_dict()
    state["param_groups"] = [group | {"lr": 9.0} for group in state["param_groups"]]
    state["host"] = state["host"] | {"param_groups": []}
    with pytest.raises(ValueError):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 1e-3


@pytest.mark.parametrize("copied", [copy.deepcopy, pickle.dumps])
def test_a_copy_is_refused_where_it_would_be_broken(copied: Callable[[object], object]) -> None:
    optimizer = OffloadAdamW8bit(small_model().parameters())
    with pytest.raises(TypeError, match="state_dict"):
        copied(optimizer)


def test_torch_s_default_type_and_device_are_not_the_masters(monkeypatch: pytest.MonkeyPatch) -> None:
    """A master in bf16 was written as float32, past its end."""
    model, reference = small_model(), small_model()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device("meta"):
            optimizer = OffloadAdamW8bit(model.parameters(), lr=1e-3)
    finally:
        torch.set_default_dtype(torch.float32)
    train(model, optimizer, 2)
    train(reference, OffloadAdamW8bit(reference.parameters(), lr=1e-3), 2)
    assert same_weights(model, reference)


@pytest.mark.parametrize("fails_in", ["clip", "update"])
def test_a_step_that_an_error_has_ended_leaves_nothing_behind(fails_in: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slots were lost for good, and squares counted in the next norm."""
    model, reference = small_model(), small_model()
    optimizer, expected = (OffloadAdamW8bit(item.parameters(), lr=1e-3) for item in (model, reference))
    loss_of(model, 7.0).backward()

    def interrupted(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(optimizer._work, fails_in, interrupted)
        optimizer.step()
    optimizer.zero_grad()
    train(model, optimizer, 2)
    train(reference, expected, 2)
    assert same_weights(model, reference) and optimizer.grad_norm == expected.grad_norm


def test_gradients_that_a_loop_has_set_are_taken() -> None:
    model, reference, early = small_model(), small_model(), small_model()
    optimizers = [OffloadAdamW8bit(item.parameters(), lr=1e-3) for item in (model, reference)]
    gradients = torch.autograd.grad(loss_of(model), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        parameter.grad = gradient
    loss_of(reference).backward()
    loss_of(early).backward()
    optimizers.append(OffloadAdamW8bit(early.parameters(), lr=1e-3))
    for optimizer in optimizers:
        optimizer.step()
    assert same_weights(model, reference) and same_weights(early, reference)


def test_an_optimizer_whose_parameters_were_taken_over_does_not_put_its_weights_back() -> None:
    model = small_model()
    first = OffloadAdamW8bit(model.parameters())
    second = OffloadAdamW8bit(list(model.parameters())[-1:])
    loss_of(model).backward()
    second.step()
    with pytest.raises(ValueError, match="taken parameters over"):
        first.step()


def test_a_state_of_other_shapes_or_names_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 4, bias=False), nn.Linear(6, 4, bias=False))
    states = []
    for layer in model:
        optimizer = OffloadAdamW8bit(layer.named_parameters(prefix=str(id(layer))))
        layer(torch.ones(2, layer.in_features)).sum().backward()
        optimizer.step()
        states.append(optimizer.state_dict())
    before = model[2].weight.detach().clone()
    for state in states[:2]:
        with pytest.raises(ValueError, match="other parameters"):
            optimizer.load_state_dict(state)
    assert torch.equal(model[2].weight, before)
    optimizer.load_state_dict(states[2])


@pytest.mark.parametrize(
    "wrong", [{"lr": -1.0}, {"eps": -1.0}, {"weight_decay": -1.0}, {"betas": (1.0, 0.9)}, {"state_bits": 16}]
)
def test_groups_have_the_ranges_of_the_defaults_also_at_the_step(wrong: dict[str, object]) -> None:
    model = small_model()
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OffloadAdamW8bit([{"params": list(model.parameters())} | wrong])
    optimizer = OffloadAdamW8bit(model.parameters())
    loss_of(model).backward()
    optimizer.param_groups[0].update(wrong)
    with pytest.raises(ValueError, match=next(iter(wrong))):
        optimizer.step()
