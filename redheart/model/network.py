"""The assembled network: which module reads what, in one page.

Shape suffixes: B batch, S tokens, W backbone width, O outputs of a task, P vectors.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from redheart.core.seeds import stream_seed
from redheart.model.blocks import readable
from redheart.model.dims import TASKS, ModelDims
from redheart.model.kalman import EmotionKalman
from redheart.model.modules import (
    AdvancedAnalyzer,
    Backbone,
    CommunityNetwork,
    EmotionCalibrator,
    EmotionDSP,
    EmpathyLearner,
    Head,
    NeuralAnalyzer,
    NeuralEmotionAnalyzer,
    Trunk,
)

# Task states, neural and advanced experts, the DSP's expert, and the vectors of the two relating phases.
NUM_VECTORS = 3 * len(TASKS) + 3
RELATIONS = ("phases.empathy", "phases.community")

Signals = dict[str, Tensor]
"""What a node hands on, by kind: `states` (B, S, W), `vectors` (B, P, W), `expert` (B, W), `prediction` (B, O),
`trajectory` (B, S, O) and `readable`, the bias of attention that hides the padding, (B, 1, 1, S)."""


def _wiring() -> dict[str, tuple[str, ...]]:
    nodes: dict[str, tuple[str, ...]] = {"backbone": ()}
    for task in TASKS:
        nodes[f"neural.{task}"] = ("backbone",)
        nodes[f"advanced.{task}"] = ("backbone", f"neural.{task}")
    experts = tuple(name for name in nodes if name != "backbone")
    nodes["signal.dsp"] = ("neural.emotion",)
    nodes["signal.kalman"] = ("neural.emotion", "signal.dsp")
    nodes["phases.calibrator"] = ("backbone", "signal.kalman")
    nodes["experts"] = (*experts, "signal.dsp")
    nodes |= {name: ("experts",) for name in RELATIONS}
    nodes["heads.trunk"] = ("backbone", "experts", "phases.calibrator", *RELATIONS)
    return nodes | {f"heads.{task}": ("heads.trunk",) for task in TASKS}


WIRING = _wiring()
"""What every node reads, in the order in which they run. All are modules but `experts`, which joins vectors."""


class RedHeart(nn.Module):
    """Multi-task emotion model over frozen token features.

    The module tree is the list of module groups: `backbone`, `heads.*`, `neural.*`, `advanced.*`, `signal.*`
    and `phases.*`; a prediction carries the dotted name of the module that made it.
    """

    def __init__(self, dims: ModelDims):
        super().__init__()
        self.dims = dims
        width, dropout = dims.width, dims.dropout
        self.backbone = Backbone(dims)
        neural: dict[str, nn.Module] = {}
        advanced: dict[str, nn.Module] = {}
        heads: dict[str, nn.Module] = {}
        for index, task in enumerate(TASKS):
            outputs = dims.outputs[index]
            analyzer = NeuralEmotionAnalyzer if task == "emotion" else NeuralAnalyzer
            neural[task] = analyzer(dims.neural[index], states_width=width, outputs=outputs, dropout=dropout)
            advanced[task] = AdvancedAnalyzer(
                dims.advanced[index], states_width=width, outputs=outputs, dropout=dropout
            )
            heads[task] = Head(dims.heads[index], width=width, outputs=outputs)
        heads["trunk"] = Trunk(dims, num_vectors=NUM_VECTORS)
        self.neural = nn.ModuleDict(neural)
        self.advanced = nn.ModuleDict(advanced)
        self.signal = nn.ModuleDict({"dsp": EmotionDSP(dims), "kalman": EmotionKalman(dims.num_outputs("emotion"))})
        self.phases = nn.ModuleDict(
            {
                "calibrator": EmotionCalibrator(dims),
                "empathy": EmpathyLearner(dims),
                "community": CommunityNetwork(dims),
            }
        )
        self.heads = nn.ModuleDict(heads)

    def forward(self, features_BSD: Tensor, mask_BS: Tensor) -> dict[str, Tensor]:
        """Predict from features (B, S, 768) and their mask (True = real token, padding on the right).

        Returns:
            By name of the predicting module: emotion logits (B, 7), other tasks' values in 0-1 (B, O), float32.
        """
        read: dict[str, Signals] = {}
        for node in WIRING:
            read[node] = self.compute(node, features_BSD, mask_BS, read)
        return {name: as_prediction(name, signals) for name, signals in read.items() if "prediction" in signals}

    def compute(self, node: str, features_BSD: Tensor, mask_BS: Tensor, read: Mapping[str, Signals]) -> Signals:
        """What one node of `WIRING` makes of what it reads; `read` holds at least the signals of `WIRING[node]`."""
        if node == "experts":
            return {"vectors": torch.stack([read[name]["expert"] for name in WIRING[node]], dim=1)}
        module = self.get_submodule(node)
        part, _, task = node.partition(".")
        if part == "backbone":
            bias_B11S = readable(mask_BS, like=features_BSD)
            states_BSW, pooled_BPW = module(features_BSD, bias_B11S)
            return {"states": states_BSW, "vectors": pooled_BPW, "readable": bias_B11S}
        if part == "neural":
            states_BSW = read["backbone"]["states"]
            expert_BW, prediction_BO, thoughts_BQD = module(states_BSW, read["backbone"]["readable"])
            signals = {"expert": expert_BW, "prediction": prediction_BO}
            if isinstance(module, NeuralEmotionAnalyzer):
                signals["trajectory"] = module.trajectory(states_BSW, thoughts_BQD)
            return signals
        if part == "advanced":
            neural, backbone = read[f"neural.{task}"], read["backbone"]
            expert_BW, prediction_BO = module(
                backbone["states"], backbone["readable"], expert_BW=neural["expert"], prediction_BO=neural["prediction"]
            )
            return {"expert": expert_BW, "prediction": prediction_BO}
        if node == "signal.dsp":
            expert_BW, prediction_BO, filtered_BSO = module(read["neural.emotion"]["trajectory"], mask_BS)
            return {"expert": expert_BW, "prediction": prediction_BO, "trajectory": filtered_BSO}
        if node == "signal.kalman":
            pair = (read["neural.emotion"]["trajectory"], read["signal.dsp"]["trajectory"])
            return {"prediction": module(*pair, mask_BS)}
        if node == "phases.calibrator":
            emotion_context_BW = read["backbone"]["vectors"][:, TASKS.index("emotion")]
            return {"prediction": module(read["signal.kalman"]["prediction"], emotion_context_BW)}
        if part == "phases":
            return {"expert": module(read["experts"]["vectors"])}
        if node == "heads.trunk":
            relations_BPW = torch.stack([read[name]["expert"] for name in RELATIONS], dim=1)
            vectors_BPW = torch.cat((read["backbone"]["vectors"], read["experts"]["vectors"], relations_BPW), dim=1)
            emotion_BO = read["phases.calibrator"]["prediction"].softmax(-1)
            return {"vectors": module(vectors_BPW, emotion_BO)}
        trunk_BPW = read["heads.trunk"]["vectors"]
        return {"prediction": module(trunk_BPW[:, TASKS.index(task)], trunk_BPW)}


def as_prediction(name: str, signals: Signals) -> Tensor:
    """A node's prediction as the network gives it: emotion logits, values in 0-1, float32."""
    value = signals["prediction"].float()
    return value if task_of(name) == "emotion" else value.sigmoid()


def task_of(predictor: str) -> str:
    """The task that a predicting module belongs to: `advanced.regret` -> `regret`, `signal.*` -> `emotion`."""
    task = predictor.rpartition(".")[2]
    return task if task in TASKS else "emotion"


def build(dims: ModelDims, *, seed: int, device: str = "cpu") -> RedHeart:
    """A model with initial weights drawn from the seed; on the device `meta` nothing is allocated or drawn."""
    with torch.device("meta"):
        model = RedHeart(dims)
    if device == "meta":
        return model
    model.to_empty(device=device)
    initialise(model, seed=seed)
    return model


def initialise(model: RedHeart, *, seed: int) -> None:
    """Draw all weights: N(0, 1/fan_in) for linear maps, ones for norms, small queries.

    Maps that add to a residual stream are divided by the root of twice the depth (GPT-2's rule).
    Every module has a stream of its own, so that changing one leaves the others' weights alone.
    """
    for name, module in model.named_modules():
        generator = torch.Generator().manual_seed(stream_seed(seed, "init", name))
        for part, parameter in module.named_parameters(recurse=False):
            with torch.no_grad():
                if isinstance(module, nn.RMSNorm) or part == "pool_gain":
                    parameter.fill_(1.0)
                elif part == "bias":
                    parameter.zero_()
                elif isinstance(module, nn.Linear | nn.Conv1d):
                    fan_in = parameter[0].numel()
                    depth = 2 * model.dims.layers if name.endswith((".out", ".down")) else 1
                    parameter.normal_(0.0, 1 / math.sqrt(fan_in * depth), generator=generator)
                else:
                    parameter.normal_(0.0, 0.5, generator=generator)
    # After the loop, since a module's children come behind it and would overwrite what it has set.
    for name, module in model.named_modules():
        if isinstance(module, EmotionDSP | EmotionKalman):
            module.start(torch.Generator().manual_seed(stream_seed(seed, "start", name)))
