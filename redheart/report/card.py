"""The model card of an exported model. Its figures are read from the run's files; there is no other source."""

import json
import shlex
from collections.abc import Mapping, Sequence

from redheart.core.config import BUILT_IN_ENCODERS
from redheart.report.facts import RunFacts, before_calibration
from redheart.report.limitations import limitations
from redheart.report.tables import RECORDS, code, comparison_table, markdown_table, plain

_USE = """from redheart.predict import load

predictor = load({folder})
texts = [
    "I was furious at my boss, and then he apologised.",
    "오늘 부엌에서 언니와 있을 때 나는 몹시 기뻤다.",
]
for text, prediction in zip(texts, predictor.predict(texts), strict=True):
    print(text)
    for task, values in prediction.tasks.items():
        strongest = max(values, key=values.get)
        print(f"  {{task}}: {{strongest}} {{values[strongest]:.2f}} of {{values}}")
"""


def model_card(
    facts: RunFacts, *, folder: str, encoder: str, trained: Mapping[str, Sequence[str]], num_parameters: int
) -> str:
    """The card in Markdown; `folder` names the exported folder, `encoder` is its name and digest, `trained` by task."""
    manifest = facts.manifest
    is_foreign = facts.config["features"]["encoder"] not in BUILT_IN_ENCODERS
    command = f'redheart predict {shlex.quote(folder)} --text "…"'
    sections = [
        f"# {plain(folder)}",
        f"A Red Heart model of the preset `{facts.config['preset']}`, {num_parameters:,} parameters, from the run "
        f"{code(facts.name)}: a text in, emotions and related scores out. It reads the frozen features of the encoder "
        f"{code(encoder)}" + (", which must be installed." if is_foreign else "."),
        "## Use",
        "In the folder that holds this one, with the package `redheart` installed:",
        f"```python\n{_USE.format(folder=json.dumps(folder, ensure_ascii=False))}```",
        f"or {code(command)}.",
        "## What it predicts",
        markdown_table(["task", "targets"], [[task, ", ".join(map(plain, names))] for task, names in trained.items()]),
        "Emotions are shares that sum to one, the other values lie between zero and one. Targets that no training "
        "record had are not predicted.",
        "## Data",
        markdown_table(["", "records"], [[name, f"{getattr(manifest, name):,}"] for name in RECORDS]),
        f"Schema `{manifest.schema}`; digest of the source: `{manifest.source.sha256}`.",
        "## Results on the test split",
        _results(facts),
        "## Selection",
        facts.crossover.verdict if facts.crossover else "No selection has been made.",
        "## Calibration",
        facts.calibration.verdict if facts.calibration else "Not examined; confidence is the model's own.",
        "## Limitations",
        limitations(facts),
    ]
    return "\n\n".join(sections) + "\n"


def _results(facts: RunFacts) -> str:
    evaluation = facts.evaluation
    if evaluation is None:
        return "Not evaluated."
    models = {"this model": evaluation.models[evaluation.recommended], **evaluation.baselines}
    before = before_calibration(facts)
    return f"Values with bootstrap intervals at 95 % over records.{before}\n\n" + comparison_table(models)
