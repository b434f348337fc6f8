"""A killed compilation of an operator is not waited for, a living one is, and neither goes without a word."""

import os
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path

import pytest
from stub_programs import program
from torch.utils.cpp_extension import _get_build_directory
from torch.utils.file_baton import FileBaton

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.core.folders import folder_lock
from redheart.train.strategy import strategy_named
from redheart.train.zero import extension
from redheart.train.zero.extension import building

OP = "stub_op"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the user names for compiled operators."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    return tmp_path / "extensions"


def build_as_torch_does() -> str:
    """Torch's own way around a build, which waits for ever where a lock stands."""
    folder = Path(_get_build_directory(OP, False))
    baton = FileBaton(str(folder / "lock"), wait_seconds=0.02)
    if not baton.try_acquire():
        return "waits"
    (folder / f"{OP}.so").write_text("compiled")
    baton.release()
    return "built"


def test_the_lock_of_a_killed_owner_is_not_waited_for(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = root / OP / "lock"
    shared.parent.mkdir(parents=True)
    shared.touch()
    with building(OP):
        folder = Path(_get_build_directory(OP, False))
        (folder / "lock").touch()
        assert build_as_torch_does() == "waits"
    with building(OP):
        assert build_as_torch_does() == "built"
    assert capsys.readouterr().err.count("compiling stub_op, about a minute, once") == 2
    with building(OP):
        assert build_as_torch_does() == "built"
        (folder / "lock").touch()
    with building(OP):
        assert [item.name for item in folder.iterdir()] == [f"{OP}.so"], "what was compiled before is kept"
    assert capsys.readouterr().err == ""
    assert shared.exists(), "not ours: another program may be building there"


def test_a_compiler_that_outlived_its_owner_does_not_disturb_the_next_build(root: Path) -> None:
    with building(OP):
        folder = Path(_get_build_directory(OP, False))
        (folder / "lock").touch()
    late = "import sys; sys.stdin.readline(); open('late.o', 'w')"
    compiler = subprocess.Popen([sys.executable, "-c", late], cwd=folder, stdin=subprocess.PIPE)
    with building(OP):
        compiler.communicate(b"\n")
        assert build_as_torch_does() == "built"
    assert compiler.returncode != 0 and [item.name for item in folder.iterdir()] == [f"{OP}.so"]


def test_another_process_of_ours_is_waited_for(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension, "SAY_AFTER_S", 0.1)
    with building(OP):
        folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    code = (
        "import sys, pathlib; from redheart.core.folders import folder_lock\n"
        f"with folder_lock(pathlib.Path({str(folder)!r}), name={OP!r}, wait=False):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout and other.stdout.readline() == "held\n"
    threading.Timer(0.5, other.kill).start()
    with building(OP):
        other.wait()
        # What the killed one would have left counts only while nobody has the system's lock.
        with pytest.raises(BadInput, match="another process"), folder_lock(folder, name=OP, wait=False):
            pass
    assert "waiting for another process that compiles stub_op" in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"])
def test_a_folder_that_cannot_be_written_is_replaced(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "file"))
    with building(OP):
        assert Path(os.environ["TORCH_EXTENSIONS_DIR"]).is_relative_to(tmp_path / "tmp")


def test_operators_lie_in_this_user_s_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with building(OP):
        folder = Path(os.environ["TORCH_EXTENSIONS_DIR"])
    assert folder.is_relative_to(tmp_path / "cache" / "redheart") and folder.stat().st_mode & 0o077 == 0
    assert "TORCH_EXTENSIONS_DIR" not in os.environ
    # Torch would make a relative one where the user works.
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with building(OP):
        assert build_as_torch_does() == "built"
    assert not (tmp_path / "relative").exists() and list((tmp_path / "home").rglob(f"{OP}.so"))


@pytest.mark.parametrize(
    ("cxx", "expected"),
    [("g++", "g++"), (None, None), ("", "{0}/g++"), ("missing", "{0}/g++"), ("wrapper g++ -m64", "{0}/g++")],
)
def test_torch_is_given_a_compiler_that_it_can_start(
    cxx: str | None, expected: str | None, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("g++", "c++", "wrapper"):
        program(tmp_path / name, "exit 0")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", cxx or "")
    if cxx is None:
        monkeypatch.delenv("CXX")
    with building(OP):
        assert os.environ.get("CXX") == (expected and expected.format(tmp_path))
    assert os.environ.get("CXX") == cxx


def test_an_operator_that_cannot_be_compiled_is_one_message_with_the_way_out(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        said = "[1/3] g++ -c a.cpp\nFAILED: a.o\na.cpp:1:10: fatal error: no b.h\nmore"
        raise RuntimeError("the op failed to build") from OSError(said)

    module = types.ModuleType("deepspeed.ops.adam")
    module.DeepSpeedCPUAdam = fail  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed.ops.adam", module)
    with pytest.raises(BadInput, match="zero2_offload_adam8bit") as refusal:
        strategy_named("zero2_offload_adam32").optimizer([], TrainConfig())
    assert refusal.value.got == "a.cpp:1:10: fatal error: no b.h"
