"""What is checked when a model is loaded: each faster way of reading, by what a short input scores without it.

    check(model)     settles for a head in chunks or for full logits, for layers in chunks or whole, for an attention,
                     for contexts that are kept or read anew; no architecture is named anywhere

Whatever goes wrong with a faster way, the plain one is taken in its stead, and the model tells why.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from hope_eval.errors import CheckpointError, HopeEvalError
from hope_eval.model.configs import heads_of, inner_width, number_of, text_config
from hope_eval.model.kernels import attention
from hope_eval.model.kernels import fastest as kernels
from hope_eval.model.kernels.layers import Chunked, chunk_for
from hope_eval.model.parallel import sequence as parts
from hope_eval.task import Prompt, Question, Sample

if TYPE_CHECKING:
    from hope_eval.model.scoring import LanguageModel, Score

# Tokens of a chunk that is not halved any further; here chunks are of this size.
SMALLEST_CHUNK = 16

# Tokens of the longest input that is read; there are layers that look back further.
_LONGEST_CHECK = 40_000

# Largest difference in nll [nats] that rounding explains.
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6, torch.float16: 0.03, torch.bfloat16: 0.2}


def check(model: "LanguageModel") -> None:
    """Find out what is right for a model. Raises OptionError or CheckpointError where a group cannot read it."""
    module: Any = model.module
    model._checking = True
    model._kernels = _kernels_of(module, model.device, model.dtype)
    in_parts = model.group is not None and model.group.shares == "sequence"
    config = text_config(module)
    if attention.is_capped(config) and getattr(config, "_attn_implementation", None) == "sdpa":
        # Older versions of transformers leave out the cap where attention is called so.
        module.set_attn_implementation("eager")
    _choose_head(model)
    if model.device.type == "cuda" or in_parts or attention.is_capped(config):
        _choose_attention(model)
    model.keeps_contexts = model.head == "chunked" and model.nested_safe and _check_contexts(model)
    if in_parts:
        _check_parts(model)
    model._checking = False


def _choose_head(model: "LanguageModel") -> None:
    """Score a short input both ways, and settle for the full logits where the chunked head disagrees."""
    vocab_size = getattr(text_config(model.module), "vocab_size", None)
    decoders = _decoders(model.module)
    if not decoders or vocab_size is None:
        model.head_reason = "not a transformers causal model"
        return
    # Longer than two chunks of the smallest size, and of ids that differ.
    ids = np.random.default_rng(0).integers(0, int(vocab_size), min(48, model.max_length or 48))
    sample = Sample(context=ids[:1], target=ids[1:])
    with torch.inference_mode():
        wanted = model._scored([sample])[0].nll
        for decoder in decoders:
            model.head, model._decoder = "chunked", decoder
            try:
                found = model._scored([sample])[0].nll
            except Exception as error:
                # Any architecture may come through here; whatever its objection, full logits are right.
                model.head, model.head_reason = "full", f"{type(error).__name__} in the chunked head"
                continue
            gap = float(np.max(np.abs(wanted - found), initial=0.0)) if np.isfinite(wanted).all() else 0.0
            if gap <= _TOLERANCE.get(model.dtype, 1e-3):
                model.head_reason = ""
                _choose_layers(model, decoder, sample, wanted)
                return
            model.head, model.head_reason = "full", f"the chunked head is {gap:.3g} nats off"


def _choose_layers(model: "LanguageModel", decoder: nn.Module, sample: Sample, wanted: np.ndarray) -> None:
    """Run token-wise layers in chunks, unless that changes what a short input scores."""
    config = text_config(model.module)
    inner = getattr(model.module, "get_decoder", lambda: None)() or decoder
    layers = Chunked(inner, model.compiling, number_of(config, "num_hidden_layers"))
    layers.chunk, layers.compiling, model._layers = SMALLEST_CHUNK, "off", layers
    try:
        found = model._scored([sample])[0].nll
    except (HopeEvalError, torch.OutOfMemoryError):
        raise
    except Exception:
        # Any architecture may come through here; whole layers are right.
        found = np.full_like(wanted, np.nan)
    close = np.allclose(found, wanted, rtol=0, atol=_TOLERANCE.get(model.dtype, 1e-3), equal_nan=True)
    if not layers.n_run or not close:
        model._layers = None
        return
    width = max(inner_width(config), number_of(config, "hidden_size") or 1)
    free = torch.cuda.mem_get_info(model.device)[0] if model.device.type == "cuda" else math.inf
    if model.group:
        # What is summed up for a chunk must be a chunk of all, and the compiler knows nothing of sums.
        free, model.compiling = model.group.least(free, model.device), "off"
    number_bytes = next(model.module.parameters()).element_size()
    layers.compiling = model.compiling
    layers.chunk = chunk_for(free, width, number_bytes, model.device.type, layers.compiling)


def _choose_attention(model: "LanguageModel") -> None:
    """Put this package's attention in place of transformers' own, unless that changes what an input scores."""
    module: Any = model.module
    config = text_config(module)
    own = getattr(config, "_attn_implementation", None)
    if own == attention.PLAIN or not attention.put_on(module):
        return
    # Longer than what a layer looks back at, or picks, so that it matters.
    n = min(_looks_back(config) + 100, _LONGEST_CHECK, model.max_length or _LONGEST_CHECK)
    ids = np.random.default_rng(2).integers(0, int(config.vocab_size), n)
    sample = Sample(context=ids[:-8], target=ids[-8:])
    try:
        found = model.score([sample])[0].nll
        module.set_attn_implementation(own)
        gap = float(np.max(np.abs(found - model.score([sample])[0].nll)))
        told = "" if gap <= _TOLERANCE.get(model.dtype, 1e-3) else f"{gap:.3g} nats off"
    except HopeEvalError:
        raise
    except Exception as error:
        # Any architecture may come through here; transformers' own attention is right.
        told = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:100]}"
    if model.group:
        told = next(filter(None, model.group.gathered(told)), "")
    model._attention_refused = told
    module.set_attn_implementation(own if told else attention.PLAIN)


def _check_contexts(model: "LanguageModel") -> bool:
    """Return whether answers read after a kept context score as they do with it: not all models keep all of it."""
    vocab_size = int(text_config(model.module).vocab_size)
    n = min(40, model.max_length or 40)
    ids = np.random.default_rng(1).integers(0, vocab_size, n)
    context, query, answer = ids[: n // 2], ids[n // 2 : n // 2 + n // 8], ids[n // 2 + n // 8 :]
    if not len(query):
        return False
    prompt = Prompt(context, (Question(query, answer, choices=(answer[:1],)), Question((), answer)))
    try:
        with torch.inference_mode():
            found = model._scored_after_contexts([prompt])
    except Exception:
        # Any architecture may come through here; read with its context, every answer is right.
        return False
    wanted = [model._scored_alone(prompt, question) for question in prompt.questions]
    return found is not None and _agree(found[0], wanted, _TOLERANCE.get(model.dtype, 1e-3))


def _agree(found: Sequence["Score"], wanted: Sequence["Score"], tolerance: float) -> bool:
    pairs = [(one.nll, other.nll) for one, other in zip(found, wanted, strict=True)]
    return all(np.allclose(one, other, rtol=0, atol=tolerance, equal_nan=True) for one, other in pairs)


def _check_parts(model: "LanguageModel") -> None:
    """Read long inputs in parts from now on. Raises OptionError or CheckpointError if that changes their scores."""
    assert model.group is not None
    config = text_config(model.module)
    plainly = getattr(config, "_attn_implementation", None) == attention.PLAIN and model.head == "chunked"
    parts.check_readable(model.name, model.module, plainly)
    # Longer than what a layer looks back at, and not a multiple of anything.
    least = 2 * model.group.size * parts.SHORTEST
    n = max(least + 3, min(_looks_back(config) + 101, _LONGEST_CHECK))
    ids = np.random.default_rng(4).integers(0, int(config.vocab_size), n + 1)
    sample = Sample(context=ids[:1], target=ids[1:], unread=1)
    wanted = model.score([sample])[0].nll
    model._cut_from = least
    gaps_N = np.abs(model.score([sample])[0].nll - wanted)
    # Of that many, numbers of few bits are some apart.
    gap = float(gaps_N.max() if model.dtype in (torch.float32, torch.float64) else gaps_N.mean())
    if any(not float(one) <= _TOLERANCE.get(model.dtype, 1e-3) for one in model.group.gathered(str(gap))):
        raise CheckpointError(f"read in parts, `{model.name}` scores otherwise, by {gap:.3g} nats", parts.INSTEAD)


def _decoders(module: nn.Module) -> list[Any]:
    """Return what may make the hidden states of a causal model: most call their base model, OPT a part of it."""
    base = getattr(module, getattr(module, "base_model_prefix", "") or "-", None)
    get_decoder: Any = getattr(module, "get_decoder", lambda: None)
    return [one for one in dict.fromkeys((base, get_decoder())) if isinstance(one, nn.Module) and one is not module]


def _kernels_of(module: nn.Module, device: torch.device, dtype: torch.dtype) -> kernels.Kernels:
    """Return the attention kernels that suit the heads of a model."""
    config = text_config(module)
    n_heads, n_kv_heads, head_dim = heads_of(config)
    return kernels.fastest(device, dtype, n_heads, n_kv_heads, head_dim) if n_heads and head_dim else kernels.Kernels()


def _looks_back(config: Any) -> int:
    """Return how many tokens a layer looks back at, or picks, at most; 0 if none says that it leaves any out."""
    return max(number_of(config, key) or 0 for key in ("sliding_window", "attention_chunk_size", "index_topk"))
