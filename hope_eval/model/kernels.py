"""Which kernel computes attention on a GPU: the fastest of those that are right, found out once.

    order = fastest(device, dtype, n_heads, n_kv_heads, head_dim).order
    with preferring(order, n_read): …

Every kernel reads a short input of an odd length, and must give what the definition gives in float64; then it is timed
on a long one. On an H100 or H200, cuDNN's is mostly 1.5 to 1.8 times as fast as the one that PyTorch prefers, and
FlashAttention-4, a package of its own, 1.2 times as fast again where inputs are very long.

Shape letters: B batch, H heads, G heads of keys, L length (Q queries, K keys), E head_dim.
"""

import contextlib
import functools
import importlib
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

# Of kernels that are about as fast, the first is taken.
KERNELS = ("flash4", "cudnn", "flash", "efficient")

# How much faster a later one must be. What is measured varies; the choice should not.
_MARGIN = 1.1

# From here on cuDNN's attention pays: it makes a plan for every new shape, and short inputs have many shapes.
CUDNN_FROM = 2048

_CHECKED_LENGTH, _TIMED_LENGTH = 333, 8192

# Largest error, as a share of the norm of what is right.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Kernels:
    """Kernels for one shape of heads.

    order:   of preference; empty where PyTorch's own choice is left alone.
    tflops:  of each, on a causal input of 8k tokens.
    refused: why the others are not used.
    """

    order: tuple[str, ...] = ()
    tflops: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return ">".join(self.order)


def fastest(device: torch.device, dtype: torch.dtype, n_heads: int, n_kv_heads: int, head_dim: int) -> Kernels:
    """Return the kernels for heads of that shape on a device."""
    if device.type != "cuda":
        return Kernels()
    return _fastest(torch.cuda.get_device_name(device), dtype, n_heads, n_kv_heads, head_dim)


@functools.cache
def _fastest(name: str, dtype: torch.dtype, n_heads: int, n_kv_heads: int, head_dim: int) -> Kernels:
    generator = torch.Generator("cuda").manual_seed(0)

    def drawn(length: int) -> tuple[Tensor, Tensor, Tensor]:
        shapes = [(1, heads, length, head_dim) for heads in (n_heads, n_kv_heads, n_kv_heads)]
        q, k, v = (torch.randn(shape, generator=generator, device="cuda").to(dtype) for shape in shapes)
        return q, k, v

    short, long = drawn(_CHECKED_LENGTH), drawn(_TIMED_LENGTH)
    wanted = definition(*short)
    tflops: dict[str, float] = {}
    refused: dict[str, str] = {}
    for kernel in KERNELS:
        if kernel == "flash4" and _flash4() is None:
            refused[kernel] = "flash-attn-4 is not installed"
            continue
        try:
            with preferring((kernel,), _TIMED_LENGTH, alone=True), torch.inference_mode(), warnings.catch_warnings():
                # Why a kernel is not taken is told in the error as well.
                warnings.simplefilter("ignore")
                found = _attended(*short).double()
                error = float((found - wanted).norm() / wanted.norm())
                if not error <= _TOLERANCE.get(dtype, 1e-3):
                    refused[kernel] = f"off by {error:.2g}"
                    continue
                tflops[kernel] = round(4 * n_heads * head_dim * _TIMED_LENGTH**2 / 2 / _seconds(long) / 1e12, 1)
        except Exception as error:
            # Each kernel has its own reasons not to take a shape, a type or a GPU, and its own errors.
            refused[kernel] = f"{type(error).__name__}: {error}".splitlines()[0][:100]
    order = sorted(tflops, key=lambda kernel: -tflops[kernel])
    first = next((k for k in tflops if tflops[k] * _MARGIN >= tflops[order[0]]), None)
    return Kernels(tuple(sorted(order, key=lambda kernel: kernel != first)), tflops, refused)


@contextlib.contextmanager
def preferring(order: tuple[str, ...], n_read: int, *, alone: bool = False) -> Iterator[None]:
    """Have scaled_dot_product_attention try kernels in that order, and `by_flash4` do its work if that comes first.

    n_read: tokens of the input; of short ones, the kernel that plans for every shape comes last.
    alone:  take no other kernel in their stead.
    """
    first, *rest = order or ("",)
    token = _prefers_flash4.set(first == "flash4")
    try:
        with _pytorch(tuple(rest) if first == "flash4" else order, n_read, alone):
            yield
    finally:
        _prefers_flash4.reset(token)


def _pytorch(order: tuple[str, ...], n_read: int, alone: bool) -> contextlib.AbstractContextManager[object]:
    if not order:
        return contextlib.nullcontext()
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "flash": SDPBackend.FLASH_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    }
    if not alone:
        order = (*order, "math")
    if n_read < CUDNN_FROM:
        order = tuple(sorted(order, key=lambda kernel: kernel == "cudnn"))
    return sdpa_kernel([backends[kernel] for kernel in order if kernel in backends], set_priority=True)


_prefers_flash4: ContextVar[bool] = ContextVar("prefers_flash4", default=False)


@functools.cache
def _flash4() -> Callable[..., Any] | None:
    """Return the function of FlashAttention-4; None where it is not installed."""
    # What it and its compiler have to say of themselves is for its authors, and no reason to do without.
    warnings.filterwarnings("ignore", module=r"(flash_attn|cutlass|quack|tvm_ffi)\b")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found: Callable[..., Any] = importlib.import_module("flash_attn.cute").flash_attn_func
    except Exception:
        # Or what it needs is not, or is another version.
        return None
    return found


def by_flash4(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor | None:
    """Return causal attention of the last Q positions of K, [B, Q, H, E], by FlashAttention-4.

    None where another kernel is preferred, for a single query, for gradients, and for what it was not tried on.
    """
    # The compiler knows no context variables.
    if torch.compiler.is_compiling() or not _prefers_flash4.get():
        return None
    kernel, head_dim = _flash4(), query.shape[-1]
    if kernel is None or torch.is_grad_enabled() or query.shape[2] == 1 or value.shape[-1] != head_dim:
        return None
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        # It takes [B, L, H, E], which is how layers make their heads.
        found = kernel(*(x.transpose(1, 2) for x in (query, key, value)), softmax_scale=scale, causal=True)
    out: Tensor = found[0] if isinstance(found, tuple) else found
    return out


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    found = by_flash4(query, key, value, 1 / math.sqrt(query.shape[-1]))
    if found is not None:
        return found.transpose(1, 2)
    grouped = query.shape[1] != key.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)


def definition(query: Tensor, key: Tensor, value: Tensor, bias_HQK: Tensor | float = 0.0) -> Tensor:
    """Return causal attention in float64, all scores at once, [B, H, L, E]."""
    n_groups = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(n_groups, dim=1) for x in (key, value))
    logits = query.double() @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias_HQK
    hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
    return logits.masked_fill(hidden, -math.inf).softmax(-1) @ value


def _seconds(inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    """Return the least seconds of a call."""
    taken = []
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        _attended(*inputs)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[2:])
