"""Documents of a run: the first of a corpus, in random order, that have enough tokens."""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hope_eval.data.corpora import Corpus, Document
from hope_eval.errors import CorpusError
from hope_eval.model.scoring import LanguageModel
from hope_eval.runs.token_store import TokenizedDocument, n_words

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
