"""The tiny default model: a byte-level Llama, trained in half a minute on Python sources that come with this package.

It is there so that `hope-eval ppl` shows something true on a machine without checkpoints or network: perplexity of
Python sources it has not seen, at lengths within and beyond its training length.
"""

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hope_eval.corpora import load_corpus
from hope_eval.model.checkpoint import quiet

# Raise it when the recipe changes: it names the folder.
_RECIPE = 1

TRAIN_LENGTH = 128
_TEXTS = "python:accelerate,click"
_STEPS, _BATCH, _LEARNING_RATE = 400, 16, 1e-2


def default(report: Any = lambda done, total: None) -> Path:
    """Return the folder of the tiny model, which is trained if it is not there yet.

    report: called with tokens trained on so far, and in all.
    """
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hope-eval"
    folder = root / f"tiny-{TRAIN_LENGTH}-v{_RECIPE}"
    if not (folder / "config.json").is_file():
        part = folder.with_suffix(f".part{os.getpid()}")
        train(part, report)
        part.replace(folder)
    return folder


def train(folder: Path, report: Any = lambda done, total: None, steps: int = _STEPS) -> None:
    """Train the model and save it with its tokenizer, in transformers format."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    text = "\n".join(document.text for document in load_corpus(_TEXTS).documents)
    ids = torch.from_numpy(np.asarray(tokenizer(text, verbose=False)["input_ids"], np.int64))
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer), hidden_size=64, intermediate_size=176, num_hidden_layers=2,
                num_attention_heads=2, max_position_embeddings=TRAIN_LENGTH, bos_token_id=0, eos_token_id=0,
                tie_word_embeddings=True, attn_implementation="sdpa",
            )
        )  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, _LEARNING_RATE, total_steps=steps, pct_start=0.1)
    report(0, steps * _BATCH * TRAIN_LENGTH)
    for step in range(steps):
        starts = torch.randint(len(ids) - TRAIN_LENGTH, (_BATCH,), generator=generator)
        batch_BL = torch.stack([ids[start : start + TRAIN_LENGTH] for start in starts.tolist()])
        # Read as in evaluation: the prefix token first.
        batch_BL = torch.cat([torch.zeros(_BATCH, 1, dtype=torch.long), batch_BL[:, :-1]], dim=1)
        loss = model(input_ids=batch_BL, labels=batch_BL, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        report((step + 1) * batch_BL.numel(), steps * batch_BL.numel())
    with quiet():
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def byte_tokenizer() -> Any:
    """Return a tokenizer with one token a byte, and `<s>` before them as 0."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0} | {symbol: number for number, symbol in enumerate(alphabet, 1)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")
