"""Attention of few queries without keys and values of the context: what it gives is that of the textbook's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from redheart.model import blocks
from redheart.model.blocks import Attention, AttentionPool, pooled, readable, rotate, turn_of


def _drawn(pools: list[AttentionPool]) -> list[AttentionPool]:
    for parameter in [item for pool in pools for item in pool.parameters()]:
        torch.nn.init.normal_(parameter)
    return [pool.double() for pool in pools]


def _with_gradients(result: torch.Tensor, modules: list[nn.Module], context: torch.Tensor) -> list[torch.Tensor]:
    weights = torch.sin(torch.arange(result.numel(), dtype=result.dtype)).view_as(result)
    inputs = [context, *(item for module in modules for item in module.parameters())]
    return [result, *torch.autograd.grad((result * weights).sum(), inputs)]


@given(heads=st.sampled_from([1, 2, 4]), queries=st.integers(1, 3), pools=st.integers(1, 3), seed=st.integers(0, 99))
def test_few_queries_read_what_the_textbook_s_attention_reads(heads, queries, pools, seed) -> None:
    torch.manual_seed(seed)
    context = torch.randn(3, 9, 12, dtype=torch.float64, requires_grad=True)
    bias = readable(torch.tensor([[True] * 9, [True] * 4 + [False] * 5, [True] + [False] * 8]), like=context)
    made = _drawn([AttentionPool(64 * heads, queries=queries, context_width=12) for _ in range(pools)])
    one = _drawn([AttentionPool(64 * heads, queries=1, context_width=12) for _ in range(pools)])
    ways = []
    for few in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(blocks, "asks_few", lambda *_, few=few, **__: few)
            ways.append(
                _with_gradients(made[0](context, bias_B11N=bias), made[:1], context)
                + _with_gradients(made[0](context), made[:1], context)
                + _with_gradients(pooled(one, context, bias_B11N=bias), one, context)
            )
    for ours, theirs in zip(*ways, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("queries", "wanted"), [(2, []), (64, ["key", "value"])])
def test_keys_and_values_of_the_context_are_made_where_the_queries_are_many(queries: int, wanted: list[str]) -> None:
    pool = AttentionPool(128, queries=queries, context_width=12)
    torch.nn.init.normal_(pool.queries)
    made: list[str] = []
    for name in ("key", "value"):
        pool.attention.get_submodule(name).register_forward_hook(lambda *_, name=name: made.append(name))
    pool(torch.randn(3, 9, 12))
    assert made == wanted


@pytest.mark.parametrize("turns", [False, True])
def test_one_head_with_one_map_of_values_is_the_textbook_s(turns: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(24).double()
    states = torch.randn(6, 9, 24, dtype=torch.float64, requires_grad=True)
    turn = turn_of(9, 24, like=states) if turns else None
    mask = torch.tensor([[True] * 9, [True] * 4 + [False] * 5, [True] + [False] * 8])
    bias = readable(mask.repeat(2, 1), like=states)
    query, key, value = (getattr(attention, name)(states)[:, None] for name in ("query", "key", "value"))
    if turn:
        query, key = rotate(torch.stack((query, key)), turn).unbind()
    mixed = (query @ key.mT / 24**0.5 + bias).softmax(-1) @ value
    textbook = _with_gradients(attention.out(mixed[:, 0]), [attention], states)
    mapped: list[object] = []
    attention.out.register_forward_hook(lambda *_: mapped.append(1))
    ours = _with_gradients(attention(states, states, bias_B11N=bias, turn=turn), [attention], states)
    torch.testing.assert_close(ours, textbook, rtol=1e-10, atol=1e-10)
    assert not mapped
    # With so few queries it would be more memory, in bf16 the product would be rounded.
    attention(states[:5], states[:5], bias_B11N=bias[:5], turn=turn)
    assert len(mapped) == 1
    attention.bfloat16()(states.bfloat16(), states.bfloat16(), bias_B11N=bias.bfloat16())
    assert len(mapped) == 2
