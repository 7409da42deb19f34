"""What a forward takes: operations and bytes from the shape of a model, seconds from a few short forwards.

Operations are those of matrix products, two for a multiplication with an addition:

    2 W R  +  4 H E P  +  2 D V S

W weights that every token is multiplied by, R tokens read, P pairs of a query and a key that it may look at (of all
layers: half of the square of the length, or what a window leaves), S tokens scored. Element-wise work is not counted,
nor is a bias of the encoding; seconds have both, since they are fitted to what the benchmark took.

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

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from hope_eval.encodings import PositionEncoding
from hope_eval.errors import OptionError
from hope_eval.lengths import short_length
from hope_eval.model.configs import heads_of, inner_width, text_config
from hope_eval.model.contexts import contexts_copied
from hope_eval.model.kernels.attention import BLOCK_NUMBERS
from hope_eval.model.kernels.attention_choice import CUDNN_FROM
from hope_eval.model.kernels.chunked_layers import COMPILED_FROM, largest_chunk
from hope_eval.model.reading import chunk_size
from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Prompt, Question, Sample

# The benchmark reads longer and longer inputs, until one takes this many seconds.
_LONG_ENOUGH = 0.3
_SHORTEST_READ = 64

# Each is read as often as that time allows, but within these limits, the first time for nothing.
_FEWEST_ROUNDS, _MOST_ROUNDS = 4, 20

# Answers that the benchmark reads after a context; many tasks have that many questions.
_N_ANSWERS = 32

# Where the median of equal reads is that many times the least, a device has something else to do.
_BUSY = 1.3

# Attention is at most this many times as fast as the other matrix products, whatever a short benchmark makes of it: no
# kernel gets there, and an error in it grows with the square of the length.
_ATTENTION_AT_MOST = 2.0

Kind = Literal["score", "context", "answers", "step"]


@dataclass(frozen=True)
class Shape:
    """What of a model its operations and its memory follow from.

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
        """Return the shape of a transformers model, whose weights need not be there. Raises OptionError for others."""
        config = text_config(module)
        get_decoder: Any = getattr(module, "get_decoder", lambda: None)
        decoder, head = get_decoder(), getattr(module, "get_output_embeddings", lambda: None)()
        if config is None or decoder is None or head is None or not hasattr(config, "num_hidden_layers"):
            raise OptionError(
                f"nothing tells the shape of {type(module).__name__}", "a plan needs a causal model of transformers"
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
        """Return the pairs of a query and a key that it may look at, itself among them, of all layers."""
        return sum(_pairs(n_read, n_past, window) for window in self.windows)

    def operations(self, forward: "Forward") -> tuple[int, int, int]:
        """Return the operations of the layers' weights, of attention and of the head."""
        linear = 2 * self.n_linear * forward.rows * forward.n_read
        attention = 4 * self.n_heads * self.head_dim * forward.rows * self.pairs(forward.n_read, forward.n_past)
        return linear, attention, 2 * self.n_head * forward.n_scored

    @cached_property
    def kept_token_bytes(self) -> int:
        """Bytes of the keys and values of a token."""
        return 2 * len(self.windows) * self.n_kv_heads * self.head_dim * self.number_bytes

    def memory(self, forward: "Forward", device_type: str) -> int:
        """Return the most bytes that a forward holds beside the weights."""
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
            # The mask, and what the kernel makes of it.
            layer += forward.n_read * n_keys * (1 + number)
        rows = min(forward.n_read, max(16, BLOCK_NUMBERS // (self.n_heads * n_keys)))
        layer += rows * n_keys * (self.pair_bytes + self.kept_bytes)
        # Inputs that are read side by side are scored one after the other but on a GPU, answers all together.
        apart = forward.kind == "score" and not cuda
        n_scored = math.ceil(forward.n_scored / forward.rows) if apart else forward.n_scored
        n_chunk = min(n_scored, chunk_size(device_type, self.vocab_size))
        # Logits, their softmax in float32, and a copy in float32 if they are not; a fused kernel does with the first.
        made = 0 if cuda else 4 if number == 4 else 8
        logits = n_chunk * self.vocab_size * (number + made)
        if self.full_logits:
            logits += n_tokens * self.vocab_size * number
        # Hidden states, and on a GPU those that are scored, of all inputs one after the other.
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


@dataclass(frozen=True)
class Speed:
    """Seconds of a call, of an operation, and of a byte of keys and values that is copied.

    fresh:    of a pair of tokens, the first time that a length is read: a bias that is kept is made then.
    first:    of the first read of its shape, more than of the next: kernels are chosen and planned for it.
    overlaps: a GPU computes while it is told what to compute next, so that a call takes the longer of the two. Those of
              answers take both: they wait for each other between layers and head.
    about:    where it is from, for people.
    """

    call: float
    linear: float
    attention: float
    head: float
    answers_call: float = 0.0
    step_call: float = 0.0
    copied: float = 0.0
    fresh: float = 0.0
    first: float = 0.0
    overlaps: bool = False
    about: str = ""

    @classmethod
    def stated(cls, operations: float) -> "Speed":
        """Return the speed of a device that does so many operations a second, whatever they are."""
        return cls(0, 1 / operations, 1 / operations, 1 / operations, about=f"{operations / 1e12:g} TFLOP/s as stated")

    def seconds(self, shape: Shape, forward: Forward) -> float:
        """Return what a forward takes."""
        linear, attention, head = shape.operations(forward)
        work = self.linear * linear + self.attention * attention + self.head * head
        work += self.copied * forward.rows * forward.n_past * shape.kept_token_bytes
        call = {"answers": self.answers_call, "step": self.step_call}.get(forward.kind, self.call)
        return max(call, work) if self.overlaps and forward.kind != "answers" else call + work

    def beforehand(self, forwards: Collection[Forward]) -> float:
        """Return what forwards take beside that, once for each of their shapes."""
        shapes = {(forward.rows, forward.n_read) for forward in forwards if forward.kind in ("score", "context")}
        return self.first * len(shapes) + self.fresh * sum(n_read**2 for n_read in {n_read for _, n_read in shapes})


def benchmark(
    model: LanguageModel,
    shape: Shape,
    longest: int,
    writes: bool = True,
    rows_of: Callable[[int], int] = lambda n_read: 1,
) -> Speed:
    """Time a few short forwards on the device, and return the speed that they fit.

    longest: tokens of the longest read that is planned; the benchmark stays below it where that takes long.
    writes:  whether the model is to write, too.
    rows_of: how many inputs of so many tokens are read side by side.
    """
    vocab_size = shape.vocab_size
    rng = np.random.default_rng(0)
    ids = rng.integers(0, vocab_size, max(longest, 4 * _SHORTEST_READ))
    cuda = model.device.type == "cuda"
    forwards: list[Forward] = []
    reads: list[float] = []
    spread = 1.0
    lengths = _growing(longest)
    # What a call takes is seen where there is little to do in it.
    alone = [(1, lengths[0])] if rows_of(lengths[0]) > 1 else []
    for rows, length in [*alone, *((rows_of(length), length) for length in lengths)]:
        sample = Sample(ids[: length - 1], ids[length - 1 : length])
        (taken,) = _taken(model, partial(model.score, [sample] * rows))
        forwards.append(Forward("score", rows, length, n_scored=rows))
        reads.append(min(taken))
        spread = max(spread, statistics.median(taken) / min(taken))
        if reads[-1] > _LONG_ENOUGH and len(reads) >= 3 + len(alone):
            break
    rows, length = forwards[-1].rows, forwards[-1].n_read
    between = Forward("score", 1, length, n_scored=length - 2)
    last, whole = (Sample(ids[:n], ids[n:length]) for n in (length - 1, 1))
    more, less = _timed(model, partial(model.score, [whole]), partial(model.score, [last]))
    head = max(0.0, more - less) / max(1, shape.operations(between)[2])
    operations = [shape.operations(forward) for forward in forwards]
    # Each of the reads scored a token of every input.
    heads = [head * of_head for *_, of_head in operations]
    seconds = np.array([max(taken - of_head, taken / 10) for taken, of_head in zip(reads, heads, strict=True)])
    ratio = 1 / _ATTENTION_AT_MOST
    # With what attention takes at least among the others, its own share is what it takes beyond that.
    columns = np.array([[1.0, linear + ratio * attention, attention] for linear, attention, _ in operations])
    if cuda:
        call = float(seconds.min())
        busy = seconds > 1.5 * call
        busy[-1] = True
        _, linear, extra = 0.0, *_fitted(columns[busy, 1:], seconds[busy])
    else:
        call, linear, extra = _fitted(columns, seconds)
    speed = Speed(call, linear, ratio * linear + extra, max(head, 0.2 * linear), overlaps=cuda)
    if cuda:
        speed = replace(speed, first=_first(model, ids[: min(length, 2 * CUDNN_FROM)]))
    if shape.kept_bytes:
        more = min(_more(model, [Sample(ids[: length - k], ids[:1])] * rows) for k in (2, 3))
        speed = replace(speed, fresh=max(0.0, more - speed.first) / length**2)
    speed = _with_answers(model, shape, speed, ids, [forwards[0].n_read, length])
    if writes:
        speed = _with_steps(model, speed, ids)
    names = ", ".join(dict.fromkeys(short_length(forward.n_read) for forward in forwards))
    rates = f"{_rate(speed.linear)} in layers, {_rate(speed.attention)} in attention, {_rate(speed.head)} in the head"
    about = f"{rates}, {1e3 * speed.call:.2g} ms a call; from reads of {names} tokens"
    if spread > _BUSY:
        about += f". The device was busy: the same read took up to {spread:.1f} times as long, and so may the run"
    return replace(speed, about=about)


def _growing(longest: int) -> list[int]:
    """Return at least three lengths, each four times the one before, the last of them the longest."""
    lengths = [longest]
    while lengths[-1] >= 4 * _SHORTEST_READ:
        lengths.append(lengths[-1] // 4)
    while len(lengths) < 3:
        lengths.append(max(2, lengths[-1] // 2))
    return sorted(set(lengths))


def _timed(model: LanguageModel, *calls: Callable[[], Any]) -> list[float]:
    """Return the least seconds of each of several calls.

    The least, since what else a machine does meanwhile makes a call longer, and never shorter.
    """
    return [min(seconds) for seconds in _taken(model, *calls)]


def _taken(model: LanguageModel, *calls: Callable[[], Any]) -> list[list[float]]:
    """Return the seconds of several calls that are made in turn, time and again, once they are warm."""
    taken: list[list[float]] = [[] for _ in calls]
    rounds = itertools.count()
    end = math.inf
    while (number := next(rounds)) < _FEWEST_ROUNDS or (number < _MOST_ROUNDS and time.perf_counter() < end):
        for call, seconds in zip(calls, taken, strict=True):
            seconds.append(_once(model, call))
        if not number:
            end = time.perf_counter() + _LONG_ENOUGH
    return [seconds[1:] for seconds in taken]


def _once(model: LanguageModel, call: Callable[[], Any]) -> float:
    """Return the seconds of a call, with the GPU's work."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    start = time.perf_counter()
    call()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start


def _more(model: LanguageModel, samples: list[Sample]) -> float:
    """Return the seconds that samples take more than when they are scored again."""
    call = partial(model.score, samples)
    return _once(model, call) - _once(model, call)


def _first(model: LanguageModel, ids: np.ndarray) -> float:
    """Return what the first read of a shape takes more than the second, of a length that was read before.

    Kernels of matrix products are chosen for it, and cuDNN's attention plans for it. Contexts with their answers took
    57 to 72 ms more the first time, those too short for cuDNN up to 53 (135M parameters, one H100): they count alike.
    """
    sample = Sample(ids[:-1], ids[-1:])
    _once(model, partial(model.score, [sample]))
    return max(0.0, statistics.median(_more(model, [sample] * rows) for rows in (2, 3, 4)))


def _fitted(columns: np.ndarray, seconds: np.ndarray) -> tuple[float, ...]:
    """Return coefficients of the columns [n, k] that are not negative, with the least relative error."""
    scaled = columns / seconds[:, None]
    best, least = np.zeros(columns.shape[1]), math.inf
    for size in range(1, columns.shape[1] + 1):
        for some in itertools.combinations(range(columns.shape[1]), size):
            # Operations are large numbers beside calls.
            norms = np.abs(scaled[:, some]).max(axis=0)
            found = np.linalg.lstsq(scaled[:, some] / norms, np.ones(len(seconds)), rcond=None)[0] / norms
            error = float(((scaled[:, some] @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least - 1e-9:
                best, least = np.zeros(columns.shape[1]), error
                best[list(some)] = found
    return tuple(map(float, best))


def _with_answers(model: LanguageModel, shape: Shape, speed: Speed, ids: np.ndarray, lengths: Sequence[int]) -> Speed:
    """Return the speed with what answers after a kept context take, timed on a short context and a longer one."""
    if not model.reading.keeps_contexts:
        return speed
    columns, seconds = [], []
    for length in (lengths[0], lengths[-1]):
        context = ids[:length]
        # As many side by side as in a run: large copies are slower than small ones, where memory is new each time.
        n = min(_N_ANSWERS, contexts_copied(model.device.type, (length - 1) * shape.kept_token_bytes, None))
        questions = tuple(Question(ids[k : k + 4], ids[k + 4 : k + 8]) for k in range(0, 4 * n, 4))
        prompt = Prompt(context, questions)
        (taken,) = _timed(model, partial(model.score_prompts, [prompt]))
        answers = Forward("answers", len(questions), 8, length - 1, n_scored=4 * len(questions))
        # Calls and copies of answers take nothing yet.
        taken -= sum(speed.seconds(shape, forward) for forward in (Forward("context", 1, length - 1), answers))
        columns.append([1.0, float(answers.rows * answers.n_past * shape.kept_token_bytes)])
        seconds.append(max(taken, speed.call / 4, 1e-6))
    call, copied = _fitted(np.array(columns), np.array(seconds))
    return replace(speed, answers_call=call, copied=copied)


def _with_steps(model: LanguageModel, speed: Speed, ids: np.ndarray) -> Speed:
    """Return the speed with what writing a token takes."""
    prompt, n = ids[:8], 16
    n_steps = min(n, len(model.generate([prompt], n)[0]) + 1)
    more, less = _timed(model, partial(model.generate, [prompt], n), partial(model.generate, [prompt], 1))
    if n_steps < 2:
        return replace(speed, step_call=speed.call)
    return replace(speed, step_call=max((more - less) / (n_steps - 1), 1e-6))


def free_memory(device: torch.device, n_loaded: int) -> float | None:
    """Return the bytes that weights and forwards may take on a device; None where it is not there, or does not tell.

    n_loaded: bytes of the weights, if they are there already.
    """
    if device.type == "cuda":
        if not torch.cuda.is_available():
            return None
        return float(torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device))
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        known = {line.split(":")[0]: line.split()[1] for line in lines}
        return 1024.0 * int(known["MemAvailable"]) + n_loaded
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
    """Return how far each layer looks back; None: to the beginning."""
    n_layers = int(config.num_hidden_layers)
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not kinds:
        return (window,) * n_layers
    # Layers of another kind (recurrent, convolutions) have no pairs.
    known = {"full_attention": None, "sliding_attention": window, "chunked_attention": window}
    return tuple(known.get(kind, 0) for kind in kinds)


def _bias_bytes(encodings: Sequence[PositionEncoding], n_heads: int, device_type: str) -> tuple[int, int]:
    """Return the bytes of a bias for each pair of a block of queries with keys: at work, and kept in all layers."""
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


def _rate(seconds: float) -> str:
    if not seconds:
        return "nothing to be seen"
    per_second = 1 / seconds
    return f"{per_second / 1e12:.3g} TFLOP/s" if per_second >= 1e12 else f"{per_second / 1e9:.3g} GFLOP/s"
