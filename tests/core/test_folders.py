"""A folder is replaced if it holds nothing but what this program wrote there, and appears whole or not at all."""

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from redheart.core.errors import BadInput, CorruptFile, DiskError
from redheart.core.files import PARTIAL, read_sealed, write_sealed
from redheart.core.folders import (
    REPLACED,
    Contents,
    folder_lock,
    new_folder,
    refuse_foreign,
    refuse_taken,
    remove_leftovers,
    remove_names,
)


def contents(folder: Path) -> set[str]:
    """By a manifest such as the product's folders have."""
    return {"manifest.json", *read_sealed(folder / "manifest.json", dict[str, list[str] | str])["files"]}


def make(path: Path, **files: str) -> None:
    with new_folder(path, contents) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)
        write_sealed(folder / "manifest.json", {"files": list(files)})


def tree(folder: Path) -> dict[str, bytes]:
    return {str(item.relative_to(folder)): item.read_bytes() for item in folder.rglob("*") if item.is_file()}


def test_a_folder_appears_whole_or_not_at_all_and_replaces_its_like(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "run", contents) as folder:
        (folder / "half").write_text("x")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []
    make(tmp_path / "run", a="one", b="two")
    make(tmp_path / "run", c="three")
    assert set(tree(tmp_path)) == {"run/c", "run/manifest.json"}


@pytest.mark.parametrize("name", ["run", "n" * 250])
def test_a_folder_that_is_not_replaced_is_still_there(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path / name, a="one")
    before, rename = tree(tmp_path), Path.rename

    def renamed(path: Path, target: Path) -> Path:
        # The new one takes the place that the old one has left.
        if target == tmp_path / name and (path / "b").exists():
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", renamed)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path / name, b="two")
    assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", ".hidden", "a.txt", "manifest.json", "sub/deep.txt", ".x.partial"])
def test_a_folder_of_somebody_else_stays_as_it_is(name: str, tmp_path: Path) -> None:
    foreign = tmp_path / "out" / name
    foreign.parent.mkdir(parents=True)
    foreign.write_text("only copy")
    before = tree(tmp_path)
    with pytest.raises(BadInput, match="did not write there") as caught:
        make(tmp_path / "out", **{"a.txt": "ours"})
    assert name.partition("/")[0] in str(caught.value) and tree(tmp_path) == before


@pytest.mark.parametrize("name", ["notes.txt", ".DS_Store", "sub/a"])
def test_one_file_of_somebody_else_among_ours_is_enough(name: str, tmp_path: Path) -> None:
    make(tmp_path / "out", a="ours")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("only copy")
    before = tree(tmp_path)
    with pytest.raises(BadInput, match="did not write there"):
        make(tmp_path / "out", b="new")
    assert tree(tmp_path) == before


def test_what_comes_while_a_folder_is_written_stays(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="late"), new_folder(tmp_path / "out", contents):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "late").write_text("only copy")
    assert tree(tmp_path) == {"out/late": b"only copy"}


def test_a_manifest_of_another_purpose_is_foreign_and_a_damaged_one_of_ours_is_named(tmp_path: Path) -> None:
    make(tmp_path / "out", a="ours")
    manifest = tmp_path / "out" / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b'"a"', b'"b"'))
    with pytest.raises(CorruptFile, match="was changed"):
        refuse_foreign(tmp_path / "out", contents)
    write_sealed(manifest, {"files": "of a program with other manifests", "more": 1.5})
    with pytest.raises(BadInput, match=r"manifest\.json"):
        refuse_foreign(tmp_path / "out", contents)


def test_links_are_followed_and_stay_links(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    (disk / "data").mkdir(parents=True)
    (tmp_path / "empty").symlink_to(disk / "data")
    (tmp_path / "dangling").symlink_to(Path("disk") / "later" / "data")
    for name, target in (("empty", disk / "data"), ("dangling", disk / "later" / "data")):
        for text in ("one", "two"):
            make(tmp_path / name, a=text)
            assert (tmp_path / name).is_symlink() and (target / "a").read_text() == text
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "notes").write_text("only copy")
    (tmp_path / "link").symlink_to("foreign")
    with pytest.raises(BadInput, match="notes"):
        make(tmp_path / "link", a="x")
    assert tree(tmp_path / "foreign") == {"notes": b"only copy"}
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(DiskError):
        make(tmp_path / "circle", a="x")


def test_a_file_in_the_way_is_bad_input_and_a_mounted_file_system_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("only copy")
    with pytest.raises(BadInput, match="a file stands"):
        make(tmp_path / "file", a="x")
    (tmp_path / "disk").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path).name == "disk")
    with pytest.raises(BadInput, match="mounted") as caught:
        make(tmp_path / "disk", a="x")
    assert str(tmp_path / "disk" / "out") in str(caught.value)


@pytest.mark.parametrize("kind", [contents, None])
def test_the_folder_that_somebody_stands_in_is_not_replaced(
    kind: Contents | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "new"
    here.mkdir()
    monkeypatch.chdir(here)
    (tmp_path / "link").symlink_to(here)
    for path in (Path("."), here, tmp_path / "link"):
        with pytest.raises(BadInput, match=r"(?s)current folder.*give a folder in it"), new_folder(path, kind):
            raise AssertionError("refused before any work")
        assert here.samefile(".")
    with new_folder(Path("out"), kind):
        pass
    assert (here / "out").is_dir()


def test_neither_is_a_folder_above_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path / "out", a="x")
    (tmp_path / "out" / "below").mkdir()
    monkeypatch.chdir(tmp_path / "out" / "below")
    with pytest.raises(BadInput, match="current folder"):
        refuse_foreign(Path(".."), lambda folder: {"below", *contents(folder)})


def test_where_the_current_folder_is_gone_others_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    for text in ("one", "two"):
        make(tmp_path / "out", a=text)
    assert (tmp_path / "out" / "a").read_text() == "two"


def test_the_umask_decides_and_what_was_there_keeps_its_permissions(tmp_path: Path) -> None:
    modes = {}
    for umask in (0o077, 0o022, 0o002):
        before = os.umask(umask)
        try:
            make(tmp_path / f"{umask:o}", a="x")
        finally:
            os.umask(before)
        modes[umask] = [(tmp_path / f"{umask:o}" / name).stat().st_mode & 0o777 for name in (".", "manifest.json")]
    assert modes == {0o077: [0o700, 0o600], 0o022: [0o755, 0o644], 0o002: [0o775, 0o664]}
    (tmp_path / "22").chmod(0o700)
    make(tmp_path / "22", a="y")
    assert (tmp_path / "22").stat().st_mode & 0o777 == 0o700


def test_names_that_are_taken_are_listed(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "other").write_text("x")
    refuse_taken(tmp_path, ["data", "train"], what="a run")
    (tmp_path / "data" / "mine").write_text("x")
    with pytest.raises(BadInput, match=r"got: +data\n"):
        refuse_taken(tmp_path, ["data", "train"], what="a run")


def test_only_named_files_go_and_the_folder_with_the_last(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    for name in ("a", "b", "notes"):
        (tmp_path / "state" / name).write_text("x")
    remove_names(tmp_path / "state", ["a", "b", "never there"])
    assert set(tree(tmp_path)) == {"state/notes"}
    remove_names(tmp_path / "state", ["notes"])
    assert not (tmp_path / "state").exists()


def test_leftovers_of_killed_writes_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for name in ("kept", ".kept", ".lock", "kept.partial", ".download.partial", f"mine{PARTIAL}"):
        (tmp_path / name).write_text("x")
    (tmp_path / f".run.x{PARTIAL}").mkdir()
    (tmp_path / f".run.x{PARTIAL}" / "half").write_text("x")
    (tmp_path / f".a.json.y{PARTIAL}").write_text("x")
    (tmp_path / f".link{PARTIAL}").symlink_to(tmp_path)
    remove_leftovers(tmp_path)
    left = sorted(item.name for item in tmp_path.iterdir())
    assert left == [".download.partial", ".kept", ".lock", "kept", "kept.partial", f"mine{PARTIAL}"]


def test_where_others_write_only_leftovers_of_given_names_are_removed(tmp_path: Path) -> None:
    ours = [f".data.0123abcd{PARTIAL}", f".config.json.89abcdef{PARTIAL}"]
    names = [*ours, f".data.jsonl.0123abcd{PARTIAL}", f".out.jsonl.0123abcd{PARTIAL}"]
    for name in names:
        (tmp_path / name).touch()
    (tmp_path / f".data{REPLACED}").mkdir()
    remove_leftovers(tmp_path, ("data", "config.json"))
    assert {item.name for item in tmp_path.iterdir()} == {"data", *names[2:]}


def test_a_folder_whose_place_was_about_to_be_taken_comes_back_after_a_kill(tmp_path: Path) -> None:
    """Both were hidden then, and the next cleaning removed them."""
    run = tmp_path / "run"

    def killed_between_the_renames() -> None:
        rename = Path.rename
        Path.rename = lambda path, target: os._exit(9) if target == run else rename(path, target)  # type: ignore
        make(run, b="two")

    def kill() -> None:
        process = multiprocessing.get_context("fork").Process(target=killed_between_the_renames)
        process.start()
        process.join()
        assert process.exitcode == 9 and not run.exists()

    make(run, a="one")
    before = tree(tmp_path)
    kill()
    remove_leftovers(tmp_path)
    assert tree(tmp_path) == before
    kill()
    make(run, c="three")
    assert set(tree(run)) == {"c", "manifest.json"}


def test_a_name_may_be_as_long_as_a_name_can_be(tmp_path: Path) -> None:
    for text in ("one", "two"):
        make(tmp_path / ("n" * 255), a=text)
    assert tree(tmp_path)["n" * 255 + "/a"] == b"two" and len(list(tmp_path.iterdir())) == 1


def test_a_lock_ends_with_its_block_whoever_was_forked_in_it(tmp_path: Path) -> None:
    with folder_lock(tmp_path, name="run", wait=False):
        child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,))
        child.start()
    with folder_lock(tmp_path, name="run", wait=False):
        child.kill()
        child.join()


def test_a_file_system_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(BadInput, match="cannot lock"), folder_lock(tmp_path, name="run", wait=False):
        pass
