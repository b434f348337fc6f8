"""Whatever is wrong with a cache, a kernel is compiled elsewhere or the step runs in plain torch; no run ends."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stub_programs import program

from redheart.core.cache import cache_folder
from redheart.kernel import build
from redheart.kernel.bindings import compiled_kernels, fastest
from redheart.kernel.build import libraries
from redheart.optim.chunked import Chunked
from redheart.optim.host_adamw8bit import backend

COMPILER = shutil.which("g++")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="no g++")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library, compiled once."""
    return build.compile_in(tmp_path_factory.mktemp("compiled"), [str(COMPILER)])


@pytest.fixture
def place(tmp_path: Path, compiled: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with a cache, a temporary folder and one compiler, which is done at once and counts its calls."""
    for name in ("cache", "tmp", "bin", "home"):
        (tmp_path / name).mkdir()
    copy = f'while [ "$1" != -o ]; do shift; done; {shutil.which("cp")} {compiled} "$2"'
    program(tmp_path / "bin" / "g++", f"echo call >> {tmp_path}/calls; {copy}")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    return tmp_path


@pytest.fixture
def not_asked_yet() -> Iterator[None]:
    """A process that has not looked for a kernel."""
    for each in (backend, fastest):
        each.cache_clear()
    yield
    for each in (backend, fastest):
        each.cache_clear()


def loaded(place: Path) -> tuple[Path, int]:
    """The file that the kernel was loaded from, and how often the compiler was called until now."""
    assert compiled_kernels()[-1].name
    mapped = {line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if str(place) in line}
    calls = place / "calls"
    newest = max((path for path in map(Path, mapped) if path.exists()), key=lambda path: path.stat().st_ctime_ns)
    return newest, len(calls.read_text().splitlines()) if calls.exists() else 0


def kept(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.so"))


def test_a_library_is_compiled_once_and_kept_for_this_user_alone(place: Path) -> None:
    path, calls = loaded(place)
    assert path.parent == place / "cache" / "redheart" and calls == 1
    assert path.parent.stat().st_mode & 0o777 == 0o700 and not path.stat().st_mode & 0o022
    assert loaded(place) == (path, 1)
    assert kept(place) == [path]


def as_a_file(place: Path, patch: pytest.MonkeyPatch) -> None:
    (place / "cache" / "redheart").touch()


def below_a_file(place: Path, patch: pytest.MonkeyPatch) -> None:
    (place / "cache").rmdir()
    (place / "cache").touch()


def where_nothing_can_be_made(place: Path, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("XDG_CACHE_HOME", "/proc/cache")


def without_a_home(place: Path, patch: pytest.MonkeyPatch) -> None:
    patch.delenv("XDG_CACHE_HOME")
    # What is left where there is neither the variable nor an entry of the user.
    patch.setattr(os.path, "expanduser", lambda path: path)


def full(place: Path, patch: pytest.MonkeyPatch) -> None:
    old = (place / "bin" / "g++").read_text()
    end = 'case "$*" in *cache/redheart*) echo "No space left on device" >&2; exit 1;; esac'
    program(place / "bin" / "g++", old.replace("#!/bin/sh\n", f"{end}\n"))


def without_execution(place: Path, patch: pytest.MonkeyPatch) -> None:
    """As a mount from which nothing may be loaded: the loader refuses what is in order."""
    from redheart.kernel import bindings

    real = bindings.load_kernels

    def load(path: str) -> object:
        if "cache/redheart" in path:
            raise OSError(f"{path}: failed to map segment from shared object")
        return real(path)

    patch.setattr(bindings, "load_kernels", load)


def of_another_user(place: Path, patch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    (place / "cache" / "redheart").mkdir()
    os.chown(place / "cache" / "redheart", 12345, 12345)


def replaceable_by_anybody(place: Path, patch: pytest.MonkeyPatch) -> None:
    (place / "cache").chmod(0o777)


@pytest.mark.parametrize(
    "spoil",
    [
        as_a_file,
        below_a_file,
        where_nothing_can_be_made,
        without_a_home,
        full,
        without_execution,
        of_another_user,
        replaceable_by_anybody,
    ],
)
def test_where_the_cache_fails_a_temporary_folder_of_this_user_serves(
    spoil: Callable[[Path, pytest.MonkeyPatch], None], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(place, monkeypatch)
    path, _ = loaded(place)
    assert path.parent == place / "tmp" / f"redheart-{os.geteuid()}"
    assert path.parent.stat().st_mode & 0o777 == 0o700
    calls = len((place / "calls").read_text().splitlines())
    assert loaded(place) == (path, calls)


def test_a_temporary_folder_that_somebody_else_made_is_not_used(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")
    (place / "elsewhere").mkdir()
    (place / "tmp" / f"redheart-{os.geteuid()}").symlink_to(place / "elsewhere")
    path, _ = loaded(place)
    assert path.parent.parent == place / "tmp" and path.parent.name != f"redheart-{os.geteuid()}"
    assert list((place / "elsewhere").iterdir()) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:4096])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def writable_by_others(path: Path) -> None:
    path.chmod(0o777)


def given_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    os.chown(path, 12345, 12345)


def a_link(path: Path) -> None:
    path.rename(path.with_name("planted"))
    path.symlink_to("planted")


def another_machines(path: Path) -> None:
    """Whole, as its name says, and of a processor that this one is not."""
    content = bytearray(path.read_bytes())
    content[18:20] = b"\xf3\x00"
    path.unlink()
    other = path.with_name("other.so")
    other.write_bytes(content)
    other.rename(path.with_name(f"{path.stem.rpartition('-')[0]}-{build._content_digest(other)}.so"))


@pytest.mark.parametrize("spoil", [cut, empty, flipped, writable_by_others, given_away, a_link, another_machines])
def test_a_library_that_was_damaged_or_may_be_anothers_is_compiled_again(
    spoil: Callable[[Path], None], place: Path
) -> None:
    (first,) = libraries_of(place)
    spoil(first)
    path, calls = loaded(place)
    assert calls == 2 and path.parent == first.parent and path.is_file() and not path.is_symlink()
    assert path.stat().st_size > 10_000 and path.stat().st_uid == os.geteuid() and not path.stat().st_mode & 0o022
    assert loaded(place) == (path, 2)


def libraries_of(place: Path) -> list[Path]:
    """What is compiled, without loading it: a file that is changed under a loaded library ends the process."""
    return [next(libraries([]))]


def test_a_folder_of_ours_that_others_could_write_into_is_closed_and_what_was_in_it_is_not_trusted(place: Path) -> None:
    (first,) = libraries_of(place)
    first.chmod(0o666)
    first.parent.chmod(0o777)
    _, calls = loaded(place)
    assert calls == 2 and first.parent.stat().st_mode & 0o777 == 0o700


def test_a_library_that_cannot_be_loaded_though_it_is_new_means_plain_torch_and_one_note(
    place: Path, not_asked_yet: None, capsys: pytest.CaptureFixture[str]
) -> None:
    program(place / "bin" / "g++", 'while [ "$1" != -o ]; do shift; done; echo text > "$2"')
    assert isinstance(backend(), Chunked) and isinstance(backend(), Chunked)
    said = capsys.readouterr().err
    assert said.count("note: the optimizer's step runs in plain torch") == 1 and "cannot be loaded" in said


def test_nowhere_to_keep_it_means_plain_torch(
    place: Path, not_asked_yet: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")
    monkeypatch.setattr(tempfile, "tempdir", "/proc/tmp")
    assert isinstance(backend(), Chunked)
    assert "/proc/cache" in capsys.readouterr().err


def test_a_compiler_that_fails_is_followed_by_the_next(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(place / "bin" / "broken", "echo 'no such flag' >&2; exit 1")
    monkeypatch.setenv("CXX", "broken -m64")
    path, calls = loaded(place)
    assert calls == 1 and path.parent == place / "cache" / "redheart"


def test_without_a_compiler_what_was_compiled_before_serves(place: Path) -> None:
    first, _ = loaded(place)
    (place / "bin" / "g++").unlink()
    assert loaded(place) == (first, 1)


def test_the_folder_that_the_user_works_in_is_no_temporary_folder(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")
    monkeypatch.chdir(place / "home")
    monkeypatch.setattr(tempfile, "tempdir", os.getcwd())
    for _ in libraries([]):
        pass
    assert list((place / "home").iterdir()) == []


@pytest.mark.parametrize(
    ("xdg", "home", "expected"),
    [
        ("/a/cache", "/h", "/a/cache/redheart"),
        ("relative", "/h", "/h/.cache/redheart"),
        ("", "/h", "/h/.cache/redheart"),
        (None, "/h", "/h/.cache/redheart"),
        ("relative", "", None),
        (None, "nowhere", None),
    ],
)
def test_a_cache_is_named_by_a_whole_path(
    xdg: str | None, home: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if xdg is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", xdg)
    monkeypatch.setenv("HOME", home)
    assert cache_folder() == (None if expected is None else Path(expected))


def test_two_that_compile_at_once_both_get_a_kernel(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(place / "tmp"))
    program(place / "bin" / "g++", (place / "bin" / "g++").read_text().replace("echo call", "/bin/sleep 1; echo call"))
    code = "from redheart.kernel.bindings import compiled_kernels; print(compiled_kernels()[-1].name)"
    both = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    names = [process.communicate()[0].strip() for process in both]
    assert [process.returncode for process in both] == [0, 0] and names[0] == names[1] != ""
    assert len(kept(place)) == 1 and not list((place / "cache" / "redheart").glob(".build-*"))
