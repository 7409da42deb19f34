"""LanguageModel: a loaded checkpoint that scores tokens by their negative log-likelihood.

`reading.py` reads it; `checks.py` finds the right reading.

Shape letters: B batch, L tokens read, V vocabulary.
"""

import contextlib
import copy
import platform
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from hope_eval.errors import CheckpointError, HopeEvalError, LengthError
from hope_eval.model import checks, contexts, tokens
from hope_eval.model.configs import text_config
from hope_eval.model.in_effect import effective_inverse_frequencies, is_nested_safe, position_table, rotary_modules
from hope_eval.model.kernels import attention
from hope_eval.model.kernels.chunked_layers import Compile
from hope_eval.model.limits import id_count
from hope_eval.model.parallel.group import Group
from hope_eval.model.reading import OutOfMemory, Reader, Reading, Score, Unreadable
from hope_eval.task import Ids, Prompt, Sample


@dataclass
class LanguageModel:
    """A loaded checkpoint: its name, its origin, and the scores of tokens.

    name:                for tables.
    module:              a transformers causal model, or any module from ids [B, L] to logits [B, L, V].
    tokenizer:           of transformers, or anything with `encode(text) -> ids`.
    train_length:        tokens; None if unknown.
    train_length_source: the key of the config, or the option, that gives it.
    encoding:            its position encoding, `hope(swap)` if it was trained with another.
    fingerprint:         of weights, config and tokenizer, 16 hexadecimal digits.
    compiling:           whether the token-wise layers are compiled for long inputs; `auto`: where it pays.
    group:               the processes that share the model or the texts; None: this process works alone.
    notes:               on loading, for tables.
    max_length:          tokens, the end of a table of positions; None: no end.
    nested_safe:         predictions do not depend on what follows, so one read serves all shorter lengths.
    reading:             the choices of how it is read, made by the checks on loading.
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
    notes: tuple[str, ...] = ()
    max_length: int | None = None
    nested_safe: bool = field(init=False)
    reading: Reading = field(init=False, default_factory=Reading)

    def __post_init__(self) -> None:
        self.module.eval()
        self.nested_safe = is_nested_safe(self.module)
        self.max_length = self.max_length or position_table(self.module)
        # transformers' dynamic rope types remember the longest input so far, and keep its frequencies.
        self._pristine = [
            (parent, name, copy.deepcopy(rotary))
            for parent, name, rotary in rotary_modules(self.module)
            if not self.nested_safe
        ]
        if self.device.type == "meta":
            # An outline without weights, from which a run is planned: there is nothing to check.
            self.reading = Reading(head="chunked", keeps_contexts=self.nested_safe)
            return
        self.reading = checks.checked(self.reader, self.compiling)

    @property
    def reader(self) -> Reader:
        """The model with its reading."""
        return Reader(self.name, self.module, self.reading, self.group, self._pristine)

    @property
    def device(self) -> torch.device:
        """The device of ids."""
        return self.reader.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the weights."""
        return self.reader.dtype

    @property
    def kernel(self) -> str:
        """Name of the attention, whatever its fastest kernel here."""
        kind = getattr(getattr(self.module, "config", None), "_attn_implementation", None) or "own"
        if attention.is_capped(text_config(self.module)):
            return "capped"
        return "sdpa" if kind == attention.PLAIN else str(kind)

    @property
    def how(self) -> dict[str, Any]:
        """The choices of how it is read, for the record of a session; they change numbers by rounding at most.

        kernels:           of attention, in order of preference; kernel_tflops: of each, on a causal input of 8k tokens.
        kernels_refused:   reasons why the others are not used.
        attention_refused: why transformers' attention is used, although ours would need no mask.
        layer_chunk:       tokens of a chunk of the token-wise layers; None: whole inputs.
        compile_seconds:   seconds of compiling so far; compile_refused: why `auto` does without.
        """
        layers = self.reading.layers
        return {
            "kernels": list(self.reading.kernels.order),
            "kernel_tflops": self.reading.kernels.tflops,
            "kernels_refused": self.reading.kernels.refused,
            "attention_refused": self.reading.attention_refused,
            "layer_chunk": layers.chunk if layers else None,
            "compile": layers.compiling if layers else "off",
            "compile_seconds": round(layers.compile_seconds, 2) if layers else 0.0,
            "compile_refused": layers.compile_refused if layers else "",
        }

    @property
    def about(self) -> str:
        """The reading in words: training length, type of numbers, kernel, head."""
        trained = f"{self.train_length:,} ({self.train_length_source})" if self.train_length else "?"
        place = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else platform.machine()
        head = f"{self.reading.head} ({self.reading.head_reason})" if self.reading.head_reason else self.reading.head
        numbers = str(self.dtype).removeprefix("torch.")
        kernel = f"{self.kernel} ({self.reading.kernels})" if self.reading.kernels.order else self.kernel
        return f"training length {trained}, {numbers} on {place}, attention {kernel}, head {head}"

    def inverse_frequencies(self) -> dict[str, list[float]]:
        """The effective inverse frequencies by buffer, for the identity of a run."""
        return {path: value.tolist() for path, value in effective_inverse_frequencies(self.module).items()}

    def check_length(self, length: int) -> None:
        """Raise LengthError if the model has no positions for that many tokens."""
        if self.max_length is not None and length > self.max_length:
            raise LengthError(
                f"{self.name} has a table of {self.max_length} positions and cannot read {length}",
                f"keep --lengths at or below {self.max_length}",
            )

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Score samples that read equally many tokens, in one forward.

        Raises OutOfMemory, and CheckpointError for a token or a length that the model cannot read.
        """
        texts = [ids for sample in samples for ids in (sample.context, sample.query, sample.target)]
        with self._readable(texts, samples[0].n_read):
            return self.reader.score(samples)

    def score_prompts(self, prompts: Sequence[Prompt]) -> list[list[Score]]:
        """Score every question of prompts whose contexts are equally long; each context is read once.

        Raises OutOfMemory and CheckpointError, as `score`.
        """
        questions = [question for prompt in prompts for question in prompt.questions]
        texts = [ids for question in questions for ids in (question.query, *question.answers)]
        with self._readable([prompt.context for prompt in prompts] + texts, len(prompts[0].context)):
            return contexts.score_prompts(self.reader, prompts)

    def generate(self, prompts: Sequence[Ids], n: int) -> list[list[int]]:
        """Decode greedily after prompts of equal length: at most n ids each, to the end token.

        Raises OutOfMemory and CheckpointError, as `score`.
        """
        with self._readable(prompts, len(prompts[0])):
            return self.reader.generate(prompts, n, self.end_tokens())

    @contextlib.contextmanager
    def _readable(self, texts: Sequence[Ids], n_read: int) -> Iterator[None]:
        """Raise CheckpointError for ids that the model lacks, and for errors of the model's own code."""
        largest = max((int(np.max(ids)) for ids in texts if len(ids)), default=0)
        if self.n_ids is not None and largest >= self.n_ids:
            raise CheckpointError(
                f"{self.name} cannot read the token `{self.token_text(largest)}`: the tokenizer gives it the number "
                f"{largest:,}, and the model knows those below {self.n_ids:,}",
                "the tokenizer belongs to another model; or, if it is the token before a text: --prefix none",
            )
        try:
            yield
        except (HopeEvalError, OutOfMemory, AssertionError):
            raise
        except Exception as error:
            if self.group:
                # The group tells which of its processes failed.
                raise
            # Architectures raise errors of any kind.
            raise Unreadable(self.name, n_read, error) from error

    @cached_property
    def n_ids(self) -> int | None:
        """Number of ids that the model can read; None if it does not tell."""
        return id_count(self.module)

    def encode(self, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Ids [T] of each text and the bytes of each token, see `tokens.encode`."""
        return tokens.encode(self.tokenizer, texts)

    def prefix_token(self, policy: tokens.PrefixPolicy) -> int | None:
        """Id that is read before a document, see `tokens.prefix_token`."""
        return tokens.prefix_token(self.tokenizer, policy)

    def end_tokens(self) -> list[int]:
        """Ids that end what the model writes, see `tokens.end_tokens`."""
        return tokens.end_tokens(self.tokenizer, self.module)

    def token_text(self, token: int) -> str:
        """A token as text, for people; its number if the tokenizer has no texts of tokens."""
        convert = getattr(self.tokenizer, "convert_ids_to_tokens", None)
        return str(convert([token])[0] if convert else token)

    @cached_property
    def tokenizer_fingerprint(self) -> str:
        """Hash of all settings of the tokenizer, 16 hexadecimal digits; empty if it cannot be read."""
        return tokens.fingerprint(self.tokenizer)
