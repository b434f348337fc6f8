"""What is said of a plan: `redheart plan` prints and draws it, and a run that takes one tells its log why."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import msgspec
import torch

from redheart.core.config import StudyConfig, resolved
from redheart.core.ranks import launched
from redheart.core.units import GIB, MIB
from redheart.memory.cards import known
from redheart.memory.plan import COMFORT_SHARE, PREDICTED, Plan
from redheart.memory.replay import Replay
from redheart.study.outlook.planning import answer, nearest_text
from redheart.train.choice import Choice, OnCard
from redheart.train.settings import Chosen

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442", "#999999")
"""Okabe and Ito's palette, told apart by colour-blind readers too."""
LANES = {
    "card": "the card's computing",
    "launches": "launching operators",
    "gradients": "the host's taking gradients in",
    "host": "the optimizer on the host",
    "bus": "the bus",
    "order": "one lane's waiting for another",
    "rest": "DeepSpeed and the loop",
}


def print_plan(found: Choice) -> None:
    """A table of the device by moment, then host, disk and time, then the verdict."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    plan = found.plan
    console = Console()
    title = f"{plan.setting_text(before_size='micro-batch ')}: predicted device memory, MiB"
    table = Table(box=SIMPLE, title=Text(title))
    categories = sorted({name for moment in plan.moments.values() for name in moment.parts})
    table.add_column("category")
    for name in plan.moments:
        # Six columns and the categories side by side in 80 characters.
        table.add_column({"initialisation": "start", "validation": "valid."}.get(name, name), justify="right")
    for category in categories:
        table.add_row(category, *[_mib(moment.parts.get(category, 0)) for moment in plan.moments.values()])
    table.add_section()
    table.add_row("allocated", *[_mib(moment.allocated_bytes) for moment in plan.moments.values()])
    table.add_row("reserved", *[_mib(moment.reserved_bytes) for moment in plan.moments.values()])
    console.print(table)
    times = card_lines(plan, found.on_card) if found.on_card else [f"{'time':<14} {time_text(plan)}"]
    for line in [*total_lines(found), *times]:
        console.print(Text(fill(line, console.width, subsequent_indent=" " * 15)))
    word, rest = verdict(plan)
    console.print(f"[bold {'green' if plan.fits else 'red'}]{word}[/] {rest}")
    if not plan.fits:
        console.print(Text(nearest_text(found, prefix="--")))


def verdict(plan: Plan) -> tuple[str, str]:
    """Whether it fits, and by how much."""
    budget, margin = f"{plan.vram_bytes / GIB:.4g} GiB", (plan.vram_bytes - plan.upper_bytes) / GIB
    if plan.fits:
        return "fits", f"{budget} with {margin:.2f} GiB to spare"
    return "does not fit", f"{budget}: {-margin:.2f} GiB too much"


def total_lines(found: Choice) -> list[str]:
    """The peak of the device, the host and the disk, a line each."""
    plan, whose = found.plan, " a rank" if found.sizes.ranks > 1 else ""
    lines = [
        f"{'whole process':<14} {plan.peak_bytes / GIB:.2f} GiB predicted, at most {plan.upper_bytes / GIB:.2f} GiB",
        f"{'host':<14} {plan.host_bytes / GIB:.2f} GiB{whose} ({parts_text(plan.host_parts)})",
        f"{'disk':<14} {plan.disk_bytes / GIB:.2f} GiB ({parts_text(plan.disk_parts)})",
        f"{'':<14} {plan.compressed_disk_bytes / GIB:.2f} GiB with compressed snapshots",
    ]
    return lines + [f"{'basis':<14} {plan.basis}"] * (plan.basis != PREDICTED)


def parts_text(parts: Mapping[str, int]) -> str:
    """What a sum is made of, in GiB, without what is nothing beside the rest."""
    shown = {name: size for name, size in parts.items() if size >= GIB / 200} or parts
    return ", ".join(f"{name} {size / GIB:.2f}" for name, size in shown.items())


def time_text(plan: Plan) -> str:
    """How long the run takes, or that nobody knows; a machine without a card knows nothing of one."""
    if plan.step_s is None or plan.run_s is None:
        why = "this machine has not taken such steps yet; a training measures them"
        if not torch.cuda.is_available():
            why = "there is no card here; --card NAME simulates one"
        return f"unknown: {plan.time_basis or why}"
    if not torch.cuda.is_available():
        return f"unknown for a card; without one a step takes {plan.step_s:.2f} s here (measured: {plan.time_basis})"
    return f"{plan.step_s:.2f} s a step, {plan.run_s / 3600:.1f} hours of steps (measured: {plan.time_basis})"


def card_lines(plan: Plan, found: OnCard) -> list[str]:
    """For people: the time, what it waits for, and the next configurations."""
    step = found.step
    if plan.step_s is not None and plan.run_s is not None:
        time = f"{plan.step_s:.2f} s a step, {plan.run_s / 3600:.1f} hours of steps (measured: {plan.time_basis})"
    else:
        time = f"{step.step_s:.2f} s a step ({step.low_s:.2f} to {step.high_s:.2f}), "
        if found.run_s:
            hours, fewest, most = (seconds / 3600 for seconds in found.run_s)
            time += f"{hours:.1f} hours of steps ({fewest:.1f} to {most:.1f}), "
        time += f"simulated, {found.card}"
    lines = [f"{'time':<14} {time}"]
    waits = sorted(step.waits_s.items(), key=lambda item: -item[1])
    shares = ", ".join(f"{LANES[name]} ({seconds:.2f} s)" for name, seconds in waits if seconds)
    lines.append(f"{'bound by':<14} {shares}")
    lines += [f"{'also fits':<14} {other_line(plan, step.step_s, *other)}" for other in found.others]
    if not found.is_host_measured:
        lines.append(f"{'host':<14} not measured: `redheart doctor --measure` narrows the time")
    return [*lines, *([f"{'note':<14} {found.note}"] if found.note else [])]


def other_line(chosen: Plan, chosen_s: float, other: Plan, other_s: float) -> str:
    """What another configuration would save or cost beside the chosen one."""
    seconds, size = other_s - chosen_s, (other.peak_bytes - chosen.peak_bytes) / GIB
    time = "as fast" if abs(seconds) < 0.005 else f"{abs(seconds):.2f} s a step {'slower' if seconds > 0 else 'faster'}"
    return f"{other.setting_text()}: {time}, {abs(size):.2f} GiB {'more' if size > 0 else 'less'}"


def draw_step(replay: Replay, path: Path) -> None:
    """Stacked areas of what the device holds over one optimizer step, in the order of its requests."""
    from matplotlib.figure import Figure

    from redheart.report.figures import save_png

    # A few thousand points show every peak: each keeps the largest moment of its slice.
    stride = max(1, len(replay.curve) // 3000)
    slices = [replay.curve[start : start + stride] for start in range(0, len(replay.curve), stride)]
    points = [max(part, key=lambda item: sum(item[1].values())) for part in slices]
    names = list({name: None for _, held in points for name, size in held.items() if size})
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.add_subplot()
    series = [[held.get(name, 0) / GIB for _, held in points] for name in names]
    axes.stackplot(range(len(points)), *series, labels=names, colors=COLOURS)
    for index, (moment, _) in enumerate(points):
        if index == 0 or moment != points[index - 1][0]:
            axes.axvline(index, color="black", linewidth=0.5, alpha=0.5)
            axes.annotate(f" {moment}", (index, 0.98), xycoords=("data", "axes fraction"), fontsize=8, va="top")
    axes.set(xlabel="requests of one optimizer step", ylabel="GiB on the device (predicted)", xlim=(0, len(points)))
    axes.set_ylim(0, 1.12 * max(sum(held.values()) for _, held in points) / GIB)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3)
    save_png(figure, path)


def plan_fields(found: Choice) -> dict[str, object]:
    """The plan as JSON, the nearest configuration that fits beside it."""
    fields: dict[str, Any] = dict(msgspec.to_builtins(found.plan))
    fields["nearest"] = msgspec.to_builtins(found.nearest)
    fields["on_card"] = msgspec.to_builtins(found.on_card)
    fields["hint"] = None if found.plan.fits else nearest_text(found, prefix="--")
    return fields


def _mib(size: int) -> str:
    return f"{size / MIB:,.0f}" if size else ""


def on_this_card(config: StudyConfig) -> tuple[StudyConfig, Chosen | None]:
    """The study with the fastest micro-batch that fits the card, where there is one and none is asked for; and why.

    Smaller presets take a step's records at once, and several ranks what they are told. A card of the table is ranked
    by its own constants, with what this host was measured to do, any other by those of no card.
    """
    if config.preset != "full" or launched().world_size > 1 or not torch.cuda.is_available():
        return config, None
    train, name = config.train, torch.cuda.get_device_name(0)
    found = answer(
        resolved(config),
        vram_bytes=torch.cuda.get_device_properties(0).total_memory,
        micro_batch=train.micro_batch,
        card=known(name),
    )
    plan = found.plan
    if not plan.fits:
        return config, None
    taken = dataclasses.replace(train, micro_batch=plan.micro_batch, checkpointing=plan.checkpointing)
    return dataclasses.replace(config, train=taken), _chosen(found, device=name, is_told=train.micro_batch > 0)


def _chosen(found: Choice, *, device: str, is_told: bool) -> Chosen:
    """The way to train that a card is found to take best, and why."""
    plan, on_card = found.plan, found.on_card
    setting, free = plan.setting_text(), f"{1 - COMFORT_SHARE:.0%} of the card free"
    if is_told:
        why = f"as the settings ask: {setting}"
    elif plan.upper_bytes <= COMFORT_SHARE * plan.vram_bytes:
        why = f"chosen by the planner: {setting}, within a tenth of the fastest that fits, and it leaves {free}"
    else:
        why = f"chosen by the planner: {setting}, the fastest that fits, and none within a tenth of it leaves {free}"
    reasons, others, step = [why], [], None
    if plan.step_s is not None:
        reasons.append(f"{plan.step_s:.2f} s a step (measured: {plan.time_basis})")
    constants = f"constants of no card: {device} is not in the table"
    if on_card:
        step = on_card.step
        others = [other_line(plan, step.step_s, *other) for other in on_card.others]
        host = "this host's as measured" if on_card.is_host_measured else "any host's"
        constants = f"{on_card.card}, constants of its data sheet and {host}"
        reasons.append(f"{step.step_s:.2f} s a step ({step.low_s:.2f} to {step.high_s:.2f}), simulated")
        reasons.append(f"bound by {LANES[step.bound_by]}")
    reasons.append(f"at most {plan.upper_bytes / GIB:.2f} of {plan.vram_bytes / GIB:.2f} GiB")
    return Chosen(
        setting=setting,
        by="settings" if is_told else "planner",
        text="; ".join([*reasons, constants]),
        others=others,
        device=device,
        constants=constants,
        predicted_step_s=step.step_s if step else None,
        low_s=step.low_s if step else None,
        high_s=step.high_s if step else None,
        bound_by=step.bound_by if step else None,
        upper_bytes=plan.upper_bytes,
        vram_bytes=plan.vram_bytes,
    )
