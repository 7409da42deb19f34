"""Models whose scores on tasks are known beforehand, over the tokenizer of the zoo.

    Uniform    gives all tokens the same probability, but for a little noise: at chance
    Oracle     was told the answers: all right
    Parrot     says the context again from its beginning: copies, and nothing else
    Recency    was told the answers, and remembers those that are at most w tokens away: a step at w

Each maps ids [B, L] to logits [B, L, V], and looks at no token after the one it predicts from.

Shape letters: B batch, L tokens, V vocabulary.
"""

from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from hope_eval import zoo
from hope_eval.model.scoring import LanguageModel
from hope_eval.task import Prompt, Question

TRAIN_LENGTH = 256

# Logits of a token that is predicted, and of all others.
_SURE = 30.0


@cache
def zoo_tokenizer() -> Any:
    """Return the tokenizer that all models of the zoo share."""
    return AutoTokenizer.from_pretrained(zoo.folder("zoo:hope"), local_files_only=True)


def fake(module: torch.nn.Module, name: str = "fake", **changes: Any) -> LanguageModel:
    """Return a language model of a fake module; two of one name must differ in what they were told."""
    return LanguageModel(name, module, zoo_tokenizer(), TRAIN_LENGTH, "a test", **changes)


class Uniform(torch.nn.Module):
    """Gives every token the same probability, but for noise that is the same everywhere."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.noise_V = 1e-3 * torch.randn(len(zoo_tokenizer()), generator=generator)
        self.noise_V[0] = 1.0

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        return self.noise_V.expand(*ids_BL.shape, -1)


class _Sure(torch.nn.Module):
    """Predicts one token at each place, or nothing at all."""

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        # Memory of zeros that is not touched is none.
        logits_BLV = np.zeros((*ids_BL.shape, len(zoo_tokenizer())), np.float32)
        for row, ids in enumerate(ids_BL.tolist()):
            for at, token in self.predicted(ids):
                if at < len(ids):
                    logits_BLV[row, at] = 0
                    logits_BLV[row, at, token] = _SURE
        return torch.from_numpy(logits_BLV)

    def predicted(self, ids: list[int]) -> Iterable[tuple[int, int]]:
        """Yield places, and the token that is predicted to follow there."""
        raise NotImplementedError


class Oracle(_Sure):
    """Knows the answer to every question that it was told; it finds it by the context and the question before it."""

    def __init__(self, prompts: Iterable[Prompt]) -> None:
        super().__init__()
        self._told: dict[bytes, list[int]] = {}
        self._sizes: set[int] = set()
        for prompt in prompts:
            for question in prompt.questions:
                before = _key([*prompt.context, *question.query])
                self._told[before] = self.answer(question)
                self._sizes.add(len(before))

    def answer(self, question: Question) -> list[int]:
        return [int(token) for token in question.target]

    def predicted(self, ids: list[int]) -> Iterable[tuple[int, int]]:
        line = _key(ids)
        # The longest last: one question may begin another.
        for size in sorted(self._sizes):
            for at, token in enumerate(self._told.get(line[:size], []) if size <= len(line) else []):
                yield size // 8 - 1 + at, token


class Recency(Oracle):
    """An oracle that is wrong about what is more than `window` tokens away."""

    def __init__(self, prompts: Iterable[Prompt], window: int) -> None:
        self.window = window
        super().__init__(prompts)

    def answer(self, question: Question) -> list[int]:
        distance: Any = question.meta["distance"]
        known = distance <= self.window
        return [token if known else (token + 1) % len(zoo_tokenizer()) for token in super().answer(question)]


class Parrot(_Sure):
    """Says the context again from its beginning, after a line break, as long as all it said so far is that."""

    def predicted(self, ids: list[int]) -> Iterable[tuple[int, int]]:
        (line_break,) = zoo_tokenizer().encode("\n", add_special_tokens=False)
        begun: list[int] = []
        for at, token in enumerate(ids):
            begun = [start for start in begun if ids[1 + at - start] == token]
            if token == line_break:
                begun.append(at + 1)
            if begun:
                yield at, ids[1 + at + 1 - begun[0]]


def _key(ids: Iterable[int]) -> bytes:
    return np.array(list(ids), np.int64).tobytes()
