"""Valence and arousal of a prediction, for comparison with what people rate."""

from collections.abc import Mapping

# Plutchik's and Ekman's, and what GoEmotions counts as positive and as negative (Demszky et al. 2020).
_PLEASANT = """joy trust love amusement gratitude happiness admiration approval caring desire excitement optimism pride
relief"""
_UNPLEASANT = """fear sadness disgust anger annoyance disappointment disapproval embarrassment grief nervousness
remorse"""
_SIGNS = dict.fromkeys(_PLEASANT.split(), 1.0) | dict.fromkeys(_UNPLEASANT.split(), -1.0)


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
    if {1.0, -1.0} <= {_SIGNS.get(name) for name in emotions}:
        found["valence"] = found["faa"] = sum(_SIGNS.get(name, 0.0) * value for name, value in emotions.items())
    if "bentham.intensity" in found:
        found["arousal"] = found["bentham.intensity"]
    return found
