"""Sample, the one currency between those who ask and those who score. All that a task file may import."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

Ids = Sequence[int] | np.ndarray


@dataclass(frozen=True)
class Sample:
    """Token ids to read, and those among them to score.

        context  target                     one forward reads the whole line; the nll of every
        <s> a b  c d e                      target token is scored, given all tokens before it

    context:      ids that are read and not scored; at least one, since the first token of a line has no prediction.
    target:       ids that are scored, in order.
    unread:       the last target ids that are scored but not read, 0 or 1. The prediction of a token needs only the
                  tokens before it, so this matters where the number of tokens read is itself a definition (lm-eval's
                  rolling windows) or changes the model (dynamic NTK).
    meta:         what results are sliced by: document, position, depth, distance…
    """

    context: Ids
    target: Ids
    unread: int = 0
    meta: Mapping[str, object] = field(default_factory=dict)

    @property
    def n_read(self) -> int:
        """Tokens that the model reads."""
        return len(self.context) + len(self.target) - self.unread
