"""The end of what a model can read: a table of positions, or a number in its config that its code does not go beyond.

A learned table ends, and so does a table that was computed (GPT-J). A number that only bounds what the code makes anew
for each input (the ALiBi slopes of MPT) does not: it is raised, if a short input scores the same with it.
"""

from typing import Any

import numpy as np
import torch
from torch import nn

from hope_eval.model.configs import LENGTH_KEYS, text_config, whole_length
from hope_eval.model.in_effect import position_table, rotary_modules
from hope_eval.model.reading import Reader
from hope_eval.task import Sample

# By how much a number is raised: enough for the default lengths, and for long tables still small.
_RAISED = 64

# Tokens of the longest input that is read to find out.
_LONGEST = 8192

# Largest difference in nll [nats] that a raised number may make, by rounding.
_TOLERANCE = 1e-2


def end_of(name: str, module: nn.Module, tries: bool = True) -> int | None:
    """Number of tokens that a model can read at most; None: no end is known.

    tries: whether to read a little further than the config says. Processes that share a model do not.

    A model that fails just past the length in its config ends there. Models with rotary modules are not tried: these
    compute any position.
    """
    config = text_config(module)
    length, _ = whole_length(config) or (0, "")
    end = position_table(module) or _computed_table(module, length)
    if end or not tries or not 0 < length < _LONGEST or rotary_modules(module):
        return end
    if _nll(name, module, length + 1) is not None:
        return None
    n = min(48, length)
    before = _nll(name, module, n)
    keys = [key for key in LENGTH_KEYS if getattr(config, key, None) == length]
    for key in keys:
        setattr(config, key, _RAISED * length)
    after = _nll(name, module, n)
    same = before is not None and after is not None and np.allclose(before, after, atol=_TOLERANCE, equal_nan=True)
    if same and _nll(name, module, length + 1) is not None:
        return _RAISED * length
    for key in keys:
        setattr(config, key, length)
    return length if before is not None else None


def _computed_table(module: nn.Module, length: int) -> int | None:
    """Rows of a buffer of positions that has as many as the config says."""
    tables = (buffer for name, buffer in module.named_buffers() if "pos" in name.rpartition(".")[2])
    return length if any(table.ndim == 2 and len(table) == length for table in tables) else None


def _nll(name: str, module: nn.Module, n: int) -> np.ndarray | None:
    """Scores of the first n - 1 tokens of a text; None if the model cannot read it."""
    ids = np.random.default_rng(6).integers(0, id_count(module) or 2, n)
    try:
        with torch.inference_mode():
            return Reader(name, module).forwarded([Sample(ids[:1], ids[1:])])[0].nll
    except torch.OutOfMemoryError:
        # A length that does not fit is found where it is asked for.
        return np.zeros(0)
    except Exception:
        # Architectures raise errors of any kind.
        return None


def id_count(module: nn.Module) -> int | None:
    """Number of ids that a model can read: rows of its embedding; None if it does not tell."""
    try:
        embedding: Any = getattr(module, "get_input_embeddings", lambda: None)()
    except (NotImplementedError, AttributeError):
        embedding = None
    rows = getattr(embedding, "num_embeddings", None) or getattr(text_config(module), "vocab_size", None)
    return int(rows) if isinstance(rows, int) else None
