"""The five blocks that every module of the network is made of.

Linear maps have no bias and norms are RMS norms, so that a block's parameter count is a multiple of its width.

Shape suffixes: B batch, S tokens, Q learned queries, H heads, K head width, D width of a block, C width of a
context, E experts, F hidden units of a feed-forward, N any number of sequence positions.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from redheart.model.dims import num_heads


class Attention(nn.Module):
    """Multi-head attention of a sequence to a context (to itself, if the context is the sequence).

    Source: Vaswani et al. 2017; rotary positions: Su et al. 2021.
    """

    def __init__(self, width: int, *, query_width: int | None = None, context_width: int | None = None):
        super().__init__()
        self.heads = num_heads(width)
        self.query = nn.Linear(query_width or width, width, bias=False)
        self.key = nn.Linear(context_width or width, width, bias=False)
        self.value = nn.Linear(context_width or width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, queries_BND: Tensor, context_BNC: Tensor, *, bias_B11N: Tensor | None = None, turn: "Turn | None" = None
    ) -> Tensor:
        """Attend; `bias_B11N` says where the context may be read, `turn` what positions turn queries and keys by."""
        query_BHNK = self._split(self.query(queries_BND))
        key_BHNK = self._split(self.key(context_BNC))
        is_one_map = self.heads == 1 and maps_values_once(queries_BND, context_width=context_BNC.shape[-1])
        if is_one_map:
            value_BHNK = self._split(functional.linear(context_BNC, self.out.weight @ self.value.weight))
        else:
            value_BHNK = self._split(self.value(context_BNC))
        if turn is not None:
            # A sequence attends to itself: both are of one shape.
            query_BHNK, key_BHNK = rotate(torch.stack((query_BHNK, key_BHNK)), turn).unbind()
        mixed_BND = attend(query_BHNK, key_BHNK, value_BHNK, bias_B11N).transpose(1, 2).flatten(2)
        return mixed_BND if is_one_map else self.out(mixed_BND)

    def _split(self, states_BND: Tensor) -> Tensor:
        return states_BND.unflatten(-1, (self.heads, -1)).transpose(1, 2)


def maps_values_once(queries_BND: Tensor, *, context_width: int) -> bool:
    """Whether the output map of a single head is better taken to the value map: (P x V) O = P x (V O).

    It is less work with more queries than channels, and no more memory, for the product and its gradient, with twice as
    many. In bf16 the product would be rounded once more; on a card it was never measured. Only where gradients are
    wanted: what a record's predictions are must not depend on its batch mates.
    """
    if queries_BND.device.type != "cpu" or queries_BND.dtype == torch.bfloat16 or not torch.is_grad_enabled():
        return False
    return queries_BND.shape[:2].numel() > 2 * context_width


def readable(mask_BN: Tensor, *, like: Tensor) -> Tensor:
    """What is added to attention's scores, (B, 1, 1, N): nothing where the mask is True, -inf where it is False.

    Made once for all attentions: torch would make it of a mask in each of them.
    """
    bias_BN = torch.zeros_like(mask_BN, dtype=like.dtype).masked_fill(~mask_BN, -torch.inf)
    return bias_BN[:, None, None]


def attend(query_BHNK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, bias: Tensor | None) -> Tensor:
    """Scaled dot-product attention with a bias on the scores (see `readable`).

    In bf16 on the CPU it is spelled out: PyTorch's fused kernel takes 2.5 times as long there (64 records,
    128 tokens, forward and backward on 2 cores: 18.2 against 7.3 ms), most of it in the backward pass.
    """
    if query_BHNK.device.type != "cpu" or query_BHNK.dtype != torch.bfloat16:
        return functional.scaled_dot_product_attention(query_BHNK, key_BHSK, value_BHSK, attn_mask=bias)
    return spelled_out_attention(query_BHNK, key_BHSK, value_BHSK, bias)


def spelled_out_attention(query_BHNK: Tensor, key_BHSK: Tensor, value_BHSK: Tensor, bias: Tensor | None) -> Tensor:
    """Attention as two matrix products and a softmax, on any device."""
    scores_BHNS = (query_BHNK * query_BHNK.shape[-1] ** -0.5) @ key_BHSK.transpose(-1, -2)
    if bias is not None:
        scores_BHNS = scores_BHNS + bias
    return scores_BHNS.softmax(-1) @ value_BHSK


Turn = tuple[Tensor, Tensor]
"""What the positions of a sequence turn head channels by, (N, K) each: cosines, and sines with their signs."""


def turn_of(positions: int, width: int, *, like: Tensor) -> Turn:
    """The rotary embedding's angles, proportional to the position, for heads of this width; in the type of `like`."""
    pairs = torch.arange(width // 2, device=like.device, dtype=torch.float32)
    frequency = 10_000.0 ** (-pairs / (width // 2))
    angle_NP = torch.arange(positions, device=like.device, dtype=torch.float32)[:, None] * frequency
    cos_NP, sin_NP = angle_NP.cos().to(like.dtype), angle_NP.sin().to(like.dtype)
    return torch.cat((cos_NP, cos_NP), -1), torch.cat((-sin_NP, sin_NP), -1)


def rotate(states_2BHNK: Tensor, turn: Turn) -> Tensor:
    """Turn every pair of head channels of queries and keys, one of the first half with one of the second."""
    cos_NK, sin_NK = turn
    return torch.addcmul(states_2BHNK * cos_NK, states_2BHNK.roll(states_2BHNK.shape[-1] // 2, -1), sin_NK)


class FeedForward(nn.Module):
    """Two linear maps around a GELU."""

    def __init__(self, width: int, *, hidden: int):
        super().__init__()
        self.up = nn.Linear(width, hidden, bias=False)
        self.gelu = nn.GELU()
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, states_BND: Tensor) -> Tensor:
        return self.down(self.gelu(self.up(states_BND)))


class MixtureOfExperts(nn.Module):
    """Feed-forward experts, each weighted by a router's softmax at every position.

    All experts are evaluated (dense routing): every parameter learns from every record, nothing is dropped,
    and a record's output cannot depend on its batch mates as it does under a capacity limit.
    The experts lie side by side in one pair of matrices; `hidden` counts the units of one expert.
    """

    def __init__(self, width: int, *, hidden: int, experts: int):
        super().__init__()
        self.experts = experts
        self.router = nn.Linear(width, experts, bias=False)
        self.up = nn.Linear(width, experts * hidden, bias=False)
        self.gelu = nn.GELU()
        self.down = nn.Linear(experts * hidden, width, bias=False)

    def forward(self, states_BND: Tensor) -> Tensor:
        share_BNE = self.router(states_BND).softmax(-1)
        hidden_BNEF = self.gelu(self.up(states_BND)).unflatten(-1, (self.experts, -1))
        return self.down((hidden_BNEF * share_BNE[..., None]).flatten(-2))


class AttentionPool(nn.Module):
    """Learned queries that read a context: (B, N, C) -> (B, Q, D)."""

    def __init__(self, width: int, *, queries: int, context_width: int):
        super().__init__()
        self.queries = nn.Parameter(torch.empty(queries, width))
        self.attention = Attention(width, context_width=context_width)

    def forward(self, context_BNC: Tensor, *, bias_B11N: Tensor | None = None) -> Tensor:
        attention = self.attention
        if asks_few(context_BNC, queries=len(self.queries) * attention.heads, width=self.queries.shape[1]):
            query_HQK = attention.query(self.queries).unflatten(-1, (attention.heads, -1)).transpose(0, 1)
            mixed_BHQK = ask(query_HQK, attention.key.weight, attention.value.weight, context_BNC, bias_B11N)
            return self.queries + attention.out(mixed_BHQK.transpose(1, 2).flatten(2))
        queries_BQD = self.queries.expand(context_BNC.shape[0], -1, -1)
        return queries_BQD + attention(queries_BQD, context_BNC, bias_B11N=bias_B11N)


def pooled(pools: Sequence[AttentionPool], context_BNC: Tensor, *, bias_B11N: Tensor) -> Tensor:
    """What several pools of one query and one width read, side by side, (B, P, D): each product is one of all pools."""
    attentions = [pool.attention for pool in pools]
    heads = len(pools) * attentions[0].heads
    query_PD = torch.cat([pool.attention.query(pool.queries) for pool in pools])
    key_DC = torch.cat([item.key.weight for item in attentions])
    value_DC = torch.cat([item.value.weight for item in attentions])
    if asks_few(context_BNC, queries=heads, width=len(key_DC)):
        mixed_BHQK = ask(query_PD.view(heads, 1, -1), key_DC, value_DC, context_BNC, bias_B11N)
    else:
        query_BHQK = query_PD.view(1, heads, 1, -1).expand(len(context_BNC), -1, -1, -1)
        key_BHNK, value_BHNK = (
            functional.linear(context_BNC, weight_DC).unflatten(-1, (heads, -1)).transpose(1, 2)
            for weight_DC in (key_DC, value_DC)
        )
        mixed_BHQK = attend(query_BHQK, key_BHNK, value_BHNK, bias_B11N)
    mixed_PBD = mixed_BHQK.reshape(len(context_BNC), len(pools), -1).transpose(0, 1)
    out_PDD = torch.stack([item.out.weight for item in attentions])
    return (torch.cat([pool.queries for pool in pools])[:, None] + mixed_PBD @ out_PDD.mT).transpose(0, 1)


def asks_few(context_BNC: Tensor, *, queries: int, width: int) -> bool:
    """Whether `ask` is the shorter way: fewer queries of all heads than channels. On a card it was never measured."""
    return context_BNC.device.type == "cpu" and queries < width


def ask(query_HQK: Tensor, key_DC: Tensor, value_DC: Tensor, context_BNC: Tensor, bias_B11N: Tensor | None) -> Tensor:
    """Attention of queries that are the same for every record, (B, H, Q, K), without keys and values of the context.

    By associativity, q (W x) = (q W) x: the key map is taken to the few queries, the value map to the few that were
    read (as in DeepSeek-AI 2024, multi-head latent attention). Equal to `attend` but for rounding, and for records
    without a token, which are NaN.
    """
    heads, queries, head_width = query_HQK.shape
    asked_HQC = (query_HQK * head_width**-0.5) @ key_DC.unflatten(0, (heads, -1))
    scores_BHQN = (context_BNC @ asked_HQC.flatten(0, 1).T).transpose(1, 2).unflatten(1, (heads, -1))
    if bias_B11N is not None:
        scores_BHQN = scores_BHQN + bias_B11N
    read_BHQC = (scores_BHQN.softmax(-1).flatten(1, 2) @ context_BNC).unflatten(1, (heads, -1))
    # A head's records side by side: as a batched product of records the value map would be spread over all of them.
    mixed_HXK = read_BHQC.transpose(0, 1).flatten(1, 2) @ value_DC.unflatten(0, (heads, -1)).mT
    return mixed_HXK.unflatten(1, (-1, queries)).transpose(0, 1)


class Layer(nn.Module):
    """Pre-norm transformer layer: self-attention, then feed-forward, each added to the residual stream."""

    def __init__(self, width: int, *, hidden: int, dropout: float = 0.0):
        super().__init__()
        self.checkpointing = False
        self.attention_norm = nn.RMSNorm(width, eps=1e-6)
        self.attention = Attention(width)
        self.forward_norm = nn.RMSNorm(width, eps=1e-6)
        self.feed_forward = FeedForward(width, hidden=hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(self, states_BND: Tensor, *, bias_B11N: Tensor | None = None, turn: Turn | None = None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            # Where nothing is drawn the generator's state is left alone, which a CUDA graph could not read.
            draws = self.dropout.p > 0
            return checkpoint(self._compute, states_BND, bias_B11N, turn, use_reentrant=False, preserve_rng_state=draws)
        return self._compute(states_BND, bias_B11N, turn)

    def _compute(self, states_BND: Tensor, bias_B11N: Tensor | None, turn: Turn | None) -> Tensor:
        normed_BND = self.attention_norm(states_BND)
        attended_BND = self.attention(normed_BND, normed_BND, bias_B11N=bias_B11N, turn=turn)
        states_BND = states_BND + self.dropout(attended_BND)
        return states_BND + self.dropout(self.feed_forward(self.forward_norm(states_BND)))


def set_checkpointing(module: nn.Module, enabled: bool) -> None:
    """Recompute the activations of every `Layer` below `module` in the backward pass, or keep them."""
    for layer in module.modules():
        if isinstance(layer, Layer):
            layer.checkpointing = enabled
