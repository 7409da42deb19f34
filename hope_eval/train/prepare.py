"""Material that all trainings of one seed share, made once and kept in a work folder.

    WORK/tokenizer/           the tokenizer
    WORK/texts/ids.npy        the texts as one stream of ids: <s> document <s> document …
    WORK/lines-LENGTH-SEED/   the rows (see rows.py)

Processes that need the same folder wait for the first of them to make it.
"""

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from hope_eval.data.corpora import Corpus, load_corpus
from hope_eval.runs.columns import Progress
from hope_eval.task import Vocabulary, task_class
from hope_eval.train.recipe import HELD_OUT, Recipe
from hope_eval.train.rows import SHARES, Rows, make_rows
from hope_eval.train.tokenizer import tokenizer_for

_DOCUMENTS_EVALUATED = 8

# Fewest characters that are tokenised at once.
_PIECE = 200_000

# From a title and a unit to the progress of a piece of work, for as long as it lasts.
ProgressBar = Callable[[str, str], contextlib.AbstractContextManager[Progress]]


@contextlib.contextmanager
def no_bar(title: str, unit: str) -> Iterator[Progress]:
    """Show no progress."""
    yield lambda done, total: None


@dataclass
class Prepared:
    """Material that all trainings of one seed share.

    evaluated: ids of held-out documents, to evaluate on during the training.
    """

    rows: Rows
    tokenizer: Any
    corpora: list[Corpus]
    evaluated: list[np.ndarray] = field(repr=False, default_factory=list)


def prepare(recipe: Recipe, work: Path, bar: ProgressBar = no_bar) -> Prepared:
    """Make the tokenizer and the rows of a recipe in the folder `work`, unless it has them.

    Raises CorpusError, CheckpointError, TaskError or TrainingError.
    """
    corpora = [load_corpus(text) for text in recipe.texts]
    identity = {"texts": [corpus.fingerprint for corpus in corpora], "tokenizer": recipe.tokenizer}
    work.mkdir(parents=True, exist_ok=True)
    # All processes that train together call this: the first does the work, the others wait and read its files.
    with FileLock(work / "lock"):
        return _prepared(recipe, work, corpora, identity, bar)


def _prepared(
    recipe: Recipe, work: Path, corpora: list[Corpus], identity: Mapping[str, Any], bar: ProgressBar
) -> Prepared:
    tokenizer = tokenizer_for(recipe.tokenizer, corpora, work / "tokenizer", identity)
    vocabulary = Vocabulary(tokenizer, tokenizer.bos_token_id)
    stream = _stream(corpora, tokenizer, work / "texts", identity, bar)
    with bar("making rows", "rows") as progress:
        rows = make_rows(
            work / f"lines-{recipe.train_length}-{recipe.seed}",
            {**identity, "tasks": {name: task_class(name)().fingerprint for name in SHARES}},
            vocabulary,
            stream,
            recipe.n_steps * recipe.batch_rows,
            recipe.train_length,
            recipe.seed,
            progress=progress,
        )
    held_out = load_corpus(HELD_OUT[0]).in_order(0)[:_DOCUMENTS_EVALUATED]
    # Evaluation reads 4 training lengths, and a token has far fewer than 10 characters on average.
    texts = [document.text[: 40 * recipe.train_length] for document in held_out]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return Prepared(rows, tokenizer, corpora, [np.asarray(ids, np.int64) for ids in encoded])


def _stream(
    corpora: Sequence[Corpus], tokenizer: Any, folder: Path, identity: Mapping[str, Any], bar: ProgressBar
) -> np.ndarray:
    """Ids of all documents one after the other, the prefix token before each; kept on disk for all seeds."""
    marker, wanted = folder / "identity.json", json.dumps(identity)
    if not marker.is_file() or marker.read_text() != wanted:
        folder.mkdir(exist_ok=True)
        documents = [document.text for corpus in corpora for document in corpus.documents]
        parts, done, total = [], 0, sum(map(len, documents))
        with bar("tokenising texts", "characters") as progress:
            progress(done, total)
            for text in documents:
                encoded = tokenizer(_pieces(text), add_special_tokens=False, return_attention_mask=False, verbose=False)
                parts.append(np.array([tokenizer.bos_token_id], np.int32))
                parts += [np.array(ids, np.int32) for ids in encoded["input_ids"]]
                done += len(text)
                progress(done, total)
        np.save(folder / "ids.npy", np.concatenate(parts))
        marker.write_text(wanted)
    stream: np.ndarray = np.load(folder / "ids.npy", mmap_mode="r")
    return stream


def _pieces(text: str) -> list[str]:
    """Pieces of a text, cut after lines: in one piece, 50 MB take a tokenizer 20 GB of memory and one core."""
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", start + _PIECE) + 1 or len(text)
        pieces.append(text[start:end])
        start = end
    return pieces
