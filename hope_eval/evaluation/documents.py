"""Documents of a run: the first of a corpus, in random order, that have enough tokens."""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hope_eval.data.corpora import Corpus, Document
from hope_eval.errors import CorpusError
from hope_eval.model.scoring import LanguageModel
from hope_eval.runs.token_store import TokenizedDocument, n_words

# Documents that are tokenised at once, in parallel.
_TOKENIZED_AT_ONCE = 8

# If only the first tokens of a text are needed: characters that are tokenised for each (four times as many if that is
# too little), and bytes before the cut whose tokens are dropped, at least.
_CHARACTERS_OF_A_TOKEN = 5
_MARGIN = 4096


@dataclass(frozen=True)
class Chosen:
    """The documents of a run, and the number of those left out.

    documents: long enough, in order of the sample.
    n_short:   documents that are too short.
    """

    documents: list[TokenizedDocument]
    n_short: int


# The last choice of documents is kept: compared models mostly share their tokenizer.
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
    """The first n documents of the corpus, in its random order, that have at least `needed` tokens.

    whole: with all tokens of each, not only the first `needed`, for which less of a text is tokenised.

    Shorter documents are counted and left out; nothing is padded or glued. Raises CorpusError if fewer than `minimum`
    remain, and names the longest of the others.
    """
    choice = (model.tokenizer_fingerprint, corpus.fingerprint, needed, n_documents, minimum, seed, whole)
    if choice[0] and choice in _chosen:
        return _chosen[choice]
    minimum = max(1, minimum)
    chosen: list[TokenizedDocument] = []
    longest, n_short = 0, 0
    keys, documents = zip(*corpus.keyed(seed), strict=True)
    for key, (document, ids, sizes) in zip(keys, _tokenized(model, documents, None if whole else needed), strict=False):
        if len(ids) < needed:
            longest = max(longest, len(ids))
            n_short += 1
            continue
        text, is_whole = document.text, True
        n_bytes = len(text.encode())
        if not whole and sizes is not None:
            # The last token may end within a character.
            n_bytes, is_whole = int(sizes.sum()), False
            text = text[:n_bytes].encode()[:n_bytes].decode(errors="ignore")
        place = len(chosen)
        chosen.append(TokenizedDocument(key, place, ids, sizes, n_bytes, n_words(text), is_whole, document.id))
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
    _chosen[choice] = Chosen(chosen, n_short)
    return _chosen[choice]


def _tokenized(
    model: LanguageModel, documents: Sequence[Document], n: int | None
) -> Iterator[tuple[Document, np.ndarray, np.ndarray | None]]:
    """Documents with their ids and the bytes of each token, of the first n tokens at most; None: of all."""
    for start in range(0, len(documents), _TOKENIZED_AT_ONCE):
        group = documents[start : start + _TOKENIZED_AT_ONCE]
        texts = [document.text for document in group]
        encoded = model.encode(texts) if n is None else _heads(model, texts, n)
        for document, (ids, sizes) in zip(group, encoded, strict=True):
            yield document, ids, sizes


def _heads(model: LanguageModel, texts: list[str], n: int) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """The first n tokens of each text, as `encode` gives them: some documents have many megabytes.

    A tokenizer splits a text into words, numbers and runs of blanks. It is cut between two of them, so only tokens
    just before the cut can differ from those of the whole text. A tokenizer that does not give the bytes of its tokens
    reads the whole text.
    """
    heads_of: dict[int, tuple[np.ndarray, np.ndarray | None]] = {}
    n_characters = _CHARACTERS_OF_A_TOKEN * n + 2 * _MARGIN
    if not getattr(model.tokenizer, "is_fast", False):
        n_characters = sys.maxsize
    while unread := [at for at in range(len(texts)) if at not in heads_of]:
        heads = [_cut(texts[at], n_characters) for at in unread]
        for at, head, (ids, sizes) in zip(unread, heads, model.encode(heads), strict=True):
            if sizes is None:
                heads_of[at] = ids, None
            elif len(head) == len(texts[at]) or int(sizes[n:].sum()) >= _MARGIN:
                heads_of[at] = ids[:n], sizes[:n]
        n_characters *= 4
    return [heads_of[at] for at in range(len(texts))]


def _cut(text: str, n: int) -> str:
    """The first n characters, or fewer, so that a blank follows; more if no blank is near."""
    while n < len(text):
        ends = [match.start() for match in re.finditer(r"\s(?=\S)", text[max(0, n - _MARGIN) : n])]
        if ends:
            return text[: max(0, n - _MARGIN) + ends[-1]]
        n *= 4
    return text
