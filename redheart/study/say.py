"""One line of a phase on standard output, for people or for machines."""

import json

from redheart.core.config import StudyConfig


def say(config: StudyConfig, phase: str, text: str) -> None:
    """Print what a phase has to tell: aligned text, or a JSON object with `event` and `text`."""
    is_json = config.train.progress == "json"
    print(json.dumps({"event": phase, "text": text}) if is_json else f"{phase:<11}{text}", flush=True)
