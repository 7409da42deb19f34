"""Attention with whatever a position encoding adds to it: the function that transformers calls, and its oracle.

    no bias                      scaled_dot_product_attention, the fastest kernel there is
    a bias linear in distance    the same, with the bias as further features of query and key
    a bias by distance           a table per head; on CUDA and long inputs read by FlexAttention, else in query blocks
    any other bias               the encoding's own, in query blocks

A bias of all heads over length x length is never made at once: queries are taken in blocks, and of the keys only those
that a block can see. `reference` is slow and obviously right; the tests hold everything else against it.

Shape letters: B batch, H heads, Q queries, K keys, E head_dim, N distances, F further features.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hope_eval.encoding import PositionEncoding

NAME = "hope_eval"

# Float32 numbers of one block of bias, all heads together.
BLOCK_NUMBERS = 16 << 20


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
        return _plain(query, key, value, attention_mask, scale, dropout), None
    slopes = encoding.slopes()
    if slopes and _slopes_fit(query.dtype, n_keys):
        return _with_slopes(query, key, value, attention_mask, slopes, scale, dropout), None
    table_HN = encoding.distance_bias(torch.arange(n_keys, device=query.device))
    if table_HN is not None and attention_mask is None and not dropout and _flex_pays(query, key):
        return flex(query, key, value, table_HN, scale).transpose(1, 2).contiguous(), None
    blocks = []
    rows = max(16, BLOCK_NUMBERS // (query.shape[1] * n_keys))
    for start in range(0, n_queries, rows):
        stop = min(start + rows, n_queries)
        # Of all keys, only those up to the last query of the block can be seen.
        seen = n_keys - n_queries + stop
        bias_HQK = _kept_bias(encoding, table_HN, n_keys - n_queries + start, stop - start, seen, query.device)
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


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    """Return attention without a bias, [B, Q, H, E]."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    causal = mask is None and n_queries > 1
    if causal and n_keys > n_queries:
        # SDPA aligns its causal mask with the first key; queries are the last positions.
        mask, causal = _causal(n_queries, n_keys, 0, n_queries, n_keys, query.device), False
    out = nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal, scale=scale
    )
    return out.transpose(1, 2).contiguous()


def _slopes_fit(dtype: torch.dtype, n_keys: int) -> bool:
    """Whether numbers of that type can hold the slopes times the parts of all positions."""
    return n_keys <= (1 << 16 if dtype == torch.float16 else 1 << 24)


def _with_slopes(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    slopes: Sequence[float],
    scale: float,
    dropout: float,
) -> Tensor:
    """Return attention with the bias - m_h (i - j), [B, Q, H, E].

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
    out = _plain(
        torch.cat([query, query_HF[:, None].expand(*query.shape[:3], 8)], dim=-1),
        torch.cat([key, key_KF.expand(*key.shape[:3], 8)], dim=-1),
        nn.functional.pad(value, (0, 8)),
        mask,
        scale,
        dropout,
    )
    return out[..., :head_dim].contiguous()


# From here on FlexAttention's kernel beats a bias in query blocks.
_FLEX_FROM = 2048


def _flex_pays(query: Tensor, key: Tensor) -> bool:
    n_queries, n_keys = query.shape[2], key.shape[2]
    return query.device.type == "cuda" and n_queries == n_keys and n_keys >= _FLEX_FROM


def flex(query: Tensor, key: Tensor, value: Tensor, table_HN: Tensor, scale: float) -> Tensor:
    """Return causal attention with a bias from a table over distance by FlexAttention, [B, H, Q, E].

    Every new length compiles anew, and where PyTorch's limit on that is passed, FlexAttention goes on without a word
    and materialises all scores. So lengths are padded to powers of two, and passing the limit is an error.
    """
    n = query.shape[2]
    padded = max(128, 1 << (n - 1).bit_length())
    room = (0, 0, 0, padded - n)
    query, key, value = (nn.functional.pad(x, room) for x in (query, key, value))
    table_HN = nn.functional.pad(table_HN.float(), (0, padded - table_HN.shape[1]))
    attend, _ = _compiled_flex()
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        out: Tensor = attend(query, key, value, table_HN, _block_mask(n, padded, query.device), scale)
    return out[:, :, :n]


@functools.cache
def _compiled_flex() -> tuple[Any, Any]:
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, table_HN: Tensor, mask: Any, scale: float) -> Tensor:
        def biased(score: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            # Pairs that the mask takes out are looked up as well.
            return score + table_HN[h, (q - k).clamp(min=0)]

        # A table takes shared memory and registers: with larger blocks the kernel does not compile.
        options: Any = {"BLOCK_M": 64, "BLOCK_N": 64, "bwd_num_stages": 1}
        out: Tensor = flex_attention(
            query, key, value, score_mod=biased, block_mask=mask, scale=scale, kernel_options=options
        )
        return out

    # Uncompiled, create_block_mask makes a length x length tensor: 128 GiB at 128k.
    return torch.compile(attend, dynamic=False, fullgraph=True), torch.compile(create_block_mask, dynamic=False)


@functools.lru_cache(maxsize=8)
def _block_mask(n: int, padded: int, device: torch.device) -> Any:
    """Return the causal mask for n tokens that are padded; what is padded attends to nothing and costs nothing."""
    end = torch.tensor(n, device=device)

    def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & (q < end)

    _, create = _compiled_flex()
    return create(visible, None, None, padded, padded, device=device)


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


def _kept_bias(
    encoding: PositionEncoding, table_HN: Tensor | None, first: int, n_queries: int, n_keys: int, device: torch.device
) -> Tensor:
    """Return what `bias_block` does; an encoding's own bias is kept for the next context, which is mostly as long.

    The one of FIRE is a network over queries x keys, eight times the work of the rest of a small model. It is kept in
    inference only, one a layer, and no longer than its parameters stay as they are.
    """
    if table_HN is not None or torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return bias_block(encoding, table_HN, first, n_queries, n_keys, device)
    parameters = list(encoding.parameters())
    # What was made in inference mode does not count its changes.
    if any(p.is_inference() for p in parameters):
        return bias_block(encoding, table_HN, first, n_queries, n_keys, device)
    key = (first, n_queries, n_keys, device, *((p.data_ptr(), p._version) for p in parameters))
    kept: tuple[Any, Tensor] | None = encoding.__dict__.get("_kept")
    if kept is None or kept[0] != key:
        kept = key, bias_block(encoding, None, first, n_queries, n_keys, device)
        # A long input has many blocks, and the last of them is of no use to the next.
        if first == 0:
            encoding.__dict__["_kept"] = kept
    return kept[1]


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
