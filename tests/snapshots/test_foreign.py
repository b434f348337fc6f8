"""Models of other tools arrive bit for bit or are refused by name, and nothing in their files is ever run."""

import ast
import enum
import json
import pickle
import shutil
import zipfile
from pathlib import Path, PosixPath
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import redheart
from redheart.core.errors import BadInput, CorruptFile, RedHeartError
from redheart.model.dims import preset
from redheart.model.ledger import module_names
from redheart.model.network import build
from redheart.snapshots import safe_load
from redheart.snapshots.consolidate import in_type, load_assembly, write_model, write_modules
from redheart.snapshots.foreign import open_foreign, problems_against
from redheart.snapshots.foreign_names import model_names
from redheart.snapshots.tensors import TensorSpec, spec_of

FLAT = {
    "backbone.weight": torch.arange(6.0).reshape(2, 3),
    "heads.emotion.weight": torch.randn(4, generator=torch.Generator().manual_seed(0)),
    "heads.emotion.bias": torch.zeros(0),
}
EMOTION = {"weight": FLAT["heads.emotion.weight"], "bias": FLAT["heads.emotion.bias"]}
NESTED = {"backbone": {"weight": FLAT["backbone.weight"]}, "heads": {"emotion": EMOTION}}
TRAINING = {"optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "epoch": 4, "rng_state": torch.ones(2)}


def test_a_whole_model_beside_an_index_of_another_is_not_passed_over(tmp_path: Path) -> None:
    save_file({"a.w": torch.ones(2)}, tmp_path / "model.safetensors")
    save_file({"a.w": torch.zeros(2)}, tmp_path / "shard-1.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a.w": "shard-1.safetensors"}}))
    with pytest.raises(BadInput, match="several models"):
        open_foreign(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a.w": "model.safetensors"}}))
    assert open_foreign(tmp_path).tensors["a.w"].tolist() == [1, 1]


def same(found: object, expected: dict[str, Tensor]) -> bool:
    specs = found.specs  # type: ignore[attr-defined]
    return set(specs) == set(expected) and all(
        torch.equal(found[name], tensor) and specs[name] == spec_of(tensor)  # type: ignore[index]
        for name, tensor in expected.items()
    )


def test_real_deepspeed_folders_give_the_masters_that_deepspeed_gathers(deepspeed_folder: Path, tmp_path: Path) -> None:
    expected = load_file(deepspeed_folder / "expected.safetensors")
    found = open_foreign(deepspeed_folder / "zero")
    assert found.kind == "DeepSpeed ZeRO folder" and same(found.tensors, expected)
    model = build(preset("tiny"), seed=1)
    specs = {name: spec_of(tensor) for name, tensor in model.state_dict().items()}
    assert list(found.tensors.specs) == list(specs) and not problems_against(found.tensors, specs, dtype=None)

    write_modules(tmp_path / "modules", found.tensors, module_names(model))
    load_assembly(model, tmp_path / "modules")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())
    rounded = in_type(found.tensors, torch.bfloat16, lambda _: None)
    written = write_model(tmp_path / "m.safetensors", rounded, source=deepspeed_folder, provenance={})
    assert same(open_foreign(Path(written.file)).tensors, {name: item.bfloat16() for name, item in expected.items()})


def test_a_deepspeed_folder_names_tied_weights_once(deepspeed_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "zero"
    shutil.copytree(deepspeed_folder / "zero", folder)
    path = folder / "global_step2" / "mp_rank_00_model_states.pt"
    content, frozen = torch.load(path, weights_only=False), torch.randn(3, 2)
    trained = content["module"]["backbone.project.weight"]
    content["module"] |= {"twice.weight": trained, "embedding.weight": frozen, "out.weight": frozen}
    content["frozen_param_shapes"] = {"embedding.weight": frozen.shape}
    content["shared_params"] = {"out.weight": "embedding.weight"}
    torch.save(content, path)
    found = open_foreign(folder).tensors
    assert torch.equal(found["out.weight"], frozen) and torch.equal(found["embedding.weight"], frozen)
    assert torch.equal(found["twice.weight"], found["backbone.project.weight"])
    assert found.specs["twice.weight"].dtype == torch.float32


def test_what_deepspeed_trained_is_the_model_s_whatever_it_is_called() -> None:
    specs = {name: TensorSpec(torch.float32, (1,)) for name in ("layer.weight", "log_loss_scale", "time_step")}
    assert set(model_names(specs, is_model=True).by_key) == set(specs)
    assert model_names(specs).strays


def test_deepspeed_folders_that_do_not_hold_together_are_refused(deepspeed_folder: Path, tmp_path: Path) -> None:
    def copy(name: str) -> tuple[Path, Path]:
        shutil.copytree(deepspeed_folder / "zero", tmp_path / name)
        return tmp_path / name, tmp_path / name / "global_step2"

    def rewrite(path: Path, change: object) -> None:
        content = torch.load(path, weights_only=False)
        change(content)  # type: ignore[operator]
        torch.save(content, path)

    folder, tag = copy("latest")
    (folder / "latest").write_text("global_step9")
    with pytest.raises(CorruptFile, match="global_step9"):
        open_foreign(folder)
    assert open_foreign(tag).kind == "DeepSpeed ZeRO folder"

    folder, tag = copy("rank")
    first = tag / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt"
    first.rename(tag / "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt")
    with pytest.raises(CorruptFile, match="rank is missing"):
        open_foreign(folder)

    folder, tag = copy("shape")
    rewrite(tag / "mp_rank_00_model_states.pt", lambda content: content["param_shapes"][0].popitem())
    with pytest.raises(CorruptFile, match="size of its parameters"):
        open_foreign(folder)

    def reshape(content: dict[str, list[dict[str, torch.Size]]]) -> None:
        content["param_shapes"][0]["backbone.project.weight"] = torch.Size([768, 32])

    folder, tag = copy("reshaped")
    rewrite(tag / "mp_rank_00_model_states.pt", reshape)
    with pytest.raises(CorruptFile, match=r"backbone\.project\.weight: got .*\[768, 32\], .*\[32, 768\]"):
        open_foreign(folder)

    folder, tag = copy("extra")
    rewrite(tag / "mp_rank_00_model_states.pt", lambda content: content["module"].update(new=torch.ones(2)))
    with pytest.raises(CorruptFile, match="new: missing"):
        open_foreign(folder)

    folder, tag = copy("stage3")
    (tag / "zero_pp_rank_0_mp_rank_00_model_states.pt").touch()
    with pytest.raises(BadInput, match="stage 3"):
        open_foreign(folder)

    folder, tag = copy("weights alone")
    for path in tag.glob("*optim_states.pt"):
        path.unlink()
    with pytest.raises(BadInput, match="lacks the optimizer's files"):
        open_foreign(folder)
    alone = open_foreign(tag / "mp_rank_00_model_states.pt")
    assert {spec.dtype for spec in alone.tensors.specs.values()} == {torch.bfloat16}


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("shard", ["10GB", "20KB"])
def test_accelerate_folders_whole_and_in_shards(safe: bool, shard: str, tmp_path: Path) -> None:
    # In the first shard of several every name begins with `module.`, in the model not every one does.
    model = nn.ModuleDict({"module": nn.Linear(64, 70), "z": nn.Linear(70, 64)})
    try:
        accelerator = Accelerator(cpu=True)
        accelerator.save_model(model, tmp_path, max_shard_size=shard, safe_serialization=safe)
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    found = open_foreign(tmp_path)
    assert found.kind == "accelerate folder" and same(found.tensors, dict(model.state_dict()))
    assert len(list(tmp_path.iterdir())) == (1 if shard == "10GB" else 3)
    if shard == "20KB":
        index = next(tmp_path.glob("*.index.json"))
        content = json.loads(index.read_text())
        content["weight_map"]["new"] = content["weight_map"]["z.weight"]
        index.write_text(json.dumps(content))
        with pytest.raises(BadInput, match="new: expected in"):
            open_foreign(tmp_path)
        content["weight_map"]["new"] = "../else.safetensors"
        index.write_text(json.dumps(content))
        with pytest.raises(BadInput, match="another folder"):
            open_foreign(tmp_path)


@pytest.mark.parametrize(
    ("content", "ignored"),
    [
        (FLAT, []),
        (NESTED, []),
        ({"model": FLAT, **TRAINING}, ["optimizer", "rng_state"]),
        ({"model_state_dict": NESTED, "epoch": 3}, []),
        ({"state_dict": {f"module._orig_mod.{name}": tensor for name, tensor in FLAT.items()}}, []),
        ({**NESTED, **TRAINING}, ["optimizer", "rng_state"]),
        (nn.ParameterDict({name.replace(".", "_"): tensor for name, tensor in FLAT.items()}).state_dict(), None),
    ],
)
def test_flat_nested_and_wrapped_files(content: object, ignored: list[str] | None, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pt")
    found = open_foreign(tmp_path / "model.pt")
    if ignored is None:
        assert set(found.tensors.specs) == {name.replace(".", "_") for name in FLAT}
    else:
        assert same(found.tensors, FLAT) and sorted(found.ignored) == ignored


def test_two_models_in_a_folder_are_not_guessed_between(tmp_path: Path) -> None:
    for name in ("model.safetensors", "model_1.safetensors"):
        save_file(FLAT, tmp_path / name)
    with pytest.raises(BadInput, match="several models"):
        open_foreign(tmp_path)


def test_every_tensor_that_does_not_fit_is_named_with_what_was_expected_and_found() -> None:
    class Tensors(dict[str, Tensor]):
        @property
        def specs(self) -> dict[str, TensorSpec]:
            return {name: spec_of(tensor) for name, tensor in self.items()}

    expected = {name: TensorSpec(torch.float32, (2, 3)) for name in ("a", "b", "c", "d", "e")}
    found = Tensors(
        a=torch.ones(2, 3),
        b=torch.ones(3, 2),
        c=torch.ones(2, 3).double(),
        d=torch.ones(2, 3).int(),
        f=torch.ones(2).float(),
    )
    assert problems_against(found, expected, dtype=None) == [
        "e: missing, expected float32 [2, 3]",
        "f: not expected, got float32 [2]",
        "b: got float32 [3, 2], expected float32 [2, 3]",
        "c: got float64 [2, 3], expected float32",
        "d: got int32 [2, 3], expected float32",
    ]
    assert [line[0] for line in problems_against(found, expected, dtype=torch.bfloat16)] == ["e", "f", "b", "d"]
    assert problems_against(found, None, dtype=None) == ["c: got float64 [2, 3], expected float32"]


class Payload:
    """Creates a file when a pickle of it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> object:
        return Path.touch, (self.path,)


class Evaluated(Payload):
    def __reduce__(self) -> object:
        return eval, (f"open({str(self.path)!r}, 'w')",)


class LookedUp(Payload):
    """Finds what it calls by `getattr`, with which some versions of Python keep members of enums."""

    class Touch:
        def __call__(self, path: Path) -> None:
            raise AssertionError

        def __reduce__(self) -> object:
            return getattr, (PosixPath, "touch")

    def __reduce__(self) -> object:
        return self.Touch(), (self.path,)


def test_a_method_that_a_pickle_looks_up_is_not_run(tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    torch.save({**FLAT, "extra": LookedUp(harmed)}, tmp_path / "model.pt")
    with pytest.raises(CorruptFile, match="cannot be read"):
        open_foreign(tmp_path / "model.pt")
    assert not harmed.exists()
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert harmed.exists()


class Stage(enum.IntEnum):
    """As DeepSpeed's, kept in both ways that there are."""

    TWO = 2


@pytest.mark.parametrize("kept", [(Stage, (2,)), (getattr, (Stage, "TWO"))])
def test_a_member_of_deepspeed_s_enum_is_read_however_python_keeps_it(
    kept: tuple[Any, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stage, "__reduce_ex__", lambda *_: kept)
    monkeypatch.setattr(safe_load, "_ALLOWED", (*safe_load._ALLOWED, f"{Stage.__module__}.Stage"))
    torch.save({**FLAT, "stage": Stage.TWO}, tmp_path / "model.pt")
    assert set(open_foreign(tmp_path / "model.pt").tensors) == set(FLAT)


class DTensor:
    """Stands for torch's: a part of a tensor on every process, which lies in a state_dict() too."""


def test_tensors_that_are_parts_of_several_processes_are_named_as_such(tmp_path: Path) -> None:
    torch.save({**FLAT, "extra": DTensor()}, tmp_path / "model.pt")
    with pytest.raises(BadInput, match="full_tensor"):
        open_foreign(tmp_path / "model.pt")


@pytest.mark.parametrize("payload", [Payload, Evaluated])
def test_a_hostile_pickle_is_refused_and_not_run(payload: type[Payload], tmp_path: Path) -> None:
    harmed = tmp_path / "harmed"
    torch.save({**FLAT, "extra": payload(harmed)}, tmp_path / "model.pt")
    with pytest.raises(BadInput, match=r"wants to run code(.|\n)*(eval|pathlib\.Path)"):
        open_foreign(tmp_path / "model.pt")
    # As an old torch.save, as a bare pickle, and where DeepSpeed's and accelerate's files lie.
    torch.save(payload(harmed), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(payload(harmed)))
    for name in ("old.pt", "bare.pt"):
        with pytest.raises(BadInput, match="not a file of torch"):
            open_foreign(tmp_path / name)
    for name, folder in (("mp_rank_00_model_states.pt", "zero"), ("pytorch_model.bin", "accelerate")):
        (tmp_path / folder).mkdir()
        shutil.copy(tmp_path / "model.pt", tmp_path / folder / name)
        with pytest.raises(BadInput, match="wants to run code"):
            open_foreign(tmp_path / folder)
    assert not harmed.exists()
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert harmed.exists()


def test_a_file_that_would_unfold_is_refused(tmp_path: Path) -> None:
    torch.save(FLAT, tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as source, zipfile.ZipFile(tmp_path / "packed.pt", "w") as target:
        for item in source.infolist():
            target.writestr(item.filename, source.read(item), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(CorruptFile, match="was changed"):
        open_foreign(tmp_path / "packed.pt")


def _resigned(content: bytes, folder: Path) -> Path:
    """A zip with this pickle in it and checksums that match."""
    path = folder / "resigned.pt"
    with zipfile.ZipFile(folder / "model.pt") as source, zipfile.ZipFile(path, "w") as target:
        for item in source.infolist():
            target.writestr(item.filename, content if item.filename.endswith("data.pkl") else source.read(item))
    return path


@settings(max_examples=150)
@given(data=st.data())
def test_changed_files_end_in_an_error_of_ours(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("changed")
    torch.save(FLAT, folder / "model.pt")
    content = (folder / "model.pt").read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    changed = bytearray(content)
    changed[position] ^= data.draw(st.integers(1, 255))
    (folder / "flipped.pt").write_bytes(changed)
    (folder / "cut.pt").write_bytes(content[:position])
    with zipfile.ZipFile(folder / "model.pt") as archive:
        (name,) = [item for item in archive.namelist() if item.endswith("data.pkl")]
        inner = bytearray(archive.read(name))
    inner[data.draw(st.integers(0, len(inner) - 1))] = data.draw(st.integers(0, 255))
    for path in (folder / "flipped.pt", folder / "cut.pt", _resigned(bytes(inner), folder)):
        try:
            opened = open_foreign(path)
            for key in opened.tensors.specs:
                opened.tensors[key]
        except RedHeartError:
            continue
        # What is not checked by the format: names in the zip's directory, times, padding.
        assert path.name != "cut.pt"


def test_a_zip_that_claims_several_disks_is_named(tmp_path: Path) -> None:
    torch.save(FLAT, tmp_path / "model.pt")
    changed = bytearray((tmp_path / "model.pt").read_bytes())
    # The number of disks ends zip64's locator of the directory's end.
    changed[changed.rindex(b"PK\x06\x07") + 17] = 1
    (tmp_path / "model.pt").write_bytes(changed)
    with pytest.raises(CorruptFile, match=r"model\.pt"):
        open_foreign(tmp_path / "model.pt")


def test_no_pickle_is_read_anywhere() -> None:
    forbidden = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    loads = []
    for path in sorted(Path(redheart.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                modules = {item.name.partition(".")[0] for item in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules = {(node.module or "").partition(".")[0], *(item.name for item in node.names)}
            else:
                modules = set()
            assert not modules & forbidden, path
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                owner = getattr(getattr(node.func, "value", None), "id", None)
                assert not (name == "loads" and owner in forbidden), path
                if name == "load" and owner in ("torch", None, "np", "numpy"):
                    keywords = {item.arg: item.value for item in node.keywords}
                    loads.append((path, owner, keywords))
    for path, owner, keywords in loads:
        if owner == "torch":
            value = keywords.get("weights_only")
            assert isinstance(value, ast.Constant) and value.value is True, path
        elif owner in ("np", "numpy"):
            value = keywords.get("allow_pickle")
            assert value is None or (isinstance(value, ast.Constant) and value.value is False), path
    assert any(owner == "torch" for _, owner, _ in loads)
