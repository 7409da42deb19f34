"""The one loop: texts -> samples -> scores -> records.

    choose       which texts are long enough, in the model's own tokens
    measure      score what the run does not hold yet, and append it as it comes
    perplexity   both, in the run of that identity on disk

Work is cut into batches before anything is known of what is already done, and a batch is scored whole or not at all:
a resumed run adds up the same numbers in the same order as one that was never interrupted.
"""

import contextlib
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from hope_eval.analysis import stopping
from hope_eval.analysis.perplexity import VERSION, is_narrow
from hope_eval.analysis.stopping import Until
from hope_eval.data.corpora import Corpus, Document
from hope_eval.encodings import facts_of
from hope_eval.errors import CorpusError
from hope_eval.model.kernels.nll import choose as choose_nll
from hope_eval.model.reading import OutOfMemory
from hope_eval.model.scoring import LanguageModel
from hope_eval.model.tokens import PrefixPolicy
from hope_eval.protocols import Cell, Protocol, Window, merge
from hope_eval.runs.kinds import PPL
from hope_eval.runs.provenance import Session, origin
from hope_eval.runs.records.window import WINDOW
from hope_eval.runs.shards import ALONE, Ranks
from hope_eval.runs.store import RunStore
from hope_eval.runs.token_store import TokenizedDocument, TokenStore, n_words
from hope_eval.task import Sample

# Called with tokens read so far, and tokens to read in all.
Report = Callable[[int, int], None]

# The same, with the tokens that were read since the last call.
Count = Callable[[int, int, int], None]

# Tokens of one forward: short windows are read side by side on a GPU. A CPU gains nothing from it.
BATCH_TOKENS = {"cuda": 32_768}

# How many documents are tokenised in one go; the tokenizer works on them in parallel.
_TOKENIZED_AT_ONCE = 8

# Where only the first tokens of a text are needed, so much of it is tokenised; if that is too little, four times as
# much. What is kept ends so many bytes before the cut, at least.
_CHARACTERS_OF_A_TOKEN = 5
_MARGIN = 4096


@dataclass(frozen=True)
class Chosen:
    """The documents of a run, and what was left out to get them.

    documents: long enough, in order of the sample.
    n_short:   documents that were looked at and are too short.
    """

    documents: list[TokenizedDocument]
    n_short: int


# The last choice: models that are compared mostly share their tokenizer.
_chosen: dict[tuple[object, ...], Chosen] = {}


def choose(
    model: LanguageModel,
    corpus: Corpus,
    needed: int,
    n_documents: int | None,
    minimum: int = 1,
    seed: int = 0,
    *,
    whole: bool = True,
) -> Chosen:
    """Return the first n documents of the corpus, in its random order, that have at least `needed` tokens.

    whole: all tokens of each are returned, and not only the `needed` first, for which less of a text is tokenised.

    Shorter ones are counted and left out; nothing is padded or glued. Raises CorpusError if fewer than `minimum`
    remain, naming the longest of the others.
    """
    key = (model.tokenizer_fingerprint, corpus.fingerprint, needed, n_documents, minimum, seed, whole)
    if key[0] and key in _chosen:
        return _chosen[key]
    minimum = max(1, minimum)
    chosen: list[TokenizedDocument] = []
    longest, n_short = 0, 0
    for document, ids, sizes in _tokenized(model, corpus.in_order(seed), None if whole else needed):
        if len(ids) < needed:
            longest = max(longest, len(ids))
            n_short += 1
            continue
        text, is_whole = document.text, True
        if not whole and sizes is not None:
            n_kept, is_whole = int(sizes.sum()), False
            text = text[:n_kept].encode()[:n_kept].decode(errors="ignore")
        n_bytes = len(text.encode())
        chosen.append(TokenizedDocument(document.id, len(chosen), ids, sizes, n_bytes, n_words(text), is_whole))
        if len(chosen) == n_documents:
            break
    if len(chosen) < minimum:
        others = " of the others" if chosen else ""
        raise CorpusError(
            f"{len(chosen)} of the {len(corpus.documents)} documents of `{corpus.name}` have {needed:,} tokens, and "
            f"{minimum} must; the longest{others} has {longest:,}",
            "lower --lengths or --min-documents, or give longer documents with --data",
        )
    _chosen.clear()
    _chosen[key] = Chosen(chosen, n_short)
    return _chosen[key]


def _tokenized(
    model: LanguageModel, documents: list[Document], n: int | None
) -> Iterator[tuple[Document, np.ndarray, np.ndarray | None]]:
    """Yield documents with their ids and the bytes of these, of the first n tokens at most; None: of all."""
    for start in range(0, len(documents), _TOKENIZED_AT_ONCE):
        group = documents[start : start + _TOKENIZED_AT_ONCE]
        texts = [document.text for document in group]
        encoded = model.encode(texts) if n is None else _heads(model, texts, n)
        for document, (ids, sizes) in zip(group, encoded, strict=True):
            yield document, ids, sizes


def _heads(model: LanguageModel, texts: list[str], n: int) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Return what `encode` does, of the first n tokens of each text: there are documents of many megabytes.

    A tokenizer splits a text into words, numbers and runs of blanks. It is cut between two of them, so that only what
    stands just before the cut can come out otherwise, and tokens well before it are those of the whole text. Where
    nobody tells how much of a text tokens stand for, they are those of all of it.
    """
    found: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
    n_characters = _CHARACTERS_OF_A_TOKEN * n + 2 * _MARGIN
    if not getattr(model.tokenizer, "is_fast", False):
        n_characters = sys.maxsize
    while left := [at for at in range(len(texts)) if at not in found]:
        heads = [_cut(texts[at], n_characters) for at in left]
        for at, head, (ids, sizes) in zip(left, heads, model.encode(heads), strict=True):
            if sizes is None:
                found[at] = ids, None
            elif len(head) == len(texts[at]) or int(sizes[n:].sum()) >= _MARGIN:
                found[at] = ids[:n], sizes[:n]
        n_characters *= 4
    return [found[at] for at in range(len(texts))]


def _cut(text: str, n: int) -> str:
    """Return the first n characters, or fewer, so that a blank follows; all where there is none near."""
    while n < len(text):
        ends = [match.start() for match in re.finditer(r"\s(?=\S)", text[max(0, n - _MARGIN) : n])]
        if ends:
            return text[: max(0, n - _MARGIN) + ends[-1]]
        n *= 4
    return text


def perplexity(
    model: LanguageModel,
    corpus: Corpus,
    protocol: Protocol,
    lengths: Sequence[int],
    root: Path,
    *,
    n_documents: int | None = None,
    minimum: int = 1,
    seed: int = 0,
    prefix: PrefixPolicy = "auto",
    command: str = "",
    report: Report = lambda done, total: None,
    ranks: Ranks = ALONE,
    until: Until | None = None,
) -> tuple[TokenStore, int]:
    """Measure perplexity in the run of that identity below `root`, which is made, or gone on with.

    n_documents: how many documents at most; None: all that are long enough.
    minimum:     how many at least.
    report:      called at the start and after every batch.
    ranks:       the processes that share the work out.
    until:       when all lengths are known well enough; None: when all documents are read.

    Returns the tokens of the run, to make rows of, and the number of documents. Raises CorpusError, LengthError,
    OptionError or StoreError.
    """
    token = model.prefix_token(prefix)
    protocol = replace(protocol, prefixed=token is not None)
    cells = protocol.cells(lengths)
    # What lies past the end of a learned position table is a hole in the table, unless nothing else is asked for.
    model.check_length(min(cell.length for cell in cells))
    readable = [cell for cell in cells if model.max_length is None or cell.length <= model.max_length]
    needed = protocol.document_tokens(lengths)
    whole_documents = protocol.reads_whole(lengths)
    chosen = choose(model, corpus, needed, n_documents, minimum, seed, whole=whole_documents)
    identity = {
        "task": PPL,
        "version": VERSION,
        **identity_of(model),
        **protocol.identity(lengths),
        "lengths": list(lengths),
        "prefix_token": token,
        "corpus": corpus.fingerprint,
        "seed": seed,
    }
    provenance = {
        "corpus": corpus.name,
        "documents": len(corpus.documents),
        "documents_too_short": chosen.n_short,
        "tokens_needed": needed,
        "prefix": None if token is None else model.token_text(token),
        "train_length_source": model.train_length_source,
        "head_reason": model.reading.head_reason,
        "encoding": facts_of(model.encoding),
        "tokenizer": model.tokenizer_fingerprint,
        **protocol.provenance(lengths, [len(document.ids) for document in chosen.documents]),
        **origin(model.device, command),
    }
    with ranks.writing(root, identity, provenance) as store, session(model, store, command, report) as count:
        tokens = TokenStore(store)
        n = measure_until(model, chosen.documents, readable, tokens, token, until, count)
    whole = store.whole()
    return tokens if whole is store else TokenStore(whole), n


def identity_of(model: LanguageModel) -> dict[str, Any]:
    """Return all of a model that its scores follow from."""
    return {
        "model": model.name,
        "encoding": model.encoding,
        "fingerprint": model.fingerprint,
        "inverse_frequencies": model.inverse_frequencies(),
        "nested_safe": model.nested_safe,
        "train_length": model.train_length,
        "max_length": model.max_length,
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": model.device.type,
        "kernel": model.kernel,
        "head": model.reading.head,
        "nll": choose_nll(model.device.type).name,
    }


@contextlib.contextmanager
def session(model: LanguageModel, store: RunStore, command: str, report: Report) -> Iterator[Count]:
    """Count the tokens that are read, report them, and note in the end what they took."""
    work = Session(model.device, command)
    n_read = 0

    def count(done: int, total: int, fresh: int) -> None:
        nonlocal n_read
        n_read += fresh
        report(done, total)

    try:
        yield count
    finally:
        if n_read:
            store.log_session({**work.ended(n_read), **model.how})


def measure_until(
    model: LanguageModel,
    documents: Sequence[TokenizedDocument],
    cells: Sequence[Cell],
    tokens: TokenStore,
    prefix: int | None,
    until: Until | None,
    report: Count = lambda done, total, fresh: None,
) -> int:
    """Measure documents until all cells are known well enough; return how many are measured."""
    if until is None:
        measure(model, documents, cells, tokens, prefix, report)
        return len(documents)
    # A process that died may have left windows of documents that nobody has told of.
    for document in documents[: tokens.n_begun(documents)]:
        tokens.add_document(document)
    done, limit, is_met = 0, math.inf, False

    def n_read(some: Sequence[TokenizedDocument]) -> int:
        return _n_read(list(read_side_by_side(model.device.type, model.nested_safe, some, cells)))

    def count(part: int, of_part: int, fresh: int) -> None:
        report(done + part, total, fresh)

    total = n_read(documents)
    for start, stop in stopping.stages(len(documents), until):
        limit = measure(model, documents[start:stop], cells, tokens, prefix, count, limit)
        done += n_read(documents[start:stop])
        is_met = is_narrow(tokens, cells, [document.id for document in documents[:stop]], until)
        if is_met:
            break
    report(done, done, 0)
    # What is there already is not cut.
    n = stop
    while n < len(documents) and all(
        tokens.covers(documents[n].id, window)
        for cell in cells
        for window in cell.reads(len(documents[n].ids))
        if window.n_read < limit
    ):
        n += 1
    ended = until.ended(n, len(documents), is_met)
    if stopping.is_news(ended, stop, tokens.until):
        tokens.add_until(ended)
    return n


def measure(
    model: LanguageModel,
    documents: Sequence[TokenizedDocument],
    cells: Sequence[Cell],
    tokens: TokenStore,
    prefix: int | None,
    report: Count = lambda done, total, fresh: None,
    limit: float = math.inf,
) -> float:
    """Score every window of every cell that the run does not hold yet, and append it to the run.

    report: called at the start and after every batch, with tokens read so far, in all, and by this batch; of several
            processes, by this one and before it.

    limit:  reads of that many tokens, and of more, do not fit into memory.

    A read that does not fit is noted, and shorter ones go on. Returns the limit that was found.
    """
    for document in documents:
        tokens.add_document(document)
    batches = list(read_side_by_side(model.device.type, model.nested_safe, documents, cells, limit))
    todo = _missing(batches, tokens)
    done = _n_read(batches) - _n_read(todo)
    todo = tokens.store.share(
        todo, lambda batch: [WINDOW.piece_of(d.id, window) for d, window in batch if not tokens.covers(d.id, window)]
    )
    while True:
        total = done + _n_read(todo)
        report(done, total, 0)
        try:
            for batch in todo:
                scores = model.score([_sample(document, window, prefix) for document, window in batch])
                for (document, window), score in zip(batch, scores, strict=True):
                    tokens.add_window(document.id, window, score.nll[: window.n_scored])
                fresh = _n_read([batch])
                done += fresh
                report(done, total, fresh)
            return limit
        except OutOfMemory as error:
            tokens.add_out_of_memory(batch[0][0].id, error.n_read, error.figures, str(error))
            device, nested_safe, limit = model.device.type, model.nested_safe, error.n_read
            shorter = _missing(read_side_by_side(device, nested_safe, documents, cells, limit), tokens)
            # What other processes were given is theirs, at any length.
            todo = _within(shorter, todo, model.nested_safe)


_Batch = list[tuple[TokenizedDocument, Window]]


def _missing(batches: Iterable[_Batch], tokens: TokenStore) -> list[_Batch]:
    return [batch for batch in batches if not all(tokens.covers(d.id, window) for d, window in batch)]


def _within(batches: Sequence[_Batch], of: Sequence[_Batch], nested_safe: bool) -> list[_Batch]:
    """Return the batches of which the reads of `of` would have covered anything."""
    reads: dict[str, list[Window]] = defaultdict(list)
    for document, window in (pair for batch in of for pair in batch):
        reads[document.id].append(window)
    return [
        batch
        for batch in batches
        if any(longer.covers(window, nested_safe) for document, window in batch for longer in reads[document.id])
    ]


def batch_size(device_type: str, n_read: int) -> int:
    """Return how many inputs of that many tokens are read side by side."""
    return max(1, BATCH_TOKENS.get(device_type, 0) // n_read)


def _n_read(batches: Sequence[_Batch]) -> int:
    return sum(window.n_read for batch in batches for _, window in batch)


def read_side_by_side(
    device_type: str,
    nested_safe: bool,
    documents: Sequence[TokenizedDocument],
    cells: Sequence[Cell],
    limit: float = math.inf,
) -> Iterator[_Batch]:
    """Yield windows to be read side by side: of one length, the longest first, so that what is left gets faster.

    limit: reads of that many tokens, and of more, are left out.
    """
    plan = [
        (document, window)
        for document in documents
        for window in merge(
            (w for cell in cells for w in cell.reads(len(document.ids)) if w.n_read < limit), nested_safe
        )
    ]
    plan.sort(key=lambda pair: (-pair[1].n_read, pair[0].index, pair[1]))
    for n_read, group in groupby(plan, key=lambda pair: pair[1].n_read):
        pairs = list(group)
        size = batch_size(device_type, n_read)
        for start in range(0, len(pairs), size):
            yield pairs[start : start + size]


def _sample(document: TokenizedDocument, window: Window, prefix: int | None) -> Sample:
    ids = document.ids
    context = ids[window.start : window.scored_start]
    if window.prefixed:
        assert prefix is not None
        context = np.concatenate([[prefix], context])
    target = ids[window.scored_start : max(window.scored_stop, window.stop)]
    return Sample(context, target, unread=max(0, window.scored_stop - window.stop))
