"""Put a position encoding on a loaded model, and read back the frequencies that the model really uses.

In this field, an override often has no effect, without any message. So `attach` rebuilds the rotary modules of the
model from a changed config, and then compares the inverse frequencies in them with those of the encoding.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hope_eval.encodings import EncodingSpec, PositionEncoding, encoding_class, parse_encoding
from hope_eval.errors import EncodingError
from hope_eval.model import rope_types
from hope_eval.model.configs import formula_length, geometry_of, model_type, text_config

# The architecture of this package's own decoder, whose config names its encoding.
DECODER = "hope_eval"


def attach(model: nn.Module, encoding: str | EncodingSpec, train_length: int | None = None) -> nn.Module:
    """Replace the rotary encoding of a transformers decoder by another, in place, and return the model.

    model:        a transformers model whose config has `rope_parameters` (Llama, Mistral, Qwen, Gemma, OLMo, Phi…).
    encoding:     `hope`, `hope:multiplier=2,theta=50000`, `nope`, or the path of a Python file that defines one.
    train_length: tokens, L_train of the formulas; by default from the config (see `configs.formula_length`).

    The base of the frequencies stays as it is in the config unless the encoding says `theta=`; the rotated part of each
    head stays in any case. The config is changed too, so that `save_pretrained` keeps the encoding.

    Raises EncodingError if the model has no rotary encoding, if the encoding needs more than other frequencies, or
    if the model does not end up with the frequencies of the encoding.
    """
    spec = parse_encoding(encoding) if isinstance(encoding, str) else encoding
    _check_replaceable(model, spec)
    config = text_config(model)
    from transformers import modeling_rope_utils

    rope_types.register(modeling_rope_utils, encoding_class(spec.name))
    rope = config.rope_parameters
    length = train_length or (formula_length(config) or (0, ""))[0]
    layer_types = [key for key, value in rope.items() if isinstance(value, dict)]
    encodings = {
        layer_type: spec.build(replace(geometry_of(config, layer_type or None), train_length=length))
        for layer_type in layer_types or [""]
    }

    def changed(layer_type: str) -> dict[str, Any]:
        before = rope[layer_type] if layer_type else rope
        kept = {key: before[key] for key in ("partial_rotary_factor",) if key in before}
        return {**kept, **encodings[layer_type].rope_parameters()}

    set_rope_parameters(model, {key: changed(key) for key in layer_types} or changed(""))
    if model_type(model) == DECODER:
        config.encoding, config.encoding_parameters = spec.name, dict(spec.parameters)
    _check_frequencies(model, spec, encodings)
    return model


def _check_replaceable(model: nn.Module, spec: EncodingSpec) -> None:
    """Raise EncodingError unless both the encoding of the model and the one asked for are rotary frequencies."""
    if not encoding_class(spec.name).is_rope_type():
        raise EncodingError(
            f"`{spec.name}` cannot be put on a trained checkpoint: it changes more than rotary frequencies",
            "train a model with it",
        )
    trained_with = _spec_of_decoder(model)
    if trained_with is not None and not encoding_class(trained_with.name).is_rope_type():
        raise EncodingError(
            f"`{trained_with}` of this model is not only rotary frequencies, so `{spec}` cannot replace it",
            "leave --encoding out",
        )
    if not getattr(text_config(model), "rope_parameters", None) or not rotary_modules(model):
        raise EncodingError(
            f"`{model_type(model)}` has no rotary encoding that `{spec}` could replace",
            "choose a checkpoint with RoPE, or leave --encoding out",
        )


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


def _check_frequencies(model: nn.Module, spec: EncodingSpec, encodings: dict[str, PositionEncoding]) -> None:
    """Raise EncodingError unless the model holds the frequencies of these encodings, by layer type."""
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


def rotary_modules(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, attribute, module) of every module of the decoder that holds inverse frequencies."""
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
    """Inverse frequencies that the model really uses, by path of the buffer, float32 on the CPU.

    Empty for a model without rotary encoding.
    """
    return {
        f"{name}.{buffer}": value.detach().float().cpu()
        for _, name, module in rotary_modules(model)
        for buffer, value in module.named_buffers(recurse=False)
        if _holds_frequencies(buffer)
    }


def _rope_types_of(model: nn.Module) -> list[str]:
    rope = getattr(text_config(model), "rope_parameters", None) or {}
    layers = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    return sorted({str(layer["rope_type"]) for layer in layers if layer.get("rope_type")})


def encoding_label(model: nn.Module) -> str:
    """Name of the encoding of a model: `rope`, `llama3`, `hope`, `learned`, `alibi`; else `native`."""
    trained_with = _spec_of_decoder(model)
    if trained_with is not None:
        return str(trained_with)
    if rotary_modules(model):
        classes = ((name, rope_types.encoding_of(name)) for name in _rope_types_of(model))
        return "+".join(cls.name() if cls else name for name, cls in classes) or "rope"
    if position_table(model):
        return "learned"
    if model_type(model) == "bloom" or getattr(text_config(model), "alibi", False):
        return "alibi"
    return "native"


def _spec_of_decoder(model: nn.Module) -> EncodingSpec | None:
    """Encoding that this package's own decoder was trained with; None for any other architecture."""
    return text_config(model).spec() if model_type(model) == DECODER else None


def is_nested_safe(model: nn.Module) -> bool:
    """Whether the prediction at a position is independent of the number of tokens that follow.

    Dynamic NTK and LongRoPE change their frequencies with the length read, and some models scale attention with it.
    """
    config = text_config(model)
    by_length = any(getattr(config, key, False) for key in ("use_dynamic_ntk", "use_logn_attn"))
    classes = filter(None, map(rope_types.encoding_of, _rope_types_of(model)))
    return not by_length and all(cls.nested_safe for cls in classes)


def position_table(model: nn.Module) -> int | None:
    """Number of positions of a learned position table; None for a model without one."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            leaf = name.rpartition(".")[2].lower()
            if leaf in ("wpe", "embed_positions", "position_embeddings", "position_embedding"):
                # OPT and similar models reserve the first rows of the table for padding.
                return module.num_embeddings - int(getattr(module, "offset", 0))
    return None
