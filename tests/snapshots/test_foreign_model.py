"""The model is found in whatever a training script put around it; what is no weight is left out and named."""

from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from redheart.cli import main
from redheart.core.errors import BadInput
from redheart.snapshots import foreign_model
from redheart.snapshots.foreign import Foreign, open_foreign

NETWORK = nn.Sequential(OrderedDict(layer=nn.Linear(3, 4), norm=nn.BatchNorm1d(4)))
WEIGHTS = NETWORK.state_dict()
LINEAR = {"weight": torch.ones(2, 3), "bias": torch.zeros(2)}
SCORE = torch.tensor(0.3)
BYTES = torch.get_rng_state()
OPTIMIZER = {
    "state": {0: {"exp_avg": torch.ones(4, 3), "exp_avg_sq": torch.ones(4, 3), "step": torch.tensor(7.0)}},
    "param_groups": [{"lr": 0.1, "params": [0]}],
}
BY_NAME = {"state": {"layer.weight": {"exp_avg": torch.ones(4, 3), "step": SCORE}}, "param_groups": []}


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in WEIGHTS.items()}


def opened(content: object, folder: Path, **arguments: object) -> Foreign:
    torch.save(content, folder / "model.pt")
    return open_foreign(folder / "model.pt", **arguments)  # type: ignore[arg-type]


def is_the_model(found: Foreign, expected: object = WEIGHTS) -> bool:
    assert isinstance(expected, dict)
    return list(found.tensors.specs) == list(expected) and all(
        torch.equal(found.tensors[name], tensor) for name, tensor in expected.items()
    )


LIGHTNING = {
    "epoch": 3,
    "pytorch-lightning_version": "2.5.0",
    "state_dict": prefixed("model."),
    "loops": {"fit_loop": {"epoch_progress": {"total": {"ready": 3}}}},
    "callbacks": {"ModelCheckpoint{'monitor': 'val/loss'}": {"best_model_score": SCORE, "kth_value": SCORE}},
    "optimizer_states": [OPTIMIZER],
    "lr_schedulers": [{"last_epoch": 3}],
    "hyper_parameters": {"class_weights": torch.ones(7), "lr": 0.1},
}


@pytest.mark.parametrize(
    ("content", "ignored"),
    [
        (LIGHTNING, ["callbacks", "optimizer_states", "hyper_parameters"]),
        ({"net": WEIGHTS, "best_score": SCORE}, ["best_score"]),
        ({"any name": WEIGHTS, "confusion": torch.ones(7, 7), "mean": torch.ones(3)}, ["confusion", "mean"]),
        ({"learner": WEIGHTS, "history": {"train": {"loss": torch.ones(100)}}}, ["history"]),
        ({"state": {"model": {"module": WEIGHTS}, "opt": BY_NAME}, "step": torch.tensor(3)}, ["step", "state.opt"]),
        ({"model": WEIGHTS, "log": {"loss": np.ones(9)}, "mean": np.ones(3)}, []),
        ({"model": WEIGHTS, "criterion": {"weight": torch.ones(7)}, "epoch": 1}, ["criterion"]),
        ({"model": WEIGHTS, "rng": {"cpu": BYTES, "cuda": [BYTES]}, "ema": {"decay": SCORE}}, ["rng", "ema"]),
        ((WEIGHTS, OPTIMIZER), ["1"]),
        ({"net": WEIGHTS, "history": {"accuracy": torch.ones(9, 2)}, "optimizer": OPTIMIZER}, None),
        ({"models": [WEIGHTS], "epoch": 3}, []),
        ({**WEIGHTS, "optimizer": OPTIMIZER, "epoch": torch.tensor(3)}, ["epoch", "optimizer"]),
        ({"best_score": SCORE, **WEIGHTS}, ["best_score"]),
        ({**WEIGHTS, "best_score": SCORE, "rng_state": BYTES}, ["best_score", "rng_state"]),
        ({"n_averaged": torch.tensor(3), **prefixed("module.")}, ["n_averaged"]),
        ({**prefixed("module."), "class_weights": torch.ones(7)}, ["class_weights"]),
        (
            {**prefixed("model."), "criterion.weight": torch.ones(7), "val_acc.tp": SCORE},
            ["criterion.weight", "val_acc.tp"],
        ),
        ({"model": prefixed("_forward_module."), "optimizer": OPTIMIZER}, ["optimizer"]),
        (prefixed("module._orig_mod.model."), []),
        (prefixed("_fsdp_wrapped_module.") | {"optimizer.state.0.exp_avg": torch.ones(3)}, None),
        ({"model": defaultdict(list, WEIGHTS), "best": np.float64(0.5), "numpy_rng": np.random.get_state()}, None),
    ],
)
def test_whatever_lies_around_a_model(content: object, ignored: list[str] | None, tmp_path: Path) -> None:
    found = opened(content, tmp_path)
    assert is_the_model(found)
    assert ignored is None or sorted(found.ignored) == sorted(ignored)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        # A model of one layer has names without dots.
        ({"net": LINEAR, "best": SCORE}, LINEAR),
        ({"whatever": LINEAR, "epoch": 3}, LINEAR),
        ({"state_dict": LINEAR, "callbacks": {"one": {"best_model_score": SCORE}}}, LINEAR),
        (nn.BatchNorm1d(4).state_dict(), nn.BatchNorm1d(4).state_dict()),
        # A weight of one number is a weight: a model lists its own before those of its parts.
        ({"logit_scale": SCORE, **WEIGHTS}, {"logit_scale": SCORE, **WEIGHTS}),
        (dict(sorted({"logit_scale": SCORE, **WEIGHTS}.items())), None),
        ({"logit_scale": SCORE, **prefixed("model.")}, {"logit_scale": SCORE, **prefixed("model.")}),
        ({**WEIGHTS, "loss.weight": LINEAR["bias"]}, {**WEIGHTS, "loss.weight": LINEAR["bias"]}),
        ({**prefixed("model."), "head.bias": SCORE}, {**prefixed("model."), "head.bias": SCORE}),
        # Parts of one model, and several in one.
        (
            {"model": {"embedding": {"words": LINEAR}, "encoder": prefixed("layers.0.")}, "iteration": 5},
            {"embedding.words.weight": LINEAR["weight"], "embedding.words.bias": LINEAR["bias"]}
            | prefixed("encoder.layers.0."),
        ),
        ({**prefixed("student."), **prefixed("teacher.")}, {**prefixed("student."), **prefixed("teacher.")}),
        # A part that was compiled alone.
        ({"a._orig_mod.weight": SCORE, "b.weight": LINEAR["bias"]}, {"a.weight": SCORE, "b.weight": LINEAR["bias"]}),
    ],
)
def test_weights_keep_the_names_that_tell_them_apart(content: object, expected: object, tmp_path: Path) -> None:
    found = opened(content, tmp_path)
    assert set(found.tensors.specs) == set(content if expected is None else expected)  # type: ignore[call-overload]
    assert found.ignored == [] or "best" in found.ignored or "callbacks" in found.ignored
    if isinstance(expected, dict):
        assert all(torch.equal(found.tensors[name], tensor) for name, tensor in expected.items())


KEYS = st.text("abcdefgh_", min_size=1, max_size=8).map(lambda text: f"k{text}")
BESIDE = st.sampled_from(
    [
        0.5,
        "text",
        None,
        SCORE,
        BYTES,
        OPTIMIZER,
        [OPTIMIZER],
        BY_NAME,
        {"a": {"b": SCORE}},
        [BYTES, BYTES],
        {"mean": 3.0},
    ]
)


@settings(max_examples=80)
@given(levels=st.lists(st.tuples(KEYS, st.dictionaries(KEYS, BESIDE, max_size=4)), max_size=4), data=st.data())
def test_a_state_dict_is_found_below_any_keys(
    levels: list[tuple[str, dict[str, object]]], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content: dict[str, object] = dict(WEIGHTS)
    for key, beside in levels:
        entries = list(({**beside, key: content}).items())
        content = dict(data.draw(st.permutations(entries)))
    found = opened(content, tmp_path_factory.mktemp("wrapped"))
    assert is_the_model(found)
    path = ""
    for key, beside in reversed(levels):
        with_tensors = [name for name, item in beside.items() if name != key and not _is_plain(item)]
        assert {f"{path}{name}" for name in with_tensors} <= set(found.ignored)
        path += f"{key}."


def _is_plain(item: object) -> bool:
    return item is None or isinstance(item, float | str) or item == {"mean": 3.0}


@pytest.mark.parametrize(
    ("content", "parts"),
    [
        ({"model": WEIGHTS, "ema": WEIGHTS}, ["model", "ema"]),
        ({"state_dict": WEIGHTS, "state_dict_ema": WEIGHTS, "optimizer": OPTIMIZER}, ["state_dict", "state_dict_ema"]),
        ({"epoch": 3, "net": WEIGHTS, "shadow": {"module": WEIGHTS, "decay": SCORE}}, ["net", "shadow.module"]),
        ({"student": prefixed("module."), "teacher": WEIGHTS}, ["student", "teacher"]),
        ([WEIGHTS, WEIGHTS], ["0", "1"]),
    ],
)
def test_the_same_model_twice_is_not_guessed_between(content: object, parts: list[str], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="several models") as refusal:
        opened(content, tmp_path)
    assert all(f"{part} (7 tensors)" in str(refusal.value.got) for part in parts)
    for part in parts:
        found = opened(content, tmp_path, part=part)
        assert is_the_model(found) and found.ignored == []
    with pytest.raises(BadInput, match="no such part"):
        opened(content, tmp_path, part="weights")


def test_different_models_in_one_file_are_taken_together_and_said_to_be(tmp_path: Path) -> None:
    generator = nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 2)).state_dict()
    content = {"generator": generator, "critic": WEIGHTS, "optimizer_g": OPTIMIZER, "step": 100}
    found = opened(content, tmp_path)
    assert found.together == ["generator", "critic"] and found.ignored == ["optimizer_g"]
    assert {*found.tensors.specs} == {f"generator.{n}" for n in generator} | {f"critic.{n}" for n in WEIGHTS}
    # A part of one layer has names without dots.
    embedded = opened({**content, "embedding": LINEAR}, tmp_path)
    assert {*embedded.tensors.specs} == {*found.tensors.specs, "embedding.weight", "embedding.bias"}
    assert is_the_model(opened(content, tmp_path, part="critic"))
    assert is_the_model(opened(content, tmp_path, expected=WEIGHTS))


def test_expected_names_tell_one_model_from_another_and_what_stands_before_its_names(tmp_path: Path) -> None:
    pruned = {"layer.weight": torch.ones(2, 2), "layer.bias": torch.ones(2)}
    found = opened({"model": pruned, "best": {"weights": prefixed("net.")}, "s": SCORE}, tmp_path, expected=WEIGHTS)
    assert is_the_model(found) and sorted(found.ignored) == ["model", "s"] and found.prefix == "net."
    more = opened({**prefixed("net."), "head.weight": torch.ones(2, 2), "loss.w": SCORE}, tmp_path, expected=WEIGHTS)
    assert set(more.tensors.specs) == {*WEIGHTS, "head.weight"} and more.ignored == ["loss.w"]
    kept = opened(prefixed("model."), tmp_path, expected=prefixed("model."))
    assert is_the_model(kept, prefixed("model.")) and kept.prefix == ""
    scale = {"best_temperature": SCORE, **WEIGHTS}
    assert is_the_model(opened(scale, tmp_path, expected=scale), scale)
    with pytest.raises(BadInput, match="several models"):
        opened({"model": WEIGHTS, "ema": WEIGHTS}, tmp_path, expected=WEIGHTS)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (OPTIMIZER, "no model"),
        ({"cpu": BYTES, "cuda": [BYTES]}, "no model"),
        ({"optimizer": OPTIMIZER, "epoch": 3}, "no model"),
        ({"loss": SCORE, "accuracy": SCORE}, "no model"),
        ({"epoch": 3}, "no tensors with names"),
        ([torch.ones(2), torch.ones(3)], "no tensors with names"),
        (torch.ones(3), r"no tensors with names(.|\n)*Tensor"),
        ({"net": {"weight": np.ones((2, 2))}}, r"no tensors with names(.|\n)*torch\.from_numpy"),
        (
            {"_orig_mod.a.w": torch.ones(2), "a.w": torch.ones(2)},
            r"a\.w: _orig_mod\.a\.w and a\.w",
        ),
        ({"a": {"b": {"c": LINEAR["bias"]}, "b.c": LINEAR["bias"]}}, None),
        ({1: LINEAR["weight"], "1": LINEAR["weight"]}, "one name"),
        ({"__metadata__": LINEAR["weight"]}, "__metadata__"),
        ({"\ud800": LINEAR["weight"]}, "ud800"),
    ],
)
def test_what_is_no_model_or_ambiguous_is_refused(content: object, said: str | None, tmp_path: Path) -> None:
    if said is None:
        # Names with dots lie side by side: what lies below is not of the same model.
        assert opened(content, tmp_path).ignored == ["a.b"]
        return
    with pytest.raises(BadInput, match=said) as refusal:
        opened(content, tmp_path)
    assert str(tmp_path / "model.pt") in str(refusal.value.where)


def test_dictionaries_that_hold_themselves_or_one_another_without_end_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign_model, "MAX_ENTRIES", 10_000)
    loop: dict[str, object] = {"weight": torch.ones(2)}
    loop["itself"] = loop
    many: dict[str, object] = {"weight": torch.ones(2)}
    for _ in range(40):
        many = {"left": many, "right": many}
    for content in (loop, many):
        with pytest.raises(BadInput, match="without end"):
            opened(content, tmp_path)


def test_names_in_a_safetensors_file_are_its_own_but_for_what_no_model_can_be_called(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(prefixed("model."), path)
    assert set(open_foreign(path).tensors.specs) == set(prefixed("model."))
    save_file({**prefixed("module._orig_mod."), "n_averaged": torch.tensor(3)}, path)
    found = open_foreign(path)
    assert set(found.tensors.specs) == set(WEIGHTS) and found.ignored == ["n_averaged"]
    with pytest.raises(BadInput, match="has parts"):
        open_foreign(path, part="model")


def test_a_head_of_one_layer_beside_an_encoder_is_a_part_of_the_model(tmp_path: Path) -> None:
    found = opened({"epoch": 3, "encoder": WEIGHTS, "classifier": LINEAR, "optimizer": OPTIMIZER}, tmp_path)
    assert {name for name in found.tensors.specs if name.startswith("classifier")} == {
        "classifier.weight",
        "classifier.bias",
    }
    assert found.ignored == ["optimizer"]


def test_a_file_of_the_folder_that_is_imported_is_not_overwritten(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "model.safetensors")
    before = (tmp_path / "model.safetensors").read_bytes()
    with pytest.raises(SystemExit) as end:
        main(["snapshots", "import", str(tmp_path), "--out", str(tmp_path / "model.safetensors"), "--dtype", "bf16"])
    assert end.value.code == 2 and (tmp_path / "model.safetensors").read_bytes() == before


def test_the_command_says_what_it_took_and_what_it_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(LIGHTNING, tmp_path / "last.ckpt")
    arguments = ["snapshots", "import", str(tmp_path / "last.ckpt"), "--out", str(tmp_path / "out.safetensors")]
    main(arguments)
    said = capsys.readouterr().out
    assert "left out: " in said and "callbacks" in said and "before every name: model." in said
    assert is_the_model(open_foreign(tmp_path / "out.safetensors"))
    torch.save({"model": WEIGHTS, "ema": WEIGHTS}, tmp_path / "last.ckpt")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2 and "--part model" in capsys.readouterr().err
    main([*arguments, "--part", "ema"])
