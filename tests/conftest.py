"""Real records lie beside the checkout on machines that have them; tests that need them are skipped elsewhere."""

import fcntl
import os
import shutil
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path

import forked
import pytest
from hypothesis import settings
from launching import WHOLE_STUDY, MadeOnce, redheart

from redheart.cli import set_environment

set_environment()
# No example has a time limit: a busy machine is no fault of what is tested.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")
# A shell starts what runs in its background deaf to Ctrl-C, and every process below it.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if "PYTEST_XDIST_WORKER" in os.environ:
    # The cores are the workers' already.
    import torch

    torch.set_num_threads(1)
# Times of the tests' runs must not become what `redheart plan` tells the user of this machine.
os.environ["REDHEART_STEP_TIMES"] = str(Path(tempfile.mkdtemp(prefix="redheart-tests-")) / "step_times.json")

REAL_RECORDS = Path(__file__).parents[2] / "shared" / "data" / "aita_emotions.json.gz"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--kills", type=int, default=200, help="kills of the long test, over all ways to launch")
    parser.addoption("--summary", type=Path, default=None, help="write a summary of the long tests to this file")


def pytest_sessionstart(session: pytest.Session) -> None:
    # The process that only hands out the tests starts nothing.
    if "PYTEST_XDIST_WORKER" in os.environ or not session.config.getoption("numprocesses", None):
        forked.start_server()


@pytest.fixture
def real_records() -> Path:
    """The file of real records."""
    return REAL_RECORDS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if REAL_RECORDS.exists():
        return
    for item in items:
        if item.get_closest_marker("real_data"):
            item.add_marker(pytest.mark.skip(reason="no real records beside the checkout"))


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """A folder by a name, filled by a function: once for all processes that share the tests, whoever comes first."""
    # The folder of all processes holds one of each, or is this one's own.
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        shared = shared.parent

    def made(name: str, make: Callable[[Path], None]) -> Path:
        path = shared / f"made_{name}"
        with open(shared / f"made_{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (path / ".whole").exists():
                shutil.rmtree(path, ignore_errors=True)  # of a process that failed
                path.mkdir()
                make(path)
                (path / ".whole").touch()
        return path

    return made


@pytest.fixture(scope="session")
def finished_run(made_once: MadeOnce) -> Path:
    """A run of the smallest model on few generated records, through all phases; not to be changed."""
    from redheart.core.config import FeatureConfig, PrepareConfig, StudyConfig, TrainConfig, resolved
    from redheart.study.pipeline import run_study

    def make(folder: Path) -> None:
        config = StudyConfig(
            out=folder / "run",
            epochs=4,
            prepare=PrepareConfig(num_generated=240),
            features=FeatureConfig(encoder="hash"),
            train=TrainConfig(strategy="plain", learning_rate=1e-3),
        )
        run_study(resolved(config))

    return made_once("finished", make) / "run"


@pytest.fixture(scope="session")
def whole_study(made_once: MadeOnce) -> Path:
    """A folder with a study from the command line in `run`, a sweep in it; not to be changed."""

    def make(folder: Path) -> None:
        done = redheart(*WHOLE_STUDY, "--out", folder / "run")
        assert done.returncode == 0, done.stderr[-3000:]
        (folder / "stderr").write_text(done.stderr)

    return made_once("whole_study", make)


@pytest.fixture
def run_copy(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run that a test may change."""
    return shutil.copytree(finished_run, tmp_path / "run", ignore=shutil.ignore_patterns("states", "snapshots"))
