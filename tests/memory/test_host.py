"""What a process may have is the tightest of the machine's, its control groups' and its own limits."""

import os
import resource
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from redheart.core.units import GIB
from redheart.memory import host
from redheart.memory.host import available_cores, group_folders, host_memory, max_file_bytes

V1_MOUNTS = "35 31 0:32 {root} /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n"
V1_CPU = "36 31 0:33 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n"
V2_MOUNTS = "31 23 0:28 {root} /sys/fs/cgroup rw,nosuid - cgroup2 cgroup rw,nsdelegate\n"


@pytest.fixture(autouse=True)
def large_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has more than any group gives."""
    machine = psutil.virtual_memory()._replace(available=900 * GIB, total=1000 * GIB)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(content))
    return root


def process(group: str, mounts: str) -> dict[str, object]:
    return {"proc/self/cgroup": group, "proc/self/mountinfo": f"22 1 8:1 / / rw - ext4 /dev/a rw\n{mounts}"}


V2 = "sys/fs/cgroup"
V1 = "sys/fs/cgroup/memory"


@pytest.mark.parametrize(
    ("files", "expected", "limited_by"),
    [
        # A container with a name space of its own: its group is the root of what it sees.
        (
            {
                **process("0::/\n", V2_MOUNTS.format(root="/")),
                f"{V2}/memory.max": 8 * GIB,
                f"{V2}/memory.current": 5 * GIB,
                f"{V2}/memory.stat": f"anon {GIB}\ninactive_file {2 * GIB}\nactive_file {GIB}\nslab_reclaimable 0\n",
            },
            6 * GIB,
            "memory.max",
        ),
        # A service: the limit is two groups up, and the own group has one that is wider.
        (
            {
                **process("0::/user.slice/job.slice/run.scope\n", V2_MOUNTS.format(root="/")),
                f"{V2}/user.slice/memory.max": 4 * GIB,
                f"{V2}/user.slice/memory.current": GIB,
                f"{V2}/user.slice/job.slice/memory.max": "max\n",
                f"{V2}/user.slice/job.slice/memory.current": GIB,
                f"{V2}/user.slice/job.slice/run.scope/memory.max": 16 * GIB,
                f"{V2}/user.slice/job.slice/run.scope/memory.current": GIB,
                "sys/fs/cgroup/other.slice/memory.max": 1,
                "sys/fs/cgroup/other.slice/memory.current": 0,
            },
            3 * GIB,
            "memory.max",
        ),
        # Throttled before it is killed.
        (
            {
                **process("0::/a\n", V2_MOUNTS.format(root="/")),
                f"{V2}/a/memory.max": 9 * GIB,
                f"{V2}/a/memory.high": 7 * GIB,
                f"{V2}/a/memory.current": 2 * GIB,
            },
            5 * GIB,
            "memory.high",
        ),
        # Version 1, where a container sees the host's path and only its own folder is mounted.
        (
            {
                **process("9:cpu:/\n4:memory:/docker/abc\n", V1_MOUNTS.format(root="/docker/abc")),
                f"{V1}/memory.limit_in_bytes": 6 * GIB,
                f"{V1}/memory.usage_in_bytes": 3 * GIB,
                f"{V1}/memory.stat": f"total_inactive_file {GIB}\ninactive_file {9 * GIB}\ntotal_active_file 0\n",
            },
            4 * GIB,
            "memory.limit_in_bytes",
        ),
        # Both versions at once, no limit in the second.
        (
            {
                **process("4:memory:/x\n0::/x\n", V1_MOUNTS.format(root="/") + V2_MOUNTS.format(root="/")),
                f"{V1}/x/memory.limit_in_bytes": 2 * GIB,
                f"{V1}/x/memory.usage_in_bytes": 3 * GIB,
                f"{V1}/memory.limit_in_bytes": 9223372036854771712,
                f"{V1}/memory.usage_in_bytes": 3 * GIB,
            },
            0,
            "memory.limit_in_bytes",
        ),
        ({}, 900 * GIB, ""),
        (process("0::/../../outside\n", V2_MOUNTS.format(root="/../..")), 900 * GIB, ""),
    ],
)
def test_the_tightest_group_above_a_process_bounds_it(
    files: dict[str, object], expected: int, limited_by: str, tmp_path: Path
) -> None:
    found = host_memory(tree(tmp_path, files))
    assert found.available_bytes == expected
    assert found.limited_by.endswith(limited_by) and bool(found.limited_by) == bool(limited_by)
    assert (found.limited_by in str(found)) and "GiB available" in str(found)


def test_groups_are_those_of_the_process_up_to_the_mount(tmp_path: Path) -> None:
    tree(tmp_path, process("0::/a/b\n", V2_MOUNTS.format(root="/").replace("/sys/fs/cgroup", "/my\\040groups")))
    mount = tmp_path / "my groups"
    assert list(group_folders(tmp_path, "memory")) == [mount / "a/b", mount / "a", mount]
    # A group whose name begins as the mounted one's is none within it.
    tree(tmp_path, process("4:memory:/docker/abcdef\n", V1_MOUNTS.format(root="/docker/abc")))
    assert list(group_folders(tmp_path, "memory")) == [tmp_path / V1]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({**process("0::/a/b\n", V2_MOUNTS.format(root="/")), f"{V2}/a/cpu.max": "350000 100000\n"}, 3),
        ({**process("0::/\n", V2_MOUNTS.format(root="/")), f"{V2}/cpu.max": "50000 100000\n"}, 1),
        ({**process("0::/\n", V2_MOUNTS.format(root="/")), f"{V2}/cpu.max": "max 100000\n"}, 64),
        (
            {
                **process("3:cpu,cpuacct:/x\n", V1_CPU),
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_quota_us": 800000,
                "sys/fs/cgroup/cpu,cpuacct/x/cpu.cfs_period_us": 100000,
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": -1,
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": 100000,
            },
            8,
        ),
        ({}, 64),
    ],
)
def test_cores_are_whole_ones_of_the_quota(files: dict[str, object], expected: int, tmp_path: Path) -> None:
    assert available_cores(tree(tmp_path, files)) == expected


TEXTS = st.text(st.characters(codec="utf-8"), max_size=60) | st.from_regex(r"[0-9:/,. -]{0,40}", fullmatch=True)


@settings(max_examples=150)
@given(
    groups=st.lists(TEXTS | st.sampled_from(["0::/", "0::/a", "4:memory:/a/b"]), max_size=4).map("\n".join),
    mounts=st.lists(TEXTS | st.sampled_from([V2_MOUNTS.format(root="/"), V1_CPU]), max_size=4).map("\n".join),
    numbers=st.lists(TEXTS | st.sampled_from(["max", "-1", "9" * 30, "0", "12 0", "1 2 3"]), min_size=6, max_size=6),
)
def test_whatever_the_kernels_files_hold_there_is_an_answer(
    groups: str, mounts: str, numbers: list[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    root = tmp_path_factory.mktemp("root")
    names = ("memory.max", "memory.high", "memory.current", "memory.stat", "cpu.max", "memory.limit_in_bytes")
    files = {f"{folder}/{name}": text for folder in (V2, f"{V2}/a") for name, text in zip(names, numbers, strict=True)}
    tree(root, {"proc/self/cgroup": groups, "proc/self/mountinfo": mounts, **files})
    found = host_memory(root)
    assert 0 <= found.available_bytes <= 900 * GIB
    assert 1 <= available_cores(root) <= 64


@pytest.mark.parametrize(("name", "option"), [("RLIMIT_AS", "ulimit -v"), ("RLIMIT_DATA", "ulimit -d")])
def test_a_limit_of_the_process_counts_what_it_holds(
    name: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = psutil.Process().memory_info()
    taken = held.vms if name == "RLIMIT_AS" else held.data
    kind = getattr(resource, name)
    real = resource.getrlimit
    monkeypatch.setattr(resource, "getrlimit", lambda item: (taken + 2 * GIB, -1) if item == kind else real(item))
    found = host_memory(tmp_path)
    assert found.available_bytes == pytest.approx(2 * GIB, rel=0.1) and option in found.limited_by
    assert host_memory(tmp_path, processes=3).total_bytes == 3 * found.total_bytes
    monkeypatch.setattr(resource, "getrlimit", lambda item: (1 << 20, -1) if item == kind else real(item))
    assert host_memory(tmp_path).available_bytes == 0


def test_the_largest_file_is_a_limit_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for soft, expected in ((5 << 20, 5 << 20), (resource.RLIM_INFINITY, None)):
        monkeypatch.setattr(resource, "getrlimit", lambda item, soft=soft: (soft, soft))
        assert max_file_bytes() == expected


def test_this_machine_has_an_answer() -> None:
    assert host_memory().available_bytes > 0 and host.available_cores() >= 1
