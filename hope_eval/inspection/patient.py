"""What a check of `hope-eval doctor` is given, and what it finds.

Shape letters: L tokens of a text, V vocabulary.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from hope_eval.model.configs import text_config
from hope_eval.model.scoring import LanguageModel

Status = Literal["ok", "look", "wrong", "not measured"]

# Tokens of a passage; of a difference of nll that is worth a word, nats.
PASSAGE, WORTH = 256, 0.02


@dataclass(frozen=True)
class Finding:
    """What a check has found.

    check:  its name.
    status: ok; look: unusual, or costs something; wrong: numbers of this model cannot be trusted; not measured.
    text:   one sentence with the figures.
    hint:   what to do.
    """

    check: str
    status: Status
    text: str
    hint: str = ""


@dataclass
class Patient:
    """A model that is examined.

    raw:      its config.json as it is written; empty for a model that has none.
    passages: ids of texts, at most PASSAGE tokens each [L], without a prefix token.
    long:     ids of the longest text.
    end:      time at which no further reading begins, by `time.monotonic`.
    own_nll:  nll of every passage as the model is.
    """

    model: LanguageModel
    raw: dict[str, Any]
    passages: list[np.ndarray]
    long: np.ndarray
    end: float
    own_nll: list[np.ndarray] = field(init=False)

    def __post_init__(self) -> None:
        self.own_nll = self.nll_of_passages()

    @property
    def module(self) -> nn.Module:
        """The network."""
        return self.model.module

    @property
    def config(self) -> Any:
        """Config of the text decoder; None for a module that is not of transformers."""
        return text_config(self.module)

    @property
    def has_time(self) -> bool:
        """Whether another reading may begin."""
        return time.monotonic() < self.end

    def prefixed(self, ids: np.ndarray) -> np.ndarray:
        """Ids with the prefix token that the model expects, if it has one."""
        prefix = self.model.prefix_token("auto")
        return ids if prefix is None else np.concatenate([[prefix], ids])

    def nll(self, ids: np.ndarray, start: int = 0, **options: Any) -> np.ndarray:
        """Nll [nats] of all tokens but the first, [L-1], by one plain forward.

        start: position of the first token.
        """
        ids_BL = torch.as_tensor(np.asarray(ids), device=self.model.device)[None]
        if start:
            options["position_ids"] = torch.arange(start, start + ids_BL.shape[1], device=ids_BL.device)[None]
        with torch.inference_mode():
            output = self.module(input_ids=ids_BL, use_cache=False, **options)
        logits_LV: Tensor = (output.logits if hasattr(output, "logits") else output)[0].float()
        return torch.nn.functional.cross_entropy(logits_LV[:-1], ids_BL[0, 1:], reduction="none").cpu().numpy()

    def nll_of_passages(self, **options: Any) -> list[np.ndarray]:
        """Nll of every passage, with its prefix token."""
        return [self.nll(self.prefixed(ids), **options) for ids in self.passages]

    def gain(self, **options: Any) -> tuple[float, float]:
        """Nats a token that the passages get cheaper under a change, and that number in standard errors of its mean."""
        gains = np.concatenate(
            [own - new for own, new in zip(self.own_nll, self.nll_of_passages(**options), strict=True)]
        )
        if not np.isfinite(gains).all():
            return -np.inf, 0.0
        error = float(gains.std(ddof=1) / np.sqrt(len(gains)))
        return float(gains.mean()), float(gains.mean()) / error if error else 0.0


@contextmanager
def changed(tensors: Mapping[Any, Tensor]) -> Iterator[None]:
    """Give tensors other values for a while."""
    before = {tensor: tensor.detach().clone() for tensor in tensors}
    with torch.no_grad():
        for tensor, value in tensors.items():
            tensor.copy_(value)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, value in before.items():
                tensor.copy_(value)
