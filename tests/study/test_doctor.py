"""What `doctor` says is what a run would do: it asks the same functions."""

import tempfile
from pathlib import Path

import pytest
from stub_programs import program

from redheart.kernel import build
from redheart.memory.host import HostMemory
from redheart.memory.step_time import HostSpeed
from redheart.study.outlook import doctor, timings


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "bin").mkdir()
    for name in ("g++", "wrapper"):
        program(tmp_path / "bin" / name, f'echo "{name} 99.1: $*"')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def test_packages_are_held_against_what_the_program_requires(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {item.verdict for item in doctor._packages()} == {"ok"}
    requires = ["deepspeed==0.1", "torch>=99", "accelerate>=1", "rich>=99"]
    monkeypatch.setattr(doctor.metadata, "requires", lambda name: requires)
    monkeypatch.setattr(doctor, "PACKAGES", (*doctor.PACKAGES, "no-such-thing"))
    found = {item.name: (item.verdict, item.hint) for item in doctor._packages()}
    assert found == {
        "deepspeed": ("bad", "pip install 'deepspeed==0.1'"),
        "torch": ("bad", "pip install 'torch>=99'"),
        "accelerate": ("ok", None),
    }
    requires[:] = ["no-such-thing>=1"]
    assert [(item.verdict, item.found) for item in doctor._packages()] == [("bad", "not installed")]


@pytest.mark.parametrize(
    ("cxx", "found", "verdict"),
    [
        (None, "{0}/g++: g++ 99.1: --version", "ok"),
        ("  ", "{0}/g++: g++ 99.1: --version", "ok"),
        ("wrapper g++ -m64", "{0}/wrapper g++ -m64: wrapper 99.1: g++ -m64 --version", "ok"),
        ("no-such-compiler -m64", "{0}/g++: g++ 99.1: --version", "note"),
    ],
)
def test_the_compiler_is_the_one_that_a_run_takes(
    cxx: str | None, found: str, verdict: str, tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if cxx is not None:
        monkeypatch.setenv("CXX", cxx)
    finding = doctor._compiler()
    assert (finding.found, finding.verdict) == (found.format(tools / "bin"), verdict)
    assert finding.found.startswith(" ".join(build.compilers()[0]))
    assert (finding.hint is None) == (verdict == "ok") and (verdict == "ok" or str(cxx) in str(finding.hint))


def test_no_compiler_is_a_note(tools: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tools))
    finding = doctor._compiler()
    assert finding.verdict == "note" and finding.found == "none"


def test_a_cache_that_cannot_be_used_is_named_with_what_is_used_instead(
    tools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert doctor._kernel().verdict == "ok" and str(tools / "cache") in doctor._kernel().found
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/cache")
    finding = doctor._kernel()
    assert finding.verdict == "note" and "/proc/cache" in str(finding.hint) and "/proc/cache" not in finding.found


def test_memory_is_what_this_process_may_have(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = HostMemory(3 << 30, 8 << 30, "the control group's memory.max")
    monkeypatch.setattr(doctor, "host_memory", lambda: memory)
    finding = doctor._memory()
    assert finding.verdict == "note" and finding.found == str(memory) and "raise the limit" in str(finding.hint)


@pytest.mark.parametrize(("path", "verdict"), [("step_times.json", "ok"), ("/proc/none/step_times.json", "note")])
def test_what_is_measured_is_kept_for_plans_or_said_not_to_be(
    path: str, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDHEART_STEP_TIMES", str(tmp_path / path))
    found = HostSpeed(0.35e-9, 0.1e-9, 20e9, launch_s=20e-6, bus_bytes_s=25e9)
    monkeypatch.setattr(doctor, "measure", lambda: found)
    finding = doctor.examine(tmp_path, measures=True)[-1]
    assert (finding.name, finding.verdict) == ("host speed", verdict)
    assert finding.found.startswith(
        "update 0.35 and sum 0.10 ns/param, copies 20.0 GB/s, launches 20 us, bus 25.0 GB/s"
    )
    assert timings.recall_host() == (found if verdict == "ok" else None)
