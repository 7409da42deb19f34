"""Cost of a forward: operations and bytes, from the shape of a model.

Operations are those of matrix products, two for a multiplication with an addition:

    2 W R  +  4 H E P  +  2 D V S

W weights that every token is multiplied by, R tokens read, P pairs of a query and a key that it may look at (of all
layers: half of the square of the length, or what a window leaves), S tokens scored. Element-wise work is not counted,
nor is a bias of the encoding; seconds include both, since they are fitted to the benchmark.

Memory is the most that a forward holds beside the weights, in numbers:

    R (3 D + 4 H E + 2 K E)    within attention: embeddings, its input and what the norm makes of it, queries and keys
                               before and after they are rotated; compiled, 2 H E instead of 4
    R 4 D + 3 I min(R, T)      within the MLP, which is run over chunks of tokens
    2 N K E                    a token of keys and values that are kept, and of each copy of them
    C V                        a chunk of logits, after the layers

The first two are what transformers' Llama and its kin hold: 3.75 GiB for 128k tokens of the 1.2B model of the
benchmarks, 2.75 compiled, 7.5 and 5.5 of the 8B one; 3.78, 2.78, 7.56 and 5.56 were measured.

Letters: D width, I inner width of the MLP, T tokens of a chunk of it, N layers, H heads, K heads of keys, E head_dim,
V vocabulary, C tokens of a chunk of logits.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from hope_eval.encodings import PositionEncoding
from hope_eval.errors import OptionError
from hope_eval.model.configs import heads_of, inner_width, text_config
from hope_eval.model.kernels.attention_blocks import BLOCK_NUMBERS
from hope_eval.model.kernels.chunked_layers import COMPILED_FROM, largest_chunk
from hope_eval.model.reading import chunk_size

Kind = Literal["score", "context", "answers", "step"]


@dataclass(frozen=True)
class Shape:
    """Facts of a model that decide its operations and its memory.

    n_bytes:      of the weights.
    n_linear:     weights that every token is multiplied by, those of the head apart.
    n_head:       weights of the head.
    windows:      tokens that a layer looks back at, one a layer; None: all.
    number_bytes: of a number of the activations.
    full_logits:  the model's head is not applied in chunks.
    pair_bytes:   of a bias, for each pair of query and key of a block, and `kept_bytes` of those from block to block.
    """

    n_bytes: int
    n_linear: int
    n_head: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    d_model: int
    d_inner: int
    vocab_size: int
    windows: tuple[int | None, ...]
    number_bytes: int
    pair_bytes: int = 0
    kept_bytes: int = 0
    full_logits: bool = False

    @classmethod
    def of(cls, module: nn.Module) -> "Shape":
        """The shape of a transformers model, with or without its weights. Raises OptionError for other models."""
        config = text_config(module)
        get_decoder: Any = getattr(module, "get_decoder", lambda: None)
        decoder, head = get_decoder(), getattr(module, "get_output_embeddings", lambda: None)()
        if config is None or decoder is None or head is None or not hasattr(config, "num_hidden_layers"):
            raise OptionError(
                f"the shape of {type(module).__name__} is unknown", "a plan needs a causal model of transformers"
            )
        looked_up = {id(p) for part in decoder.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
        encodings = [part for part in decoder.modules() if isinstance(part, PositionEncoding)]
        looked_up |= {id(p) for part in encodings for p in part.parameters()}
        n_active = getattr(config, "num_experts_per_tok", None)
        n_experts = getattr(config, "num_local_experts", None) or getattr(config, "num_experts", None)
        share = n_active / n_experts if n_active and n_experts else 1
        n_linear = sum(
            p.numel() * (share if ".experts" in name else 1)
            for name, p in decoder.named_parameters()
            if p.ndim >= 2 and id(p) not in looked_up
        )
        n_heads, n_kv_heads, head_dim = heads_of(config)
        d_model = int(config.hidden_size)
        first = next(module.parameters())
        pair_bytes, kept_bytes = _bias_bytes(encodings, n_heads, first.device.type)
        return cls(
            n_bytes=sum(p.numel() * p.element_size() for p in module.parameters()),
            n_linear=round(n_linear),
            n_head=head.weight.numel(),
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            head_dim=head_dim,
            d_model=d_model,
            d_inner=inner_width(config),
            vocab_size=int(config.vocab_size),
            windows=_windows(config),
            number_bytes=first.element_size(),
            pair_bytes=pair_bytes,
            kept_bytes=kept_bytes,
        )

    def pairs(self, n_read: int, n_past: int = 0) -> int:
        """Pairs of a query and a key that it may look at, itself included, of all layers."""
        return sum(_pairs(n_read, n_past, window) for window in self.windows)

    def operations(self, forward: "Forward") -> tuple[int, int, int]:
        """Operations of the layers' weights, of attention and of the head."""
        linear = 2 * self.n_linear * forward.rows * forward.n_read
        attention = 4 * self.n_heads * self.head_dim * forward.rows * self.pairs(forward.n_read, forward.n_past)
        return linear, attention, 2 * self.n_head * forward.n_scored

    @cached_property
    def kept_token_bytes(self) -> int:
        """Bytes of the keys and values of a token."""
        return 2 * len(self.windows) * self.n_kv_heads * self.head_dim * self.number_bytes

    def memory(self, forward: "Forward", device_type: str) -> int:
        """The most bytes that a forward holds besides the weights."""
        number = self.number_bytes
        n_tokens, n_keys = forward.rows * forward.n_read, forward.n_past + forward.n_read
        heads, kv_heads = self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim
        cuda = device_type == "cuda"
        compiled = cuda and n_tokens >= COMPILED_FROM
        attention = n_tokens * (3 * self.d_model + (2 if compiled else 4) * heads + 2 * kv_heads)
        n_wide = min(n_tokens, largest_chunk(device_type, max(self.d_inner, self.d_model)))
        mlp = 4 * n_tokens * self.d_model + 3 * n_wide * self.d_inner
        layer = number * (max(attention, mlp) + 2 * forward.n_read * self.head_dim)
        if forward.n_past and self.n_kv_heads < self.n_heads and not cuda:
            # With a mask, keys and values are copied for every query head.
            layer += number * 2 * forward.rows * n_keys * heads
        looks_back = any(window is not None and window < n_keys for window in self.windows)
        if (forward.n_past or looks_back) and not cuda:
            # The mask, and the kernel's copy of it.
            layer += forward.n_read * n_keys * (1 + number)
        rows = min(forward.n_read, max(16, BLOCK_NUMBERS // (self.n_heads * n_keys)))
        layer += rows * n_keys * (self.pair_bytes + self.kept_bytes)
        # A GPU scores inputs together, a CPU one after the other. Answers are always scored together.
        apart = forward.kind == "score" and not cuda
        n_scored = math.ceil(forward.n_scored / forward.rows) if apart else forward.n_scored
        n_chunk = min(n_scored, chunk_size(device_type, self.vocab_size))
        # Logits, their softmax in float32, and a float32 copy of other types; a fused kernel needs only the logits.
        made = 0 if cuda else 4 if number == 4 else 8
        logits = n_chunk * self.vocab_size * (number + made)
        if self.full_logits:
            logits += n_tokens * self.vocab_size * number
        # Hidden states; on a GPU also those that are scored, of all inputs.
        together = n_scored if cuda and forward.kind == "score" and forward.rows > 1 else 0
        after = number * (n_tokens + together) * self.d_model + logits
        kept = 0 if forward.kind == "score" else self.kept_token_bytes * (forward.rows * n_keys + forward.n_beside)
        return max(layer, after) + kept


@dataclass(frozen=True)
class Forward:
    """One call of the decoder.

    kind:     `score` keeps nothing; `context` keeps keys and values; `answers` are read after copies of them; a `step`
              writes one token after them.
    rows:     inputs side by side.
    n_read:   tokens of each.
    n_past:   tokens before them whose keys and values are kept, of each.
    n_scored: tokens that the head is applied to, of all rows together.
    n_beside: tokens whose keys and values stay in memory beside these copies.
    """

    kind: Kind
    rows: int
    n_read: int
    n_past: int = 0
    n_scored: int = 0
    n_beside: int = 0

    @property
    def n_tokens(self) -> int:
        """Tokens that the decoder reads."""
        return self.rows * self.n_read


def free_memory(device: torch.device, n_loaded: int) -> float | None:
    """Bytes that weights and forwards may take on a device; None if this machine lacks it, or its memory is unknown.

    n_loaded: bytes of the weights, if they are loaded already.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return None
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        amounts = {line.split(":")[0]: line.split()[1] for line in lines}
        return 1024.0 * int(amounts["MemAvailable"]) + n_loaded
    except (OSError, KeyError, ValueError):
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _pairs(n_read: int, n_past: int, window: int | None) -> int:
    n_all = n_past + n_read
    if window is None or n_all <= window:
        return n_read * n_past + n_read * (n_read + 1) // 2
    # Queries that see less than a window, then those that see a whole one.
    n_short = max(0, window - n_past)
    return n_short * n_past + n_short * (n_short + 1) // 2 + (n_read - n_short) * window


def _windows(config: Any) -> tuple[int | None, ...]:
    """Tokens that each layer looks back; None: to the beginning."""
    n_layers = int(config.num_hidden_layers)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return (window,) * n_layers
    # Layers of another kind (recurrent, convolutions) have no pairs.
    reaches = {"full_attention": None, "sliding_attention": window, "chunked_attention": window}
    return tuple(reaches.get(kind, 0) for kind in kinds)


def _bias_bytes(encodings: Sequence[PositionEncoding], n_heads: int, device_type: str) -> tuple[int, int]:
    """Bytes of a bias for each pair of a block of queries with keys: at work, and kept in all layers."""
    if not encodings:
        return 0, 0
    form = encodings[0].bias_form()
    # Slopes cost nothing, and the kernel of a GPU makes all forms but pairs where it adds them.
    if form in ("", "slopes") or (device_type == "cuda" and form != "pairs"):
        return 0, 0
    # A float32 bias and its sum with the mask.
    both = 8 * n_heads
    if form == "table":
        # Distances are int64, twice.
        return both + 16, 0
    # The hidden layer of a network over pairs; for anything else, a guess of nothing.
    width = max((p.shape[0] for p in encodings[0].parameters() if p.ndim == 2), default=0)
    return both + 8 * width, 4 * n_heads * len(encodings)
