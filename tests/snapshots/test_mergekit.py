"""The exported merge makes the crossover's own weights, by mergekit itself where it is installed."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from test_consolidate import model, specs, write
from torch import Tensor

from redheart.core.errors import BadInput
from redheart.model.dims import preset
from redheart.model.ledger import module_names
from redheart.model.network import build
from redheart.snapshots.blend import mean_of, single, weighted
from redheart.snapshots.consolidate import assemble, load_assembly, module_specs
from redheart.snapshots.mergekit import export_mergekit

CHOICE = {"one": single(4), "two": weighted({2: 1.0, 4: 1.0, 6: 2.0})}
CHOICES = [CHOICE, {"one": mean_of((2, 4)), "two": mean_of((4, 6))}]


def crossover(root: Path, choice: dict) -> dict[str, Tensor]:  # type: ignore[type-arg]
    """Export the merge of a choice; the weights of the assembled model."""
    snapshots = [write(root / "s", epoch) for epoch in (2, 4, 6)]
    export_mergekit(root / "merge.yaml", choice=choice, snapshots=snapshots, expected=specs())
    assemble(root / "out", choice=choice, snapshots=snapshots, expected=specs())
    loaded = model()
    load_assembly(loaded, root / "out")
    return dict(loaded.state_dict())


@pytest.mark.parametrize("choice", CHOICES)
def test_the_yaml_says_what_was_assembled(choice: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    expected = crossover(tmp_path, choice)
    config = yaml.safe_load((tmp_path / "merge.yaml").read_text())
    assert config["merge_method"] == "linear" and config["parameters"] == {"normalize": True}
    totals: dict[str, Tensor] = {}
    for entry in config["models"]:
        for name, tensor in load_file(entry["model"]).items():
            (value,) = [
                item["value"] for item in entry["parameters"]["weight"] if "filter" in item and item["filter"] in name
            ]
            totals[name] = totals.get(name, torch.zeros_like(tensor.float())) + value * tensor.float()
    assert {name: total.bfloat16().float().tolist() for name, total in totals.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }


def test_the_yaml_names_a_path_beyond_the_first_plane(tmp_path: Path) -> None:
    (tmp_path / "\U0001f600").mkdir()
    crossover(tmp_path / "\U0001f600", CHOICE)
    config = yaml.safe_load((tmp_path / "\U0001f600" / "merge.yaml").read_text(encoding="utf-8"))
    assert all(Path(entry["model"]).is_file() for entry in config["models"])


@pytest.mark.skipif(find_spec("mergekit") is None, reason="mergekit is not installed")
@pytest.mark.parametrize("choice", CHOICES)
def test_mergekit_makes_the_same_weights(choice: dict, tmp_path: Path) -> None:  # type: ignore[type-arg]
    expected = crossover(tmp_path, choice)
    main = "from mergekit.scripts.merge_raw_pytorch import main; main()"
    arguments = ["--tensor-union", tmp_path / "merge.yaml", tmp_path / "merged"]
    done = subprocess.run([sys.executable, "-c", main, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Tensor] = {}
    for path in (tmp_path / "merged").glob("*.safetensors"):
        found |= load_file(path)
    assert {name: tensor.float().tolist() for name, tensor in found.items()} == {
        name: tensor.tolist() for name, tensor in expected.items()
    }


def test_mergekit_can_tell_the_modules_of_the_model_apart(tmp_path: Path) -> None:
    network = build(preset("tiny"), seed=0, device="meta")
    expected = module_specs(network, module_names(network))
    names = {other: [f"{other}.{key}" for key in keys] for other, keys in expected.items()}
    for module in expected:
        assert not [name for other in names if other != module for name in names[other] if f"{module}." in name]
    with pytest.raises(BadInput, match="needs a suffix"):
        export_mergekit(tmp_path / "m", choice={}, snapshots=[], expected={})
