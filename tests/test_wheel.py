"""A wheel holds all that the commands read, and works from a folder that is not the checkout."""

import json
import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from launching import ROOT

from redheart.cli import COMMANDS

SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "redheart", "ds_configs")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build folder in the checkout would carry files of old along."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / "src" / name, symlinks=True)
        else:
            (folder / "src").mkdir(exist_ok=True)
            shutil.copy(source, folder / "src")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder]
    subprocess.run([*map(str, command), str(folder / "src")], check=True, capture_output=True, timeout=300)
    (found,) = folder.glob("*.whl")
    return found


def clean_environment() -> dict[str, str]:
    """Without anything that leads back to the checkout."""
    return {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}


def test_it_holds_every_file_of_the_package_and_nothing_else(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("redheart-")}
    listed = subprocess.run(
        ["git", "ls-files", "redheart", "ds_configs/*.json"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    # The link in the package stands for the folder of strategies.
    expected = {f"redheart/{name}" if name.startswith("ds_configs/") else name for name in listed}
    assert names == expected - {"redheart/ds_configs"}


def test_it_knows_its_strategies_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "installed"
    zipfile.ZipFile(wheel).extractall(target)
    code = (
        "import redheart, redheart.train.strategy as strategy;"
        "import redheart.kernel.build as build;"
        "from importlib.resources import files;"
        "print(redheart.__file__, sum(item.configuration.is_file() for item in strategy.all_strategies()[:-1]),"
        "len(list(build.SOURCES.iterdir())), files('redheart.predict').joinpath('page.html').is_file())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=clean_environment() | {"PYTHONPATH": str(target)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    place, *counts = done.stdout.split()
    sources = len(list((ROOT / "redheart" / "kernel" / "csrc").iterdir()))
    assert Path(place).is_relative_to(target)
    assert counts == [str(len(list((ROOT / "ds_configs").glob("*.json")))), str(sources), "True"]


@pytest.mark.long
def test_every_verb_works_in_a_fresh_environment(wheel: Path, tmp_path: Path) -> None:
    venv.create(tmp_path / "env", with_pip=True)
    bin_ = tmp_path / "env" / "bin"

    def ran(*arguments: object) -> str:
        done = subprocess.run(
            [str(bin_ / "redheart"), *map(str, arguments)],
            cwd=tmp_path,
            env=clean_environment(),
            capture_output=True,
            text=True,
            check=False,
            timeout=900,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stderr}"
        return done.stdout

    pins = (ROOT / "constraints.txt").read_text().splitlines()
    torch = next(line for line in pins if line.startswith("torch=="))
    for packages in ([f"{torch}+cpu"], ["--constraint", ROOT / "constraints.txt", wheel]):
        command = [bin_ / "pip", "install", "--quiet", *packages]
        subprocess.run([*map(str, command)], check=True, capture_output=True, timeout=1800)
    texts = tmp_path / "texts.txt"
    texts.write_text("one two three\n")
    (tmp_path / "ratings.csv").write_text("id,subject,valence\nline 1,a,0.5\n")
    small = ["--prepare.num-generated", 240, "--features.encoder", "hash", "--sweep.epochs", 1, "--sweep.rates", 1e-3]
    ran("doctor")
    ran("plan", "--preset", "tiny")
    ran("model", "--json")
    ran("init", "study.toml")
    ran("config", "--config", "study.toml")
    ran("prepare", _records(tmp_path), "--out", "prepared", "--json")
    ran("run", *small, "--epochs", 2, "--out", "run")
    ran("sweep", *small, "--epochs", 2, "--out", "run")
    ran("train", "--run", "run", "--epochs", 2)
    ran("trial", "--run", "run", "--train.learning-rate", 1e-3)
    ran("sweet-spot", "run")
    ran("crossover", "run")
    ran("calibrate", "run")
    ran("evaluate", "run")
    ran("report", "run")
    ran("status", "run")
    assert json.loads(ran("predict", "run", "--text", "I am glad.", "--json"))["emotion"]
    ran("ratings", "run", "--csv", "ratings.csv", "--texts", texts)
    ran("export", "run", "--out", "exported")
    assert json.loads(ran("predict", "exported", "--text", "I am glad.", "--json"))["emotion"]
    for verb in ("list", "verify", "compress"):
        ran("snapshots", verb, "run")
    ran("snapshots", "prune", "run", "--keep-last", 1)
    ran("snapshots", "consolidate", "run", "--out", "model.safetensors")
    ran("snapshots", "import", "model.safetensors", "--like", "run", "--out", "again.safetensors")
    # `demo` serves until it is ended, and `eeg` needs MNE: both have tests of their own.
    assert len(COMMANDS) == 22


def _records(folder: Path) -> Path:
    from redheart.data.generator import generate

    path = folder / "records.json"
    path.write_text(json.dumps(generate(120, seed=0)[0]))
    return path
