"""Tokenizer of a trained model: byte-level BPE, trained on the same texts as the model; or that of a checkpoint.

`<s>` is its first token, and stands before every document (BOS and EOS in one). A byte is never unknown.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from hope_eval.data.corpora import Corpus
from hope_eval.errors import CheckpointError
from hope_eval.train.recipe import NEW

VOCAB_SIZE = 4096

# Characters that merges are learned from; more changes few of 4,096 tokens.
_ENOUGH = 40_000_000

# Characters of a piece of text.
_PIECE = 100_000


def tokenizer_for(name: str, corpora: Sequence[Corpus], folder: Path, identity: Mapping[str, Any]) -> Any:
    """Tokenizer of a checkpoint folder; for `new`, one trained on the corpora, kept in `folder`.

    identity: everything that decides a new tokenizer, as JSON; one with the same identity is not trained again.

    Raises CheckpointError if there is no such folder, or its tokenizer has no BOS token.
    """
    from transformers import AutoTokenizer

    if name != NEW:
        if not Path(name).is_dir():
            raise CheckpointError(f"no checkpoint folder at `{name}` to take the tokenizer from", "--tokenizer new")
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True)
        if tokenizer.bos_token_id is None:
            raise CheckpointError(f"the tokenizer of `{name}` has no BOS token", "--tokenizer new")
        return tokenizer
    marker, wanted = folder / "identity.json", json.dumps(identity)
    if not marker.is_file() or marker.read_text() != wanted:
        documents = tuple(document for corpus in corpora for document in corpus.documents)
        train_tokenizer(Corpus("", documents, "")).save_pretrained(folder)
        marker.write_text(wanted)
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)


def train_tokenizer(corpus: Corpus, vocab_size: int = VOCAB_SIZE) -> Any:
    """Tokenizer of transformers with `vocab_size` tokens, trained on the texts in their random order."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<s>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_pieces(corpus), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def _pieces(corpus: Corpus) -> Iterator[str]:
    """Pieces of all documents in turn, until they have enough characters."""
    share = max(_PIECE, _ENOUGH // len(corpus.documents))
    for document in corpus.in_order(0):
        text = document.text[:share]
        yield from (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
