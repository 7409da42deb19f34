"""The position encoding that a model really uses: its rotary modules and frequencies, its name, its table of positions.

Everything here is read from the model, and changes nothing; `attach.py` changes it.
"""

from typing import Any

from torch import Tensor, nn

from hope_eval.encodings import encoding_class
from hope_eval.model import layer_rotary, rope_types
from hope_eval.model.configs import model_type, text_config
from hope_eval.model.layer_choice import is_mixture, parse_choice

# The architecture of this package's own decoder, whose config names its encoding.
DECODER = "hope_eval"


def rotary_modules(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, attribute, module) of every module of the decoder that holds inverse frequencies.

    Towers for images and sounds have configs of their own, and are no part of the decoder.
    """
    get_decoder: Any = getattr(model, "get_decoder", None)
    decoder = get_decoder() if get_decoder else model
    return _rotary_within(decoder or model, model) or _rotary_within(model, model)


def _rotary_within(part: nn.Module, model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    kind = model_type(model)
    return [
        (parent, name, child)
        for parent in part.modules()
        for name, child in parent.named_children()
        if has_frequencies(child) and getattr(getattr(child, "config", None), "model_type", kind) == kind
    ]


def has_frequencies(module: nn.Module) -> bool:
    """Whether a module holds inverse frequencies itself."""
    return any(_holds_frequencies(buffer) for buffer, _ in module.named_buffers(recurse=False))


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


def rebuilt_frequencies(model: nn.Module) -> list[tuple[str, Tensor, Tensor]]:
    """(path, frequencies in effect, those of a module built anew from its config in float32) of every rotary buffer."""
    found = []
    for _, name, module in rotary_modules(model):
        config = getattr(module, "config", None) or text_config(model)
        anew = dict(type(module)(config=config).named_buffers(recurse=False))
        for buffer, value in module.named_buffers(recurse=False):
            if _holds_frequencies(buffer) and buffer in anew:
                found.append((f"{name}.{buffer}", value.detach().cpu(), anew[buffer].float().cpu()))
    return found


def _rope_types_of(model: nn.Module) -> list[str]:
    config = text_config(model)
    rope = getattr(config, "rope_parameters", None) or {}
    layers = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    asked = getattr(config, layer_rotary.KEY, None)
    mixture = asked["encoding"] if asked else trained_with(model)
    specs = parse_choice(mixture).specs if is_mixture(mixture) else []
    names = {str(layer["rope_type"]) for layer in layers if layer.get("rope_type")}
    return sorted(names | {encoding_class(spec.name).registered_as() for spec in specs})


def encoding_label(model: nn.Module) -> str:
    """Name of the encoding of a model: `rope`, `llama3`, `hope`, `learned`, `alibi`; else `native`."""
    if own := trained_with(model):
        return own
    asked = getattr(text_config(model), layer_rotary.KEY, None)
    if asked:
        return str(asked["encoding"])
    if rotary_modules(model):
        classes = ((name, rope_types.encoding_of(name)) for name in _rope_types_of(model))
        return "+".join(cls.name() if cls else name for name, cls in classes) or "rope"
    if position_table(model):
        return "learned"
    if model_type(model) == "bloom" or getattr(text_config(model), "alibi", False):
        return "alibi"
    return "native"


def trained_with(model: nn.Module) -> str:
    """Encoding that this package's own decoder was trained with; empty for any other architecture."""
    if model_type(model) != DECODER:
        return ""
    config = text_config(model)
    return config.encoding if is_mixture(config.encoding) else str(config.specs()[0])


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
