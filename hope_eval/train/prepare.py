"""Material that all trainings of one seed share, made once and kept in a work folder.

    WORK/tokenizer/           the tokenizer
    WORK/texts/ids.npy        the texts as one stream of ids: <s> document <s> document …
    WORK/lines-LENGTH-SEED/   the rows (see rows.py); another mix has a folder of its own

Processes that need the same thing wait for the first of them to make it.
"""

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from hope_eval import zoo
from hope_eval.data.corpora import Corpus, load_corpus
from hope_eval.runs.columns import Progress
from hope_eval.task import Vocabulary, task_class
from hope_eval.train.recipe import HELD_OUT, MIX, NEW, Recipe
from hope_eval.train.rows import BYTES, Rows, check_disk, check_mix, make_rows
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

    Raises CorpusError, CheckpointError, TaskError, OptionError or TrainingError.
    """
    mix = dict(recipe.mix)
    work.mkdir(parents=True, exist_ok=True)
    # Before minutes go by with reading: a new tokenizer will be much like that of the zoo.
    beforehand = zoo.folder(zoo.names()[0]) if recipe.tokenizer == NEW else recipe.tokenizer
    check_mix(mix, _vocabulary(tokenizer_for(str(beforehand), (), work, {})), recipe.train_length)
    check_disk(work, recipe.n_tokens * BYTES, "the training rows")
    corpora = [load_corpus(text) for text in recipe.texts]
    identity: dict[str, Any] = {"texts": [corpus.fingerprint for corpus in corpora], "tokenizer": recipe.tokenizer}
    # All processes that train together call this: the first does the work, the others wait and read its files.
    with FileLock(work / "lock"):
        tokenizer = tokenizer_for(recipe.tokenizer, corpora, work / "tokenizer", identity)
        texts = _stream(corpora, tokenizer, work / "texts", identity, bar)
    vocabulary = _vocabulary(tokenizer)
    check_mix(mix, vocabulary, recipe.train_length)
    identity["tasks"] = {name: task_class(name)().fingerprint for name in mix}
    of_mix = "" if recipe.mix == tuple(MIX.items()) else hashlib.sha256(json.dumps(mix).encode()).hexdigest()[:8]
    name = "-".join(filter(None, ("lines", str(recipe.train_length), str(recipe.seed), of_mix)))
    with FileLock(work / f"{name}.lock"), bar("making rows", "rows") as progress:
        n_rows = recipe.n_steps * recipe.batch_rows
        rows = make_rows(
            work / name, identity, vocabulary, texts, n_rows, recipe.train_length, recipe.seed, mix, progress
        )
    return Prepared(rows, tokenizer, corpora, _evaluated(tokenizer, recipe.train_length))


def _vocabulary(tokenizer: Any) -> Vocabulary:
    return Vocabulary(tokenizer, tokenizer.bos_token_id)


def _evaluated(tokenizer: Any, train_length: int) -> list[np.ndarray]:
    """Ids of held-out documents, long enough to evaluate 4 training lengths."""
    held_out = load_corpus(HELD_OUT[0]).in_order(0)[:_DOCUMENTS_EVALUATED]
    # A token has far fewer than 10 characters on average.
    texts = [document.text[: 40 * train_length] for document in held_out]
    encoded = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return [np.asarray(ids, np.int64) for ids in encoded]


def _stream(
    corpora: Sequence[Corpus], tokenizer: Any, folder: Path, identity: Mapping[str, Any], bar: ProgressBar
) -> Path:
    """File of the ids of all documents one after the other, the prefix token before each; made once for all seeds."""
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
    return folder / "ids.npy"


def _pieces(text: str) -> list[str]:
    """Pieces of a text, cut after lines: in one piece, 50 MB take a tokenizer 20 GB of memory and one core."""
    pieces, start = [], 0
    while start < len(text):
        end = text.find("\n", start + _PIECE) + 1 or len(text)
        pieces.append(text[start:end])
        start = end
    return pieces
