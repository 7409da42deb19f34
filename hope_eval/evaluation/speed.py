"""Speed of a model on a device: seconds of a call, an operation and a copied byte, from a few short forwards."""

import itertools
import math
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch

from hope_eval.evaluation.cost import Forward, Shape
from hope_eval.lengths import short_length
from hope_eval.model.contexts import contexts_copied
from hope_eval.model.kernels.attention_choice import CUDNN_FROM
from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Prompt, Question, Sample

# The benchmark reads longer and longer inputs, until one takes this many seconds.
_LONG_ENOUGH = 0.3
_SHORTEST_READ = 64

# Each is read as often as that time allows, within these limits; the first read is not counted.
_FEWEST_ROUNDS, _MOST_ROUNDS = 4, 20

# Answers that the benchmark reads after a context; many tasks have that many questions.
_N_ANSWERS = 32

# If the median of equal reads is that many times the least, the device is busy with other work.
_BUSY = 1.3

# Limit on how many times as fast attention is as other matrix products: no kernel is faster, and an error of a short
# benchmark grows with the square of the length.
_ATTENTION_AT_MOST = 2.0


@dataclass(frozen=True)
class Speed:
    """Seconds of a call, of an operation, and of a byte of keys and values that is copied.

    fresh:    of a pair of tokens, the first time that a length is read: a bias is then made and kept.
    first:    extra seconds of the first read of a shape: kernels are chosen and planned for it.
    overlaps: a GPU computes while the next work is queued, so a call takes the longer of the two. Calls of answers take
              both: they wait for each other between layers and head.
    about:    its origin, for people.
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
        """The speed of a device with a stated number of operations per second, of any kind."""
        return cls(0, 1 / operations, 1 / operations, 1 / operations, about=f"{operations / 1e12:g} TFLOP/s as stated")

    def seconds(self, shape: Shape, forward: Forward) -> float:
        """Seconds of a forward."""
        linear, attention, head = shape.operations(forward)
        work = self.linear * linear + self.attention * attention + self.head * head
        work += self.copied * forward.rows * forward.n_past * shape.kept_token_bytes
        call = {"answers": self.answers_call, "step": self.step_call}.get(forward.kind, self.call)
        return max(call, work) if self.overlaps and forward.kind != "answers" else call + work

    def beforehand(self, forwards: Collection[Forward]) -> float:
        """Extra seconds of forwards, once for each of their shapes."""
        shapes = {(forward.rows, forward.n_read) for forward in forwards if forward.kind in ("score", "context")}
        return self.first * len(shapes) + self.fresh * sum(n_read**2 for n_read in {n_read for _, n_read in shapes})


def benchmark(
    model: LanguageModel,
    shape: Shape,
    longest: int,
    writes: bool = True,
    rows_of: Callable[[int], int] = lambda n_read: 1,
) -> Speed:
    """Time a few short forwards on the device, and fit a speed to them.

    longest: tokens of the longest read in the plan; the benchmark stays below it if that takes long.
    writes:  whether the model also generates text.
    rows_of: number of inputs of n tokens that are read side by side.
    """
    rng = np.random.default_rng(0)
    ids = rng.integers(0, shape.vocab_size, max(longest, 4 * _SHORTEST_READ))
    cuda = model.device.type == "cuda"
    forwards, reads, spread = _timed_reads(model, ids, _growing(longest), rows_of)
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
    # The other columns include the least time of attention; its own column is the time beyond that.
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
    return replace(speed, about=_about(speed, forwards, spread))


def _timed_reads(
    model: LanguageModel, ids: np.ndarray, lengths: Sequence[int], rows_of: Callable[[int], int]
) -> tuple[list[Forward], list[float], float]:
    """Reads of growing lengths, their least seconds, and the largest ratio of median to least."""
    forwards: list[Forward] = []
    reads: list[float] = []
    spread = 1.0
    # Short reads show the time of a call alone.
    alone = [(1, lengths[0])] if rows_of(lengths[0]) > 1 else []
    for rows, length in [*alone, *((rows_of(length), length) for length in lengths)]:
        sample = Sample(ids[: length - 1], ids[length - 1 : length])
        (seconds,) = _taken(model, partial(model.score, [sample] * rows))
        forwards.append(Forward("score", rows, length, n_scored=rows))
        reads.append(min(seconds))
        spread = max(spread, statistics.median(seconds) / min(seconds))
        if reads[-1] > _LONG_ENOUGH and len(reads) >= 3 + len(alone):
            break
    return forwards, reads, spread


def _about(speed: Speed, forwards: Sequence[Forward], spread: float) -> str:
    """Origin of a speed, for people."""
    names = ", ".join(dict.fromkeys(short_length(forward.n_read) for forward in forwards))
    rates = f"{_rate(speed.linear)} in layers, {_rate(speed.attention)} in attention, {_rate(speed.head)} in the head"
    about = f"{rates}, {1e3 * speed.call:.2g} ms a call; from reads of {names} tokens"
    if spread > _BUSY:
        about += f". The device was busy: the same read took up to {spread:.1f} times as long, and so may the run"
    return about


def _growing(longest: int) -> list[int]:
    """At least three lengths, each four times the length before; the last is the longest."""
    lengths = [longest]
    while lengths[-1] >= 4 * _SHORTEST_READ:
        lengths.append(lengths[-1] // 4)
    while len(lengths) < 3:
        lengths.append(max(2, lengths[-1] // 2))
    return sorted(set(lengths))


def _timed(model: LanguageModel, *calls: Callable[[], Any]) -> list[float]:
    """The least seconds of each of several calls.

    Other work of the machine makes a call longer, never shorter: the least is the truest.
    """
    return [min(seconds) for seconds in _taken(model, *calls)]


def _taken(model: LanguageModel, *calls: Callable[[], Any]) -> list[list[float]]:
    """Seconds of several calls, made in turn several times after a first round that does not count."""
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
    """Seconds of a call, with the work of the GPU."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    start = time.perf_counter()
    call()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start


def _more(model: LanguageModel, samples: list[Sample]) -> float:
    """Seconds that samples take longer the first time than the second."""
    call = partial(model.score, samples)
    return _once(model, call) - _once(model, call)


def _first(model: LanguageModel, ids: np.ndarray) -> float:
    """Seconds that the first read of a shape takes longer than the second, if its length was read before.

    Kernels of matrix products are chosen for it, and cuDNN's attention plans for it. Contexts with their answers took
    57 to 72 ms more the first time, those too short for cuDNN up to 53 (135M parameters, one H100): all count the same.
    """
    sample = Sample(ids[:-1], ids[-1:])
    _once(model, partial(model.score, [sample]))
    return max(0.0, statistics.median(_more(model, [sample] * rows) for rows in (2, 3, 4)))


def _fitted(columns: np.ndarray, seconds: np.ndarray) -> tuple[float, ...]:
    """Coefficients of the columns [n, k] that are not negative, with the least relative error."""
    scaled = columns / seconds[:, None]
    best, least = np.zeros(columns.shape[1]), math.inf
    for size in range(1, columns.shape[1] + 1):
        for chosen in itertools.combinations(range(columns.shape[1]), size):
            # Operations are large numbers beside calls.
            norms = np.abs(scaled[:, chosen]).max(axis=0)
            coefficients = np.linalg.lstsq(scaled[:, chosen] / norms, np.ones(len(seconds)), rcond=None)[0] / norms
            error = float(((scaled[:, chosen] @ coefficients - 1) ** 2).sum())
            if (coefficients >= 0).all() and error < least - 1e-9:
                best, least = np.zeros(columns.shape[1]), error
                best[list(chosen)] = coefficients
    return tuple(map(float, best))


def _with_answers(model: LanguageModel, shape: Shape, speed: Speed, ids: np.ndarray, lengths: Sequence[int]) -> Speed:
    """The speed with the times of answers after a kept context, from a short context and a longer one."""
    if not model.reading.keeps_contexts:
        return speed
    columns, seconds = [], []
    for length in (lengths[0], lengths[-1]):
        context = ids[:length]
        # As many side by side as in a run: large copies are slower than small ones if memory is new each time.
        n = min(_N_ANSWERS, contexts_copied(model.device.type, (length - 1) * shape.kept_token_bytes, None))
        questions = tuple(Question(ids[k : k + 4], ids[k + 4 : k + 8]) for k in range(0, 4 * n, 4))
        prompt = Prompt(context, questions)
        (taken,) = _timed(model, partial(model.score_prompts, [prompt]))
        answers = Forward("answers", len(questions), 8, length - 1, n_scored=4 * len(questions))
        # Calls and copies of answers count as 0 here.
        taken -= sum(speed.seconds(shape, forward) for forward in (Forward("context", 1, length - 1), answers))
        columns.append([1.0, float(answers.rows * answers.n_past * shape.kept_token_bytes)])
        seconds.append(max(taken, speed.call / 4, 1e-6))
    call, copied = _fitted(np.array(columns), np.array(seconds))
    return replace(speed, answers_call=call, copied=copied)


def _with_steps(model: LanguageModel, speed: Speed, ids: np.ndarray) -> Speed:
    """The speed with the time of generating a token."""
    prompt, n = ids[:8], 16
    n_steps = min(n, len(model.generate([prompt], n)[0]) + 1)
    more, less = _timed(model, partial(model.generate, [prompt], n), partial(model.generate, [prompt], 1))
    if n_steps < 2:
        return replace(speed, step_call=speed.call)
    return replace(speed, step_call=max((more - less) / (n_steps - 1), 1e-6))


def _rate(seconds: float) -> str:
    if not seconds:
        return "too fast to measure"
    per_second = 1 / seconds
    return f"{per_second / 1e12:.3g} TFLOP/s" if per_second >= 1e12 else f"{per_second / 1e9:.3g} GFLOP/s"
