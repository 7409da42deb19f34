"""Context parallel: one sequence read by several processes, each of which holds the whole model.

    with cut.reading(): decoder(ids[:, cut.positions()], position_ids=cut.positions()[None], ...)

T processes cut L tokens into 2 T parts, and process r reads parts r and 2 T - 1 - r: one early, one late,
so that all compute equally much of the causal triangle. Token-wise work needs nothing from the others; attention
gathers the keys and values of all processes, and each query looks at those up to itself.

Shape letters: B batch, G heads of keys, L length, P own tokens, S tokens of a part at most, E head_dim.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hope_eval.errors import CheckpointError, OptionError
from hope_eval.model.configs import text_config
from hope_eval.model.in_effect import is_nested_safe, position_table, rotary_modules

# Fewest tokens of a part: each process reads the whole of a shorter sequence.
SHORTEST = 64

# Its name before torch 2.13, and since.
_all_gather: Callable[[Tensor, Tensor], object] = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)

# Remedy if a model cannot be read in parts.
INSTEAD = "leave --context-parallel out: torchrun shares samples out; --tensor-parallel divides what a GPU holds"


@dataclass
class Cut:
    """The cut of a sequence, seen by one process.

    length:     tokens.
    size:       processes.
    member:     which of them this is.
    n_attended: layers that have looked at all parts so far.
    """

    length: int
    size: int
    member: int
    n_attended: int = field(init=False, default=0)

    def part(self, number: int) -> tuple[int, int]:
        """First position of a part, and the first after it."""
        return number * self.length // (2 * self.size), (number + 1) * self.length // (2 * self.size)

    @property
    def own(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """The two parts of this process."""
        return self.part(self.member), self.part(2 * self.size - 1 - self.member)

    @property
    def largest(self) -> int:
        """Tokens of a part, at most."""
        return -(-self.length // (2 * self.size))

    def positions(self) -> Tensor:
        """Positions that this process reads, int64 [P]."""
        return torch.cat([torch.arange(start, stop) for start, stop in self.own])

    def whole(self, own_BGPE: Tensor) -> Tensor:
        """Keys or values of all processes, in the order of the sequence [B, G, L, E]."""
        B, G, _, E = own_BGPE.shape
        sent_2BGSE = own_BGPE.new_empty(2, B, G, self.largest, E)
        done = 0
        for sent_BGSE, (start, stop) in zip(sent_2BGSE, self.own, strict=True):
            sent_BGSE[:, :, : stop - start] = own_BGPE[:, :, done : done + stop - start]
            done += stop - start
        all_T2BGSE = sent_2BGSE.new_empty(self.size, *sent_2BGSE.shape)
        _all_gather(all_T2BGSE.flatten(0, 1), sent_2BGSE)
        parts = [*all_T2BGSE[:, 0], *reversed(list(all_T2BGSE[:, 1]))]
        bounds = (self.part(number) for number in range(2 * self.size))
        return torch.cat([part[:, :, : stop - start] for part, (start, stop) in zip(parts, bounds, strict=True)], dim=2)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Let a decoder read this process's parts, and its attention see those of the others."""
        token = _current.set(self)
        self.n_attended = 0
        try:
            yield
        finally:
            _current.reset(token)


_current: ContextVar[Cut | None] = ContextVar("current", default=None)


def current() -> Cut | None:
    """The cut of the sequence that is being read; None if it is read whole, as in compiled code."""
    # The compiler knows no context variables.
    return None if torch.compiler.is_compiling() else _current.get()


def check_readable(name: str, module: nn.Module, attends_plainly: bool = True) -> None:
    """Raise OptionError if a model cannot be read in parts; an outline of it is enough.

    attends_plainly: whether it attends by `attention.plain`, which an outline does not show.
    """
    config = text_config(module)
    kind = getattr(config, "model_type", type(module).__name__)
    if kind == "hope_eval":
        why = "is of this project's own decoder, whose encodings are made for all positions at once"
    elif position_table(module) is not None or not rotary_modules(module):
        why = f"is `{kind}`, which has no rotary encoding"
    elif not is_nested_safe(module):
        why = "has frequencies that change with the length read"
    elif not attends_plainly:
        why = f"is `{kind}`, whose attention is not one of transformers' that can be replaced"
    else:
        return
    raise OptionError(f"`{name}` {why}: it cannot be read in parts", INSTEAD)


def check_all_attended(name: str, module: nn.Module, cut: Cut) -> None:
    """Raise CheckpointError if a layer has not looked at the other parts: it is recurrent, or attends by itself."""
    n = getattr(text_config(module), "num_hidden_layers", None)
    if cut.n_attended != n:
        raise CheckpointError(
            f"`{name}` cannot be read in parts: of its {n} layers, {cut.n_attended} look at what comes before by "
            "transformers' attention",
            INSTEAD,
        )
