"""The nll of target tokens from logits, and the tokens that greedy decoding would have written in their place.

`plain` is the definition. `triton_nll.fused` reads the logits once and writes two numbers a row, in a Triton kernel, so
that no float32 copy of the logits is made. `choose` takes it on a GPU where it works and agrees.

Shape letters: N tokens, V vocabulary.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Kernel(NamedTuple):
    """A function from logits [N, V] and targets [N] to nll and likeliest tokens, and its name in a run's identity."""

    name: Literal["plain", "fused"]
    function: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def plain(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Nll [nats, float32, N] and the likeliest tokens [int64, N]; sums are float32 for logits of any type."""
    log_p_NV = torch.log_softmax(logits_NV, dim=-1, dtype=torch.float32)
    return -log_p_NV.gather(-1, target_N[:, None])[:, 0], logits_NV.argmax(-1)


@functools.cache
def choose(device_type: str) -> Kernel:
    """`fused` on CUDA if Triton works here and gives the numbers of `plain`, else `plain`."""
    definition = Kernel("plain", plain)
    if device_type != "cuda":
        return definition
    try:
        from hope_eval.model.kernels.triton_nll import fused

        generator = torch.Generator().manual_seed(0)
        logits = (9 * torch.randn(5, 10_007, generator=generator)).to("cuda", torch.bfloat16)
        target = torch.tensor([0, 10_006, 5000, 4096, int(logits[4].argmax())], device="cuda")
        (nll, greedy), (nll_of_fused, greedy_of_fused) = plain(logits, target), fused(logits, target)
        agrees = torch.allclose(nll, nll_of_fused, atol=1e-4) and torch.equal(greedy, greedy_of_fused)
    except Exception:
        # No Triton, no C compiler for it, a GPU it does not know: the definition is right everywhere.
        return definition
    return Kernel("fused", fused) if agrees else definition
