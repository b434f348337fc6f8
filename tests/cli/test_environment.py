"""A user without a home, or with one that cannot be written, is given folders before any library looks for them."""

import os
import pwd
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from redheart.cli import main, planning, set_environment


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("MPLCONFIGDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name in ("home", "tmp"):
        (tmp_path / name).mkdir()
    # What is set here is taken back at the end.
    monkeypatch.setattr(os, "environ", dict(os.environ) | {"HOME": str(tmp_path / "home")})
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


def test_a_home_that_can_be_written_is_left_alone(user: Path) -> None:
    set_environment()
    assert os.environ["HOME"] == str(user / "home") and "MPLCONFIGDIR" not in os.environ
    assert list((user / "home").iterdir()) == [] == list((user / "tmp").iterdir())


def test_without_a_home_a_private_one_is_made(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry(number: int) -> None:
        raise KeyError(number)

    del os.environ["HOME"]
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    set_environment()
    home = Path(os.environ["HOME"])
    assert home.parent == user / "tmp" and home.stat().st_mode & 0o777 == 0o700 and Path.home() == home
    assert "MPLCONFIGDIR" not in os.environ


@pytest.mark.parametrize("home", ["file", "file/below"])
def test_a_home_that_cannot_be_written_gets_a_folder_for_figures(home: str, user: Path) -> None:
    (user / "file").touch()
    os.environ["HOME"] = str(user / home)
    set_environment()
    assert Path(os.environ["MPLCONFIGDIR"]).is_relative_to(user / "tmp")
    assert os.environ["HOME"] != str(user / "tmp")


def test_what_the_user_says_stays(user: Path) -> None:
    os.environ |= {"HOME": "/dev/null", "MPLCONFIGDIR": "/mine"}
    set_environment()
    assert os.environ["MPLCONFIGDIR"] == "/mine"


@pytest.mark.parametrize(("argument", "code"), [("--version", 0), ("nonsense", 2)])
@pytest.mark.parametrize("closed", [("stdout",), ("stderr",), ("stdout", "stderr")])
def test_a_closed_output_is_no_error(
    closed: tuple[str, ...], argument: str, code: int, user: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python starts after `>&-`."""
    for name in closed:
        monkeypatch.setattr(sys, name, None)
    try:
        main([argument])
        found = 0
    except SystemExit as end:
        found = end.code
    assert found == code
    assert all(getattr(sys, name).writable() for name in closed)


def test_nowhere_to_write_at_all_is_no_error(user: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.environ["HOME"] = "/dev/null"
    monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
    set_environment()
    assert "MPLCONFIGDIR" not in os.environ


def test_a_device_without_room_ends_a_command_with_a_hint(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    monkeypatch.setattr(planning, "doctor", full)
    with pytest.raises(SystemExit) as ended:
        main(["doctor"])
    said = capsys.readouterr().err
    assert (
        ended.value.code == 3
        and "out of device memory" in said
        and "CUDA_VISIBLE_DEVICES=" in said
        and "Trace" not in said
    )
