"""The nll of target tokens from logits, and what greedy decoding would have written in their place.

`plain` is the definition. `fused_nll.fused` reads the logits once and writes two numbers a row, in a Triton kernel; it
does without the float32 copy of the logits. `choose` picks it where it works and agrees.

Shape letters: N tokens, V vocabulary.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

NllAndGreedy = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def plain(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return nll [nats, float32, N] and the likeliest tokens [int64, N]; sums are float32 whatever the logits are."""
    log_p_NV = torch.log_softmax(logits_NV, dim=-1, dtype=torch.float32)
    return -log_p_NV.gather(-1, target_N[:, None])[:, 0], logits_NV.argmax(-1)


@functools.cache
def choose(device_type: str) -> NllAndGreedy:
    """Return `fused` on CUDA if Triton works here and gives what `plain` gives, else `plain`."""
    if device_type != "cuda":
        return plain
    try:
        from hope_eval.model.kernels.fused_nll import fused

        generator = torch.Generator().manual_seed(0)
        logits = (9 * torch.randn(5, 10_007, generator=generator)).to("cuda", torch.bfloat16)
        target = torch.tensor([0, 10_006, 5000, 4096, int(logits[4].argmax())], device="cuda")
        wanted, found = plain(logits, target), fused(logits, target)
        agrees = torch.allclose(wanted[0], found[0], atol=1e-4) and torch.equal(wanted[1], found[1])
    except Exception:
        # No Triton, no C compiler for it, a GPU it does not know: the definition is right everywhere.
        return plain
    return fused if agrees else plain
