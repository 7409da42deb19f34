"""LanguageModel: the negative log-likelihood of tokens, without ever making a [length, vocabulary] tensor.

The decoder is run once over the whole input; then the head, over chunks of the hidden states. The head is the model's
own: its `forward` is called with a decoder that hands back the hidden states that are already there. So soft-capping
(Gemma), logit scaling (Cohere, Granite), tied weights, and whatever comes next are right without knowing of them.
On loading, a short input is scored both ways; where they disagree, or the model is not of transformers, its full
logits are used, and every result says so.

Shape letters: B batch, L tokens read, T tokens scored, N tokens of a chunk, D model width, V vocabulary.
"""

import contextlib
import copy
import hashlib
import itertools
import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hope_eval.errors import LengthError, OptionError
from hope_eval.model import checks
from hope_eval.model.attach import (
    effective_inverse_frequencies,
    is_nested_safe,
    position_table,
    rotary_modules,
)
from hope_eval.model.checks import SMALLEST_CHUNK
from hope_eval.model.configs import text_config
from hope_eval.model.kernels import attention
from hope_eval.model.kernels import fastest as kernels
from hope_eval.model.kernels.layers import Chunked, Compile
from hope_eval.model.kernels.nll import choose
from hope_eval.model.parallel import sequence as parts
from hope_eval.model.parallel.group import Group
from hope_eval.task import Ids, Prompt, Question, Sample

PrefixPolicy = Literal["auto", "bos", "eos", "none"]

# Float32 logits of one chunk, bytes. On a CPU small chunks stay in the cache.
_CHUNK_BYTES = {"cuda": 512 << 20, "cpu": 32 << 20}

# Copies of the keys and values of contexts, bytes, so that answers are read after them side by side.
_COPIES_BYTES = {"cuda": 8 << 30, "cpu": 512 << 20}


@dataclass(frozen=True)
class Score:
    """What a model gave the target of one sample.

    nll:    negative log-likelihood of each target token, nats, float32 [T]; NaN is kept, never averaged away.
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
    """A sample that does not fit into memory, after every chunk was made as small as it goes."""

    def __init__(self, n_read: int, figures: dict[str, float], message: str) -> None:
        super().__init__(message)
        self.n_read = n_read
        self.figures = figures


@dataclass
class LanguageModel:
    """A loaded checkpoint: how it is called, where it comes from, and what it gives tokens.

    name:                what tables call it.
    module:              a transformers causal model, or any module from ids [B, L] to logits [B, L, V].
    tokenizer:           of transformers, or anything with `encode(text) -> ids`.
    train_length:        tokens; None if nobody told.
    train_length_source: which key of the config, or which option, told it.
    encoding:            its position encoding, `hope(swap)` if that is not the one it was trained with.
    fingerprint:         of weights, config and tokenizer, 16 hexadecimal digits.
    nested_safe:         predictions do not depend on how much follows, so one read serves all shorter lengths.
    max_length:          the end of a learned position table; None: no end.
    head:                `chunked`, or `full` where the check on loading wants it.
    head_reason:         why `full`.
    compiling:           of long inputs: the token-wise layers, in chunks; `auto` where it pays.
    keeps_contexts:      a context is read once, and answers after copies of its keys and values.
    group:               the processes that hold it, or read, together; None: this one does all by itself.
    """

    name: str
    module: nn.Module
    tokenizer: Any
    train_length: int | None = None
    train_length_source: str = ""
    encoding: str = "native"
    fingerprint: str = ""
    compiling: Compile = "auto"
    group: Group | None = None
    nested_safe: bool = field(init=False)
    max_length: int | None = field(init=False)
    head: Literal["chunked", "full"] = field(init=False, default="full")
    head_reason: str = field(init=False, default="")
    keeps_contexts: bool = field(init=False, default=False, repr=False)
    _decoder: Any = field(init=False, default=None, repr=False)
    _kernels: kernels.Kernels = field(init=False, default=kernels.Kernels(), repr=False)
    _layers: Chunked | None = field(init=False, default=None, repr=False)
    _attention_refused: str = field(init=False, default="", repr=False)
    _checking: bool = field(init=False, default=False, repr=False)
    _cut_from: float = field(init=False, default=math.inf, repr=False)

    def __post_init__(self) -> None:
        self.module.eval()
        self.nested_safe = is_nested_safe(self.module)
        self.max_length = position_table(self.module)
        # transformers' dynamic rope types remember the longest input so far, and go on with its frequencies.
        self._pristine = [
            (parent, name, copy.deepcopy(rotary))
            for parent, name, rotary in rotary_modules(self.module)
            if not self.nested_safe
        ]
        if self.device.type == "meta":
            # An outline without weights, which a run is planned with: there is nothing to check.
            self.head, self.keeps_contexts = "chunked", self.nested_safe
            return
        checks.check(self)

    @property
    def device(self) -> torch.device:
        """Where ids go."""
        first = next(self.module.parameters(), None)
        return first.device if first is not None else torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        first = next((p for p in self.module.parameters() if p.is_floating_point()), None)
        return first.dtype if first is not None else torch.float32

    @property
    def kernel(self) -> str:
        """What computes attention, whichever of its kernels is the fastest here."""
        kind = getattr(getattr(self.module, "config", None), "_attn_implementation", None) or "own"
        if attention.is_capped(text_config(self.module)):
            return "capped"
        return "sdpa" if kind == attention.PLAIN else str(kind)

    @property
    def how(self) -> dict[str, Any]:
        """How it is read, which changes numbers by rounding at most.

        kernels:         of attention, in order of preference, and kernel_tflops of each on a causal input of 8k tokens.
        kernels_refused: why the others are not used.
        attention_refused: why transformers' own attention is used where ours would need no mask.
        layer_chunk:     tokens that the token-wise layers are given at once; None: whole inputs.
        compile_seconds: what compiling took so far; compile_refused: why `auto` does without.
        """
        layers = self._layers
        return {
            "kernels": list(self._kernels.order),
            "kernel_tflops": self._kernels.tflops,
            "kernels_refused": self._kernels.refused,
            "attention_refused": self._attention_refused,
            "layer_chunk": layers.chunk if layers else None,
            "compile": layers.compiling if layers else "off",
            "compile_seconds": round(layers.compile_seconds, 2) if layers else 0.0,
            "compile_refused": layers.compile_refused if layers else "",
        }

    @property
    def about(self) -> str:
        """How it is read, for people: training length, type of numbers, kernel, head."""
        trained = f"{self.train_length:,} ({self.train_length_source})" if self.train_length else "?"
        place = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        head = f"{self.head} ({self.head_reason})" if self.head_reason else self.head
        numbers = str(self.dtype).removeprefix("torch.")
        kernel = f"{self.kernel} ({self._kernels})" if self._kernels.order else self.kernel
        return f"training length {trained}, {numbers} on {place}, attention {kernel}, head {head}"

    def inverse_frequencies(self) -> dict[str, list[float]]:
        """Return the effective inverse frequencies by buffer, for provenance."""
        return {path: value.tolist() for path, value in effective_inverse_frequencies(self.module).items()}

    def prefix_token(self, policy: PrefixPolicy) -> int | None:
        """Return the id that is read before a document, see the function of that name."""
        return prefix_token(self.tokenizer, policy)

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """A hash of all that the tokenizer does to a text, 16 hexadecimal digits; empty if it does not tell."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            return ""
        if backend.truncation or backend.padding:
            # Whoever encodes a text switches these off, at the first one.
            backend = type(backend).from_str(backend.to_str())
            backend.no_truncation()
            backend.no_padding()
        return hashlib.sha256(backend.to_str().encode()).hexdigest()[:16]

    def token_text(self, token: int) -> str:
        """Return how a token is written, for people; its number if the tokenizer does not tell."""
        convert = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        return str(convert([token])[0] if convert else token)

    def encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Return the ids [T] of each text, without special tokens, and the UTF-8 bytes of each token [T].

        The bytes of a text add up to its length; they are None for a tokenizer that tells no offsets.
        """
        if not getattr(self.tokenizer, "is_fast", False):
            return [(np.asarray(_plain_ids(self.tokenizer, text), np.int32), None) for text in texts]
        encoded = self.tokenizer(
            list(texts),
            add_special_tokens=False,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return [
            (np.asarray(ids, np.int32), _bytes_of_tokens(text, np.asarray(offsets, np.int64).reshape(-1, 2)))
            for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]

    def check_length(self, length: int) -> None:
        """Raise LengthError if the model has no positions for that many tokens."""
        if self.max_length is not None and length > self.max_length:
            raise LengthError(
                f"{self.name} has a learned position table of {self.max_length} positions and cannot read {length}",
                f"keep --lengths at or below {self.max_length}",
            )

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Score samples that read equally many tokens, in one forward.

        Raises OutOfMemory, after halving chunks and then the batch, for a sample that does not fit.
        """
        assert len({sample.n_read for sample in samples}) == 1, "samples of one forward read equally many tokens"
        try:
            with torch.inference_mode(), self._kernels.preferred(samples[0].n_read):
                return self._scored(samples)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not self._out_of_memory(error):
                raise
            figures, message = _memory(self.device), str(error).split(". ")[0]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        cut = self._cut(samples[0].n_read)
        if self._layers and self._layers.halve(len(samples) * (2 * cut.largest if cut else samples[0].n_read)):
            return self.score(samples)
        if len(samples) > 1:
            half = len(samples) // 2
            return self.score(samples[:half]) + self.score(samples[half:])
        raise OutOfMemory(samples[0].n_read, figures, message)

    def score_prompts(self, prompts: Sequence[Prompt]) -> list[list[Score]]:
        """Score every question of prompts whose contexts are equally long; each context is read once.

        The keys and values of the contexts are kept, and every answer of every question is read after them, many side
        by side. A model that keeps something else (recurrent states), or that changes with the length read, reads every
        answer with its whole context. The scores are the same.

        Raises OutOfMemory, after halving the batch, for a prompt that does not fit.
        """
        assert len({len(prompt.context) for prompt in prompts}) == 1, "contexts read together are equally long"
        if self.keeps_contexts and len(prompts[0].context) > 1:
            try:
                with torch.inference_mode():
                    scores = self._scored_after_contexts(prompts)
                if scores is not None:
                    return scores
                fits = True
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not self._out_of_memory(error):
                    raise
                fits = False
            # Only here is what did not fit let go of.
            if not fits:
                if self.device.type == "cuda":
                    torch.cuda.empty_cache()
                if self._layers and self._layers.halve(len(prompts) * len(prompts[0].context)):
                    return self.score_prompts(prompts)
                if len(prompts) > 1:
                    half = len(prompts) // 2
                    return self.score_prompts(prompts[:half]) + self.score_prompts(prompts[half:])
        return [[self._scored_alone(prompt, question) for question in prompt.questions] for prompt in prompts]

    def _scored_alone(self, prompt: Prompt, question: Question) -> Score:
        """Score a question by reading its whole context for each of its answers."""
        nll = [self.score([Sample(prompt.context, answer, question.query)])[0] for answer in question.answers]
        others = np.array([score.nll.sum() for score in nll[1:]], np.float32)
        return replace(nll[0], others=others)

    def _scored_after_contexts(self, prompts: Sequence[Prompt]) -> list[list[Score]] | None:
        """Return the scores of all questions; None if the model keeps more than keys and values of the contexts."""
        from transformers import DynamicCache
        from transformers.cache_utils import DynamicLayer

        contexts_BL = torch.stack([torch.as_tensor(np.asarray(p.context, np.int64)) for p in prompts])
        # The last token of a context is read with each question: its prediction is scored where there is no query.
        with self._kernels.preferred(contexts_BL.shape[1]):
            cache = self._decoded(contexts_BL[:, :-1], past_key_values=DynamicCache(), use_cache=True).past_key_values
        if any(type(layer) is not DynamicLayer for layer in getattr(cache, "layers", [None])):
            return None
        kept = [(layer.keys, layer.values) for layer in cache.layers]
        branches = branches_of(prompts)
        scored: dict[tuple[int, int], list[Score]] = {}
        free = float(torch.cuda.mem_get_info(self.device)[0]) if self.device.type == "cuda" else None
        if self.group and free is not None:
            free = self.group.least(free, self.device)
        n_bytes = sum(keys.nbytes + values.nbytes for keys, values in kept)
        n = len(prompts) * contexts_copied(self.device.type, n_bytes, free)
        for start in range(0, len(branches), n):
            group = branches[start : start + n]
            for layer, (keys, values) in zip(cache.layers, kept, strict=True):
                rows = [branch.row for branch in group]
                layer.keys, layer.values = _rows_of(keys, rows), _rows_of(values, rows)
            for branch, score in zip(group, self._scored_branches(group, contexts_BL[:, -1], cache), strict=True):
                scored.setdefault((branch.row, branch.question), []).append(score)
        return [
            [_with_others(question, *scored[row, number]) for number, question in enumerate(prompt.questions)]
            for row, prompt in enumerate(prompts)
        ]

    def _scored_branches(self, branches: Sequence["Branch"], last_B: Tensor, cache: Any) -> list[Score]:
        """Score answers after their contexts, whose keys and values the cache holds, a row for each of them."""
        # What is padded on the right is never looked at.
        ids_BL = torch.zeros(len(branches), max(len(b.query) + len(b.answer) for b in branches), dtype=torch.long)
        for row, branch in enumerate(branches):
            ids = np.concatenate([branch.query, branch.answer[:-1]]).astype(np.int64)
            ids_BL[row, 0] = last_B[branch.row]
            ids_BL[row, 1 : 1 + len(ids)] = torch.from_numpy(ids)
        output = self._decoded(ids_BL, past_key_values=cache, use_cache=True)
        hidden_BLD = output.last_hidden_state
        sizes = [len(branch.answer) + len(branch.others) for branch in branches]
        rows = np.repeat(np.arange(len(branches)), sizes)
        # Other answers of one token are predicted where the first token of this one is.
        steps = (np.concatenate([np.arange(len(b.answer)), np.zeros(len(b.others), np.int64)]) for b in branches)
        columns = np.concatenate([len(b.query) + step for b, step in zip(branches, steps, strict=True)])
        hidden_ND = hidden_BLD[torch.from_numpy(rows), torch.from_numpy(columns)]
        target_N = torch.from_numpy(np.concatenate([part for b in branches for part in (b.answer, b.others)]))
        score = self._in_chunks(lambda start, stop: self._head(output, hidden_ND[None, start:stop])[0], target_N)
        ends = np.cumsum(sizes)[:-1]
        parts = (np.split(values, ends) for values in (score.nll, score.target, score.greedy))
        return [
            Score(nll[:n], target[:n], greedy[:n], nll[n:])
            for branch, nll, target, greedy in zip(branches, *parts, strict=True)
            for n in [len(branch.answer)]
        ]

    def generate(self, prompts: Sequence[Ids], n: int) -> list[list[int]]:
        """Return what greedy decoding writes after prompts of equal length: at most n ids each, up to the end token.

        Nothing that a checkpoint's own settings say of sampling or penalties applies. Raises OutOfMemory, after halving
        chunks and then the batch, for a prompt that does not fit.
        """
        assert len({len(prompt) for prompt in prompts}) == 1, "prompts that are continued together are equally long"
        ends = self.end_tokens()
        ids_BL = torch.as_tensor(np.stack([np.asarray(prompt, np.int64) for prompt in prompts])).to(self.device)
        try:
            with torch.inference_mode():
                written_BL = self._written(ids_BL, n, ends)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if not self._out_of_memory(error):
                raise
            figures, message = _memory(self.device), str(error).split(". ")[0]
        else:
            return [list(itertools.takewhile(lambda token: token not in ends, row)) for row in written_BL.tolist()]
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if self._layers and self._layers.halve(ids_BL.numel()):
            return self.generate(prompts, n)
        if len(prompts) > 1:
            half = len(prompts) // 2
            return self.generate(prompts[:half], n) + self.generate(prompts[half:], n)
        raise OutOfMemory(len(prompts[0]) + n, figures, message)

    def _written(self, ids_BL: Tensor, n: int, ends: Sequence[int]) -> Tensor:
        """Return n ids after each row [B, n], or fewer where all rows have ended."""
        if not callable(getattr(self.module, "generate", None)):
            for _ in range(n):
                following_B = _logits(self.module(ids_BL))[:, -1].argmax(-1)
                ids_BL = torch.cat([ids_BL, following_B[:, None]], dim=1)
            return ids_BL[:, -n:]
        from transformers import GenerationConfig

        for parent, name, rotary in self._pristine:
            setattr(parent, name, copy.deepcopy(rotary))
        module: Any = self.module
        own = module.generation_config
        # transformers takes what a call leaves open from the checkpoint's own settings.
        module.generation_config = GenerationConfig()
        try:
            # Most forwards are steps of a token, which nothing is compiled for.
            with self._reading(ids_BL, compiles=False):
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
            module.generation_config = own
        return written[:, ids_BL.shape[1] :]

    def end_tokens(self) -> list[int]:
        """Return the ids that end what a model writes: those of its own generation config, else the tokenizer's EOS."""
        own = getattr(getattr(self.module, "generation_config", None), "eos_token_id", None)
        ids = [own] if isinstance(own, int) else list(own or [])
        eos = getattr(self.tokenizer, "eos_token_id", None)
        return list(dict.fromkeys([*ids, *([eos] if eos is not None else [])]))

    def _scored(self, samples: Sequence[Sample]) -> list[Score]:
        for parent, name, rotary in self._pristine:
            setattr(parent, name, copy.deepcopy(rotary))
        ids_BL = torch.stack([_read(sample) for sample in samples])
        starts = [sample.n_before - 1 for sample in samples]
        sizes = [len(sample.target) for sample in samples]
        targets = [torch.as_tensor(np.asarray(sample.target), dtype=torch.long) for sample in samples]
        cut = self._cut(ids_BL.shape[1])
        if cut:
            output = self._decoded_part(ids_BL, cut)
            states_BLD = output.last_hidden_state
            # Of each target, what the own tokens predict. Their positions ascend, so that it stands together.
            whole, positions_P = targets, cut.positions()
            ranges = [(start, start + size) for start, size in zip(starts, sizes, strict=True)]
            columns = [torch.searchsorted(positions_P, torch.tensor(bounds)).tolist() for bounds in ranges]
            own = [positions_P[a:b] - start for (a, b), start in zip(columns, starts, strict=True)]
            targets = [target[own_N] for target, own_N in zip(whole, own, strict=True)]
            starts, sizes = [a for a, _ in columns], [b - a for a, b in columns]
        elif self.head == "chunked":
            output = self._decoded(ids_BL, use_cache=False)
            states_BLD = output.last_hidden_state
        else:
            # Logits of the whole input; below, they are taken as they are.
            states_BLD = _logits(self.module(ids_BL.to(self.device)))
        # On a GPU, the head is applied to all rows together. Elsewhere to each by itself, and so what it makes of one
        # does not depend on the others in any bit.
        rows = list(range(len(samples)))
        scores = []
        for group in [rows] if self.device.type == "cuda" and self.head == "chunked" else [[row] for row in rows]:
            states = [states_BLD[row, starts[row] : starts[row] + sizes[row]] for row in group]
            states_NX = states[0] if len(states) == 1 else torch.cat(states)

            def logits_of(start: int, stop: int, states_NX: Tensor = states_NX) -> Tensor:
                some_1NX = states_NX[None, start:stop]
                return self._head(output, some_1NX)[0] if self.head == "chunked" else some_1NX[0]

            score = self._in_chunks(logits_of, torch.cat([targets[row] for row in group]))
            scores += _split(score, [sizes[row] for row in group])
        return self._joined(scores, own, whole) if cut else scores

    def _joined(self, scores: Sequence[Score], own: Sequence[Tensor], targets: Sequence[Tensor]) -> list[Score]:
        """Return the scores of whole targets, of which each process has scored its own."""
        assert self.group is not None
        sizes = [len(target) for target in targets]
        *firsts, n = np.cumsum([0, *sizes]).tolist()
        mine_N = torch.cat([first + own_N for first, own_N in zip(firsts, own, strict=True)])
        found = []
        for name in ("nll", "greedy"):
            own_N = torch.from_numpy(np.concatenate([getattr(score, name) for score in scores]))
            # Each is scored by one process: the sum is what that one has found, to the last bit.
            all_N = torch.zeros(n, dtype=own_N.dtype).index_copy(0, mine_N, own_N)
            found.append(self.group.summed(all_N.to(self.device)).cpu().numpy())
        return _split(Score(found[0], torch.cat(list(targets)).numpy(), found[1]), sizes)

    def _cut(self, n_tokens: int) -> parts.Cut | None:
        """Return how several processes read so many tokens; None if each reads all of them."""
        return self.group.cut(n_tokens) if self.group and n_tokens >= self._cut_from else None

    def _decoded_part(self, ids_BL: Tensor, cut: parts.Cut) -> Any:
        """Return what the decoder makes of the own parts of ids: its hidden states [B, P, D]."""
        positions_P = cut.positions()
        own_BP = ids_BL[:, positions_P]
        with cut.reading():
            # Without a mask, transformers takes positions that jump for several texts.
            output = self._decoded(
                own_BP,
                position_ids=positions_P.to(self.device).expand_as(own_BP),
                attention_mask=torch.ones_like(own_BP, device=self.device),
                use_cache=False,
            )
        parts.check_all_attended(self.name, self.module, cut)
        return output

    def _decoded(self, ids_BL: Tensor, **options: Any) -> Any:
        """Return what the decoder makes of ids: its hidden states [B, L, D], and a cache."""
        ids_BL = ids_BL.to(self.device)
        with self._reading(ids_BL):
            return self._decoder(input_ids=ids_BL, **options)

    def _reading(self, ids_BL: Tensor, **how: bool) -> contextlib.AbstractContextManager[object]:
        """Have ids read with the layers' token-wise parts in chunks."""
        return self._layers.reading(ids_BL.numel(), **how) if self._layers else contextlib.nullcontext()

    def _in_chunks(self, logits_of: Callable[[int, int], Tensor], target_N: Tensor) -> Score:
        """Score targets, given what makes the logits [N, V] of those from `start` to `stop`."""
        nll, greedy = [], []
        nll_and_greedy = choose(self.device.type).function
        target_N = target_N.to(self.device)
        if not len(target_N):
            # What this process has read of a sequence predicts none of them.
            return Score(np.zeros(0, np.float32), np.zeros(0, np.int64), np.zeros(0, np.int64))
        chunk = self._chunk_size()
        done = 0
        while done < len(target_N):
            some_N = target_N[done : done + chunk]
            try:
                logits_NV = logits_of(done, done + len(some_N))
                nll_N, greedy_N = nll_and_greedy(logits_NV, some_N.to(logits_NV.device))
                # Not while those of the next chunk are made.
                del logits_NV
            except (torch.OutOfMemoryError, RuntimeError) as error:
                # The head is no matter of the others where each has all of it.
                alone = self.group is None or self.group.shares == "sequence"
                if chunk <= SMALLEST_CHUNK or not (_is_out_of_memory(error) if alone else self._out_of_memory(error)):
                    raise
                chunk //= 2
                continue
            nll.append(nll_N)
            greedy.append(greedy_N)
            done += len(some_N)
        return Score(*(x.cpu().numpy() for x in (torch.cat(nll), target_N, torch.cat(greedy))))

    def _out_of_memory(self, error: Exception) -> bool:
        """Whether that is all, and less may fit. Raises StoreError if not all that hold the model are out of it."""
        return _is_out_of_memory(error) and (self.group is None or self.group.all_out_of_memory(error))

    def _chunk_size(self) -> int:
        if self._checking:
            return SMALLEST_CHUNK
        vocab_size = getattr(text_config(self.module), "vocab_size", None) or 50_000
        return chunk_size(self.device.type, int(vocab_size))

    def _head(self, output: Any, hidden_BND: Tensor) -> Tensor:
        """Return the logits [B, N, V] that the model's own forward makes of hidden states."""
        replayed = copy.copy(output)
        replayed.last_hidden_state = hidden_BND
        ids_BN = torch.zeros(hidden_BND.shape[:2], dtype=torch.long, device=hidden_BND.device)
        with _returning(self._decoder, replayed):
            return _logits(self.module(input_ids=ids_BN, use_cache=False))


def contexts_copied(device_type: str, n_bytes: int, free: float | None) -> int:
    """Return how many copies of keys and values of that size answers are read after, side by side.

    free: bytes of memory that are left; None: unknown.
    """
    budget = _COPIES_BYTES.get(device_type, _COPIES_BYTES["cpu"])
    if free is not None:
        budget = min(budget, int(free) // 4)
    return max(1, budget // max(1, n_bytes))


def chunk_size(device_type: str, vocab_size: int) -> int:
    """Return how many tokens the head is applied to at once."""
    return max(SMALLEST_CHUNK, _CHUNK_BYTES.get(device_type, _CHUNK_BYTES["cpu"]) // (4 * vocab_size))


def prefix_token(tokenizer: Any, policy: PrefixPolicy) -> int | None:
    """Return the id that is read before everything else.

    auto: BOS if the tokenizer has one, else EOS, else none. Raises OptionError if the one asked for is missing.
    """
    tokens = {kind: getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos")}
    if policy == "none":
        return None
    if policy == "auto":
        return tokens["bos"] if tokens["bos"] is not None else tokens["eos"]
    if tokens[policy] is None:
        raise OptionError(f"the tokenizer has no {policy.upper()} token", "--prefix auto")
    return tokens[policy]


def _split(score: Score, sizes: Sequence[int]) -> list[Score]:
    """Return the scores of several targets that were scored as one."""
    ends = np.cumsum(sizes)[:-1]
    return [
        Score(*parts)
        for parts in zip(*(np.split(x, ends) for x in (score.nll, score.target, score.greedy)), strict=True)
    ]


@dataclass(frozen=True)
class Branch:
    """One answer to one question of the prompt in that row: what is read after its context.

    others: other answers of one token each, which need no reading of their own.
    """

    row: int
    question: int
    query: np.ndarray
    answer: np.ndarray
    others: np.ndarray


def branches_of(prompts: Sequence[Prompt]) -> list[Branch]:
    """Return all answers of all questions; those of one number, for all prompts, stand together."""
    branches: list[tuple[tuple[int, int, int], Branch]] = []
    for row, prompt in enumerate(prompts):
        for number, question in enumerate(prompt.questions):
            query = np.asarray(question.query, np.int64)
            short = np.array([answer[0] for answer in question.choices if len(answer) == 1], np.int64)
            read = [question.target, *(answer for answer in question.choices if len(answer) > 1)]
            for which, answer in enumerate(read):
                others = short if which == 0 else short[:0]
                branch = Branch(row, number, query, np.asarray(answer, np.int64), others)
                branches.append(((number, which, row), branch))
    return [branch for _, branch in sorted(branches, key=lambda pair: pair[0])]


def _with_others(question: Question, first: Score, *read: Score) -> Score:
    """Return the score of a target with those of all other answers, in their order: of one token, or read."""
    short, long = iter(first.others), (score.nll.sum() for score in read)
    others = [next(short) if len(answer) == 1 else next(long) for answer in question.choices]
    return replace(first, others=np.array(others, np.float32))


def _rows_of(kept: Tensor, rows: list[int]) -> Tensor:
    """Return these rows of keys or values [B, H, L, E], copied only where they are not there as they are."""
    if rows == list(range(len(kept))):
        return kept
    if len(kept) == 1:
        return kept.expand(len(rows), -1, -1, -1)
    return kept.index_select(0, torch.tensor(rows, device=kept.device))


def _plain_ids(tokenizer: Any, text: str) -> Sequence[int]:
    try:
        ids = tokenizer.encode(text, add_special_tokens=False)
    except TypeError:
        ids = tokenizer.encode(text)
    return list(ids)


def _bytes_of_tokens(text: str, offsets_T2: np.ndarray) -> np.ndarray:
    """Return how many UTF-8 bytes of the text each token stands for, uint32 [T].

    Tokens of one character in several pieces share its offsets: the first piece is given all its bytes. Characters
    between tokens count for the next one, those at the end for the last, so that the sum is the text's length.
    """
    if not len(offsets_T2):
        return np.zeros(0, np.uint32)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    widths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    upto = np.concatenate([[0], np.cumsum(widths)])
    ends = np.maximum.accumulate(upto[offsets_T2[:, 1]])
    ends[-1] = upto[-1]
    return np.diff(ends, prepend=0).astype(np.uint32)


def _read(sample: Sample) -> Tensor:
    target = sample.target[: len(sample.target) - sample.unread]
    parts = (sample.context, sample.query, target)
    return torch.from_numpy(np.concatenate([np.asarray(part, np.int64) for part in parts]))


def _logits(output: Any) -> Tensor:
    if isinstance(output, Tensor):
        return output
    logits: Tensor = output.logits if hasattr(output, "logits") else output[0]
    return logits


@contextlib.contextmanager
def _returning(decoder: nn.Module, output: Any) -> Iterator[None]:
    """Let `decoder(...)` return `output` without being run."""
    own = decoder.__dict__.get("forward")
    decoder.forward = lambda *args, **kwargs: output
    try:
        yield
    finally:
        if own is None:
            del decoder.forward
        else:
            decoder.forward = own


def _is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in str(error) for words in ("out of memory", "can't allocate memory")
    )


def _memory(device: torch.device) -> dict[str, float]:
    """Return memory figures in GiB; empty where the device does not tell."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {
        "total_gib": round(total / 2**30, 1),
        "free_gib": round(free / 2**30, 1),
        "allocated_gib": round(torch.cuda.memory_allocated(device) / 2**30, 1),
        "peak_gib": round(torch.cuda.max_memory_allocated(device) / 2**30, 1),
    }
