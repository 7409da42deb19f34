"""Descriptions in place of masks: a window, or the parts of a text, instead of the tensor that transformers would make.

Shape letters: Q queries, K keys.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hope_eval.errors import CheckpointError
from hope_eval.model.parallel import sequence


@dataclass(frozen=True)
class Window:
    """Stands for the mask of a layer whose queries see the last `size` keys, themselves among them."""

    size: int


@dataclass(frozen=True)
class PartsMask:
    """Stands for a causal mask when a process reads parts of a longer sequence.

    window: number of keys that a query sees, itself included; None: all before it.
    """

    cut: sequence.Cut
    window: int | None


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
) -> Tensor | Window | PartsMask | None:
    """The mask of transformers' `sdpa_mask`, but None for a causal mask, and a Window for a sliding one.

    If parts of a longer sequence are read, a PartsMask: nothing is masked among the parts themselves.
    """
    from transformers.masking_utils import sdpa_mask

    cut = sequence.current()
    if cut is not None:
        if not allow_is_causal_skip or use_vmap or mask_function is None:
            raise CheckpointError("a mask that is neither causal nor a sliding window cannot be cut", sequence.INSTEAD)
        if local_size is None or local_size >= cut.length:
            return PartsMask(cut, None)
        if not _slides(mask_function, local_size, cut.length):
            raise CheckpointError(f"attention within chunks of {local_size:,} tokens cannot be cut", sequence.INSTEAD)
        return PartsMask(cut, local_size)
    usual = attention_mask is None and allow_is_causal_skip and not use_vmap and mask_function is not None
    if usual and int(q_offset) + q_length == kv_length and not int(kv_offset):
        if local_size is None or local_size >= kv_length:
            return None
        assert mask_function is not None
        if q_length == kv_length and _slides(mask_function, local_size, kv_length):
            return Window(local_size)
    more = {} if mask_function is None else {"mask_function": mask_function}
    made: Tensor | None = sdpa_mask(
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
    return made


def _slides(mask_function: Callable[..., Tensor], size: int, n: int) -> bool:
    """Whether a mask is that of a sliding window, and not of chunks, which transformers describes in the same way."""
    queries = torch.tensor(sorted({size, size + 1, size + size // 2, 2 * size - 1, n - 1} & set(range(n))))
    for distance, visible in ((size - 1, True), (size, False), (0, True), (-1, False)):
        rows = queries[(queries >= distance) & (queries - distance < n)]
        zero = torch.zeros_like(rows)
        if bool((mask_function(zero, zero, rows, rows - distance) != visible).any()):
            return False
    return True


def visible_keys(
    query_start: int, query_stop: int, key_start: int, key_stop: int, window: int, device: torch.device
) -> Tensor:
    """Keys that each query sees, booleans [Q, K]."""
    queries_Q1 = torch.arange(query_start, query_stop, device=device)[:, None]
    keys_K = torch.arange(key_start, key_stop, device=device)
    return (keys_K <= queries_Q1) & (keys_K > queries_Q1 - window)
