"""Attention in blocks of queries: neither a mask nor logits over length x length are ever made at once.

Shape letters: B batch, H heads, G heads of keys, Q queries, K keys, E head_dim, N distances, F further features.
"""

import contextlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from hope_eval.model.kernels import attention_choice
from hope_eval.model.kernels.attention_masks import PartsMask, Window, visible_keys

# Float32 numbers of one block of bias, all heads together.
BLOCK_NUMBERS = 16 << 20


# Fewest queries of a block that looks at a sliding window.
_WINDOW_ROWS = 1024


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention without a bias, of the last Q positions of K, [B, Q, H, E]."""
    by_flash4 = attention_choice.by_flash4(query, key, value, scale)
    if by_flash4 is not None:
        return by_flash4
    n_queries, n_keys = query.shape[2], key.shape[2]
    if query.device.type != "cuda":
        return unbiased(query, *for_all_heads(query, key, value), None, scale, 0.0)
    # SDPA aligns its own causal mask with the first key; queries are the last positions.
    aligned = causal_lower_right(n_queries, n_keys) if 1 < n_queries < n_keys else None
    grouped = query.shape[1] != key.shape[1]
    out = nn.functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=aligned,
        is_causal=aligned is None and n_queries > 1,
        scale=scale,
        enable_gqa=grouped,
    )
    return out.transpose(1, 2).contiguous()


def windowed(query: Tensor, key: Tensor, value: Tensor, window: int, scale: float) -> Tensor:
    """Causal attention of the last Q positions of K to the last `window` keys, themselves among them, [B, Q, H, E]."""
    n, before = query.shape[2], key.shape[2] - query.shape[2]
    key, value = for_all_heads(query, key, value)
    out = query.new_empty(query.shape[0], n, query.shape[1], value.shape[-1])
    rows = min(max(window, _WINDOW_ROWS), 4 * _WINDOW_ROWS)
    with for_masks(query.device):
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            first, last = max(0, before + start - window + 1), before + stop
            visible = visible_keys(before + start, last, first, last, window, query.device)
            block = nn.functional.scaled_dot_product_attention(
                query[:, :, start:stop], key[:, :, first:last], value[:, :, first:last], visible, scale=scale
            )
            out[:, start:stop] = block.transpose(1, 2)
    return out


def in_parts(
    query: Tensor, key: Tensor, value: Tensor, read: PartsMask, scale: float, softcap: float | None = None
) -> Tensor:
    """Causal attention of this process's parts of a sequence to all parts, also those of other processes, [B, P, H, E].

    query, key, value: of this process's positions; query is [B, H, P, E].
    """
    key, value = read.cut.whole(key), read.cut.whole(value)
    read.cut.n_attended += 1
    out, done = [], 0
    for first, last in read.cut.own:
        # All tokens before a part are a window, too.
        window = last if read.window is None else read.window
        seen = slice(max(0, first - window + 1), last)
        inputs = query[:, :, done : done + last - first], key[:, :, seen], value[:, :, seen]
        if softcap is not None:
            out.append(capped(*inputs, Window(window), scale, softcap))
        elif read.window is None and query.device.type == "cuda":
            # A GPU's kernels need no mask.
            out.append(causal(*inputs, scale))
        else:
            out.append(windowed(*inputs, window, scale))
        done += last - first
    return torch.cat(out, dim=1)


def capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | Window | None, scale: float, softcap: float
) -> Tensor:
    """Causal attention whose logits are softcap * tanh(logit / softcap), [B, Q, H, E].

    mask: booleans [B, 1, Q, K], a window, or None.
    """
    n_queries, n_keys = query.shape[2], key.shape[2]
    key, value = for_all_heads(query, key, value)
    window = mask.size if isinstance(mask, Window) else n_keys
    out = query.new_empty(query.shape[0], n_queries, query.shape[1], value.shape[-1])
    rows = max(16, BLOCK_NUMBERS // (query.shape[1] * min(n_keys, 2 * window)))
    for start in range(0, n_queries, rows):
        stop = min(start + rows, n_queries)
        seen = n_keys - n_queries + stop
        first = max(0, seen - (stop - start) - window + 1)
        logits = query[:, :, start:stop] @ key[:, :, first:seen].transpose(-1, -2) * scale
        logits = torch.tanh(logits / softcap) * softcap
        if isinstance(mask, Tensor):
            visible = mask[:, :, start:stop, first:seen]
        else:
            visible = visible_keys(seen - (stop - start), seen, first, seen, window, query.device)
        weights = logits.masked_fill(~visible, -math.inf).softmax(-1, dtype=torch.float32).to(query.dtype)
        out[:, start:stop] = (weights @ value[:, :, first:seen]).transpose(1, 2)
    return out


def unbiased(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    """Attention without a bias, [B, Q, H, E]."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    causal = mask is None and n_queries > 1
    if causal and n_keys > n_queries:
        # SDPA aligns its causal mask with the first key; queries are the last positions.
        mask, causal = visible_keys(n_keys - n_queries, n_keys, 0, n_keys, n_keys, query.device), False
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale
    )
    return out.transpose(1, 2).contiguous()


def slopes_fit(dtype: torch.dtype, n_keys: int) -> bool:
    """Whether that type can represent the slopes times the parts of all positions."""
    return n_keys <= (1 << 16 if dtype == torch.float16 else 1 << 24)


def with_slopes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    slopes: Sequence[float],
    scale: float,
    dropout: float,
) -> Tensor:
    """Attention with the bias - m_h (i - j), [B, Q, H, E].

    - m_h (i - j) = m_h j - (a number of the query alone, which softmax ignores). So m_h goes to the query and j to the
    key, as further features of their product. Both are split into parts that bfloat16 represents exactly, or, of m_h,
    to 16 bits: j = j0 + 256 j1 + 65536 j2, m_h = high + low.
    """
    n_keys, head_dim = key.shape[2], query.shape[3]
    exact_H = torch.tensor(slopes, device=query.device, dtype=torch.float32) / scale
    high_H = exact_H.to(query.dtype)
    parts_H2 = torch.stack([high_H, (exact_H - high_H.float()).to(query.dtype)], dim=-1)
    query_HF = torch.cat([parts_H2, 256 * parts_H2, 65_536 * parts_H2], dim=-1)
    positions_K = torch.arange(n_keys, device=key.device)
    digits_K3 = torch.stack([positions_K % 256, positions_K // 256 % 256, positions_K // 65_536], dim=-1)
    key_KF = digits_K3.repeat_interleave(2, dim=-1).to(key.dtype)
    if n_keys <= 1 << 16:
        query_HF, key_KF = query_HF[:, :4], key_KF[:, :4]
    # The fast kernels want head dimensions in eights, and values as wide as keys.
    pad = (0, 8 - query_HF.shape[-1])
    query_HF, key_KF = nn.functional.pad(query_HF, pad), nn.functional.pad(key_KF, pad)
    out = unbiased(
        torch.cat([query, query_HF[:, None].expand(*query.shape[:3], 8)], dim=-1),
        torch.cat([key, key_KF.expand(*key.shape[:3], 8)], dim=-1),
        nn.functional.pad(value, (0, 8)),
        mask,
        scale,
        dropout,
    )
    return out[..., :head_dim].contiguous()


def for_all_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values for each head of the queries."""
    n_groups = query.shape[1] // key.shape[1]
    if n_groups == 1:
        return key, value
    return key.repeat_interleave(n_groups, dim=1), value.repeat_interleave(n_groups, dim=1)


def for_masks(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Blocks have many shapes, and cuDNN's kernel makes a plan for each."""
    return attention_choice.preferring(("efficient", "flash"), 0) if device.type == "cuda" else contextlib.nullcontext()
