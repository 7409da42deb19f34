"""Put a position encoding on a loaded model, and read back what the model really uses.

Overrides that do nothing without a word are a known disease of this field. So `attach` rebuilds the model's rotary
modules from a changed config, and then compares the inverse frequencies they hold with those that were asked for.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hope_eval.encodings import (
    EncodingSpec,
    PositionEncoding,
    encoding_class,
    geometry_of,
    is_rotary,
    parse_encoding,
    register_rope_type,
    training_length,
)
from hope_eval.errors import EncodingError

# What transformers' rope types are called in this field.
_ROPE_TYPES = {"default": "rope", "linear": "pi", "dynamic": "dynamic_ntk", "proportional": "prope"}

# Rope types whose frequencies depend on the length that is read.
_LENGTH_DEPENDENT = {"dynamic", "longrope"}


def attach(model: nn.Module, encoding: str | EncodingSpec, train_length: int | None = None) -> nn.Module:
    """Replace the rotary encoding of a transformers decoder by another, in place, and return the model.

    model:        a transformers model whose config has `rope_parameters` (Llama, Mistral, Qwen, Gemma, OLMo, Phi…).
    encoding:     `hope`, `hope:multiplier=2`, `nope`, or the path of a Python file that defines one.
    train_length: tokens; by default what the config says (see `encoding.training_length`).

    The base of the frequencies and the part of each head that is rotated stay what they are in the checkpoint. The
    change is in the config too, so that `save_pretrained` keeps it.

    Raises EncodingError if the model has no rotary encoding, if the encoding needs more than other frequencies, or
    if the model does not end up with the frequencies that were asked for.
    """
    spec = parse_encoding(encoding) if isinstance(encoding, str) else encoding
    config = text_config(model)
    cls = encoding_class(spec.name)
    if not is_rotary(cls):
        raise EncodingError(
            f"`{spec.name}` cannot be put on a trained checkpoint: it is more than other rotary frequencies",
            "train a model with it",
        )
    own = _own_spec(model)
    if own is not None and not is_rotary(encoding_class(own.name)):
        raise EncodingError(
            f"`{own}` of this model is more than rotary frequencies, and `{spec}` cannot replace it",
            "leave --encoding out",
        )
    rope = getattr(config, "rope_parameters", None)
    if not rope or not rotary_modules(model):
        kind = getattr(config, "model_type", type(model).__name__)
        raise EncodingError(
            f"`{kind}` has no rotary encoding that `{spec}` could replace",
            "choose a checkpoint with RoPE, or leave --encoding out",
        )
    told = training_length(config)
    length = train_length or (told[0] if told else 0)
    from transformers import modeling_rope_utils

    register_rope_type(modeling_rope_utils, cls)
    layer_types = [key for key, value in rope.items() if isinstance(value, dict)]
    encodings = {}
    for layer_type in layer_types or [""]:
        geometry = replace(geometry_of(config, layer_type or None), train_length=length)
        encodings[layer_type] = spec.build(geometry)

    def changed(layer_type: str) -> dict[str, Any]:
        old = rope[layer_type] if layer_type else rope
        kept = {key: old[key] for key in ("partial_rotary_factor",) if key in old}
        return {**kept, **encodings[layer_type].rope_parameters()}

    set_rope_parameters(model, {key: changed(key) for key in layer_types} or changed(""))
    if own is not None:
        config.encoding, config.encoding_parameters = spec.name, dict(spec.parameters)
    _check(model, spec, encodings)
    return model


def set_rope_parameters(model: nn.Module, rope: dict[str, Any]) -> None:
    """Give a model other `rope_parameters`, in its config and in its rotary modules, which are built anew."""
    config = text_config(model)
    config.rope_parameters = rope
    for parent, child, module in rotary_modules(model):
        setattr(parent, child, _rebuilt(module, config))


def _rebuilt(module: nn.Module, config: Any) -> nn.Module:
    device = next(buffer.device for buffer in module.buffers())
    try:
        rebuilt = type(module)(config=config)
    except TypeError as error:
        raise EncodingError(
            f"the rotary module {type(module).__name__} cannot be rebuilt: {error}", "leave --encoding out"
        ) from error
    return rebuilt.to(device)


def _check(model: nn.Module, spec: EncodingSpec, encodings: dict[str, PositionEncoding]) -> None:
    expected = {
        f"{layer_type}_inv_freq" if layer_type else "inv_freq": encoding.inverse_frequencies()
        for layer_type, encoding in encodings.items()
    }
    for path, frequencies in effective_inverse_frequencies(model).items():
        wanted = expected.get(path.rpartition(".")[2])
        if wanted is None or wanted.shape != frequencies.shape or not torch.equal(wanted, frequencies):
            raise EncodingError(
                f"`{spec}` was asked for, but {path} of {type(model).__name__} does not hold its frequencies",
                "this architecture ignores rope_parameters; leave --encoding out",
            )


def text_config(model: nn.Module) -> Any:
    """Return the config of the text decoder; None for a model that is not of transformers."""
    config = getattr(model, "config", None)
    return config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config


def number_of(config: Any, key: str) -> int | None:
    """Return what a config says, the largest where it says something for each layer; None if it does not tell."""
    try:
        value: Any = getattr(config, key, None)
        return int(max(value)) if isinstance(value, list | tuple) else int(value) or None
    except Exception:
        # Configs have their own ways not to tell.
        return None


def heads_of(config: Any) -> tuple[int, int, int]:
    """Return the heads of queries, those of keys, and the width of a head; zeros if a config does not tell."""
    n_heads = number_of(config, "num_attention_heads") or 0
    head_dim = number_of(config, "head_dim") or (number_of(config, "hidden_size") or 0) // max(1, n_heads)
    return n_heads, number_of(config, "num_key_value_heads") or n_heads, head_dim


def inner_width(config: Any) -> int:
    """Return the numbers of a token within an MLP, of all experts that it is given to."""
    if getattr(config, "moe_intermediate_size", None):
        return (number_of(config, "moe_intermediate_size") or 0) * (number_of(config, "num_experts_per_tok") or 1)
    names = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    return next(filter(None, (number_of(config, name) for name in names)), 4 * (number_of(config, "hidden_size") or 0))


def rotary_modules(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Return (parent, attribute, module) for every module of the decoder that holds inverse frequencies."""
    get_decoder: Any = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder else model
    return [
        (parent, name, child)
        for parent in (decoder or model).modules()
        for name, child in parent.named_children()
        if any(_holds_frequencies(buffer) for buffer, _ in child.named_buffers(recurse=False))
    ]


def _holds_frequencies(buffer: str) -> bool:
    return buffer.endswith("inv_freq") and "original" not in buffer


def effective_inverse_frequencies(model: nn.Module) -> dict[str, Tensor]:
    """Return the inverse frequencies that the model really uses, by path of the buffer, float32 on the CPU.

    Empty for a model without rotary encoding.
    """
    return {
        f"{name}.{buffer}": value.detach().float().cpu()
        for _, name, module in rotary_modules(model)
        for buffer, value in module.named_buffers(recurse=False)
        if _holds_frequencies(buffer)
    }


def _rope_types(model: nn.Module) -> list[str]:
    rope = getattr(text_config(model), "rope_parameters", None) or {}
    layers = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    return sorted({str(layer["rope_type"]) for layer in layers if layer.get("rope_type")})


def encoding_label(model: nn.Module) -> str:
    """Return the name of the encoding that a model has: `rope`, `llama3`, `hope`, `learned`, `alibi`; else `native`."""
    if _own_spec(model) is not None:
        return str(_own_spec(model))
    if rotary_modules(model):
        return "+".join(_ROPE_TYPES.get(name, name) for name in _rope_types(model)) or "rope"
    if position_table(model):
        return "learned"
    config = text_config(model)
    if getattr(config, "model_type", "") == "bloom" or getattr(config, "alibi", False):
        return "alibi"
    return "native"


def _own_spec(model: nn.Module) -> EncodingSpec | None:
    """Return the encoding of this package's own decoder, which says itself what it has."""
    config = text_config(model)
    return config.spec() if getattr(config, "model_type", "") == "hope_eval" else None


def is_nested_safe(model: nn.Module) -> bool:
    """Return whether the prediction at a position is independent of how much follows it.

    Dynamic NTK and LongRoPE change their frequencies with the length read, and some models scale attention with it.
    """
    config = text_config(model)
    by_length = any(getattr(config, key, False) for key in ("use_dynamic_ntk", "use_logn_attn"))
    return not by_length and not _LENGTH_DEPENDENT & set(_rope_types(model))


def position_table(model: nn.Module) -> int | None:
    """Return how many positions a learned position table has; None for a model without one."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            leaf = name.rpartition(".")[2].lower()
            if leaf in ("wpe", "embed_positions", "position_embeddings", "position_embedding"):
                # OPT and its kin keep the first rows of the table for padding.
                return module.num_embeddings - int(getattr(module, "offset", 0))
    return None
