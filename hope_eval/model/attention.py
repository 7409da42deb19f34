"""Attention with whatever a position encoding adds to it: the function that transformers calls, and its oracle.

    no bias                      scaled_dot_product_attention, the fastest kernel there is
    a bias by distance           a table per head, read by distance
    any other bias               the encoding's own

A bias of all heads over length x length is never made at once: queries are taken in blocks, and of the keys only those
that a block can see. `reference` is slow and obviously right; the tests hold everything else against it.

Shape letters: B batch, H heads, Q queries, K keys, E head_dim, N distances.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from hope_eval.encoding import PositionEncoding

NAME = "hope_eval"

# Float32 numbers of one block of bias, all heads together.
_BLOCK_NUMBERS = 16 << 20


def register() -> None:
    """Tell transformers of this attention function, and that it takes the masks of `sdpa`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(NAME, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, None]:
    """Return what transformers' attention layers expect, [B, Q, H, E] and no weights.

    module:         an attention layer that has an `encoding`.
    query:          [B, H, Q, E], of the last Q positions of K.
    key, value:     [B, H or fewer, K, E].
    attention_mask: None for plain causal attention, else booleans [B, 1, Q, K].
    """
    encoding: Any = module.encoding
    scale = scaling or 1 / math.sqrt(query.shape[-1])
    query, key = scaled(encoding, query, key)
    n_groups = query.shape[1] // key.shape[1]
    if n_groups > 1:
        key, value = key.repeat_interleave(n_groups, dim=1), value.repeat_interleave(n_groups, dim=1)
    n_queries, n_keys = query.shape[2], key.shape[2]
    if not has_bias(encoding):
        causal = attention_mask is None and n_queries > 1
        if causal and n_keys > n_queries:
            # SDPA aligns its causal mask with the first key; queries are the last positions.
            attention_mask, causal = _causal(n_queries, n_keys, 0, n_queries, n_keys, query.device), False
        out = nn.functional.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask, dropout_p=dropout, is_causal=causal, scale=scale
        )
        return out.transpose(1, 2).contiguous(), None
    table_HN = encoding.distance_bias(torch.arange(n_keys, device=query.device))
    blocks = []
    rows = max(16, _BLOCK_NUMBERS // (query.shape[1] * n_keys))
    for start in range(0, n_queries, rows):
        stop = min(start + rows, n_queries)
        # Of all keys, only those up to the last query of the block can be seen.
        seen = n_keys - n_queries + stop
        bias_HQK = bias_block(encoding, table_HN, n_keys - n_queries + start, stop - start, seen, query.device)
        visible = (
            _causal(n_queries, n_keys, start, stop, seen, query.device)
            if attention_mask is None
            else attention_mask[:, :, start:stop, :seen]
        )
        mask = torch.where(visible, bias_HQK[None].to(query.dtype), torch.finfo(query.dtype).min)
        blocks.append(
            nn.functional.scaled_dot_product_attention(
                query[:, :, start:stop], key[:, :, :seen], value[:, :, :seen], mask, dropout, scale=scale
            )
        )
    return torch.cat(blocks, dim=2).transpose(1, 2).contiguous(), None


def has_bias(encoding: PositionEncoding) -> bool:
    """Whether the encoding adds something to the logits."""
    cls = type(encoding)
    return cls.distance_bias is not PositionEncoding.distance_bias or cls.bias is not PositionEncoding.bias


def scaled(encoding: PositionEncoding, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Return query and key with each pair multiplied as the encoding asks, in float32 and back."""
    n_keys = key.shape[2]
    # Only differences of positions matter; counted from the middle, neither factor runs out of range.
    positions_K = torch.arange(n_keys, device=key.device) - n_keys // 2
    logs_KE2 = encoding.log_scales(positions_K)
    if logs_KE2 is None:
        return query, key
    # transformers' Llama rotates dimension i with i + E/2.
    factors_KE = torch.cat([logs_KE2, logs_KE2], dim=-1).exp()
    queries = factors_KE[n_keys - query.shape[2] :]
    return (query.float() * queries).to(query.dtype), (key.float() / factors_KE).to(key.dtype)


def bias_block(
    encoding: PositionEncoding, table_HN: Tensor | None, first: int, n_queries: int, n_keys: int, device: torch.device
) -> Tensor:
    """Return the bias [H, Q, K] of queries at positions first, first + 1… for the first n_keys keys."""
    queries_Q = torch.arange(first, first + n_queries, device=device)
    keys_K = torch.arange(n_keys, device=device)
    if table_HN is not None:
        return table_HN[:, (queries_Q[:, None] - keys_K).clamp(min=0)]
    bias_HQK = encoding.bias(queries_Q, keys_K)
    assert bias_HQK is not None
    return bias_HQK


def _causal(n_queries: int, n_keys: int, start: int, stop: int, seen: int, device: torch.device) -> Tensor:
    queries = torch.arange(n_keys - n_queries + start, n_keys - n_queries + stop, device=device)
    return (queries[:, None] >= torch.arange(seen, device=device))[None, None]


def reference(encoding: PositionEncoding, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return causal attention [B, H, Q, E] one query and one key at a time, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    n_queries, n_keys = query.shape[2], key.shape[2]
    out = torch.zeros_like(query)
    for i in range(n_queries):
        position = n_keys - n_queries + i
        logits_BHK = []
        for j in range(position + 1):
            logs = encoding.log_scales(torch.tensor([position - j]))
            factors = 1.0 if logs is None else torch.cat([logs, logs], dim=-1)[0].double().exp()
            logit_BH = (query[:, :, i] * factors * key[:, :, j]).sum(-1) * scale
            by_distance = encoding.distance_bias(torch.tensor([position - j]))
            if by_distance is not None:
                logit_BH = logit_BH + by_distance[:, 0].double()
            own = encoding.bias(torch.tensor([position]), torch.tensor([j]))
            if own is not None:
                logit_BH = logit_BH + own[:, 0, 0].double()
            logits_BHK.append(logit_BH)
        weights_BHK = torch.softmax(torch.stack(logits_BHK, dim=-1), dim=-1)
        out[:, :, i] = torch.einsum("bhk,bhke->bhe", weights_BHK, value[:, :, : position + 1])
    return out
