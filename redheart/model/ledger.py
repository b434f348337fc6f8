"""Which parameters belong to which module, and the printed table that the full model must match."""

import json
from dataclasses import dataclass

from torch import nn

from redheart.core.errors import RedHeartError
from redheart.model.dims import preset
from redheart.model.network import RedHeart, build

FULL_TOTAL = 730_466_848
FULL_BACKBONE = 90_624_132

# Dotted module name -> (name in the design, its printed count).
PRINTED = {
    "backbone": ("RedHeartUnifiedBackbone", "90.6M"),
    "heads.emotion": ("EmotionHead", "17.3M"),
    "heads.bentham": ("BenthamHead", "13.9M"),
    "heads.regret": ("RegretHead", "19.9M"),
    "heads.surd": ("SURDHead", "12.0M"),
    "heads.trunk": ("shared cross-task trunk", "90.0M"),
    "neural.emotion": ("NeuralEmotionAnalyzer", "122.6M"),
    "neural.bentham": ("NeuralBenthamCalculator", "78.3M"),
    "neural.regret": ("NeuralRegretAnalyzer", "153.9M"),
    "neural.surd": ("NeuralSURDAnalyzer", "13.5M"),
    "advanced.emotion": ("AdvancedEmotionAnalyzer", "63.0M"),
    "advanced.regret": ("AdvancedRegretAnalyzer", "44.2M"),
    "advanced.bentham": ("AdvancedBenthamCalculator", "2.5M"),
    "advanced.surd": ("AdvancedSURDAnalyzer", "2.2M"),
    "signal.dsp": ("EmotionDSPSimulator", "2.3M"),
    "signal.kalman": ("DynamicKalmanFilter", "0.7K"),
    "phases.calibrator": ("Phase0EmotionCalibrator", "2.0M"),
    "phases.empathy": ("Phase1EmpathyLearner", "0.2M"),
    "phases.community": ("Phase2CommunityNetwork", "2.1M"),
}
PRINTED_GROUPS = {"heads": "153.1M", "neural": "368.3M", "advanced": "111.9M", "signal": "2.3M", "phases": "4.3M"}


@dataclass(frozen=True)
class Ledger:
    """Number of parameters per module, in the order of the printed table, and in all."""

    modules: dict[str, int]
    total: int

    @property
    def groups(self) -> dict[str, int]:
        """Number of parameters per top-level part of the network."""
        sums: dict[str, int] = {}
        for name, count in self.modules.items():
            group = name.partition(".")[0]
            sums[group] = sums.get(group, 0) + count
        return sums


def module_names(model: nn.Module) -> list[str]:
    """Dotted names of the module groups: each child, or its entries where the child is a plain `ModuleDict`."""
    names = []
    for name, child in model.named_children():
        names += [f"{name}.{key}" for key in child] if isinstance(child, nn.ModuleDict) else [name]
    return names


def count(model: RedHeart) -> Ledger:
    """Count the parameters of a model, on any device, `meta` included."""
    sizes = {
        name: sum(parameter.numel() for parameter in model.get_submodule(name).parameters())
        for name in module_names(model)
    }
    total = sum(parameter.numel() for parameter in model.parameters())
    return Ledger({name: sizes[name] for name in PRINTED}, total)


def rounded(number: int) -> str:
    """A count as the design prints it: 17.3M, 0.7K."""
    return f"{number / 1e6:.1f}M" if number >= 50_000 else f"{number / 1e3:.1f}K"


def check_full(ledger: Ledger) -> None:
    """Hold the full model against the printed table.

    Raises:
        RedHeartError: a row, a group or the total is off; all of them are named.
    """
    rows = {name: (ledger.modules[name], text) for name, (_, text) in PRINTED.items()}
    rows |= {name: (ledger.groups[name], text) for name, text in PRINTED_GROUPS.items()}
    wrong = [f"{name}: {size:,} is not {text}" for name, (size, text) in rows.items() if rounded(size) != text]
    exact = {"total": (ledger.total, FULL_TOTAL), "backbone": (ledger.modules["backbone"], FULL_BACKBONE)}
    wrong += [f"{name}: {size:,} is not {right:,}" for name, (size, right) in exact.items() if size != right]
    if wrong:
        raise RedHeartError("the model does not match its ledger", got="; ".join(wrong))


def ledger_text(name: str, *, as_json: bool) -> str:
    """The ledger of a preset, built on `meta` so that nothing is allocated.

    Raises:
        RedHeartError: the preset is `full` and a row is off.
    """
    ledger = count(build(preset(name), seed=0, device="meta"))
    if name == "full":
        check_full(ledger)
    if as_json:
        return json.dumps({"preset": name, "total": ledger.total, "groups": ledger.groups, "modules": ledger.modules})
    lines = [f"{'module':<22}{'in the design':<28}{'parameters':>14}  printed"]
    for module, (title, _) in PRINTED.items():
        lines.append(f"{module:<22}{title:<28}{ledger.modules[module]:>14,}  {rounded(ledger.modules[module])}")
    lines.append(f"{'total':<50}{ledger.total:>14,}  {rounded(ledger.total)}")
    return "\n".join(lines)
