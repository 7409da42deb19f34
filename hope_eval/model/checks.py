"""Checks when a model is loaded: each faster way of reading is taken if a short input scores the same without it.

    checked(reader, …)   the reading that is right for a model: its head in chunks or full logits, layers in chunks or
                         whole, an attention, contexts that are kept or read anew; no architecture is named anywhere

If a faster way fails, the plain way is taken instead, and the reading holds the reason.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from hope_eval.errors import CheckpointError, HopeEvalError
from hope_eval.model.configs import formula_length, heads_of, inner_width, number_of, text_config
from hope_eval.model.contexts import scored_after_contexts, scored_alone
from hope_eval.model.in_effect import effective_inverse_frequencies, is_nested_safe, position_table
from hope_eval.model.kernels import attention, attention_choice
from hope_eval.model.kernels.chunked_layers import ChunkedLayers, Compile, chunk_for
from hope_eval.model.limits import id_count
from hope_eval.model.parallel import sequence
from hope_eval.model.reading import SMALLEST_CHUNK, Reader, Reading, Score, Unreadable
from hope_eval.task import Prompt, Question, Sample

# Tokens of the longest input that is read here; some layers look back further.
_LONGEST_CHECK = 40_000

# Largest difference in nll [nats] that rounding explains.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 0.03, torch.bfloat16: 0.2}


def check_causal(name: str, module: nn.Module) -> None:
    """Raise CheckpointError unless a model reads a short text, and predicts its beginning without its end."""
    config = text_config(module)
    for path, frequencies in effective_inverse_frequencies(module).items():
        if not torch.isfinite(frequencies).all():
            raise CheckpointError(
                f"`{name}`: the rotary frequencies are not finite ({path})", "check `rope_parameters` in config.json"
            )
    length, _ = formula_length(config) or (48, "")
    n = max(4, min(48, length, position_table(module) or 48))
    reader = Reader(name, module.eval())
    numbers = np.random.default_rng(5)
    try:
        with torch.inference_mode():
            width = id_count(module) or reader.width()
            ids = numbers.integers(0, width, n)
            other = ids.copy()
            other[n // 2 :] = (ids[n // 2 :] + numbers.integers(1, max(2, width), n - n // 2)) % width
            nlls = [reader.forwarded([Sample(text[:1], text[1:])])[0].nll for text in (ids, other)]
    except (HopeEvalError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        # Architectures raise errors of any kind.
        raise Unreadable(name, n, error) from error
    # The last of them predicts the first token that differs.
    first, second = (nll[: n // 2 - 1] for nll in nlls)
    gap = float(np.max(np.abs(first - second), initial=0.0)) if np.isfinite([first, second]).all() else 0.0
    if gap > _TOLERANCE.get(reader.dtype, 1e-3) / 10:
        is_decoder = "set `is_decoder: true` in its config.json, if it was trained from left to right"
        raise CheckpointError(
            f"`{name}` sees the tokens that follow: what {type(module).__name__} predicts at the beginning of a text "
            f"changes with its end, by {gap:.3g} nats; its perplexity would mean nothing",
            is_decoder if getattr(config, "is_decoder", None) is False else "give a causal model",
        )


def checked(reader: Reader, compiling: Compile) -> Reading:
    """The reading that is right for a model. Raises OptionError or CheckpointError if a group cannot read it."""
    module: Any = reader.module
    reader = reader.having(head_chunk=SMALLEST_CHUNK, kernels=_kernels_of(module, reader.device, reader.dtype))
    reads_parts = reader.group is not None and reader.group.shares == "sequence"
    config = text_config(module)
    if attention.is_capped(config) and getattr(config, "_attn_implementation", None) == "sdpa":
        # Older versions of transformers leave out the cap if attention is called so.
        module.set_attn_implementation("eager")
    reader = _with_head(reader, compiling)
    if reader.device.type == "cuda" or reads_parts or attention.is_capped(config):
        reader = reader.having(attention_refused=_replaced_attention(reader))
    keeps = reader.reading.head == "chunked" and is_nested_safe(module) and _keeps_contexts(reader)
    reader = reader.having(keeps_contexts=keeps)
    if reads_parts:
        reader = _in_parts(reader)
    return reader.having(head_chunk=None).reading


def _with_head(reader: Reader, compiling: Compile) -> Reader:
    """Score a short input with both heads, and choose full logits if the chunked head disagrees."""
    vocab_size = getattr(text_config(reader.module), "vocab_size", None)
    decoders = _decoders(reader.module)
    if not decoders or vocab_size is None:
        return reader.having(head_reason="not a transformers causal model")
    # Longer than two chunks of the smallest size, and of ids that differ.
    ids = np.random.default_rng(0).integers(0, int(vocab_size), min(48, position_table(reader.module) or 48))
    sample = Sample(context=ids[:1], target=ids[1:])
    reason = ""
    with torch.inference_mode():
        wanted = reader.forwarded([sample])[0].nll
        for decoder in decoders:
            chunked = reader.having(head="chunked", decoder=decoder)
            try:
                nll = chunked.forwarded([sample])[0].nll
            except Exception as error:
                # Architectures raise errors of any kind; full logits are always right.
                reason = f"{type(error).__name__} in the chunked head"
                continue
            gap = float(np.max(np.abs(wanted - nll), initial=0.0)) if np.isfinite(wanted).all() else 0.0
            if gap <= _TOLERANCE.get(reader.dtype, 1e-3):
                return _with_layers(chunked, compiling, sample, wanted)
            reason = f"the chunked head is {gap:.3g} nats off"
    return reader.having(head_reason=reason)


def _with_layers(reader: Reader, compiling: Compile, sample: Sample, wanted: np.ndarray) -> Reader:
    """Run token-wise layers in chunks, unless that changes the scores of a short input."""
    config = text_config(reader.module)
    inner = getattr(reader.module, "get_decoder", lambda: None)() or reader.reading.decoder
    layers = ChunkedLayers(inner, "off", number_of(config, "num_hidden_layers"))
    layers.chunk = SMALLEST_CHUNK
    chunked = reader.having(layers=layers)
    try:
        nll = chunked.forwarded([sample])[0].nll
    except (HopeEvalError, torch.OutOfMemoryError):
        raise
    except Exception:
        # Architectures raise errors of any kind; whole layers are always right.
        nll = np.full_like(wanted, np.nan)
    close = np.allclose(nll, wanted, rtol=0, atol=_TOLERANCE.get(reader.dtype, 1e-3), equal_nan=True)
    if not layers.n_run or not close:
        return reader
    width = max(inner_width(config), number_of(config, "hidden_size") or 1)
    free = torch.cuda.mem_get_info(reader.device)[0] if reader.device.type == "cuda" else math.inf
    if reader.group:
        # Sums over processes are of one chunk, which must be the same for all, and the compiler cannot compile sums.
        free, compiling = reader.group.least(free, reader.device), "off"
    number_bytes = next(reader.module.parameters()).element_size()
    layers.compiling = compiling
    layers.chunk = chunk_for(free, width, number_bytes, reader.device.type, compiling)
    return chunked


def _replaced_attention(reader: Reader) -> str:
    """Replace transformers' attention by this package's; if that changes scores, undo it and return the reason."""
    module: Any = reader.module
    config = text_config(module)
    original = getattr(config, "_attn_implementation", None)
    if original == attention.PLAIN or not attention.put_on(module):
        return ""
    # Longer than the window of a layer, or the number of tokens that it picks, so that these matter.
    end = position_table(module) or _LONGEST_CHECK
    n = min(_looks_back(config) + 100, _LONGEST_CHECK, end)
    ids = np.random.default_rng(2).integers(0, int(config.vocab_size), n)
    sample = Sample(context=ids[:-8], target=ids[-8:])
    try:
        nll = reader.score([sample])[0].nll
        module.set_attn_implementation(original)
        gap = float(np.max(np.abs(nll - reader.score([sample])[0].nll)))
        reason = "" if gap <= _TOLERANCE.get(reader.dtype, 1e-3) else f"{gap:.3g} nats off"
    except HopeEvalError:
        raise
    except Exception as error:
        # Architectures raise errors of any kind; transformers' own attention is always right.
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:100]}"
    if reader.group:
        reason = next(filter(None, reader.group.gathered(reason)), "")
    module.set_attn_implementation(original if reason else attention.PLAIN)
    return reason


def _keeps_contexts(reader: Reader) -> bool:
    """Whether answers score the same after a kept context as with the context: some models keep only a part of it."""
    vocab_size = int(text_config(reader.module).vocab_size)
    n = min(40, position_table(reader.module) or 40)
    ids = np.random.default_rng(1).integers(0, vocab_size, n)
    context, query, answer = ids[: n // 2], ids[n // 2 : n // 2 + n // 8], ids[n // 2 + n // 8 :]
    if not len(query):
        return False
    prompt = Prompt(context, (Question(query, answer, choices=(answer[:1],)), Question((), answer)))
    try:
        with torch.inference_mode():
            scores = scored_after_contexts(reader, [prompt])
    except Exception:
        # Architectures raise errors of any kind; reading every answer with its context is always right.
        return False
    wanted = [scored_alone(reader, prompt, question) for question in prompt.questions]
    return scores is not None and _agree(scores[0], wanted, _TOLERANCE.get(reader.dtype, 1e-3))


def _agree(scores: Sequence[Score], wanted: Sequence[Score], tolerance: float) -> bool:
    pairs = [(score.nll, other.nll) for score, other in zip(scores, wanted, strict=True)]
    return all(np.allclose(nll, other, rtol=0, atol=tolerance, equal_nan=True) for nll, other in pairs)


def _in_parts(reader: Reader) -> Reader:
    """Read long inputs in parts. Raises OptionError or CheckpointError if that changes their scores."""
    assert reader.group is not None
    config = text_config(reader.module)
    plainly = getattr(config, "_attn_implementation", None) == attention.PLAIN and reader.reading.head == "chunked"
    sequence.check_readable(reader.name, reader.module, plainly)
    # Longer than the window of a layer, and not a multiple of anything.
    least = 2 * reader.group.size * sequence.SHORTEST
    n = max(least + 3, min(_looks_back(config) + 101, _LONGEST_CHECK))
    ids = np.random.default_rng(4).integers(0, int(config.vocab_size), n + 1)
    sample = Sample(context=ids[:1], target=ids[1:], unread=1)
    wanted = reader.score([sample])[0].nll
    cut = reader.having(cut_from=least)
    gaps_N = np.abs(cut.score([sample])[0].nll - wanted)
    # In types of few bits, rounding moves some of so many scores further.
    gap = float(gaps_N.max() if reader.dtype in (torch.float32, torch.float64) else gaps_N.mean())
    tolerance = _TOLERANCE.get(reader.dtype, 1e-3)
    if any(not float(text) <= tolerance for text in reader.group.gathered(str(gap))):
        raise CheckpointError(
            f"`{reader.name}` scores differently when it is read in parts, by {gap:.3g} nats", sequence.INSTEAD
        )
    return cut


def _decoders(module: nn.Module) -> list[Any]:
    """Modules that may make the hidden states of a causal model: most call their base model, OPT a part of it."""
    base = getattr(module, getattr(module, "base_model_prefix", "") or "-", None)
    get_decoder: Any = getattr(module, "get_decoder", lambda: None)
    candidates = dict.fromkeys((base, get_decoder()))
    return [decoder for decoder in candidates if isinstance(decoder, nn.Module) and decoder is not module]


def _kernels_of(module: nn.Module, device: torch.device, dtype: torch.dtype) -> attention_choice.Kernels:
    """The attention kernels that suit the heads of a model."""
    n_heads, n_kv_heads, head_dim = heads_of(text_config(module))
    if not n_heads or not head_dim:
        return attention_choice.Kernels()
    return attention_choice.fastest(device, dtype, n_heads, n_kv_heads, head_dim)


def _looks_back(config: Any) -> int:
    """The most tokens that a layer looks back at, or picks; 0 if all layers look at all tokens."""
    return max(number_of(config, key) or 0 for key in ("sliding_window", "attention_chunk_size", "index_topk"))
