"""The modules of the network, each a small composition of the blocks.

Shape suffixes as in `blocks`; W backbone width, O outputs of a task, P pooled or expert vectors, K filter bands.
Emotion predictions are logits; all other predictions are logits too until `network` maps them into 0-1.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from redheart.core.config import FEATURE_WIDTH
from redheart.model.blocks import Attention, AttentionPool, FeedForward, Layer, MixtureOfExperts, pooled, turn_of
from redheart.model.dims import TASKS, HeadDims, ModelDims, ReaderDims, num_heads


class Backbone(nn.Module):
    """Features (B, S, 768) -> token states (B, S, W) and one pooled state per task (B, 4, W)."""

    def __init__(self, dims: ModelDims):
        super().__init__()
        width = dims.width
        self.head_width = width // num_heads(width)
        self.project = nn.Linear(FEATURE_WIDTH, width)
        self.layers = nn.ModuleList(Layer(width, hidden=dims.hidden, dropout=dims.dropout) for _ in range(dims.layers))
        self.token_norm = nn.RMSNorm(width, eps=1e-6)
        self.pools = nn.ModuleDict({task: AttentionPool(width, queries=1, context_width=width) for task in TASKS})
        self.pool_norm = nn.RMSNorm(width, eps=1e-6)
        self.pool_gain = nn.Parameter(torch.empty(len(TASKS)))

    def forward(self, features_BSC: Tensor, bias_B11S: Tensor) -> tuple[Tensor, Tensor]:
        states_BSW = self.project(features_BSC)
        turn = turn_of(states_BSW.shape[1], self.head_width, like=states_BSW)
        for layer in self.layers:
            states_BSW = layer(states_BSW, bias_B11N=bias_B11S, turn=turn)
        states_BSW = self.token_norm(states_BSW)
        pooled_BPW = pooled([self.pools[task] for task in TASKS], states_BSW, bias_B11N=bias_B11S)  # type: ignore[misc]
        return states_BSW, self.pool_norm(pooled_BPW) * self.pool_gain[:, None]


class NeuralAnalyzer(nn.Module):
    """Reads the token states for one task: an expert vector (B, W), a prediction (B, O), its thoughts (B, Q, D)."""

    def __init__(self, dims: ReaderDims, *, states_width: int, outputs: int, dropout: float):
        super().__init__()
        self.read = AttentionPool(dims.width, queries=dims.queries, context_width=states_width)
        self.layers = nn.ModuleList(Layer(dims.width, hidden=dims.hidden, dropout=dropout) for _ in range(dims.layers))
        self.norm = nn.RMSNorm(dims.width, eps=1e-6)
        self.expert = nn.Linear(dims.width, states_width, bias=False)
        self.predict = nn.Linear(dims.width, outputs)

    def forward(self, states_BSW: Tensor, bias_B11S: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        thoughts_BQD = self.read(states_BSW, bias_B11N=bias_B11S)
        for layer in self.layers:
            thoughts_BQD = layer(thoughts_BQD)
        thoughts_BQD = self.norm(thoughts_BQD)
        summary_BD = thoughts_BQD.mean(1)
        return self.expert(summary_BD), self.predict(summary_BD), thoughts_BQD


class NeuralEmotionAnalyzer(NeuralAnalyzer):
    """A neural analyzer that can also tell the emotion at every token."""

    def __init__(self, dims: ReaderDims, *, states_width: int, outputs: int, dropout: float):
        super().__init__(dims, states_width=states_width, outputs=outputs, dropout=dropout)
        self.trace = Attention(dims.width, query_width=states_width)
        self.trace_norm = nn.RMSNorm(dims.width, eps=1e-6)

    def trajectory(self, states_BSW: Tensor, thoughts_BQD: Tensor) -> Tensor:
        """Emotion logits of every token, (B, S, O): the tokens ask the thoughts, the common map predicts."""
        return self.predict(self.trace_norm(self.trace(states_BSW, thoughts_BQD)))


class AdvancedAnalyzer(nn.Module):
    """Reads the token states and its neural counterpart's expert vector; refines both expert and prediction."""

    def __init__(self, dims: ReaderDims, *, states_width: int, outputs: int, dropout: float):
        super().__init__()
        self.condition = nn.Linear(states_width, dims.width, bias=False)
        self.analyzer = NeuralAnalyzer(dims, states_width=states_width, outputs=outputs, dropout=dropout)

    def forward(
        self, states_BSW: Tensor, bias_B11S: Tensor, *, expert_BW: Tensor, prediction_BO: Tensor
    ) -> tuple[Tensor, Tensor]:
        analyzer = self.analyzer
        queries_BQD = analyzer.read(states_BSW, bias_B11N=bias_B11S)
        thoughts_BQD = torch.cat((self.condition(expert_BW)[:, None], queries_BQD), dim=1)
        for layer in analyzer.layers:
            thoughts_BQD = layer(thoughts_BQD)
        summary_BD = analyzer.norm(thoughts_BQD).mean(1)
        return expert_BW + analyzer.expert(summary_BD), prediction_BO + analyzer.predict(summary_BD)


class EmotionDSP(nn.Module):
    """Treats the emotion trajectory as a signal: a learned filter bank, its envelope, and what they say.

    The bank starts as Gabor atoms at log-spaced frequencies. It is short (`taps`), so that the value at a token
    does not depend on the padding behind it.
    """

    def __init__(self, dims: ModelDims):
        super().__init__()
        outputs = dims.num_outputs("emotion")
        self.bands = nn.Conv1d(outputs, 2 * dims.dsp_bands, dims.dsp_taps, padding="same", bias=False)
        self.filtered = nn.Linear(dims.dsp_bands, outputs, bias=False)
        self.mix = nn.Linear(2 * dims.dsp_bands, dims.dsp_width, bias=False)
        self.norm = nn.RMSNorm(dims.dsp_width, eps=1e-6)
        self.feed_forward = FeedForward(dims.dsp_width, hidden=dims.dsp_hidden)
        self.expert = nn.Linear(dims.dsp_width, dims.width, bias=False)
        self.predict = nn.Linear(dims.dsp_width, outputs)

    def start(self, generator: torch.Generator) -> None:
        """Set the filters to Gabor atoms of random gain per emotion."""
        bands, taps = self.bands.out_channels // 2, self.bands.kernel_size[0]
        time = torch.arange(taps) - taps // 2
        frequency = torch.logspace(math.log10(1 / taps), math.log10(0.5), bands)
        window = torch.exp(-0.5 * (time / (taps / 4)) ** 2)
        phase = 2 * math.pi * frequency[:, None] * time
        atoms = torch.cat((phase.cos() * window, phase.sin() * window))
        gain = torch.randn(2 * bands, self.bands.in_channels, generator=generator)
        with torch.no_grad():
            self.bands.weight.copy_(gain[:, :, None] * atoms[:, None] / math.sqrt(taps * self.bands.in_channels))

    def forward(self, trajectory_BSO: Tensor, mask_BS: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Expert vector (B, W), emotion prediction (B, O) and the filtered trajectory (B, S, O)."""
        signal_BSO = trajectory_BSO.softmax(-1) * mask_BS[..., None]
        real_BKS, imaginary_BKS = self.bands(signal_BSO.transpose(1, 2)).chunk(2, dim=1)
        # The small constant keeps the gradient of the root finite where a band is silent.
        envelope_BSK = (real_BKS.square() + imaginary_BKS.square() + 1e-6).sqrt().transpose(1, 2)
        envelope_BSK = envelope_BSK * mask_BS[..., None]
        mean_BK = envelope_BSK.sum(1) / mask_BS.sum(1, keepdim=True)
        spectrum_BK = torch.cat((mean_BK, envelope_BSK.amax(1)), dim=-1)
        mixed_BD = self.mix(spectrum_BK)
        summary_BD = self.norm(mixed_BD + self.feed_forward(mixed_BD))
        return self.expert(summary_BD), self.predict(summary_BD), trajectory_BSO + self.filtered(envelope_BSK)


class EmotionCalibrator(nn.Module):
    """Phase 0: corrects the fused emotion prediction given the context."""

    def __init__(self, dims: ModelDims):
        super().__init__()
        outputs = dims.num_outputs("emotion")
        self.up = nn.Linear(dims.width + outputs, dims.calibrator_hidden)
        self.down = nn.Linear(dims.calibrator_hidden, outputs)

    def forward(self, prediction_BO: Tensor, context_BW: Tensor) -> Tensor:
        joined_BD = torch.cat((prediction_BO, context_BW), dim=-1)
        return prediction_BO + self.down(functional.gelu(self.up(joined_BD)))


class EmpathyLearner(nn.Module):
    """Phase 1: one narrow query relates the expert vectors of the other modules: (B, P, W) -> (B, W)."""

    def __init__(self, dims: ModelDims):
        super().__init__()
        width = dims.empathy_width
        self.pool = AttentionPool(width, queries=1, context_width=dims.width)
        self.expert = nn.Linear(width, dims.width, bias=False)

    def forward(self, experts_BPW: Tensor) -> Tensor:
        return self.expert(self.pool(experts_BPW)[:, 0])


class CommunityNetwork(nn.Module):
    """Phase 2: the expert vectors talk to each other in a narrow transformer layer: (B, P, W) -> (B, W)."""

    def __init__(self, dims: ModelDims):
        super().__init__()
        width = dims.community_width
        self.enter = nn.Linear(dims.width, width, bias=False)
        self.layer = Layer(width, hidden=dims.community_hidden, dropout=dims.dropout)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.expert = nn.Linear(width, dims.width, bias=False)

    def forward(self, experts_BPW: Tensor) -> Tensor:
        return self.expert(self.norm(self.layer(self.enter(experts_BPW))).mean(1))


class Trunk(nn.Module):
    """The shared part of the heads: task states, expert vectors and registers attend to each other."""

    def __init__(self, dims: ModelDims, *, num_vectors: int):
        super().__init__()
        width = dims.width
        self.embed_emotion = nn.Linear(dims.num_outputs("emotion"), width)
        self.kinds = nn.Parameter(torch.empty(num_vectors + 1, width))
        self.registers = nn.Parameter(torch.empty(dims.trunk_registers, width))
        self.layers = nn.ModuleList(
            Layer(width, hidden=dims.trunk_hidden, dropout=dims.dropout) for _ in range(dims.trunk_layers)
        )
        self.norm = nn.RMSNorm(width, eps=1e-6)

    def forward(self, vectors_BPW: Tensor, emotion_BO: Tensor) -> Tensor:
        """All vectors after they met, (B, P + 1 + registers, W), in the order in which they came."""
        emotion_B1W = self.embed_emotion(emotion_BO)[:, None]
        named_BPW = torch.cat((vectors_BPW, emotion_B1W), dim=1) + self.kinds
        states_BPW = torch.cat((named_BPW, self.registers.expand(len(vectors_BPW), -1, -1)), dim=1)
        for layer in self.layers:
            states_BPW = layer(states_BPW)
        return self.norm(states_BPW)


class Head(nn.Module):
    """Reads its task's state against everything in the trunk and gives the final prediction."""

    def __init__(self, dims: HeadDims, *, width: int, outputs: int):
        super().__init__()
        self.attention = Attention(width)
        self.mixture_norm = nn.RMSNorm(width, eps=1e-6)
        self.mixture = MixtureOfExperts(width, hidden=dims.hidden, experts=dims.experts)
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.predict = nn.Linear(width, outputs)

    def forward(self, state_BW: Tensor, trunk_BPW: Tensor) -> Tensor:
        state_B1W = state_BW[:, None]
        state_B1W = state_B1W + self.attention(state_B1W, trunk_BPW)
        state_B1W = state_B1W + self.mixture(self.mixture_norm(state_B1W))
        return self.predict(self.norm(state_B1W[:, 0]))
