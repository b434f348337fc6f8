"""The Makefile: names with blanks, what `clean` leaves, an environment that was half made."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from launching import ROOT

pytestmark = pytest.mark.skipif(not shutil.which("make"), reason="no make on this machine")


def make(*arguments: str) -> str:
    # As a user calls it: under `make test` it would be a make within a make, which also says where it is.
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("data", "is_small"), [("generated", True), ("generated data.json", False), ("my (old), data.json", False)]
)
def test_names_with_blanks_are_one_word_and_only_generated_records_make_a_small_study(
    data: str, is_small: bool
) -> None:
    (line,) = [line for line in make("-n", "run", f"DATA={data}", "OUT=my runs/a").splitlines() if "--preset" in line]
    assert f'--data "{data}" --preset tiny --out "my runs/a"' in line
    assert ("--epochs 6" in line) == is_small


def test_clean_leaves_the_runs() -> None:
    (line,) = make("-n", "clean").splitlines()
    assert line.split() == ["rm", "-rf", ".venv", "site"]


def test_an_environment_without_pip_is_made_again(tmp_path: Path) -> None:
    venv, python = tmp_path / "venv", tmp_path / "python"
    (venv / "bin").mkdir(parents=True)
    python.write_text(f'#!/bin/sh\n[ "$1" != -m ] || ln -s /bin/true {venv}/bin/pip\n')
    python.chmod(0o755)
    (venv / "bin" / "python").symlink_to(python)
    for _ in range(2):
        make("install", f"VENV={venv}", f"PYTHON={python}")
    assert (venv / "installed").exists() and (venv / "bin" / "pip").is_symlink()
