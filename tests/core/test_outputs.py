"""A file that is written by name: links are followed, pipes and open files are written through."""

import os
import threading
from pathlib import Path

import pytest

from redheart.core.errors import BadInput
from redheart.core.files import new_file, open_output, shown, to_disk, write_bytes


def test_a_link_is_followed_to_a_file_that_is_there_or_not(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("old")
    for target in ("there", "later/new"):
        link = tmp_path / f"link to {Path(target).name}"
        link.symlink_to(target)
        write_bytes(link, b"new")
        assert link.is_symlink() and (tmp_path / target).read_bytes() == b"new"


def test_a_pipe_gets_what_is_written_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_bytes()))
    reader.start()
    with new_file(pipe) as path, open_output(path) as file:
        file.write(b"one two")
        to_disk(file)
    reader.join(10)
    assert found == [b"one two"] and pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_a_reader_that_wants_no_more_is_no_disk(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with pytest.raises(BrokenPipeError):
        write_bytes(Path(f"/dev/fd/{write}"), b"x" * (1 << 20))
    os.close(write)


@pytest.mark.parametrize("flags", [os.O_WRONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND])
def test_a_file_that_somebody_has_open_is_appended_to(flags: int, tmp_path: Path) -> None:
    """As `--output /dev/stdout` after `> FILE` and `>> FILE`."""
    log = tmp_path / "log"
    log.write_bytes(b"before\n")
    descriptor = os.open(log, flags)
    write_bytes(Path(f"/dev/fd/{descriptor}"), b"ours\n")
    os.close(descriptor)
    assert log.read_bytes() == (b"" if flags & os.O_TRUNC else b"before\n") + b"ours\n"


def test_a_device_is_written_through() -> None:
    write_bytes(Path("/dev/null"), b"x")
    assert Path("/dev/null").is_char_device()


def test_permissions_stay_and_new_ones_follow_the_umask(tmp_path: Path) -> None:
    write_bytes(tmp_path / "private", b"a")
    (tmp_path / "private").chmod(0o600)
    write_bytes(tmp_path / "private", b"b")
    assert (tmp_path / "private").stat().st_mode & 0o777 == 0o600
    before = os.umask(0o002)
    try:
        write_bytes(tmp_path / "shared", b"a")
    finally:
        os.umask(before)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o664


def test_a_name_of_255_bytes_and_one_in_another_encoding_can_be_written(tmp_path: Path) -> None:
    long, latin = tmp_path / ("n" * 255), tmp_path / os.fsdecode(b"caf\xe9")
    korean = tmp_path / ("감" * 85)
    for path in (long, latin, korean):
        write_bytes(path, b"x")
        assert path.read_bytes() == b"x"
    assert shown(latin.name) == "caf\\xe9" and shown("카페 é") == "카페 é"


def test_a_folder_in_the_way_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="a folder stands"):
        write_bytes(tmp_path, b"x")
