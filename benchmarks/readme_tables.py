"""The tables of measured figures in README.md and README.ko.md, from the committed results; `--write` puts them in."""

import argparse
import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import study_tables
from readme_korean import korean

from redheart.core.config import StudyConfig, resolved
from redheart.core.units import GIB
from redheart.memory.cards import find
from redheart.study.outlook import planning
from redheart.study.outlook.plan_output import card_lines, total_lines, verdict

ROOT = Path(__file__).parent.parent


def result(name: str) -> dict[str, Any]:
    """What a committed benchmark measured."""
    content: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return dict(content["result"])


def processor(name: str) -> str:
    """The processor that a committed benchmark was taken on."""
    content = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return f"{content['machine']['cpu_usable_cores']} cores of an {content['machine']['cpu']}"


def step_figures(name: str) -> str:
    """One optimizer step on the host beside what one would take otherwise."""
    step = result(name)
    kernel, deepspeed, bitsandbytes = (
        step["ways"][way]
        for way in (
            "fused 8-bit, bf16 gradient",
            "DeepSpeedCPUAdam, whole path",
            "bitsandbytes AdamW8bit, whole path",
        )
    )
    return (
        f"{kernel['ns_per_param']:.2f} ns/param: {deepspeed['times_the_kernel']:.2f} times as fast as "
        f"DeepSpeedCPUAdam's whole path, {bitsandbytes['times_the_kernel']:.0f} times bitsandbytes, "
        f"at {step['share_of_plain_pass_speed']:.0%} of the speed of a plain pass over memory"
    )


def rows() -> list[tuple[str, str, str]]:
    """Claim, figure and the command that measures it."""
    kernel = result("optimizer_step")["ways"]["fused 8-bit, bf16 gradient"]
    bits, faults, saving = result("state_bits"), result("faults"), result("snapshot_io")
    of_full = saving["full"]
    full, coverage, dedup = result("full_steps"), result("gradient_coverage"), result("dedup")
    crossover = result("crossover")
    search, assembly = crossover["search"]["module"], crossover["assembly of full, 2 snapshots"]
    sums = result("accumulation")
    card = result("plan_errors")["device_full"]
    ran = [row for row in card if row["verdict"] == "ran"]
    refused = [row for row in card if row["verdict"] == "out of memory"]
    assert all(not row["predicted_fits"] for row in refused), "the table says that the plan refused them"
    ours = sums["zero2_offload_adam8bit, 4 micro-batches"]
    theirs = sums["zero2_offload_adam32, 4 micro-batches"]
    training = result("train_step")["zero2_offload_adam8bit"]
    samples = {name: way["samples_per_s_median"] for name, way in training["ways"].items()}
    raw, trainer = (training["red_heart_over"][name] for name in ("raw loop", "Hugging Face Trainer"))
    reading = {(way["encoder"], way["batch"]): way for way in result("predict")["ways"] if way["preset"] == "small"}
    return [
        (
            f"`full`, {ran[0]['card'].partition(',')[0]} held to {ran[0]['budget_bytes'] / GIB:g} GiB: peak of the "
            "whole process",
            "; ".join(
                f"{row['measured_bytes'] / GIB:.2f} GiB at micro-batch {row['micro_batch']} "
                f"(planned {row['predicted_bytes'] / GIB:.2f})"
                for row in ran
            )
            + "".join(f"; `{row['strategy']}` ran out of memory, as planned" for row in refused),
            "benchmarks/vram.py --cap 8GiB",
        ),
        (
            f"one optimizer step on the host, {processor('optimizer_step')}: AVX-512 with VBMI",
            step_figures("optimizer_step"),
            "benchmarks/optimizer_step.py",
        ),
        (
            f"the same, {processor('optimizer_step_avx2')}: all held to AVX2",
            step_figures("optimizer_step_avx2"),
            "benchmarks/optimizer_step.py --path avx2",
        ),
        ("its states", f"{kernel['state_bytes_per_param']:.2f} B/param", "benchmarks/optimizer_step.py"),
        (
            "training `small` in the default strategy on real records, the whole step",
            f"{samples['Red Heart']:.0f} records a second: {raw:.2f} times a raw DeepSpeed loop with bitsandbytes, "
            f"{trainer:.2f} times the Hugging Face Trainer",
            "benchmarks/train_step.py",
        ),
        (
            "`redheart predict`, `small`, texts a second one by one and 128 at a time",
            f"{reading['minilm', 1]['texts_per_s']:.0f} and {reading['minilm', 128]['texts_per_s']:.0f}, of which the "
            f"frozen encoder takes {reading['minilm', 128]['encode_share']:.0%}",
            "benchmarks/predict.py",
        ),
        (
            "`small` on real records, ten epochs, three seeds: validation loss with 8-bit states over 32-bit ones",
            f"{bits['relative_difference']:+.3%}",
            "benchmarks/state_bits.py",
        ),
        (
            "`full` on the CPU, real records: masters, gradients, states on the host",
            " + ".join(
                f"{full['optimizer_bytes_per_parameter'][name]:.2f}" for name in ("masters", "gradients", "states")
            )
            + f" B/param; the whole process peaks at {full['rss_peak_gib']:.1f} GiB",
            "benchmarks/full_steps.py",
        ),
        (
            "gradient of 4 micro-batches against its float64 sum; bytes over the bus",
            f"{ours['relative_error_of_the_sum']:.0e} and {ours['bus_bytes_per_param']:.0f} B/param "
            f"(DeepSpeed: {theirs['relative_error_of_the_sum']:.0e} and {theirs['bus_bytes_per_param']:.0f})",
            "benchmarks/accumulation.py",
        ),
        (
            "parameters of `full` that learn from one batch of 64 real records",
            f"{coverage['share']:.4%}, no tensor without a gradient",
            "benchmarks/gradient_coverage.py",
        ),
        (
            "SIGKILL at random instants, each run resumed, its end compared with that of an unbroken one",
            f"{faults['kills']} kills, {faults['kills_while_saving']} of them while saving, {faults['losses']} losses",
            "pytest tests/faults -m long --kills 200",
        ),
        (
            "a resume state of `full`; 30 snapshots of it",
            f"{of_full['state_bytes_per_parameter']:.2f} B/param; {of_full['thirty_snapshots_gib']:.1f} GiB",
            "benchmarks/snapshot_io.py",
        ),
        (
            "training waits for a save of `small`; a resume's peak memory over a fresh start's",
            f"at most {max(0.0, saving['training']['longest_stall_in_steps']):.2f} of a step; "
            f"{saving['peak_memory']['resumed_over_fresh'] - 1:+.1%}",
            "benchmarks/snapshot_io.py",
        ),
        (
            f"search for the best window of each of {search['units']} modules over {search['snapshots']} snapshots",
            f"{search['share_of_naive']:.1%} of the evaluations, {search['wall_share_of_naive']:.1%} of the time "
            "of evaluating every candidate as a whole model",
            "benchmarks/crossover.py",
        ),
        (
            "assembly of `full` from two snapshots, every module a mean of both",
            f"{assembly['every module a mean of two']['peak_mib']:.0f} MiB of memory, "
            f"{assembly['every module a mean of two']['seconds']:.1f} s; mergekit-pytorch "
            f"{assembly['mergekit-pytorch, mean of both']['peak_mib']:,.0f} MiB, "
            f"{assembly['mergekit-pytorch, mean of both']['seconds']:.1f} s",
            "benchmarks/crossover.py",
        ),
        (
            f"near-duplicates in {dedup['texts']:,} texts",
            f"{dedup['seconds']['near_duplicates']:.2f} s, {dedup['times_faster']['cdist']:.0f} times as fast as "
            f"rapidfuzz's `cdist`, the same found; 100,000 records in "
            f"{dedup['large']['generated records, 30 % copies']['seconds']:.0f} s",
            "benchmarks/dedup.py",
        ),
    ]


def plan() -> str:
    """The lines of `redheart plan --card "RTX 3070"` below its table, on a machine that has measured nothing."""
    card = find("RTX 3070")
    with mock.patch.dict(os.environ, REDHEART_STEP_TIMES=os.devnull):
        found = planning.answer(resolved(StudyConfig(preset="full")), vram_bytes=card.memory_bytes, card=card)
    assert found.on_card
    lines = [*total_lines(found), *card_lines(found.plan, found.on_card), " ".join(verdict(found.plan))]
    return "\n".join(["```text", *lines, "```"])


def table() -> str:
    """What was measured, in Markdown."""
    lines = ["| what | measured | by |", "|---|---|---|"]
    return "\n".join(lines + [f"| {what} | {figure} | `{command}` |" for what, figure, command in rows()])


def blocks() -> dict[str, str]:
    """The README's generated parts, each between its markers, by name."""
    parts = {"plan": plan(), "measured": table(), "study": study_tables.short()}
    return {name: f"<!-- {name}: begin -->\n{part}\n<!-- {name}: end -->" for name, part in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into README.md and README.ko.md")
    made = blocks()
    if not parser.parse_args().write:
        print(*made.values(), sep="\n\n")
        return
    put("README.md", made)
    put("README.ko.md", {name: korean(name, block) for name, block in made.items()})


def put(page: str, made: dict[str, str]) -> None:
    """Replace the generated parts of a page by these."""
    text = (ROOT / page).read_text()
    for name, block in made.items():
        before, rest = text.split(f"<!-- {name}: begin -->")
        text = before + block + rest.split(f"<!-- {name}: end -->")[1]
    (ROOT / page).write_text(text)


if __name__ == "__main__":
    main()
