"""Attention: the functions that transformers calls, and their oracle.

    no bias                      scaled_dot_product_attention, with the fastest kernel there is
    no bias, a sliding window    the same in query blocks, each with the keys that it can see
    logits that are capped       query blocks, as the kernels know nothing of it (Gemma 2)
    parts of a text              the same, with keys that other processes have made: `parallel/sequence.py`
    a bias, on a GPU             `triton_bias.py`: computed where it is added
    a bias linear in distance    elsewhere: as further features of query and key
    any other bias               elsewhere, and for gradients: made in query blocks

Neither a mask nor a bias over length x length is ever made at once. `reference` is slow and obviously right; the tests
hold everything else against it.

Shape letters: B batch, H heads, G heads of keys, Q queries, K keys, E head_dim, N distances, F further features.
"""

import contextlib
import functools
import inspect
import math
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right
from torch.utils.checkpoint import checkpoint

from hope_eval.encodings import Curve, PositionEncoding
from hope_eval.errors import CheckpointError
from hope_eval.model.kernels import attention_choice
from hope_eval.model.parallel import sequence

# Of a decoder with an encoding of this package; and of any other, in place of transformers' `sdpa`.
NAME, PLAIN = "hope_eval", "hope_eval_plain"

# Float32 numbers of one block of bias, all heads together.
BLOCK_NUMBERS = 16 << 20

# Queries of a block that looks at a sliding window, at least.
_WINDOW_ROWS = 1024


@dataclass(frozen=True)
class Window:
    """What stands for the mask of a layer whose queries see the last `size` keys, themselves among them."""

    size: int


@dataclass(frozen=True)
class Parts:
    """What stands for a causal mask where a process reads parts of a longer sequence.

    window: how many keys a query sees, itself among them; None: all before it.
    """

    cut: sequence.Cut
    window: int | None


def register() -> None:
    """Tell transformers of these attention functions, and of the masks that they take."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for name, function in ((NAME, attention), (PLAIN, plain)):
        ALL_ATTENTION_FUNCTIONS.register(name, function)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)


def put_on(module: Any) -> bool:
    """Let a transformers model attend by `plain`; return whether it lets itself be told."""
    register()
    config: Any = getattr(module, "config", None)
    # What transformers computes all scores at once for, though it need not, counts as well.
    own = getattr(config, "_attn_implementation", None)
    if own not in (PLAIN, "sdpa") and not (own == "eager" and is_capped(config)):
        return False
    can = getattr(module, "_can_set_attn_implementation", lambda: False)
    if not can() or _asks_for_its_attention(module):
        return False
    module.set_attn_implementation(PLAIN)
    return bool(module.config._attn_implementation == PLAIN)


def is_capped(config: Any) -> bool:
    """Return whether a config says that logits of attention are capped, which no kernel of PyTorch does."""
    return bool(getattr(config, "attn_logit_softcapping", None))


def _asks_for_its_attention(module: nn.Module) -> bool:
    """Return whether a model does other things than attend where its attention is called sdpa or eager.

    Sparse attention (DeepSeek-V3.2 and its kin) leaves out its own mask for any other name.
    """
    for name in {type(part).__module__ for part in module.modules()}:
        if name.startswith(("torch.", "transformers.modeling_", "transformers.activations")):
            continue
        try:
            source = inspect.getsource(sys.modules[name])
        except (KeyError, OSError, TypeError):
            continue
        if re.search(r"_attn_implementation\s*(==|!=|in|not in)\s[^\n]*[\"'](sdpa|eager)[\"']", source):
            return True
    return False


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] | None = None,
    attention_mask: Tensor | None = None,
    local_size: int | None = None,
    allow_is_causal_skip: bool = True,
    use_vmap: bool = False,
    **rest: Any,
) -> Tensor | Window | Parts | None:
    """Return what transformers' `sdpa_mask` does, but None for all causal masks, and a Window for a sliding one.

    Where parts of a longer sequence are read, what is masked among themselves is left out: see `LanguageModel`.
    """
    from transformers.masking_utils import sdpa_mask

    cut = sequence.current()
    if cut is not None:
        if not allow_is_causal_skip or use_vmap or mask_function is None:
            raise CheckpointError("a mask that is neither causal nor a sliding window cannot be cut", sequence.INSTEAD)
        if local_size is None or local_size >= cut.length:
            return Parts(cut, None)
        if not _slides(mask_function, local_size, cut.length):
            raise CheckpointError(f"attention within chunks of {local_size:,} tokens cannot be cut", sequence.INSTEAD)
        return Parts(cut, local_size)
    usual = attention_mask is None and allow_is_causal_skip and not use_vmap and mask_function is not None
    if usual and int(q_offset) + q_length == kv_length and not int(kv_offset):
        if local_size is None or local_size >= kv_length:
            return None
        assert mask_function is not None
        if q_length == kv_length and _slides(mask_function, local_size, kv_length):
            return Window(local_size)
    more = {} if mask_function is None else {"mask_function": mask_function}
    found: Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        attention_mask=attention_mask,
        local_size=local_size,
        allow_is_causal_skip=allow_is_causal_skip,
        use_vmap=use_vmap,
        **more,
        **rest,
    )
    return found


def _slides(mask_function: Callable[..., Tensor], size: int, n: int) -> bool:
    """Return whether a mask is that of a sliding window, and not one of chunks, which transformers tells alike."""
    queries = torch.tensor(sorted({size, size + 1, size + size // 2, 2 * size - 1, n - 1} & set(range(n))))
    for distance, visible in ((size - 1, True), (size, False), (0, True), (-1, False)):
        some = queries[(queries >= distance) & (queries - distance < n)]
        zero = torch.zeros_like(some)
        if bool((mask_function(zero, zero, some, some - distance) != visible).any()):
            return False
    return True


@torch.compiler.disable  # type: ignore[untyped-decorator]
def plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Window | Parts | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Return what transformers' `sdpa` attention returns; what that would need a mask for is done without.

    Arguments and result are those of `attention`. What calls it may be compiled; this stays as it is, since kernels are
    chosen when they are called.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    scale = scaling or 1 / math.sqrt(query.shape[-1])
    if isinstance(attention_mask, Parts):
        return in_parts(query, key, value, attention_mask, scale, rest.get("softcap")), None
    if sequence.current() is not None:
        raise CheckpointError("a layer makes a mask of its own, which cannot be cut", sequence.INSTEAD)
    if rest.get("softcap") is not None and not dropout:
        return capped(query, key, value, attention_mask, scale, rest["softcap"]), None
    n_queries, n_keys = query.shape[2], key.shape[2]
    biased = rest.get("position_bias") is not None
    if isinstance(attention_mask, Window):
        if not biased and not dropout:
            return windowed(query, key, value, attention_mask.size, scale), None
        attention_mask = _visible(0, n_queries, 0, n_keys, attention_mask.size, query.device)[None, None]
    causes = rest.get("is_causal") is not False and getattr(module, "is_causal", True)
    if attention_mask is None and causes and n_queries > 1 and not dropout and not biased:
        if n_queries < n_keys:
            return causal(query, key, value, scale), None
        found = attention_choice.by_flash4(query, key, value, scale)
        if found is not None:
            return found, None
    attended: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **rest
    )
    return attended


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
    n_queries, n_keys = query.shape[2], key.shape[2]
    if not encoding.bias_form() and attention_mask is None and not dropout:
        return causal(query, key, value, scale), None
    fast = attention_mask is None and not dropout and not torch.compiler.is_compiling()
    if fast and query.device.type == "cuda" and not _wants_gradients(encoding, query, key, value):
        bias = _for_kernel(encoding, n_queries, n_keys, query.device)
        if bias is not None and (kernel := biased_kernel("cuda", _kind(bias), query.dtype, query.shape[-1])):
            return kernel(query, key, value, bias, scale), None
    key, value = _for_all_heads(query, key, value)
    if not encoding.bias_form():
        return _plain(query, key, value, attention_mask, scale, dropout), None
    slopes = encoding.slopes()
    if slopes and _slopes_fit(query.dtype, n_keys):
        return _with_slopes(query, key, value, attention_mask, slopes, scale, dropout), None
    table_HN = encoding.distance_bias(torch.arange(n_keys, device=query.device))

    def block(start: int, stop: int) -> Tensor:
        # Of all keys, only those up to the last query of the block can be seen.
        seen = n_keys - n_queries + stop
        bias_HQK = _kept_bias(encoding, table_HN, n_keys - n_queries + start, stop - start, seen, query.device)
        visible = (
            _visible(seen - (stop - start), seen, 0, seen, n_keys, query.device)
            if attention_mask is None
            else attention_mask[:, :, start:stop, :seen]
        )
        masked = torch.where(visible, bias_HQK[None].to(query.dtype), torch.finfo(query.dtype).min)
        with _for_masks(query.device):
            return nn.functional.scaled_dot_product_attention(
                query[:, :, start:stop], key[:, :, :seen], value[:, :, :seen], masked, dropout, scale=scale
            )

    rows = max(16, BLOCK_NUMBERS // (query.shape[1] * n_keys))
    blocks = []
    for start in range(0, n_queries, rows):
        stop = min(start + rows, n_queries)
        if rows < n_queries and torch.is_grad_enabled():
            # The bias of one block at a time, in the backward too.
            blocks.append(checkpoint(block, start, stop, use_reentrant=False))
        else:
            blocks.append(block(start, stop))
    return torch.cat(blocks, dim=2).transpose(1, 2).contiguous(), None


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Return causal attention without a bias, of the last Q positions of K, [B, Q, H, E]."""
    found = attention_choice.by_flash4(query, key, value, scale)
    if found is not None:
        return found
    n_queries, n_keys = query.shape[2], key.shape[2]
    if query.device.type != "cuda":
        return _plain(query, *_for_all_heads(query, key, value), None, scale, 0.0)
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
    """Return causal attention of the last Q positions of K to `window` keys, themselves among them, [B, Q, H, E]."""
    n, before = query.shape[2], key.shape[2] - query.shape[2]
    key, value = _for_all_heads(query, key, value)
    out = query.new_empty(query.shape[0], n, query.shape[1], value.shape[-1])
    rows = min(max(window, _WINDOW_ROWS), 4 * _WINDOW_ROWS)
    with _for_masks(query.device):
        for start in range(0, n, rows):
            stop = min(start + rows, n)
            first, last = max(0, before + start - window + 1), before + stop
            visible = _visible(before + start, last, first, last, window, query.device)
            block = nn.functional.scaled_dot_product_attention(
                query[:, :, start:stop], key[:, :, first:last], value[:, :, first:last], visible, scale=scale
            )
            out[:, start:stop] = block.transpose(1, 2)
    return out


def in_parts(
    query: Tensor, key: Tensor, value: Tensor, read: Parts, scale: float, softcap: float | None = None
) -> Tensor:
    """Return causal attention of the own parts of a sequence to all of it, also what others have read, [B, P, H, E].

    query: [B, H, P, E], of the own positions, as key and value are.
    """
    key, value = read.cut.whole(key), read.cut.whole(value)
    read.cut.n_attended += 1
    out, done = [], 0
    for first, last in read.cut.own:
        # All that is before a part is a window too.
        window = last if read.window is None else read.window
        seen = slice(max(0, first - window + 1), last)
        some = query[:, :, done : done + last - first], key[:, :, seen], value[:, :, seen]
        if softcap is not None:
            out.append(capped(*some, Window(window), scale, softcap))
        elif read.window is None and query.device.type == "cuda":
            # A GPU's kernels need no mask.
            out.append(causal(*some, scale))
        else:
            out.append(windowed(*some, window, scale))
        done += last - first
    return torch.cat(out, dim=1)


def capped(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | Window | None, scale: float, softcap: float
) -> Tensor:
    """Return causal attention whose logits are softcap * tanh(logit / softcap), [B, Q, H, E].

    mask: booleans [B, 1, Q, K], a window, or None.
    """
    n_queries, n_keys = query.shape[2], key.shape[2]
    key, value = _for_all_heads(query, key, value)
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
            visible = _visible(seen - (stop - start), seen, first, seen, window, query.device)
        weights = logits.masked_fill(~visible, -math.inf).softmax(-1, dtype=torch.float32).to(query.dtype)
        out[:, start:stop] = (weights @ value[:, :, first:seen]).transpose(1, 2)
    return out


def _visible(
    query_start: int, query_stop: int, key_start: int, key_stop: int, window: int, device: torch.device
) -> Tensor:
    """Return which keys each query sees, booleans [Q, K]."""
    queries_Q1 = torch.arange(query_start, query_stop, device=device)[:, None]
    keys_K = torch.arange(key_start, key_stop, device=device)
    return (keys_K <= queries_Q1) & (keys_K > queries_Q1 - window)


def _for_all_heads(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Return keys and values for each head of the queries."""
    n_groups = query.shape[1] // key.shape[1]
    if n_groups == 1:
        return key, value
    return key.repeat_interleave(n_groups, dim=1), value.repeat_interleave(n_groups, dim=1)


def _for_masks(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Blocks have many shapes, and cuDNN's kernel makes a plan for each."""
    return attention_choice.preferring(("efficient", "flash"), 0) if device.type == "cuda" else contextlib.nullcontext()


def _wants_gradients(encoding: nn.Module, *tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in (*tensors, *encoding.parameters()))


def _for_kernel(encoding: PositionEncoding, n_queries: int, n_keys: int, device: torch.device) -> Tensor | Curve | None:
    """Return a bias in one of the forms that the kernel knows; None if it is none of them."""
    slopes = encoding.slopes()
    if slopes is not None:
        return torch.tensor(slopes, device=device)
    table_HN = encoding.distance_bias(torch.arange(n_keys, device=device))
    if table_HN is not None:
        return table_HN
    return encoding.curve(torch.arange(n_keys - n_queries, n_keys, device=device), n_keys)


def _kind(bias: Tensor | Curve) -> str:
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


def _plain(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    """Return attention without a bias, [B, Q, H, E]."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    causal = mask is None and n_queries > 1
    if causal and n_keys > n_queries:
        # SDPA aligns its causal mask with the first key; queries are the last positions.
        mask, causal = _visible(n_keys - n_queries, n_keys, 0, n_keys, n_keys, query.device), False
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
