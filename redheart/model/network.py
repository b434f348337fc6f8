"""The assembled network: which module reads what, in one page.

Shape suffixes: B batch, S tokens, W backbone width, O outputs of a task, P vectors.
"""

import math

import torch
from torch import Tensor, nn

from redheart.core.seeds import stream_seed
from redheart.model.dims import TASKS, ModelDims
from redheart.model.modules import (
    AdvancedAnalyzer,
    Backbone,
    CommunityNetwork,
    EmotionCalibrator,
    EmotionDSP,
    EmotionKalman,
    EmpathyLearner,
    Head,
    NeuralAnalyzer,
    NeuralEmotionAnalyzer,
    Trunk,
)

# Task states, neural and advanced experts, the DSP's expert, and the vectors of the two relating phases.
NUM_VECTORS = 3 * len(TASKS) + 3


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
        states_BSW, pooled_BPW = self.backbone(features_BSD, mask_BS)
        logits: dict[str, Tensor] = {}
        experts: dict[str, Tensor] = {}
        trajectory_BSO = None
        for task in TASKS:
            neural, advanced = self.neural[task], self.advanced[task]
            expert_BW, prediction_BO, thoughts_BQD = neural(states_BSW, mask_BS)
            if isinstance(neural, NeuralEmotionAnalyzer):
                trajectory_BSO = neural.trajectory(states_BSW, thoughts_BQD)
            experts[f"neural.{task}"], logits[f"neural.{task}"] = expert_BW, prediction_BO
            experts[f"advanced.{task}"], logits[f"advanced.{task}"] = advanced(
                states_BSW, mask_BS, expert_BW=expert_BW, prediction_BO=prediction_BO
            )
        experts["signal.dsp"], logits["signal.dsp"], filtered_BSO = self.signal["dsp"](trajectory_BSO, mask_BS)
        logits["signal.kalman"] = self.signal["kalman"](trajectory_BSO, filtered_BSO, mask_BS)
        emotion_context_BW = pooled_BPW[:, TASKS.index("emotion")]
        logits["phases.calibrator"] = self.phases["calibrator"](logits["signal.kalman"], emotion_context_BW)

        experts_BPW = torch.stack(list(experts.values()), dim=1)
        relations_BPW = torch.stack([self.phases[name](experts_BPW) for name in ("empathy", "community")], dim=1)
        vectors_BPW = torch.cat((pooled_BPW, experts_BPW, relations_BPW), dim=1)
        emotion_BO = logits["phases.calibrator"].softmax(-1)
        trunk_BPW = self.heads["trunk"](vectors_BPW, emotion_BO)
        for index, task in enumerate(TASKS):
            logits[f"heads.{task}"] = self.heads[task](trunk_BPW[:, index], trunk_BPW)
        return {
            name: value.float() if task_of(name) == "emotion" else value.float().sigmoid()
            for name, value in logits.items()
        }


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
