"""Valence and arousal of a prediction, for comparison with what people rate."""

from collections.abc import Mapping

_PLEASANT = frozenset({"joy", "trust", "love", "amusement", "gratitude", "happiness"})
_UNPLEASANT = frozenset({"fear", "sadness", "disgust", "anger"})


def predicted_affect(tasks: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Everything of a prediction that a rating can be held against, by measure.

    `valence` is the share of the pleasant emotions less that of the unpleasant ones; others, such as surprise, have
    none. `faa` is held against valence: frontal alpha asymmetry is larger where people approach (Davidson 1992).
    `arousal` is the predicted intensity (Bentham), where that was trained. Targets go by their own name, as
    `sadness` or `regret_factor`; one that two tasks have goes by `surd.surprise`.
    """
    found: dict[str, float] = {}
    for task, values in tasks.items():
        for name, value in values.items():
            found.setdefault(name.lower(), value)
            found[f"{task}.{name}".lower()] = value
    emotions = {name.lower(): value for name, value in tasks.get("emotion", {}).items()}
    if emotions.keys() & _PLEASANT and emotions.keys() & _UNPLEASANT:
        signs = {**dict.fromkeys(_PLEASANT, 1.0), **dict.fromkeys(_UNPLEASANT, -1.0)}
        found["valence"] = found["faa"] = sum(signs.get(name, 0.0) * value for name, value in emotions.items())
    if "bentham.intensity" in found:
        found["arousal"] = found["bentham.intensity"]
    return found
