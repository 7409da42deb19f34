"""A tokenizer of our own: byte-level BPE, trained on the texts that a model is trained on.

`<s>` is its first token, and stands before every document (BOS and EOS in one). A byte is never unknown.
"""

from collections.abc import Iterator
from typing import Any

from hope_eval.data.corpora import Corpus

VOCAB_SIZE = 4096

# Characters that merges are learned from; more changes few of 4,096 tokens.
_ENOUGH = 40_000_000

# Characters handed over at a time.
_PIECE = 100_000


def train_tokenizer(corpus: Corpus, vocab_size: int = VOCAB_SIZE) -> Any:
    """Return a tokenizer of transformers with `vocab_size` tokens, trained on the texts in their random order."""
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
    """Yield pieces of all documents in turn, until there are enough."""
    share = max(_PIECE, _ENOUGH // len(corpus.documents))
    for document in corpus.in_order(0):
        text = document.text[:share]
        yield from (text[start : start + _PIECE] for start in range(0, len(text), _PIECE))
