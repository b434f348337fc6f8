"""The way to train that a card is found to take best, and why: for a run's log, its report and who looks on."""

import dataclasses

import torch

from redheart.core.config import StudyConfig, resolved
from redheart.core.ranks import launched
from redheart.core.units import GIB
from redheart.memory.cards import known
from redheart.memory.plan import COMFORT_SHARE
from redheart.study.outlook import timings
from redheart.study.outlook.plan_output import LANES, other_line
from redheart.study.outlook.planning import answer
from redheart.train.choice import Choice
from redheart.train.log.pace import Expected
from redheart.train.settings import Chosen


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


def expected(config: StudyConfig, chosen: Chosen | None, *, ranks: int, num_validation: int) -> Expected | None:
    """What a run is expected to take: by earlier runs here, else by the simulation of the card that is here."""
    found = timings.expected(config, ranks=ranks, num_validation=num_validation)
    if found or chosen is None or chosen.predicted_step_s is None:
        return found
    return Expected(chosen.predicted_step_s, None, f"simulated, {chosen.constants}")


def _chosen(found: Choice, *, device: str, is_told: bool) -> Chosen:
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
