"""The README's commands, run as they stand there."""

import re
import shlex
import shutil
from pathlib import Path

import launching
from launching import PYTHON, ROOT, redheart

TEXT = (ROOT / "README.md").read_text()
SHOWN = [line.partition("  #")[0].strip() for line in re.findall(r"^    (\S.*)$", TEXT, flags=re.M)]
"""Lines of the README's code blocks, without their remarks."""
ELSEWHERE = {
    "make install": "the fresh clone of the continuous integration",
    "make run": "the fresh clone of the continuous integration",
    "make test": "the fresh clone of the continuous integration",
    "make run DATA=records.json.gz PRESET=full OUT=runs/full": "the real thing: hours on a card",
    ".venv/bin/redheart demo RUN": "tests/predict/test_server.py",
    ".venv/bin/redheart snapshots import CHECKPOINT --out model.safetensors": "tests/snapshots/test_foreign.py",
    ". .venv/bin/activate && wandb sweep launch/sweep.yaml": "tests/study/test_wandb_sweep.py",
    ".venv/bin/python -m pytest": "what runs this",
    ".venv/bin/python -m pytest -m long": "by hand, results in benchmarks/results",
}
"""Commands that are run by something else."""
LAUNCHERS = [line for line in SHOWN if "launch/train.py" in line]
COMMANDS = [line for line in SHOWN if line.startswith(".venv/bin/redheart") and line not in ELSEWHERE]


def test_every_line_is_run_here_or_elsewhere() -> None:
    assert set(SHOWN) == {*COMMANDS, *LAUNCHERS, *ELSEWHERE}


def test_the_commands_on_a_finished_run_work_one_after_the_other(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "run")
    (tmp_path / "texts.txt").write_text("I am so happy.\n나는 오늘 정말 행복하다.\n", encoding="utf-8")
    for line in COMMANDS:
        words = [str(run) if word == "RUN" else word for word in shlex.split(line)[1:]]
        if "model.safetensors" in words:
            words[words.index("model.safetensors")] = str(tmp_path / "model.safetensors")
        done = redheart(*words, cwd=tmp_path)
        assert done.returncode == 0, f"{line}\n{done.stderr}"
        assert done.stderr == "" and done.stdout, line
    assert len((tmp_path / "predictions.jsonl").read_text().splitlines()) == 2
    assert (tmp_path / "my-model").is_dir() and (tmp_path / "model.safetensors").is_file()


def test_the_launchers_are_those_that_give_the_same_bytes() -> None:
    """`tests/study/test_study.py` runs them."""
    shown = [shlex.split(line.removesuffix(" --out RUN ...")) for line in LAUNCHERS]
    assert [[Path(words[0]).name, *words[1:]] for words in shown] == [
        [Path(words[0]).name, *words[1:]] for words in (PYTHON, *launching.LAUNCHERS.values())
    ]
