"""Texts as a tokenizer sees them: ids, bytes of each token, the token before a document, the tokens that end a text.

Shape letters: T tokens.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from hope_eval.errors import OptionError

PrefixPolicy = Literal["auto", "bos", "eos", "none"]


def encode(tokenizer: Any, texts: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Ids [T] of each text, without special tokens, and the UTF-8 bytes of each token [T].

    The bytes of a text add up to its length; they are None for a tokenizer without offsets.
    """
    if not getattr(tokenizer, "is_fast", False):
        return [(np.asarray(_plain_ids(tokenizer, text), np.int32), None) for text in texts]
    encoded = tokenizer(
        list(texts),
        add_special_tokens=False,
        return_offsets_mapping=True,
        return_attention_mask=False,
        verbose=False,
    )
    return [
        (np.asarray(ids, np.int32), bytes_of_tokens(text, np.asarray(offsets, np.int64).reshape(-1, 2)))
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _plain_ids(tokenizer: Any, text: str) -> Sequence[int]:
    try:
        ids = tokenizer.encode(text, add_special_tokens=False)
    except TypeError:
        ids = tokenizer.encode(text)
    return list(ids)


def bytes_of_tokens(text: str, offsets_T2: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of each token, uint32 [T].

    Tokens that are pieces of one character share its offsets: the first piece gets all its bytes. Characters between
    tokens count for the next token, characters at the end for the last one, so that the sum is the length of the text.
    """
    if not len(offsets_T2):
        return np.zeros(0, np.uint32)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    widths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    ends = np.maximum.accumulate(bytes_before[offsets_T2[:, 1]])
    ends[-1] = bytes_before[-1]
    return np.diff(ends, prepend=0).astype(np.uint32)


def prefix_token(tokenizer: Any, policy: PrefixPolicy) -> int | None:
    """Id that is read before everything else.

    auto: BOS if the tokenizer has one, else EOS, else none. Raises OptionError if the tokenizer has no such token.
    """
    tokens = {kind: getattr(tokenizer, f"{kind}_token_id", None) for kind in ("bos", "eos")}
    if policy == "none":
        return None
    if policy == "auto":
        return tokens["bos"] if tokens["bos"] is not None else tokens["eos"]
    if tokens[policy] is None:
        raise OptionError(f"the tokenizer has no {policy.upper()} token", "--prefix auto")
    return tokens[policy]


def end_tokens(tokenizer: Any, module: Any) -> list[int]:
    """Ids that end what a model writes: those of its generation config, and the EOS of the tokenizer."""
    configured = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
    ids = [configured] if isinstance(configured, int) else list(configured or [])
    eos = getattr(tokenizer, "eos_token_id", None)
    return list(dict.fromkeys([*ids, *([eos] if eos is not None else [])]))


def fingerprint(tokenizer: Any) -> str:
    """Hash of all settings of the tokenizer, 16 hexadecimal digits; empty if it cannot be read."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return ""
    if backend.truncation or backend.padding:
        # The first text that is encoded switches these off.
        backend = type(backend).from_str(backend.to_str())
        backend.no_truncation()
        backend.no_padding()
    return hashlib.sha256(backend.to_str().encode()).hexdigest()[:16]
