"""The choice of the kernel for attention on a GPU: the fastest correct one, found by trying each once.

    with fastest(device, dtype, n_heads, n_kv_heads, head_dim).preferred(n_read): …

Every kernel reads a short input of an odd length, and must give what the definition gives in float64; then it is timed
on a long one. On an H100 or H200, cuDNN's is mostly 1.5 to 1.8 times as fast as PyTorch's preferred one, and
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

# In order of preference: of kernels that are about equally fast, the first is taken.
KERNELS = ("flash4", "cudnn", "flash", "efficient")

# How much faster a later one must be: measured times vary, and the choice should not.
_MARGIN = 1.1

# From here on cuDNN's attention pays: it makes a plan for every new shape, and short inputs have many shapes.
CUDNN_FROM = 2048

_CHECKED_LENGTH, _CHECKED_LAST, _TIMED_LENGTH = 333, 100, 8192

# Other packages are called flash_attn, too, and lack that part.
_FLASH4 = ("flash_attn", "flash_attn.cute")

# Largest error, as a share of the norm of the right result.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}


@dataclass(frozen=True)
class Kernels:
    """Kernels for one shape of heads.

    order:   of preference; empty: PyTorch chooses.
    tflops:  of each, on a causal input of 8k tokens.
    refused: reasons why the others are not used.
    tried:   heads that they were tried on; None: none was tried.
    """

    order: tuple[str, ...] = ()
    tflops: dict[str, float] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    tried: "Heads | None" = None

    def __str__(self) -> str:
        return ">".join(self.order)

    def preferred(self, n_read: int) -> contextlib.AbstractContextManager[None]:
        """Read inputs of that many tokens with these kernels, in their order."""
        return preferring(self.order, n_read, tried=self.tried)


@dataclass(frozen=True)
class Heads:
    """Heads that FlashAttention-4 was tried on, and is used for: it has no other kernel to fall back to.

    capability: of the GPU; None: no GPU.
    """

    capability: tuple[int, int] | None
    dtype: torch.dtype
    head_dim: int

    @classmethod
    def of(cls, query: Tensor) -> "Heads":
        """The heads of a query [B, H, Q, E]."""
        capability = torch.cuda.get_device_capability(query.device) if query.is_cuda else None
        return cls(capability, query.dtype, query.shape[-1])


def fastest(device: torch.device, dtype: torch.dtype, n_heads: int, n_kv_heads: int, head_dim: int) -> Kernels:
    """The kernels for heads of that shape on a device."""
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
    wanted, tried = definition(*short), Heads.of(short[0])
    tflops: dict[str, float] = {}
    refused: dict[str, str] = {}
    for kernel in KERNELS:
        preferred = preferring((kernel,), _TIMED_LENGTH, alone=True, tried=tried)
        try:
            with preferred, torch.inference_mode(), warnings.catch_warnings():
                # The error is the reason why a kernel is not taken.
                warnings.simplefilter("ignore")
                attended = _attended(*short).double()
                if kernel == "flash4":
                    # It must be right for the last queries alone, too.
                    last = _attended(short[0][:, :, -_CHECKED_LAST:], *short[1:]).double()
                    attended = torch.cat([attended[:, :, :-_CHECKED_LAST], last], dim=2)
                error = float((attended - wanted).norm() / wanted.norm())
                if not error <= _TOLERANCE.get(dtype, 1e-3):
                    refused[kernel] = f"off by {error:.2g}"
                    continue
                tflops[kernel] = round(4 * n_heads * head_dim * _TIMED_LENGTH**2 / 2 / _seconds(long) / 1e12, 1)
        except Exception as error:
            # Each kernel has its own reasons not to take a shape, a type or a GPU, and its own errors.
            what = f"{type(error).__name__}: {error}".splitlines()[0][:100]
            is_absent = kernel == "flash4" and isinstance(error, ModuleNotFoundError) and error.name in _FLASH4
            refused[kernel] = "flash-attn-4 is not installed" if is_absent else what
    order = sorted(tflops, key=lambda kernel: -tflops[kernel])
    first = next((k for k in tflops if tflops[k] * _MARGIN >= tflops[order[0]]), None)
    return Kernels(tuple(sorted(order, key=lambda kernel: kernel != first)), tflops, refused, tried)


@contextlib.contextmanager
def preferring(
    order: tuple[str, ...], n_read: int, *, alone: bool = False, tried: Heads | None = None
) -> Iterator[None]:
    """Let scaled_dot_product_attention try kernels in that order, and `by_flash4` replace it if flash4 comes first.

    n_read: tokens of the input; for short inputs, the kernel that plans for every shape comes last.
    alone:  use no other kernel.
    tried:  heads that flash4 may be used for.
    """
    token = _flash4_for.set(tried if order[:1] == ("flash4",) else None)
    try:
        with _pytorch(tuple(kernel for kernel in order if kernel != "flash4"), n_read, alone):
            yield
    finally:
        _flash4_for.reset(token)


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
    return sdpa_kernel([backends[kernel] for kernel in order], set_priority=True)


_flash4_for: ContextVar[Heads | None] = ContextVar("flash4_for", default=None)


@functools.cache
def _flash4() -> Callable[..., Any]:
    """The function of FlashAttention-4. Raises the errors of its import."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        function: Callable[..., Any] = importlib.import_module("flash_attn.cute").flash_attn_func
    # Warnings from it and its compiler are for its authors.
    warnings.filterwarnings("ignore", module=r"(flash_attn|cutlass|quack|tvm_ffi)\b")
    return function


def by_flash4(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor | None:
    """Causal attention of the last Q positions of K, [B, Q, H, E], by FlashAttention-4.

    None where another kernel is preferred, for a single query, for gradients, and for what it was not tried on.
    """
    # The compiler knows no context variables.
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or _flash4_for.get() is None:
        return None
    n_queries, n_keys = query.shape[2], key.shape[2]
    if not 1 < n_queries <= n_keys or value.shape[-1] != query.shape[-1] or Heads.of(query) != _flash4_for.get():
        return None
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]
        # It takes [B, L, H, E], which is how layers make their heads.
        output = _flash4()(*(x.transpose(1, 2) for x in (query, key, value)), softmax_scale=scale, causal=True)
    out: Tensor = output[0] if isinstance(output, tuple) else output
    return out


def _attended(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    attended = by_flash4(query, key, value, 1 / math.sqrt(query.shape[-1]))
    if attended is not None:
        return attended.transpose(1, 2)
    grouped = query.shape[1] != key.shape[1]
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=grouped)


def definition(query: Tensor, key: Tensor, value: Tensor, bias_HQK: Tensor | float = 0.0) -> Tensor:
    """Causal attention in float64, all scores at once, [B, H, L, E]."""
    n_groups = query.shape[1] // key.shape[1]
    key, value = (x.double().repeat_interleave(n_groups, dim=1) for x in (key, value))
    logits = query.double() @ key.transpose(-1, -2) / math.sqrt(query.shape[-1]) + bias_HQK
    hidden = torch.ones(logits.shape[-2:], dtype=torch.bool, device=query.device).triu(1)
    return logits.masked_fill(hidden, -math.inf).softmax(-1) @ value


def _seconds(inputs: tuple[Tensor, Tensor, Tensor]) -> float:
    """Least seconds of a call."""
    taken = []
    for _ in range(6):
        torch.cuda.synchronize()
        start = time.perf_counter()
        _attended(*inputs)
        torch.cuda.synchronize()
        taken.append(time.perf_counter() - start)
    return min(taken[2:])
