"""A killed compilation of an operator's is cleaned up, a living one is waited for, and neither goes without a word."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections import namedtuple
from pathlib import Path

import psutil
import pytest
from stub_programs import program
from torch.utils.file_baton import FileBaton

from redheart.core.config import TrainConfig
from redheart.core.errors import BadInput
from redheart.core.lock import folder_lock
from redheart.train.strategy import strategy_named
from redheart.train.zero import extension
from redheart.train.zero.extension import builders, building, clear_left_lock

OP = "stub_op"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where torch builds the operator."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path / "extensions"))
    monkeypatch.setattr(extension, "POLL_S", 0.02)
    made = tmp_path / "extensions" / OP
    made.mkdir(parents=True)
    return made.resolve()


def build_as_torch_does(folder: Path) -> str:
    """Torch's own way around a build, which waits for ever where a lock stands."""
    baton = FileBaton(str(folder / "lock"), wait_seconds=0.02)
    if not baton.try_acquire():
        return "waits"
    (folder / f"{OP}.so").write_text("compiled")
    baton.release()
    return "built"


def hold(folder: Path) -> subprocess.Popen[str]:
    """Another process that holds torch's lock; it says so when it does, and gives it back when it is told."""
    code = (
        "import sys; from torch.utils.file_baton import FileBaton\n"
        f"baton = FileBaton({str(folder / 'lock')!r}); assert baton.try_acquire(); print('held', flush=True)\n"
        "sys.stdin.readline(); baton.release()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "held\n"
    return process


def test_the_lock_of_a_killed_owner_is_removed_with_a_note(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    owner = hold(folder)
    assert builders(folder / "lock") == [owner.pid]
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    assert (folder / "lock").exists() and build_as_torch_does(folder) == "waits"
    with building(OP):
        assert build_as_torch_does(folder) == "built"
    said = capsys.readouterr().err
    assert said.count("removed a lock that a killed compilation of stub_op left") == 1
    assert said.count("compiling stub_op, about a minute, once") == 1
    with building(OP):
        assert build_as_torch_does(folder) == "built"
    assert capsys.readouterr().err == ""


def test_a_living_owner_is_waited_for_with_its_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    owner = hold(folder)
    assert owner.stdin
    thread = threading.Thread(target=clear_left_lock, args=(folder / "lock",), kwargs={"name": OP})
    thread.start()
    thread.join(0.5)
    assert thread.is_alive() and (folder / "lock").exists()
    owner.stdin.write("\n")
    owner.stdin.flush()
    thread.join(10)
    assert not thread.is_alive() and owner.wait(10) == 0
    said = capsys.readouterr().err
    assert said.count(f"waiting for process {owner.pid}, which compiles stub_op") == 1 and "removed" not in said


def test_an_owner_that_has_closed_its_lock_and_not_yet_removed_it_is_left_alone(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = folder / "lock"
    lock.touch()
    monkeypatch.setattr(extension.time, "sleep", lambda _: lock.unlink())
    clear_left_lock(lock, name=OP)
    assert not lock.exists() and capsys.readouterr().err == ""


def test_a_compiler_that_outlived_its_owner_is_waited_for(folder: Path, tmp_path: Path) -> None:
    (folder / "lock").touch()
    compiler = shutil.copy(shutil.which("sleep") or "", tmp_path / "cc1plus")
    process = subprocess.Popen([compiler, "1"], cwd=folder)
    # A shell that somebody left in the folder builds nothing.
    idle = subprocess.Popen(["sleep", "60"], cwd=folder)
    try:
        assert builders(folder / "lock") == [process.pid]
        reaper = threading.Thread(target=process.wait)
        reaper.start()
        clear_left_lock(folder / "lock", name=OP)
        reaper.join()
        assert process.returncode == 0 and not (folder / "lock").exists()
    finally:
        idle.kill()
        idle.wait()


def test_another_process_of_ours_is_waited_for(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extension, "SAY_AFTER_S", 0.1)
    code = (
        "import sys, pathlib; from redheart.core.lock import folder_lock\n"
        f"with folder_lock(pathlib.Path({str(folder)!r}), name='redheart', wait=False):\n"
        "    print('held', flush=True); sys.stdin.readline()\n"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert other.stdout and other.stdout.readline() == "held\n"
    threading.Timer(0.5, other.kill).start()
    with building(OP):
        other.wait()
        # What the killed one would have left counts only while nobody has the system's lock.
        with pytest.raises(BadInput, match="another process"), folder_lock(folder, name="redheart", wait=False):
            pass
    assert "waiting for another process that compiles stub_op" in capsys.readouterr().err


def test_a_lock_on_a_shared_file_system_may_be_another_machines(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Mount = namedtuple("Mount", "mountpoint fstype")
    mounts = [Mount("/", "ext4"), Mount(str(folder.parent), "nfs4")]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    lock = folder / "lock"
    lock.touch()
    waiting = threading.Thread(target=clear_left_lock, args=(lock,), kwargs={"name": OP})
    waiting.start()
    waiting.join(0.3)
    assert waiting.is_alive() and "another machine" in capsys.readouterr().err
    old = time.time() - extension.SHARED_AGE_S - 1
    os.utime(lock, (old, old))
    waiting.join(10)
    assert not waiting.is_alive() and not lock.exists()


def test_a_folder_that_cannot_be_written_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for name in ("TORCH_EXTENSIONS_DIR", "XDG_CACHE_HOME"):
        monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")
        monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
        monkeypatch.setenv(name, str(tmp_path / "file"))
        with building(OP):
            chosen = Path(os.environ["TORCH_EXTENSIONS_DIR"])
        assert chosen.is_relative_to(tmp_path / "tmp") and (chosen / OP).is_dir()


def test_torchs_own_folder_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with building(OP):
        assert "TORCH_EXTENSIONS_DIR" not in os.environ
    assert list((tmp_path / "cache" / "torch_extensions").glob(f"*/{OP}"))
    # Torch would make a relative one where the user works.
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with building(OP):
        pass
    assert not (tmp_path / "relative").exists() and list((tmp_path / "home").rglob(OP))


@pytest.mark.parametrize(
    ("cxx", "expected"),
    [("g++", "g++"), (None, None), ("", "{0}/g++"), ("missing", "{0}/g++"), ("wrapper g++ -m64", "{0}/g++")],
)
def test_torch_is_given_a_compiler_that_it_can_start(
    cxx: str | None, expected: str | None, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    folder: Path, monkeypatch: pytest.MonkeyPatch
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
