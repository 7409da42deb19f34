"""Texts as a tokenizer sees them: ids, bytes of each token, the token before a document, the tokens that end a text.

Shape letters: T tokens.
"""

import hashlib
import re
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
        (np.asarray(ids, np.int32), bytes_of_tokens(tokenizer, text, ids, np.asarray(offsets, np.int64).reshape(-1, 2)))
        for text, ids, offsets in zip(texts, encoded["input_ids"], encoded["offset_mapping"], strict=True)
    ]


def _plain_ids(tokenizer: Any, text: str) -> Sequence[int]:
    try:
        ids = tokenizer.encode(text, add_special_tokens=False)
    except TypeError:
        ids = tokenizer.encode(text)
    return list(ids)


def bytes_of_tokens(tokenizer: Any, text: str, ids: Sequence[int], offsets_T2: np.ndarray) -> np.ndarray:
    """UTF-8 bytes of each token, uint32 [T].

    Tokens that are pieces of one character share its offsets. A tokenizer of bytes says how many bytes each of them
    has; those of other tokenizers get equal shares of the character. Characters between tokens count for the next
    token, characters at the end for the last one, so that the sum is the length of the text.
    """
    if not len(offsets_T2):
        return np.zeros(0, np.uint32)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    widths = 1 + (points > 0x7F).astype(np.int64) + (points > 0x7FF) + (points > 0xFFFF)
    bytes_before = np.concatenate([[0], np.cumsum(widths)])
    last = np.maximum.accumulate(offsets_T2[:, 1])
    ends = bytes_before[last]
    ends[-1] = bytes_before[-1]
    sizes = np.diff(ends, prepend=0)
    # Tokens that share a character, directly or by one between them, are divided anew.
    joined = offsets_T2[1:, 0] < last[:-1]
    shared = np.concatenate([joined, [False]]) | np.concatenate([[False], joined])
    if not shared.any():
        return sizes.astype(np.uint32)
    members = np.flatnonzero(shared)
    firsts = np.flatnonzero(~np.concatenate([[False], joined])[members])
    parts, wanted = _own_bytes(tokenizer, np.asarray(ids)[members]), sizes[members]
    wrong = np.add.reduceat(parts, firsts) != np.add.reduceat(wanted, firsts)
    for first, stop in np.column_stack([firsts, [*firsts[1:], len(members)]])[wrong]:
        parts[first:stop] = _shared(offsets_T2[members[first:stop]], bytes_before, int(wanted[first:stop].sum()))
    sizes[members] = parts
    return sizes.astype(np.uint32)


def _own_bytes(tokenizer: Any, ids_T: np.ndarray) -> np.ndarray:
    """Bytes of tokens as their names say, [T]: those of byte-level BPE, `<0xE3>`, and plain text."""
    backend = tokenizer.backend_tokenizer
    # Byte-level tokenizers write each byte as one letter.
    steps = (backend.normalizer, backend.pre_tokenizer, backend.decoder)
    by_letter = any(b"ByteLevel" in step.__getstate__() for step in steps if step is not None)
    added = backend.get_added_tokens_decoder()

    def size(number: int, name: str) -> int:
        if by_letter and number not in added:
            return len(name)
        return 1 if re.fullmatch("<0x[0-9A-Fa-f]{2}>", name) else len(name.replace("\u2581", " ").encode())

    distinct, places = np.unique(ids_T, return_inverse=True)
    names = tokenizer.convert_ids_to_tokens(distinct.tolist())
    return np.array([size(number, name) for number, name in zip(distinct.tolist(), names, strict=True)])[places]


def _shared(offsets_T2: np.ndarray, bytes_before: np.ndarray, total: int) -> np.ndarray:
    """Bytes of tokens that share characters: each character in equal parts, in whole bytes that add up to the total."""
    shares = np.zeros(len(offsets_T2))
    for at in range(int(offsets_T2.min()), int(offsets_T2.max())):
        covers = (offsets_T2[:, 0] <= at) & (at < offsets_T2[:, 1])
        shares[covers] += (bytes_before[at + 1] - bytes_before[at]) / max(1, covers.sum())
    # What is between tokens, before or after them.
    shares *= total / shares.sum()
    ends = np.rint(np.cumsum(shares)).astype(np.int64)
    return np.diff(ends, prepend=0)


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
