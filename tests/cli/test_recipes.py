"""Settings that nobody gives are the recipe's, of the preset that is meant; the report tells what was followed."""

import dataclasses
from pathlib import Path

import pytest

from redheart.cli.study import study_defaults
from redheart.core.config import StudyConfig, TrainConfig, resolved
from redheart.core.errors import BadInput
from redheart.core.recipes import DESIGN, MEASURED, OF_RECIPES, RECIPES, defaults_of, followed, recipe_of
from redheart.report.report import recipe_text

SMALL, DESIGNED = (RECIPES[name]["small"].settings for name in (MEASURED, DESIGN))


def of(config: StudyConfig) -> dict[str, object]:
    return {name: getattr(config.train, name) for name in SMALL}


def test_every_recipe_gives_values_to_the_same_settings_within_their_ranges() -> None:
    for name, recipes in RECIPES.items():
        for preset, recipe in recipes.items():
            assert {f"train.{key}" for key in recipe.settings} == OF_RECIPES
            config = defaults_of(name, preset)
            resolved(config)
            assert config.preset == preset and recipe.evidence
    assert of(StudyConfig(train=TrainConfig())) == DESIGNED != SMALL


def test_what_is_given_goes_before_the_recipe_of_the_preset_that_is_meant(tmp_path: Path) -> None:
    file = tmp_path / "study.toml"
    file.write_text('preset = "small"\n[train]\ncycle_growth = 2\n')
    assert of(study_defaults(["--preset=small"])[0]) == SMALL
    assert of(study_defaults([])[0]) == DESIGNED
    assert of(study_defaults(["--preset", "small", "--recipe", "design"])[0]) == DESIGNED
    assert of(study_defaults(["--config", str(file)])[0]) == {**SMALL, "cycle_growth": 2}
    assert of(study_defaults(["--config", str(file), "--preset", "tiny"])[0]) == DESIGNED
    file.write_text('preset = "small"\nrecipe = "design"\n')
    assert of(study_defaults(["--config", str(file)])[0]) == DESIGNED
    assert of(study_defaults(["--config", str(file), "--recipe=measured"])[0]) == SMALL
    # As `make run ARGS="--preset small"` gives it, behind one of its own.
    assert of(study_defaults(["--preset", "tiny", "--preset", "small"])[0]) == SMALL
    assert of(study_defaults(["--preset=small", "--preset", "tiny"])[0]) == DESIGNED
    assert study_defaults(["--recipe=design", "--epochs", "3"])[2] == ["--epochs", "3"]


@pytest.mark.parametrize("arguments", [["--recipe", "best"], ["--config", "study.toml"]])
def test_an_unknown_recipe_is_refused(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("study.toml").write_text("recipe = 3\n")
    with pytest.raises(BadInput, match="no such recipe"):
        study_defaults(arguments)


def test_the_report_names_the_recipe_its_evidence_and_what_differs() -> None:
    for name in (MEASURED, DESIGN):
        config = dataclasses.asdict(defaults_of(name, "small"))
        assert followed(config["train"], "small") == (name, {})
        assert recipe_text(config) == f"{name} ({recipe_of(name, 'small').evidence})"
    config["train"]["cycle_epochs"] = 7
    assert recipe_text(config).startswith("design, but cycle_epochs 7 (")
