"""Attention of grouped queries without repeated keys: the heads that share a key head become its further queries.

transformers repeats keys and values for every query head before it calls PyTorch, which on a CPU takes three to forty times
as long as the attention itself at 32 rows (`use_grouped_attention` gives the same numbers without).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from depthdial.hf.attention import WITHOUT_EFFECT, stock_attention, use_attention

# More tokens than these are prompts, where repeating keys takes no time and a longer mask would.
_MOST_TOKENS = 16
# Up to so many queries of a key head, products of matrices take less time on a CPU than the fused attention.
_FEW_QUERIES = 8


def use_grouped_attention(view: Any) -> bool:
    """Have a view compute attention by `grouped_attention`; False, and nothing changes, where its model cannot.

    Args:
        view: a view of a model (`views.snapshot`), never the user's model: its configurations are changed.

    Example:
        >>> from depthdial.engine.attention import use_grouped_attention
        >>> use_grouped_attention(dd.view(model, "full"))
        True
    """
    return use_attention(view, grouped_attention)


def grouped_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers' `sdpa` function gives, (rows, tokens, heads, dim), with no copy of the keys for each query head.

    Args:
        query: (rows, heads, tokens, dim).
        key, value: (rows, kv_heads, window, dim).
        attention_mask: additive, (rows or 1, heads or 1, tokens, window), or boolean.

    Anything that it does not know (dropout, sinks, a bias of positions, causal attention without a mask) is left to
    transformers' own function.
    """
    if not _is_known(query, attention_mask, dropout, kwargs):
        return stock_attention()(module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs)
    rows, heads, tokens, dim = query.shape
    kv_heads = key.shape[1]
    groups = heads // kv_heads
    scale = dim**-0.5 if scaling is None else scaling
    is_traced = torch.compiler.is_exporting()
    if not is_traced and (groups == 1 or tokens > _MOST_TOKENS):
        out = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, scale=scale, enable_gqa=groups > 1
        )
        return out.transpose(1, 2).contiguous(), None
    # A copy in one piece for the compiler, which may lay it out otherwise than it lies here, and then could not reshape it.
    query = query.clone(memory_format=torch.contiguous_format) if is_traced else query
    folded = query.reshape(rows, kv_heads, groups * tokens, dim)
    mask = None if attention_mask is None else _folded_mask(attention_mask, kv_heads, groups)
    if is_traced:
        out = _written_out(folded, key, value, mask, scale)
    elif mask is not None and _is_better_multiplied(folded, mask):
        out = _multiplied(folded, key, value, mask, scale)
    else:
        out = functional.scaled_dot_product_attention(folded, key, value, attn_mask=mask, scale=scale)
    return out.reshape(rows, heads, tokens, -1).transpose(1, 2).contiguous(), None


def _is_known(query: torch.Tensor, mask: torch.Tensor | None, dropout: float, kwargs: dict[str, Any]) -> bool:
    if dropout or any(value is not None and name not in WITHOUT_EFFECT for name, value in kwargs.items()):
        return False
    if mask is None:
        return query.shape[2] == 1  # more tokens would be masked by PyTorch, which is told so by transformers
    return mask.ndim == 4 and (mask.is_floating_point() or not torch.compiler.is_exporting())


def _folded_mask(mask: torch.Tensor, kv_heads: int, groups: int) -> torch.Tensor:
    """(rows or 1, kv_heads or 1, groups * tokens or 1, window) of a mask for (heads or 1, tokens)."""
    rows, heads, tokens, window = mask.shape
    if heads > 1:
        return mask.reshape(rows, kv_heads, groups * tokens, window)
    if tokens == 1:
        return mask
    return mask[:, :, None].expand(rows, 1, groups, tokens, window).reshape(rows, 1, groups * tokens, window)


def _is_better_multiplied(query: torch.Tensor, mask: torch.Tensor) -> bool:
    is_plain = query.is_cpu and query.dtype is torch.float32 and mask.is_floating_point()
    return is_plain and query.shape[0] > 1 and query.shape[2] <= _FEW_QUERIES


def _multiplied(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scale: float
) -> torch.Tensor:
    # Keys first: the product of a long matrix and a narrow one, which takes a third less than PyTorch's fused attention.
    scores = torch.matmul(key, (query * scale).transpose(-1, -2)).transpose(-1, -2)
    return torch.matmul((scores + mask).softmax(-1), value)


def _written_out(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None, scale: float
) -> torch.Tensor:
    # For the compiler, which fuses the mask and the softmax and has nothing to choose between kernels by. In half precision
    # PyTorch's own kernels keep scores and sums in single precision, and so does this.
    dtype = query.dtype
    scores = torch.matmul(query.float() * scale, key.float().transpose(-1, -2))
    scores = scores if mask is None else scores + mask
    return torch.matmul(scores.softmax(-1), value.float()).to(dtype)
