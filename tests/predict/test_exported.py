"""An exported model predicts what its run predicts, loads in the lines of its card, and is refused when damaged."""

import dataclasses
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from launching import environment

from redheart.cli import main
from redheart.core.errors import BadInput, CorruptFile
from redheart.data.summary import SummaryFit
from redheart.data.words import Labels, fit_words
from redheart.predict import load
from redheart.predict.exported import is_export, write_export
from redheart.study.final import open_run, run_export

TEXTS = ["I was furious at my boss.", "오늘 나는 몹시 기뻤고 그랬다."]


@pytest.fixture(scope="module")
def exported(finished_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "heart"
    run_export(finished_run, out)
    return out


def test_it_predicts_the_same(exported: Path, finished_run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load(exported).predict(TEXTS) == open_run(finished_run).predict(TEXTS)
    lines = []
    for folder in (exported, finished_run):
        main(["predict", str(folder), "--text", TEXTS[0], "--json"])
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1]


def test_the_weights_are_any_safetensors_reader_s(exported: Path) -> None:
    from safetensors.torch import load_file

    tensors = load_file(exported / "model.safetensors")
    state = load(exported).model.state_dict()
    assert set(tensors) == set(state) and all((tensors[name].float() == state[name]).all() for name in state)


def test_the_lines_of_the_card_run_as_they_stand(exported: Path) -> None:
    (lines,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    assert len(lines.splitlines()) <= 15
    done = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=exported.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "emotion: " in done.stdout and "regret: regret_factor" in done.stdout


def numbers_of(value: object) -> Iterator[float]:
    if isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from numbers_of(item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield float(value)
    # Sentences, such as a verdict; a digest holds any number.
    elif isinstance(value, str) and " " in value:
        yield from (float(text.replace(",", "")) for text in re.findall(r"\d[\d,]*\.?\d*", value))


def test_every_number_of_the_card_stands_in_a_file(exported: Path, finished_run: Path) -> None:
    files = [*finished_run.glob("*/*.json"), exported / "config.json", finished_run / "config.json"]
    known = [abs(number) for path in files for number in numbers_of(json.loads(path.read_text()))]
    # What is a sum or a constant of the form: the interval's level, and the records left after cleaning.
    manifest = json.loads((finished_run / "data" / "manifest.json").read_text())
    known += [95, sum(manifest[part] for part in ("train", "val_select", "val_confirm", "test"))]
    card = re.sub(r"```.*?```|`[^`]*`|SHA-256", "", (exported / "README.md").read_text(), flags=re.DOTALL)
    found = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?", card)
    assert len(found) > 40
    for text in found:
        number, digits = float(text.replace(",", "")), len(text.partition(".")[2])
        assert any(abs(number - item) <= 0.51 * 10**-digits for item in known), text


def test_the_card_asks_for_no_encoder_that_is_built_in_and_counts_every_part(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    assert "must be installed" not in card and all(f"| {part} " in card for part in ("invalid", "val_select"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "README.md", "manifest.json"])
@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_a_damaged_file_is_named(name: str, how: str, exported: Path, tmp_path: Path) -> None:
    import shutil

    folder = shutil.copytree(exported, tmp_path / "copy")
    path = folder / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(bytes(content) if how == "flipped" else bytes(content)[:-1])
    with pytest.raises((CorruptFile, BadInput)) as caught:
        load(folder)
    assert name in str(caught.value) or not is_export(folder)


def test_what_is_there_is_not_overwritten(exported: Path, finished_run: Path) -> None:
    with pytest.raises(BadInput, match="there already"):
        run_export(finished_run, exported)


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize(
    "texts", [["some words that stand", "in nine texts", "each"] * 9, [f"w{n}" for n in range(27)]]
)
def test_the_fit_of_the_features_travels(finished_run: Path, texts: list[str], told: bool, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = (random.normal(size=shape).astype(np.float32) for shape in (12, (12, 320)))
    # Words that no two texts share, and targets that are all the same, leave nothing to keep.
    values_NT = random.random((27, 2)) if told else np.ones((27, 2))
    words, _ = fit_words(texts, Labels(np.arange(27), values_NT, np.ones_like(values_NT, dtype=bool), np.arange(27)))
    fit = SummaryFit("of these", *arrays, words)
    predictor = dataclasses.replace(open_run(finished_run), summary=fit)
    write_export(tmp_path / "heart", predictor, card="")
    found = load(tmp_path / "heart").summary
    assert found is not None and found.key == fit.key
    given, kept = fit.tensors(), found.tensors()
    assert given.keys() == kept.keys() and all((given[name] == kept[name]).all() for name in given)
    (tmp_path / "heart" / "summary.safetensors").unlink()
    with pytest.raises(CorruptFile, match=r"summary\.safetensors"):
        load(tmp_path / "heart")
