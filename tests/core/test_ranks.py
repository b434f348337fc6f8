"""A launcher's environment: whole, left over in a shell, or contradicting itself."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from redheart.cli import main
from redheart.core.errors import BadInput
from redheart.core.ranks import Ranks, launched, read_ranks

WHOLE = {
    "RANK": "3",
    "WORLD_SIZE": "4",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "MASTER_ADDR": "host-a",
    "MASTER_PORT": "29500",
}


def test_a_whole_environment_is_read() -> None:
    assert read_ranks(WHOLE) == Ranks(3, 4, 1, 2, ("host-a", 29500))
    # DeepSpeed's launcher has a name of its own for it; who says nothing has all ranks on one host.
    del (given := dict(WHOLE))["LOCAL_WORLD_SIZE"]
    for local_size, expected in (("2", 2), ("", 4), ("1", 4), ("8", 4), ("two", 4)):
        assert read_ranks(given | {"LOCAL_SIZE": local_size}).local_world_size == expected
    assert read_ranks(given).local_world_size == 4 and read_ranks(WHOLE | {"LOCAL_SIZE": "3"}).local_world_size == 2


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
        {"RANK": "", "WORLD_SIZE": " ", "LOCAL_RANK": "-1"},
        {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "PMI_SIZE": "1"},
    ],
)
def test_one_process_is_alone_without_a_word(environment: dict[str, str]) -> None:
    assert read_ranks(environment) == Ranks()


@pytest.mark.parametrize(
    "environment",
    [
        {"RANK": "0"},
        {"WORLD_SIZE": "1"},
        {"LOCAL_RANK": "0"},
        {"RANK": "0", "LOCAL_WORLD_SIZE": "1"},
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
        {"MASTER_PORT": "no port"},
        {"OMPI_COMM_WORLD_SIZE": "2"},
    ],
)
def test_a_leftover_that_means_nothing_is_named_and_passed_over(environment: dict[str, str]) -> None:
    found = read_ranks(environment)
    assert found.leftovers == tuple(f"{name}={value}" for name, value in environment.items())
    assert (found.rank, found.world_size, found.local_rank, found.address) == (0, 1, 0, None)


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"RANK": "1"}, "RANK=1 is not below WORLD_SIZE, which is not set"),
        ({"WORLD_SIZE": "2"}, "RANK is not set; LOCAL_RANK is not set; MASTER_ADDR is not set; MASTER_PORT is not"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK=1 is not below"),
        ({"LOCAL_WORLD_SIZE": "2"}, "LOCAL_WORLD_SIZE=2 is above WORLD_SIZE, which is not set"),
        ({"RANK": "first"}, "RANK='first' is no number"),
        ({"RANK": "0", "WORLD_SIZE": "1.0"}, "WORLD_SIZE='1.0' is no number"),
        ({"RANK": "-2"}, "RANK='-2' is no number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0 is no number of processes"),
        (WHOLE | {"RANK": "4"}, "RANK=4 is not below WORLD_SIZE=4"),
        (WHOLE | {"RANK": ""}, "RANK is not set"),
        (WHOLE | {"LOCAL_RANK": "2"}, "LOCAL_RANK=2 is not below the number of processes on its host"),
        (WHOLE | {"RANK": "0"}, "LOCAL_RANK=1 is above RANK=0"),
        (WHOLE | {"LOCAL_WORLD_SIZE": "8"}, "LOCAL_WORLD_SIZE=8 is above WORLD_SIZE=4"),
        (WHOLE | {"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        (WHOLE | {"MASTER_PORT": "http"}, "MASTER_PORT='http' is no port"),
        (WHOLE | {"MASTER_PORT": "0"}, "MASTER_PORT='0' is no port"),
        (WHOLE | {"MASTER_PORT": "65536"}, "MASTER_PORT='65536' is no port"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(environment: dict[str, str], named: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_ranks(environment)
    assert named in str(refused.value)


VALUES = st.one_of(st.none(), st.integers(-2, 9).map(str), st.sampled_from(["", " 1 ", "x", "²", "1e3", "9" * 5000]))


@given(st.fixed_dictionaries(dict.fromkeys(WHOLE, VALUES)))
def test_whatever_is_set_gives_a_place_or_one_error(values: dict[str, str | None]) -> None:
    environment = {name: value for name, value in values.items() if value is not None}
    try:
        found = read_ranks(environment)
    except BadInput:
        return
    assert 0 <= found.rank < found.world_size and 0 <= found.local_rank < found.local_world_size <= found.world_size
    assert (found.address is None) == (found.world_size == 1)
    # What is read is what is handed on.
    assert found.world_size == 1 or read_ranks(environment | found.as_variables()) == found


@pytest.mark.parametrize("command", ["run", "sweep", "train", "trial"])
def test_every_command_that_trains_refuses_half_an_environment(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert ended_with(2, [command, "--out", str(tmp_path / "run")])
    errors = capsys.readouterr().err
    assert errors.count("error:") == 1 and "RANK is not set" in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_command_for_one_process_says_so_to_several(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    assert ended_with(2, [command, "--out", str(tmp_path / "run")])
    assert f"`redheart {command}` works in one process" in capsys.readouterr().err


def ended_with(code: int, arguments: list[str]) -> bool:
    launched.cache_clear()
    try:
        with pytest.raises(SystemExit) as ended:
            main(arguments)
    finally:
        launched.cache_clear()
    return ended.value.code == code
