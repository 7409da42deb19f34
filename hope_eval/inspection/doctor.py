"""Examine a checkpoint: is its position encoding what it claims, and do its numbers hold?"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from hope_eval.data.corpora import Corpus
from hope_eval.errors import CorpusError
from hope_eval.inspection import behaviour, claims
from hope_eval.inspection.patient import PASSAGE, Finding, Patient
from hope_eval.model.checkpoint_files import located, read_json
from hope_eval.model.scoring import LanguageModel
from hope_eval.runs.columns import Progress

Check = Callable[[Patient], Iterator[Finding]]

CHECKS: tuple[Check, ...] = (*claims.CHECKS, *behaviour.CHECKS)

# Passages that are read, at most, and how often the checks read each.
_N_PASSAGES, _N_READS = 4, 40


def config_as_written(name: str, revision: str | None = None) -> dict[str, Any]:
    """The config.json of a checkpoint, {} for one without. Raises CheckpointError."""
    location = located(name, revision)
    path = location.folder / "config.json"
    return {} if location.gguf or not path.is_file() else read_json(path)


def examined(
    model: LanguageModel,
    raw: dict[str, Any],
    corpus: Corpus,
    seconds: float,
    progress: Progress = lambda done, total: None,
    checks: Sequence[Check] = CHECKS,
) -> Iterator[Finding]:
    """Yield what every check finds, in the order of the checks.

    raw:     config.json as it is written, {} if there is none.
    corpus:  texts to read.
    seconds:  time after which no further reading begins; what is left out is said.
    progress: called with the number of checks done, and of all.
    checks:   those to make.

    Raises CorpusError if no text has as many tokens as a passage.
    """
    patient = _patient(model, raw, corpus, time.monotonic() + seconds)
    for done, check in enumerate(checks):
        progress(done, len(checks))
        yield from check(patient)
    progress(len(checks), len(checks))


def _patient(model: LanguageModel, raw: dict[str, Any], corpus: Corpus, end: float) -> Patient:
    # Two tokens may come before a passage, and positions may begin at 2.
    size = min(PASSAGE, model.train_length or PASSAGE, model.max_length or PASSAGE) - 4
    wanted = 4 * (model.train_length or 0)
    passages: list[np.ndarray] = []
    longest = np.zeros(0, np.int64)
    for document in corpus.in_order(0)[:40]:
        ids = np.asarray(model.encode([document.text[: 12 * max(wanted, size)]])[0][0])
        if len(ids) >= size and len(passages) < _N_PASSAGES:
            # Beginnings are licences and titles.
            start = min(len(ids) - size, size)
            passages.append(ids[start : start + size])
        longest = max(longest, ids, key=len)
        if len(passages) == _N_PASSAGES and len(longest) > wanted:
            break
    if not passages:
        raise CorpusError(f"no text of `{corpus.name}` has {size} tokens", "give longer texts with --data")
    begun = time.monotonic()
    patient = Patient(model, raw, passages[:1], longest, end)
    # Slow models read fewer passages: the checks read each some forty times, in half of the time.
    left = (end - begun) / 2 / (_N_READS * (time.monotonic() - begun))
    more = passages[1 : max(1, min(_N_PASSAGES, int(left)))]
    return Patient(model, raw, [*patient.passages, *more], longest, end) if more else patient
