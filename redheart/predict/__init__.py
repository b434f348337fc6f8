"""Predictions of a finished model: `load(FOLDER)` opens what `redheart export` wrote, `.predict(texts)` uses it."""

from redheart.predict.exported import load
from redheart.predict.predictor import Prediction, Predictor

__all__ = ["Prediction", "Predictor", "load"]
