"""Attention alone, forward, with each encoding, beside the kernels of PyTorch.

Operations are those of the causal half: 2 * heads * head_dim * L^2.
"""

import math
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks import common
from benchmarks.common import DEVICE, OURS, Figure, Work
from hope_eval.encodings import Geometry, parse_encoding
from hope_eval.model import kernels
from hope_eval.model.kernels import attention_choice

ENCODINGS = "rope,alibi,t5,kerple,fire"

BACKENDS = {
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}

# Targets at 32k: TFLOP/s at least, by head_dim.
_PROMISED = {"t5": {128: 130, 64: 100}, "kerple": {128: 130, 64: 100}}


@click.command()
@common.length_option("--length", "32k")
@click.option("--head-dims", default="64,128")
@click.option("--heads", default=32)
@click.option("--kv-heads", default=8)
@click.option("--encodings", default=ENCODINGS)
@common.repeats_option
@common.out_option
def attention(
    length: int, head_dims: str, heads: int, kv_heads: int, encodings: str, repeats: int, out: Path | None
) -> None:
    """Attention alone, of every encoding."""
    figures: list[Figure] = []
    for head_dim in map(int, head_dims.split(",")):
        inputs = [_random(n, length, head_dim) for n in (heads, kv_heads, kv_heads)]
        count = 2.0 * heads * head_dim * length**2
        for name, backend in BACKENDS.items():
            way = f"PyTorch, {name}"
            call = partial(_sdpa, backend, *inputs)
            figures.append(_measured(Work(way, call, length, count, facts={"head_dim": head_dim}), repeats))
        call = partial(_flash4, *inputs)
        figures.append(_measured(Work("FlashAttention-4", call, length, count, facts={"head_dim": head_dim}), repeats))
        for name in encodings.split(","):
            encoding = parse_encoding(name).build(Geometry(head_dim, heads, 2048, d_model=heads * head_dim)).to(DEVICE)
            layer = torch.nn.Module()
            layer.encoding = encoding
            call = partial(_ours, layer, *inputs)
            facts = {"head_dim": head_dim, "encoding": name}
            figures.append(_measured(Work(f"{OURS}, {name}", call, length, count, facts=facts), repeats))
    targets = []
    for name, promised in _PROMISED.items():
        for head_dim, tflops in promised.items():
            value = common.value_of(figures, "tflops", encoding=name, head_dim=head_dim)
            if value is not None:
                what = f"attention with {name}, head_dim {head_dim}, {length:,} tokens"
                targets.append(common.target(what, value, f">= {tflops} TFLOP/s", length == 32_768))
    for head_dim in map(int, head_dims.split(",")):
        for timed, reference, wanted in (("fire", "t5", "<= 4"), ("alibi", "rope", "")):
            if {timed, reference} - set(encodings.split(",")):
                continue
            seconds = (
                common.value_of(figures, "seconds", encoding=name, head_dim=head_dim) for name in (timed, reference)
            )
            what = f"time with {timed} / with {reference}, head_dim {head_dim}, {length:,} tokens"
            targets.append(common.target(what, common.ratio(*seconds), wanted, length == 32_768))
    common.report(f"Attention alone, {length:,} tokens", figures, out, targets, heads=heads, kv_heads=kv_heads)


def _random(n_heads: int, length: int, head_dim: int) -> torch.Tensor:
    dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
    generator = torch.Generator(DEVICE).manual_seed(0)
    return torch.randn(1, n_heads, length, head_dim, device=DEVICE, dtype=dtype, generator=generator)


@torch.inference_mode()
def _sdpa(backend: SDPBackend, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    n_groups = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(n_groups, dim=1) for x in (key, value))
    with sdpa_kernel(backend):
        torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=1 / math.sqrt(query.shape[-1])
        )


@torch.inference_mode()
def _flash4(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    with attention_choice.preferring(("flash4",), query.shape[2], alone=True, tried=attention_choice.Heads.of(query)):
        attention_choice.by_flash4(query, key, value, 1 / math.sqrt(query.shape[-1]))


@torch.inference_mode()
def _ours(layer: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    heads, length, head_dim = query.shape[1:]
    with attention_choice.fastest(DEVICE, query.dtype, heads, key.shape[1], head_dim).preferred(length):
        kernels.attention.attention(layer, query, key, value, None)


def _measured(work: Work, repeats: int) -> Figure:
    """Figures of a kernel; those of `not_run` if this device does not have it."""
    try:
        return common.measured(work, repeats)
    except ModuleNotFoundError:
        return common.not_run(work.way, "not installed", **work.facts)
    except RuntimeError as error:
        if not any(words in str(error) for words in ("No available kernel", "No viable backend", "Invalid backend")):
            raise
        return common.not_run(work.way, "not available", **work.facts)
