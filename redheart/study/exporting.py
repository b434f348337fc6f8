"""The recommended model of a run as a folder of its own."""

from pathlib import Path

from redheart.core.files import shown
from redheart.core.folders import refuse_foreign
from redheart.predict.exported import ExportManifest, write_export
from redheart.report.card import model_card
from redheart.report.facts import read_facts
from redheart.study.final import open_run


def run_export(root: Path, out: Path, *, encoder: str | None = None) -> ExportManifest:
    """Export the recommended model of the run in `root` to the new folder `out`; `encoder` says where its encoder is.

    Raises:
        BadInput: there is no finished run, or something lies at `out` already.
    """
    # Before the weights are read, which takes a while.
    refuse_foreign(out, None)
    predictor = open_run(root, encoder=encoder)
    card = model_card(
        read_facts(root),
        folder=shown(out.resolve().name),
        encoder=predictor.encoder.identity,
        trained=predictor.trained,
        num_parameters=sum(parameter.numel() for parameter in predictor.model.parameters()),
    )
    return write_export(out, predictor, card=card)
