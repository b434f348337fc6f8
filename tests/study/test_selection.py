"""Sweet spot and crossover of a run, on real networks: exact losses, honest verdicts, closed records, restarts."""

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from quick_run import QuickRun, make_run, shake

from redheart.cli import main
from redheart.core.errors import BadInput, RedHeartError
from redheart.core.files import read_json, read_sealed, write_sealed
from redheart.evaluate.holdout_log import read_openings
from redheart.evaluate.prediction import loss_floors, predict_rows, predictor_losses
from redheart.model.dims import preset
from redheart.model.network import RedHeart
from redheart.report import selection_section
from redheart.report.facts import read_facts
from redheart.report.report import make_report
from redheart.report.selection_section import sweet_spot_section
from redheart.select.maps import Maps
from redheart.select.scoring import score_N
from redheart.select.statistics import Gain, level_of, paired_gain
from redheart.select.sweet_spot import SweetSpot
from redheart.snapshots.blend import Blend, mean_of, single, weighted
from redheart.snapshots.consolidate import assemble, read_assembly
from redheart.snapshots.module_snapshots import Snapshot
from redheart.snapshots.prune import Keep, prune
from redheart.study import recombining
from redheart.study.evaluating import run_evaluation
from redheart.study.final import load_assembled, read_crossover
from redheart.study.module_graph import FINALS, ModuleGraph
from redheart.study.recombining import run_crossover
from redheart.study.run_folder import RunFolder
from redheart.study.selecting import expected_specs, make_evaluator, open_snapshots, run_sweet_spot

ROOT = Path(__file__).parents[2]


def noise(model: RedHeart, epoch: int) -> None:
    shake(model, epoch, scale=0.1)


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> QuickRun:
    return make_run(tmp_path_factory.mktemp("noisy"), noise)


def spot_of(run: QuickRun, **settings: object) -> SweetSpot:
    return run_sweet_spot(run.choosing(**settings))


def test_cached_losses_have_the_bits_of_the_assembled_model(noisy: QuickRun, tmp_path: Path) -> None:
    snapshots, specs = open_snapshots(noisy.folder), expected_specs(noisy.config, noisy.study.prepared)
    evaluator = make_evaluator(noisy.choosing(cache_mib=1), snapshots)
    rows = noisy.study.prepared.split["val_select"]
    random = np.random.default_rng(0)
    blends: list[Blend] = [single(2), single(4), single(6), mean_of((2, 6)), weighted({2: 1, 4: 2, 6: 4})]
    choice = dict.fromkeys(specs, single(2))
    for turn in range(6):
        for name in random.choice(list(specs), 3, replace=False):
            choice[str(name)] = blends[random.integers(len(blends))]
        found = evaluator.losses(choice)
        out = noisy.folder.select / f"turn_{turn}"
        digest = assemble(out, choice=choice, snapshots=snapshots, expected=specs).digest
        model = load_assembled(
            noisy.config, noisy.folder, noisy.study.prepared.inventory, out.name, digest=digest
        ).requires_grad_(False)
        outputs = predict_rows(model, noisy.study.features, rows, micro_batch=noisy.config.train.micro_batch)
        expected = predictor_losses(outputs, noisy.study.prepared, rows)
        assert all(np.array_equal(found[name], expected[name], equal_nan=True) for name in FINALS)
    assert evaluator.evaluations < 6


def test_a_model_whose_prediction_is_no_number_is_broken_whatever_the_targets(noisy: QuickRun) -> None:
    rows = noisy.study.prepared.split["val_select"]
    dims, graph = (
        preset(noisy.config.preset, outputs=noisy.study.prepared.inventory.outputs),
        ModuleGraph(noisy.study, rows),
    )
    prediction_NO = torch.zeros(len(rows), dims.num_outputs("regret"))
    assert np.isfinite(graph.losses("heads.regret", [{"prediction": prediction_NO}])).all()
    prediction_NO[1, 0] = torch.nan
    assert np.isinf(graph.losses("heads.regret", [{"prediction": prediction_NO}])).all()


@pytest.mark.parametrize("seed", range(4))
def test_what_is_said_of_noisy_networks_holds_on_records_that_nobody_chose_on(seed: int, tmp_path: Path) -> None:
    run = make_run(tmp_path, lambda model, epoch: shake(model, epoch, scale=0.05, seed=seed), num_generated=500)
    spot = spot_of(run)
    crossover = run_crossover(run.study)
    # Weights that differ by noise alone always seem to have something to choose from.
    assert crossover.gain_select.percent > 0
    assert crossover.gain_select.percent == pytest.approx(spot.selection.gain.percent, abs=1e-9)
    final = read_assembly(run.folder.select / "final")
    if crossover.recommended == "best_single":
        assert "No evidence of gain" in crossover.verdict
        assert final.digest == crossover.digests["best_single"]
        assert {part.blend for part in final.modules.values()} == {single(spot.best_epoch)}
    else:
        # Nothing was trained here, so the training records are as unseen as any.
        assert gain_on(run, "train").percent > 0


def gain_on(run: QuickRun, part: str) -> Gain:
    rows, scores = run.study.prepared.split[part], {}
    crossover = read_crossover(run.folder)
    floors = loss_floors(run.study.prepared, rows)
    for name, digest in crossover.digests.items():
        model = load_assembled(run.config, run.folder, run.study.prepared.inventory, name, digest=digest)
        model.requires_grad_(False)
        outputs = predict_rows(model, run.study.features, rows, micro_batch=64)
        losses = predictor_losses(outputs, run.study.prepared, rows)
        scores[name] = score_N(losses, scales=crossover.scales, floors=floors)
    return paired_gain(scores["best_single"], scores["crossover"], seed=0)


def test_a_planted_head_is_found_confirmed_and_becomes_the_final_model(tmp_path: Path) -> None:
    def plant(model: RedHeart, epoch: int) -> None:
        shake(model, epoch, scale=0.02)
        # Only epoch 4 knows how often each emotion occurs, and only there another head is badly off.
        model.heads["regret"].predict.bias.add_(6.0 if epoch == 4 else 0.0)
        if epoch == 4:
            model.heads["emotion"].predict.weight.zero_()
        else:
            model.heads["emotion"].predict.bias.copy_(torch.linspace(-2, 2, 7))

    run = make_run(tmp_path, plant, num_generated=600)
    spot = spot_of(run, level="module")
    assert spot.best_epoch != 4
    assert spot.modules["heads.emotion"] == single(4) and 4 not in spot.modules["heads.regret"].epochs
    assert spot.swaps[0].group == "heads.emotion" and spot.swaps[0].p_holm < 5e-3
    crossover = run_crossover(run.study)
    assert crossover.recommended == "crossover" and "is better than" in crossover.verdict
    assert crossover.tasks["emotion"].is_evidence
    assert read_assembly(run.folder.select / "final").digest == crossover.digests["crossover"]


def test_what_was_evaluated_is_not_evaluated_again_and_the_answer_is_the_same(noisy: QuickRun) -> None:
    first = spot_of(noisy, strategy="window")
    path = noisy.folder.select / "evaluated.bin"
    written = path.read_bytes()
    # As a kill leaves it: the last evaluation is cut off.
    path.write_bytes(written[:-100])
    again = spot_of(noisy, strategy="window")
    assert again.num_reused >= first.num_reused and path.read_bytes() == written
    changed = {"num_reused", "work"}
    for name in set(SweetSpot.__struct_fields__) - changed:
        assert getattr(first, name) == getattr(again, name)
    # Who asks for no prices needs no model at all.
    last = [spot_of(noisy, strategy="last", map_epochs=0) for _ in range(2)]
    assert last[1].work.evaluations == 0 and last[1].selection == last[0].selection


def test_maps_hold_what_direct_evaluation_gives(noisy: QuickRun) -> None:
    spot = spot_of(noisy, strategy="best-single", map_epochs=2)
    maps = read_json(noisy.folder.select / "maps.json", Maps)
    assert len(maps.epochs) == 2 and spot.best_epoch in maps.epochs
    snapshots = open_snapshots(noisy.folder)
    evaluator = make_evaluator(noisy.study, snapshots)
    problem_scores = dict(zip(maps.epochs, maps.scores, strict=True))
    donor, host = maps.epochs
    for name, table in maps.transplants.items():
        choice = {module: single(donor if module in spot.groups[name].modules else host) for module in spot.modules}
        means = [evaluator.losses(choice)[final] for final in FINALS]
        rows = noisy.study.prepared.split["val_select"]
        floors = loss_floors(noisy.study.prepared, rows)
        score = score_N(dict(zip(FINALS, means, strict=True)), scales=spot.scales, floors=floors)
        assert table[0][1] == pytest.approx(100 * (1 - score.mean() / problem_scores[host]))
        assert table[0][0] == table[1][1] == 0
    (line,) = maps.lines
    assert line.scores[0] == problem_scores[spot.best_epoch] and line.barrier_percent >= 0


def test_a_crossover_that_was_cut_off_leaves_nothing_that_is_taken_for_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(tmp_path, noise)
    spot_of(run, strategy="coordinate")
    run_crossover(run.study)
    spot_of(run, strategy="uniform")

    def killed(*given: object, **named: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(recombining, "_losses", killed)
        with pytest.raises(KeyboardInterrupt):
            run_crossover(run.study)
    with pytest.raises(BadInput, match="not the one that was judged"):
        run_evaluation(run.study)
    crossover = run_crossover(run.study)
    assert run_evaluation(run.study).digests == crossover.digests


def test_a_report_says_nothing_of_models_that_are_not_the_crossover_s(tmp_path: Path) -> None:
    run = make_run(tmp_path, noise)
    spot_of(run, strategy="coordinate")
    run_crossover(run.study)
    result = run_evaluation(run.study)
    assert read_facts(run.folder.root).evaluation == result
    spot_of(run, strategy="uniform")
    assert "This is an earlier choice" in make_report(run.folder.root).read_text()
    run_crossover(run.study)
    assert read_facts(run.folder.root).evaluation is None
    assert "This is an earlier choice" not in make_report(run.folder.root).read_text()


def test_a_mean_of_several_epochs_is_no_point_of_the_figure_s_curves(
    noisy: QuickRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: dict[str, Any] = {}
    monkeypatch.setattr(selection_section, "draw_lines", lambda path, series, **named: drawn.update(named))
    spot = spot_of(noisy, strategy="coordinate")
    sweet_spot_section(tmp_path, spot, bests=None)
    marks = drawn["marks"]
    assert marks == {name: spot.groups[name].blend.epochs[0] for name in marks} and marks
    averaged = next(iter(marks))
    group = msgspec.structs.replace(spot.groups[averaged], blend=mean_of((2, 4)))
    sweet_spot_section(tmp_path, msgspec.structs.replace(spot, groups=spot.groups | {averaged: group}), bests=None)
    assert drawn["marks"] == {name: epoch for name, epoch in marks.items() if name != averaged}


def test_an_evaluation_recommends_what_the_crossover_recommends(tmp_path: Path) -> None:
    run = make_run(tmp_path, noise)
    spot_of(run, strategy="coordinate")
    crossover = run_crossover(run.study)
    first = run_evaluation(run.study)
    other = "crossover" if crossover.recommended == "best_single" else "best_single"
    write_sealed(run.folder.select / "crossover.json", msgspec.structs.replace(crossover, recommended=other))
    again = run_evaluation(run.study)
    assert again == msgspec.structs.replace(first, recommended=other)
    assert read_facts(run.folder.root).evaluation == again


def test_the_confirm_records_count_their_choices_and_the_test_split_opens_once(tmp_path: Path) -> None:
    run = make_run(tmp_path, noise)
    # A choice that comes again keeps its place, and so its verdict.
    turns = (("coordinate", 1), ("uniform", 2), ("coordinate", 1), ("design", 3), ("best-single", 1))
    verdicts: dict[str, str] = {}
    for strategy, place in turns:
        spot_of(run, strategy=strategy)
        crossover = run_crossover(run.study)
        assert crossover.num_judged == place
        assert {gain.level for gain in (crossover.gain_confirm, *crossover.tasks.values())} == {level_of(place)}
        assert verdicts.setdefault(strategy, crossover.verdict) == crossover.verdict
    assert crossover.gain_confirm.percent == 0 and crossover.recommended == "best_single"
    results = [run_evaluation(run.study) for _ in range(2)]
    assert results[0].digests == results[1].digests == crossover.digests
    openings = read_openings(run.folder.root)
    assert [opening.part for opening in openings] == ["val_confirm"] * 3 + ["test"]
    assert openings[-1].models == crossover.digests and openings[-1].num_records == len(
        run.study.prepared.split.opened()["test"]
    )
    # Another choice is another model: it is evaluated, and that is another opening.
    spot_of(run, strategy="uniform")
    run_crossover(run.study)
    run_evaluation(run.study)
    assert [opening.part for opening in read_openings(run.folder.root)].count("test") == 2


def test_only_the_log_of_openings_opens_the_test_split() -> None:
    callers = [path for path in (ROOT / "redheart").rglob("*.py") if ".opened()" in path.read_text()]
    assert [path.name for path in callers] == ["holdout_log.py"]


def test_a_model_that_was_not_the_one_evaluated_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, noise)
    spot_of(run)
    path = run.folder.select / "sweet_spot.json"
    spot = read_sealed(path, dict[str, Any])
    spot["selection"]["gain"]["percent"] += 0.5
    write_sealed(path, spot)
    with pytest.raises(RedHeartError, match="not the one that was chosen"):
        run_crossover(run.study)


def test_without_a_sweet_spot_or_snapshots_the_way_on_is_named(tmp_path: Path) -> None:
    run = make_run(tmp_path, noise)
    with pytest.raises(BadInput, match="run `redheart sweet-spot RUN` first"):
        run_crossover(run.study)
    for path in run.folder.snapshots.iterdir():
        path.rename(tmp_path / path.name)
    with pytest.raises(BadInput, match="no snapshots yet"):
        spot_of(run)


@pytest.mark.parametrize(
    ("command", "reader"), [("sweet-spot", "selecting"), ("crossover", "recombining"), ("run", "selecting")]
)
def test_no_snapshot_is_removed_while_it_is_read(
    command: str, reader: str, finished_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(folder: RunFolder) -> list[Snapshot]:
        found = open_snapshots(folder)
        with pytest.raises(BadInput, match="another process"):
            prune(folder.snapshots, Keep(last=1), remove=True)
        refused.append(command)
        return found

    refused: list[str] = []
    run = shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.setattr(f"redheart.study.{reader}.open_snapshots", opened)
    main([command, *(["--run"] if command == "run" else []), str(run)])
    assert refused == [command] and prune(RunFolder(run).snapshots, Keep(last=1), remove=True).removed
