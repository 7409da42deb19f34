"""Attention with the bias of an encoding: the forms that kernels take, blocks for any other bias, and the definition.

`reference` is slow and obviously right; the tests compare everything else with it.

Shape letters: B batch, H heads, Q queries, K keys, E head_dim, N distances.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hope_eval.encodings import Curve, PositionEncoding
from hope_eval.model.kernels import attention_blocks, attention_choice
from hope_eval.model.kernels.attention_masks import visible_keys


def in_query_blocks(
    encoding: PositionEncoding,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scale: float,
    dropout: float,
) -> Tensor:
    """Attention with any bias, made for one block of queries at a time, [B, Q, H, E]; as many heads of keys."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    table_HN = encoding.distance_bias(torch.arange(n_keys, device=query.device))

    def block(start: int, stop: int) -> Tensor:
        # Of all keys, only those up to the last query of the block can be seen.
        seen = n_keys - n_queries + stop
        bias_HQK = _kept_bias(encoding, table_HN, n_keys - n_queries + start, stop - start, seen, query.device)
        shown = (
            visible_keys(seen - (stop - start), seen, 0, seen, n_keys, query.device)
            if attention_mask is None
            else attention_mask[:, :, start:stop, :seen]
        )
        masked = torch.where(shown, bias_HQK[None].to(query.dtype), torch.finfo(query.dtype).min)
        with attention_blocks.for_masks(query.device):
            return nn.functional.scaled_dot_product_attention(
                query[:, :, start:stop], key[:, :, :seen], value[:, :, :seen], masked, dropout, scale=scale
            )

    rows = max(16, attention_blocks.BLOCK_NUMBERS // (query.shape[1] * n_keys))
    blocks = []
    for start in range(0, n_queries, rows):
        stop = min(start + rows, n_queries)
        if rows < n_queries and torch.is_grad_enabled():
            # The bias of one block at a time, in the backward too.
            blocks.append(checkpoint(block, start, stop, use_reentrant=False))
        else:
            blocks.append(block(start, stop))
    return torch.cat(blocks, dim=2).transpose(1, 2).contiguous()


def for_kernel(encoding: PositionEncoding, n_queries: int, n_keys: int, device: torch.device) -> Tensor | Curve | None:
    """A bias in a form that the kernel takes; None if it has no such form."""
    slopes = encoding.slopes()
    if slopes is not None:
        return torch.tensor(slopes, device=device)
    table_HN = encoding.distance_bias(torch.arange(n_keys, device=device))
    if table_HN is not None:
        return table_HN
    return encoding.curve(torch.arange(n_keys - n_queries, n_keys, device=device), n_keys)


def kernel_for(
    bias: Tensor | Curve, dtype: torch.dtype, head_dim: int
) -> Callable[[Tensor, Tensor, Tensor, Tensor | Curve, float], Tensor] | None:
    """The GPU kernel for that form of a bias; None if no kernel agrees with the definition."""
    return biased_kernel("cuda", _form(bias), dtype, head_dim)


def _form(bias: Tensor | Curve) -> str:
    return "curve" if isinstance(bias, Curve) else "slopes" if bias.ndim == 1 else "table"


@functools.cache
def biased_kernel(
    device_type: str, kind: str = "table", dtype: torch.dtype = torch.float32, head_dim: int = 32
) -> Callable[[Tensor, Tensor, Tensor, Tensor | Curve, float], Tensor] | None:
    """The kernel of `triton_bias.py` on CUDA if Triton works here, and it agrees with the definition; else None."""
    if device_type != "cuda":
        return None
    try:
        from hope_eval.model.kernels.triton_bias import biased

        n, generator = 200, torch.Generator("cuda").manual_seed(0)
        draw = functools.partial(torch.randn, generator=generator, device="cuda")
        q, k, v = (draw(1, 2, n, head_dim).to(dtype) for _ in range(3))
        distances_N = torch.arange(n, device="cuda")
        table_HN = draw(2, n)
        bias: Tensor | Curve = table_HN
        if kind == "slopes":
            bias = draw(2).abs()
            table_HN = -bias[:, None] * distances_N
        elif kind == "curve":
            ends_H2 = draw(2, 2)
            places_N = distances_N / n
            bias = Curve(places_N, torch.ones(n, device="cuda"), ends_H2)
            table_HN = torch.lerp(ends_H2[:, :1], ends_H2[:, 1:], places_N[None])
        bias_HQK = table_HN[:, (distances_N[:, None] - distances_N).clamp(min=0)].double()
        wanted = attention_choice.definition(q, k, v, bias_HQK).transpose(1, 2)
        tolerance = 1e-3 if dtype == torch.float32 else 5e-2
        agrees = torch.allclose(biased(q, k, v, bias, head_dim**-0.5).double(), wanted, atol=tolerance)
    except Exception:
        # No Triton, no C compiler for it, a GPU or a shape that it does not know: query blocks are right everywhere.
        return None
    return biased if agrees else None


def scaled(encoding: PositionEncoding, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """Query and key with each pair multiplied by the factors of the encoding, in float32 and back."""
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
    """The numbers of `bias_block`. Those from `bias` are kept for the next context, which mostly has the same length.

    FIRE's bias is a network over queries x keys, eight times the work of the rest of a small model. It is kept only in
    inference, one a layer, until its parameters change.
    """
    if table_HN is not None or torch.compiler.is_compiling() or not torch.is_inference_mode_enabled():
        return bias_block(encoding, table_HN, first, n_queries, n_keys, device)
    parameters = list(encoding.parameters())
    # Tensors made in inference mode do not count their changes.
    if any(p.is_inference() for p in parameters):
        return bias_block(encoding, table_HN, first, n_queries, n_keys, device)
    key = (first, n_queries, n_keys, device, *((p.data_ptr(), p._version) for p in parameters))
    kept: tuple[Any, Tensor] | None = encoding.__dict__.get("_kept")
    if kept is None or kept[0] != key:
        kept = key, bias_block(encoding, None, first, n_queries, n_keys, device)
        # A long input has many blocks, and the next input starts with another.
        if first == 0:
            encoding.__dict__["_kept"] = kept
    return kept[1]


def bias_block(
    encoding: PositionEncoding, table_HN: Tensor | None, first: int, n_queries: int, n_keys: int, device: torch.device
) -> Tensor:
    """Bias [H, Q, K] of queries at positions first, first + 1… for the first n_keys keys."""
    queries_Q = torch.arange(first, first + n_queries, device=device)
    keys_K = torch.arange(n_keys, device=device)
    if table_HN is not None:
        return table_HN[:, (queries_Q[:, None] - keys_K).clamp(min=0)]
    bias_HQK = encoding.bias(queries_Q, keys_K)
    assert bias_HQK is not None
    return bias_HQK


def reference(encoding: PositionEncoding, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention [B, H, Q, E], one query and one key at a time, in float64."""
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
            by_pair = encoding.bias(torch.tensor([position]), torch.tensor([j]))
            if by_pair is not None:
                logit_BH = logit_BH + by_pair[:, 0, 0].double()
            logits_BHK.append(logit_BH)
        weights_BHK = torch.softmax(torch.stack(logits_BHK, dim=-1), dim=-1)
        out[:, :, i] = torch.einsum("bhk,bhke->bhe", weights_BHK, value[:, :, : position + 1])
    return out


def wants_gradients(encoding: nn.Module, *tensors: Tensor) -> bool:
    """Whether gradients are needed: the GPU kernel has none."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *encoding.parameters()))
