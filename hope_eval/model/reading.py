"""Reading: the choices of how a model is read, and the forwards that follow them.

The decoder is run once over the whole input; then the head, over chunks of the hidden states, so that no tensor
[length, vocabulary] is ever made. The head is the model's own: its `forward` is called with a decoder that returns the
hidden states that are already there. So soft-capping (Gemma), logit scaling (Cohere, Granite), tied weights, and
future heads are right without any code for them. `checks.py` finds the reading that is right for a model.

Shape letters: B batch, L tokens read, P own tokens of a process, T tokens scored, N tokens of a chunk, D model width,
V vocabulary.
"""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from hope_eval.errors import CheckpointError, first_line
from hope_eval.model.configs import text_config
from hope_eval.model.kernels import nll
from hope_eval.model.kernels.attention_choice import Kernels
from hope_eval.model.kernels.chunked_layers import ChunkedLayers
from hope_eval.model.parallel.group import Group
from hope_eval.model.parallel.sequence import Cut, check_all_attended
from hope_eval.runs.records.oom import FAILED
from hope_eval.task import Ids, Sample

# Tokens of the smallest chunk; checks of a model use this size.
SMALLEST_CHUNK = 16

# Float32 logits of one chunk, bytes. On a CPU small chunks stay in the cache.
_CHUNK_BYTES = {"cuda": 512 << 20, "cpu": 32 << 20}


@dataclass(frozen=True)
class Score:
    """Scores of the target of one sample.

    nll:    negative log-likelihood of each target token, nats, float32 [T]; NaN is kept, and never left out of a mean.
    target: the target, int64 [T].
    greedy: the likeliest token in place of each target token, given all before it, int64 [T].
    others: the nll of each other answer that a question offers, nats, summed over its tokens, float32 [C].
    """

    nll: np.ndarray
    target: np.ndarray
    greedy: np.ndarray
    others: np.ndarray = field(default_factory=lambda: np.zeros(0, np.float32))

    @property
    def greedy_hits(self) -> np.ndarray:
        """Whether each target token is the likeliest, bool [T]. If all are, greedy decoding writes the target."""
        hits: np.ndarray = self.greedy == self.target
        return hits


class OutOfMemory(Exception):  # noqa: N818
    """A sample that does not fit in memory, even with the smallest chunks."""

    def __init__(self, n_read: int, figures: dict[str, float], message: str) -> None:
        super().__init__(message)
        self.n_read = n_read
        self.figures = figures


class Unreadable(CheckpointError, OutOfMemory):  # noqa: N818
    """An input that the model's own code fails at, although it reads a short one: shorter ones may be read."""

    def __init__(self, name: str, n_read: int, error: Exception) -> None:
        message = f"`{name}` cannot read {n_read:,} tokens: {FAILED}{type(error).__name__}: {first_line(error)}"
        OutOfMemory.__init__(self, n_read, {}, message)
        self.message = message
        self.hint = "give shorter --lengths if shorter ones can be read; otherwise its config or code is at fault"


@dataclass(frozen=True)
class Reading:
    """How a model is read. Each choice changes numbers by rounding at most.

    head:              `chunked`: over chunks of hidden states; `full`: logits of the whole input are made.
    head_reason:       why `full`.
    decoder:           the part of the model that makes the hidden states.
    layers:            the token-wise layers, run over chunks of tokens; None: over whole inputs.
    kernels:           of attention, in order of preference.
    attention_refused: why transformers' attention is used, although ours would need no mask.
    keeps_contexts:    a context is read once, and answers after copies of its keys and values.
    cut_from:          tokens; each process of a group reads a part of longer inputs.
    head_chunk:        tokens of a chunk of the head; None: as suits the device.
    """

    head: Literal["chunked", "full"] = "full"
    head_reason: str = ""
    decoder: Any = field(default=None, repr=False)
    layers: ChunkedLayers | None = field(default=None, repr=False)
    kernels: Kernels = field(default_factory=Kernels)
    attention_refused: str = ""
    keeps_contexts: bool = False
    cut_from: float = math.inf
    head_chunk: int | None = None


@dataclass(frozen=True)
class Reader:
    """A model that is read in one way.

    name:     for messages.
    module:   a transformers causal model, or any module from ids [B, L] to logits [B, L, V].
    reading:  how it is read.
    group:    the processes that share the model or the texts; None: this process works alone.
    pristine: (parent, attribute, copy) of rotary modules that remember earlier inputs; restored before each read.
    """

    name: str
    module: nn.Module
    reading: Reading = field(default_factory=Reading)
    group: Group | None = None
    pristine: Sequence[tuple[nn.Module, str, nn.Module]] = ()

    def having(self, **changes: Any) -> Self:
        """The same model, read in another way."""
        return replace(self, reading=replace(self.reading, **changes))

    @property
    def device(self) -> torch.device:
        """The device of ids."""
        first = next(self.module.parameters(), None)
        return first.device if first is not None else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        first = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        return first.dtype if first is not None else torch.float32

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Score samples that read equally many tokens, in one forward.

        Raises OutOfMemory, after halving chunks and then the batch, for a sample that does not fit.
        """
        assert len({sample.n_read for sample in samples}) == 1, "samples of one forward read equally many tokens"
        n_read = samples[0].n_read
        try:
            with torch.inference_mode(), self.reading.kernels.preferred(n_read):
                return self.forwarded(samples)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not self.is_out_of_memory(error):
                raise
            figures, message = _memory(self.device), str(error).split(". ")[0]
        self.empty_cache()
        cut = self._cut(n_read)
        if self.halve_layers(len(samples) * (2 * cut.largest if cut else n_read)):
            return self.score(samples)
        if len(samples) > 1:
            half = len(samples) // 2
            return self.score(samples[:half]) + self.score(samples[half:])
        raise OutOfMemory(n_read, figures, message)

    def forwarded(self, samples: Sequence[Sample]) -> list[Score]:
        """Score samples in one forward, without regard to memory."""
        self.restore_rotary()
        ids_BL = torch.stack([_ids_read(sample) for sample in samples])
        starts = [sample.n_before - 1 for sample in samples]
        targets = [torch.as_tensor(np.asarray(sample.target), dtype=torch.long) for sample in samples]
        cut = self._cut(ids_BL.shape[1])
        if cut:
            output = self._decoded_part(ids_BL, cut)
            return self._scored_parts(output, starts, targets, cut)
        if self.reading.head == "chunked":
            output = self.decoded(ids_BL, use_cache=False)
            return self._scored_rows(output, output.last_hidden_state, starts, targets)
        # Logits of the whole input, used unchanged.
        return self._scored_rows(None, self._whole_logits(ids_BL), starts, targets)

    def _whole_logits(self, ids_BL: Tensor) -> Tensor:
        """Logits [B, L, V] of whole inputs, without a cache: some architectures cannot make one."""
        caches = hasattr(text_config(self.module), "use_cache")
        return _logits(self.module(ids_BL.to(self.device), **({"use_cache": False} if caches else {})))

    def width(self) -> int:
        """Number of ids that the model predicts."""
        return int(self._whole_logits(torch.zeros(1, 1, dtype=torch.long)).shape[-1])

    def _scored_rows(
        self, output: Any, states_BLD: Tensor, starts: Sequence[int], targets: Sequence[Tensor]
    ) -> list[Score]:
        """Score the target of each row, whose predictions begin at `starts`; states are logits for a full head."""
        chunked = self.reading.head == "chunked"
        sizes = [len(target) for target in targets]
        # On a GPU, the head is applied to all rows together. Elsewhere to each row by itself, so that its scores do
        # not depend on the other rows in any bit.
        rows = list(range(len(targets)))
        scores = []
        for group in [rows] if self.device.type == "cuda" and chunked else [[row] for row in rows]:
            states = [states_BLD[row, starts[row] : starts[row] + sizes[row]] for row in group]
            states_NX = states[0] if len(states) == 1 else torch.cat(states)

            def logits_of(start: int, stop: int, states_NX: Tensor = states_NX) -> Tensor:
                chunk_1NX = states_NX[None, start:stop]
                return self.head(output, chunk_1NX)[0] if chunked else chunk_1NX[0]

            score = self.score_in_chunks(logits_of, torch.cat([targets[row] for row in group]))
            scores += _split(score, [sizes[row] for row in group])
        return scores

    def _scored_parts(self, output: Any, starts: Sequence[int], targets: Sequence[Tensor], cut: Cut) -> list[Score]:
        """Score whole targets; this process has read the tokens before a part of them."""
        positions_P = cut.positions()
        ranges = [(start, start + len(target)) for start, target in zip(starts, targets, strict=True)]
        # Positions ascend, so that the predictions of a target stand together.
        columns = [torch.searchsorted(positions_P, torch.tensor(bounds)).tolist() for bounds in ranges]
        scored = [positions_P[a:b] - start for (a, b), start in zip(columns, starts, strict=True)]
        scored_targets = [target[scored_N] for target, scored_N in zip(targets, scored, strict=True)]
        scores = self._scored_rows(output, output.last_hidden_state, [a for a, _ in columns], scored_targets)
        return self._joined(scores, scored, targets)

    def _joined(self, scores: Sequence[Score], scored: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Score]:
        """Scores of whole targets, from the parts that the processes scored."""
        assert self.group is not None
        sizes = [len(target) for target in targets]
        *firsts, n = np.cumsum([0, *sizes]).tolist()
        places_N = torch.cat([first + scored_N for first, scored_N in zip(firsts, scored, strict=True)])
        joined = []
        for name in ("nll", "greedy"):
            values_N = torch.from_numpy(np.concatenate([getattr(score, name) for score in scores]))
            # Each token is scored by one process: the sum over processes is its score, to the last bit.
            all_N = torch.zeros(n, dtype=values_N.dtype).index_copy(0, places_N, values_N)
            joined.append(self.group.summed(all_N.to(self.device)).cpu().numpy())
        return _split(Score(joined[0], torch.cat(list(targets)).numpy(), joined[1]), sizes)

    def _cut(self, n_tokens: int) -> Cut | None:
        """The cut of an input of n tokens among the processes; None if each reads all of it."""
        return self.group.cut(n_tokens) if self.group and n_tokens >= self.reading.cut_from else None

    def _decoded_part(self, ids_BL: Tensor, cut: Cut) -> Any:
        """Output of the decoder for this process's parts of ids: its hidden states [B, P, D]."""
        positions_P = cut.positions()
        own_BP = ids_BL[:, positions_P]
        with cut.reading():
            # Without a mask, transformers takes positions with gaps for several texts.
            output = self.decoded(
                own_BP,
                position_ids=positions_P.to(self.device).expand_as(own_BP),
                attention_mask=torch.ones_like(own_BP, device=self.device),
                use_cache=False,
            )
        check_all_attended(self.name, self.module, cut)
        return output

    def decoded(self, ids_BL: Tensor, **options: Any) -> Any:
        """Output of the decoder for ids: its hidden states [B, L, D], and a cache."""
        ids_BL = ids_BL.to(self.device)
        with self._in_layer_chunks(ids_BL):
            return self.reading.decoder(input_ids=ids_BL, **options)

    def _in_layer_chunks(self, ids_BL: Tensor, **options: bool) -> contextlib.AbstractContextManager[object]:
        """Let the token-wise layers run over chunks while ids are read."""
        layers = self.reading.layers
        return layers.reading(ids_BL.numel(), **options) if layers else contextlib.nullcontext()

    def head(self, output: Any, hidden_BND: Tensor) -> Tensor:
        """Logits [B, N, V] that the model's own forward makes of hidden states."""
        replayed = copy.copy(output)
        replayed.last_hidden_state = hidden_BND
        ids_BN = torch.zeros(hidden_BND.shape[:2], dtype=torch.long, device=hidden_BND.device)
        with _returning(self.reading.decoder, replayed):
            return _logits(self.module(input_ids=ids_BN, use_cache=False))

    def score_in_chunks(self, logits_of: Callable[[int, int], Tensor], target_N: Tensor) -> Score:
        """Score targets, given a function that makes the logits [N, V] of targets `start` to `stop`."""
        nlls, greedy = [], []
        nll_and_greedy = nll.choose(self.device.type).function
        target_N = target_N.to(self.device)
        if not len(target_N):
            # This process has read no token that predicts one of them.
            return Score(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
        chunk = self._chunk_size()
        done = 0
        while done < len(target_N):
            chunk_N = target_N[done : done + chunk]
            try:
                logits_NV = logits_of(done, done + len(chunk_N))
                nll_N, greedy_N = nll_and_greedy(logits_NV, chunk_N.to(logits_NV.device))
                # Free it before the logits of the next chunk are made.
                del logits_NV
            except (torch.OutOfMemoryError, RuntimeError) as error:
                # If each process holds the whole head, only this one ran out of memory.
                alone = self.group is None or self.group.shares == "sequence"
                halves = _is_out_of_memory(error) if alone else self.is_out_of_memory(error)
                if chunk <= SMALLEST_CHUNK or not halves:
                    raise
                chunk //= 2
                continue
            nlls.append(nll_N)
            greedy.append(greedy_N)
            done += len(chunk_N)
        return Score(*(x.cpu().numpy() for x in (torch.cat(nlls), target_N, torch.cat(greedy))))

    def _chunk_size(self) -> int:
        if self.reading.head_chunk:
            return self.reading.head_chunk
        vocab_size = getattr(text_config(self.module), "vocab_size", None) or 50_000
        return chunk_size(self.device.type, int(vocab_size))

    def generate(self, prompts: Sequence[Ids], n: int, ends: Sequence[int]) -> list[list[int]]:
        """Decode greedily after prompts of equal length: at most n ids each, up to an end token.

        Settings of a checkpoint for sampling or penalties have no effect. Raises OutOfMemory, after halving chunks and
        then the batch, for a prompt that does not fit.
        """
        assert len({len(prompt) for prompt in prompts}) == 1, "prompts that are continued together are equally long"
        ids_BL = torch.as_tensor(np.stack([np.asarray(prompt, np.int64) for prompt in prompts])).to(self.device)
        try:
            with torch.inference_mode():
                written_BL = self.written(ids_BL, n, ends)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not self.is_out_of_memory(error):
                raise
            figures, message = _memory(self.device), str(error).split(". ")[0]
        else:
            return [list(itertools.takewhile(lambda token: token not in ends, row)) for row in written_BL.tolist()]
        self.empty_cache()
        if self.halve_layers(ids_BL.numel()):
            return self.generate(prompts, n, ends)
        if len(prompts) > 1:
            half = len(prompts) // 2
            return self.generate(prompts[:half], n, ends) + self.generate(prompts[half:], n, ends)
        raise OutOfMemory(len(prompts[0]) + n, figures, message)

    def written(self, ids_BL: Tensor, n: int, ends: Sequence[int]) -> Tensor:
        """Greedy ids after each row [B, n], or fewer columns if all rows have ended."""
        module: Any = self.module
        if not callable(getattr(module, "generate", None)):
            for _ in range(n):
                following_B = _logits(module(ids_BL))[:, -1].argmax(-1)
                ids_BL = torch.cat([ids_BL, following_B[:, None]], dim=1)
            return ids_BL[:, -n:]
        from transformers import GenerationConfig

        self.restore_rotary()
        kept = module.generation_config
        # transformers fills in missing arguments from the settings of the checkpoint.
        module.generation_config = GenerationConfig()
        try:
            # Most forwards are steps of one token, which are not compiled.
            with self._in_layer_chunks(ids_BL, compiles=False):
                written: Tensor = module.generate(
                    ids_BL,
                    attention_mask=torch.ones_like(ids_BL),
                    max_new_tokens=n,
                    do_sample=False,
                    eos_token_id=list(ends) or None,
                    pad_token_id=ends[0] if ends else 0,
                    logits_processor=[self.group] if self.group else None,
                )
        finally:
            module.generation_config = kept
        return written[:, ids_BL.shape[1] :]

    def restore_rotary(self) -> None:
        """Put rotary modules back as they were before anything was read."""
        for parent, name, rotary in self.pristine:
            setattr(parent, name, copy.deepcopy(rotary))

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether memory ran out, and less may fit. Raises StoreError if only a part of the group ran out."""
        return _is_out_of_memory(error) and (self.group is None or self.group.all_out_of_memory(error))

    def empty_cache(self) -> None:
        """Return the memory that PyTorch caches to the GPU."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def halve_layers(self, n_tokens: int) -> bool:
        """Make the chunks of the token-wise layers smaller; True if that helps with that many tokens."""
        return self.reading.layers is not None and self.reading.layers.halve(n_tokens)


def chunk_size(device_type: str, vocab_size: int) -> int:
    """Tokens that the head is applied to at once."""
    return max(SMALLEST_CHUNK, _CHUNK_BYTES.get(device_type, _CHUNK_BYTES["cpu"]) // (4 * vocab_size))


def _split(score: Score, sizes: Sequence[int]) -> list[Score]:
    """The scores of several targets that were scored as one."""
    ends = np.cumsum(sizes)[:-1]
    return [
        Score(*columns)
        for columns in zip(*(np.split(x, ends) for x in (score.nll, score.target, score.greedy)), strict=True)
    ]


def _ids_read(sample: Sample) -> Tensor:
    target = sample.target[: len(sample.target) - sample.unread]
    stretches = (sample.context, sample.query, target)
    return torch.from_numpy(np.concatenate([np.asarray(ids, np.int64) for ids in stretches]))


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


@contextlib.contextmanager
def _returning(decoder: nn.Module, output: Any) -> Iterator[None]:
    """Let `decoder(...)` return `output` without a run."""
    forward = decoder.__dict__.get("forward")
    decoder.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if forward is None:
            del decoder.forward
        else:
            decoder.forward = forward


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def _memory(device: torch.device) -> dict[str, float]:
    """Memory figures in GiB; empty on a CPU, which has none."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "total_gib": round(total / 2**30, 1),
        "free_gib": round(free / 2**30, 1),
        "allocated_gib": round(torch.cuda.memory_allocated(device) / 2**30, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 1),
    }
