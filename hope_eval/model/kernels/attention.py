"""Attention: the functions that transformers calls, and the kernel for each case.

    no bias                      scaled_dot_product_attention, with the fastest kernel: `attention_choice.py`
    no bias, a sliding window    the same in query blocks, each with the keys that it can see: `attention_blocks.py`
    logits that are capped       query blocks, as the kernels know no cap (Gemma 2)
    parts of a text              the same, with keys that other processes have made: `parallel/sequence.py`
    a bias, on a GPU             `triton_bias.py`: computed where it is added
    a bias linear in distance    elsewhere: as further features of query and key
    any other bias               elsewhere, and for gradients: made in query blocks, `attention_bias.py`

Neither a mask nor a bias over length x length is ever made at once: see `attention_masks.py`.

Shape letters: B batch, H heads, Q queries, K keys, E head_dim.
"""

import inspect
import math
import re
import sys
from typing import Any

import torch
from torch import Tensor, nn

from hope_eval.errors import CheckpointError, OptionError
from hope_eval.model.kernels import attention_bias, attention_choice
from hope_eval.model.kernels.attention_blocks import (
    capped,
    causal,
    for_all_heads,
    in_parts,
    slopes_fit,
    unbiased,
    windowed,
    with_slopes,
)
from hope_eval.model.kernels.attention_masks import PartsMask, Window, mask, visible_keys
from hope_eval.model.parallel import sequence

# Names for transformers: of a decoder with an encoding of this package; of any other, in place of `sdpa`.
NAME, PLAIN = "hope_eval", "hope_eval_plain"


def register() -> None:
    """Register these attention functions, and their masks, with transformers.

    Raises OptionError if another library has registered one of that name.
    """
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    for name, function in ((NAME, attention), (PLAIN, plain)):
        other = ALL_ATTENTION_FUNCTIONS.get(name, function)
        if other is not function:
            raise OptionError(
                f"transformers already has an attention called `{name}`, from {other.__module__}",
                "hope-eval cannot be used in one process with that library",
            )
        ALL_ATTENTION_FUNCTIONS.register(name, function)
        ALL_MASK_ATTENTION_FUNCTIONS.register(name, mask)


def put_on(module: Any) -> bool:
    """Let a transformers model attend by `plain`; return whether the model allows it."""
    register()
    config: Any = getattr(module, "config", None)
    # A cap makes transformers take eager attention, which computes all scores at once, though it need not.
    kind = getattr(config, "_attn_implementation", None)
    if kind not in (PLAIN, "sdpa") and not (kind == "eager" and is_capped(config)):
        return False
    can = getattr(module, "_can_set_attn_implementation", lambda: False)
    if not can() or _asks_for_its_attention(module):
        return False
    module.set_attn_implementation(PLAIN)
    return bool(module.config._attn_implementation == PLAIN)


def is_capped(config: Any) -> bool:
    """Whether a config caps the logits of attention, which no kernel of PyTorch does."""
    return bool(getattr(config, "attn_logit_softcapping", None))


def _asks_for_its_attention(module: nn.Module) -> bool:
    """Whether the code of a model depends on the name of its attention, sdpa or eager.

    Sparse attention (DeepSeek-V3.2 and similar models) leaves out its own mask for any other name.
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


@torch.compiler.disable  # type: ignore[untyped-decorator]
def plain(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | Window | PartsMask | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **rest: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers' `sdpa` returns it; cases that would need a mask there need none here.

    Arguments and result are those of `attention`. Its caller may be compiled; this function is not, since kernels are
    chosen at each call.
    """
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    scale = scaling or 1 / math.sqrt(query.shape[-1])
    if isinstance(attention_mask, PartsMask):
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
        attention_mask = visible_keys(0, n_queries, 0, n_keys, attention_mask.size, query.device)[None, None]
    causes = rest.get("is_causal") is not False and getattr(module, "is_causal", True)
    if attention_mask is None and causes and n_queries > 1 and not dropout and not biased:
        if n_queries < n_keys:
            return causal(query, key, value, scale), None
        by_flash4 = attention_choice.by_flash4(query, key, value, scale)
        if by_flash4 is not None:
            return by_flash4, None
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
    """Attention of a decoder with an encoding, as transformers' layers expect it: [B, Q, H, E] and no weights.

    module:         an attention layer that has an `encoding`.
    query:          [B, H, Q, E], of the last Q positions of K.
    key, value:     [B, H or fewer, K, E].
    attention_mask: None for plain causal attention, else booleans [B, 1, Q, K].
    """
    encoding: Any = module.encoding
    scale = scaling or 1 / math.sqrt(query.shape[-1])
    query, key = attention_bias.scaled(encoding, query, key)
    n_queries, n_keys = query.shape[2], key.shape[2]
    if not encoding.bias_form() and attention_mask is None and not dropout:
        return causal(query, key, value, scale), None
    fast = attention_mask is None and not dropout and not torch.compiler.is_compiling()
    if fast and query.device.type == "cuda" and not attention_bias.wants_gradients(encoding, query, key, value):
        bias = attention_bias.for_kernel(encoding, n_queries, n_keys, query.device)
        if bias is not None and (kernel := attention_bias.kernel_for(bias, query.dtype, query.shape[-1])):
            return kernel(query, key, value, bias, scale), None
    key, value = for_all_heads(query, key, value)
    if not encoding.bias_form():
        return unbiased(query, key, value, attention_mask, scale, dropout), None
    slopes = encoding.slopes()
    if slopes and slopes_fit(query.dtype, n_keys):
        return with_slopes(query, key, value, attention_mask, slopes, scale, dropout), None
    return attention_bias.in_query_blocks(encoding, query, key, value, attention_mask, scale, dropout), None
