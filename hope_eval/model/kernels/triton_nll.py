"""`nll.plain` as one Triton kernel: a row of logits is read once, and two numbers are written.

Importing this module needs Triton; `nll.choose` does it, and sees to it that the results agree.

Shape letters: N tokens, V vocabulary.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(logits, targets, nlls, greedy, row_stride, vocab_size, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    # Triton reads annotations, and knows none of Python's.
    row = tl.program_id(0).to(tl.int64)
    line = logits + row * row_stride
    lanes = tl.arange(0, BLOCK)
    # Finite, so that a logit of minus infinity counts for nothing instead of making a NaN.
    high = tl.full([BLOCK], -1e38, tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    where = tl.zeros([BLOCK], tl.int32)
    for start in range(0, vocab_size, BLOCK):
        columns = start + lanes
        x = tl.load(line + columns, mask=columns < vocab_size, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(high, x)
        total = total * tl.exp(high - higher) + tl.exp(x - higher)
        where = tl.where(x > high, columns, where)
        high = higher
    top = tl.max(high, 0)
    sum_of_exp = tl.sum(total * tl.exp(high - top), 0)
    # Among equals the first, as argmax does.
    first = tl.min(tl.where(high == top, where, vocab_size), 0)
    target = tl.load(targets + row)
    tl.store(nlls + row, tl.log(sum_of_exp) + top - tl.load(line + target).to(tl.float32))
    tl.store(greedy + row, first.to(tl.int64))


def fused(logits_NV: Tensor, target_N: Tensor) -> tuple[Tensor, Tensor]:
    """Nll [nats, float32, N] and the likeliest tokens [int64, N]."""
    logits_NV = logits_NV if logits_NV.stride(-1) == 1 else logits_NV.contiguous()
    n, vocab_size = logits_NV.shape
    nll_N = torch.empty(n, dtype=torch.float32, device=logits_NV.device)
    greedy_N = torch.empty(n, dtype=torch.int64, device=logits_NV.device)
    with torch.cuda.device(logits_NV.device):
        _kernel[(n,)](logits_NV, target_N, nll_N, greedy_N, logits_NV.stride(0), vocab_size, BLOCK=4096, num_warps=8)
    return nll_N, greedy_N
