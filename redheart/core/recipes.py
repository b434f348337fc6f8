"""Recipes of training: the values of the settings that decide how well a preset learns, where nobody gives them."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from redheart.core.config import Preset, StudyConfig
from redheart.core.errors import BadInput


@dataclass(frozen=True)
class Recipe:
    """Values of `TrainConfig`'s fields, and what speaks for them."""

    settings: Mapping[str, Any]
    evidence: str


DESIGN = "design"
MEASURED = "measured"
_DESIGN = Recipe(
    {"weight_decay": 0.01, "feature_dropout": 0.0, "value_weight": 1.0, "cycle_epochs": 20, "cycle_growth": 2},
    "the original design's; with it `small` gets worse on real records from its fourth epoch on",
)
_DECAY = {"weight_decay": 6.0, "feature_dropout": 0.3, "value_weight": 2.0, "cycle_epochs": 10, "cycle_growth": 1}
RECIPES: Mapping[str, Mapping[Preset, Recipe]] = {
    MEASURED: {
        "tiny": Recipe(_DESIGN.settings, "the design's: no study of `tiny` on real records was made"),
        "small": Recipe(_DECAY, "three seeds of 60 epochs on 8,858 real records (docs/study.md)"),
        "full": Recipe(_DECAY, "that of `small`: no study of `full` was made yet"),
    },
    DESIGN: {"tiny": _DESIGN, "small": _DESIGN, "full": _DESIGN},
}
"""By name and preset. All recipes of one preset give values to the same settings."""

OF_RECIPES = frozenset(f"train.{name}" for name in _DESIGN.settings)
"""The settings that recipes give values to, by their dotted names."""


def recipe_of(name: str, preset: Preset) -> Recipe:
    """A recipe by its name.

    Raises:
        BadInput: there is none of this name.
    """
    if name not in RECIPES:
        raise BadInput("no such recipe", where="--recipe", got=name, expected=" or ".join(RECIPES))
    return RECIPES[name][preset]


def defaults_of(name: str, preset: Preset) -> StudyConfig:
    """The configuration of a study in which nothing but the recipe and the preset was given; raises as `recipe_of`."""
    train = dataclasses.replace(StudyConfig().train, **recipe_of(name, preset).settings)
    return StudyConfig(preset=preset, train=train)


def followed(train: Mapping[str, object], preset: Preset) -> tuple[str, dict[str, object]]:
    """The recipe that settings of training are nearest to, and what they have otherwise than it."""
    others = {
        name: {key: train[key] for key, value in recipes[preset].settings.items() if train.get(key, value) != value}
        for name, recipes in RECIPES.items()
    }
    name = min(others, key=lambda name: len(others[name]))
    return name, others[name]
