"""Facts of a model from its transformers config: lengths, heads, widths."""

from typing import Any

from torch import nn

from hope_eval.encodings import Geometry, RopeExtension, encoding_class, encoding_names

# Key of the length that a model had before it was stretched.
ORIGINAL = "original_max_position_embeddings"

# Keys of the length of a model.
LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")

# Tokens: a longer length in a config means that there is no end, and not that a model was trained at it.
_LONGEST = 1 << 25


def text_config(model: nn.Module) -> Any:
    """Config of the text decoder; None if the model is not from transformers."""
    config = getattr(model, "config", None)
    return config.get_text_config() if config is not None and hasattr(config, "get_text_config") else config


def model_type(model: nn.Module) -> str:
    """Architecture as transformers calls it, `llama`; the name of the class for any other model."""
    return str(getattr(text_config(model), "model_type", type(model).__name__))


def number_of(config: Any, key: str) -> int | None:
    """Number of a config, the largest if it has one for each layer; None if the config lacks it."""
    try:
        value: Any = getattr(config, key, None)
        return int(max(value)) if isinstance(value, list | tuple) else int(value) or None
    except Exception:
        # Configs raise various errors for a missing key.
        return None


def heads_of(config: Any) -> tuple[int, int, int]:
    """Number of query heads, the number of key heads, the width of a head; 0 for each that the config lacks."""
    n_heads = number_of(config, "num_attention_heads") or 0
    head_dim = number_of(config, "head_dim") or (number_of(config, "hidden_size") or 0) // max(1, n_heads)
    return n_heads, number_of(config, "num_key_value_heads") or n_heads, head_dim


def inner_width(config: Any) -> int:
    """Width of a token inside an MLP, summed over the experts that read it."""
    if getattr(config, "moe_intermediate_size", None):
        return (number_of(config, "moe_intermediate_size") or 0) * (number_of(config, "num_experts_per_tok") or 1)
    names = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    return next(filter(None, (number_of(config, name) for name in names)), 4 * (number_of(config, "hidden_size") or 0))


def training_length(config: Any) -> tuple[int, str] | None:
    """Training length of a text config, and its key; None if the config lacks it.

    A model whose rotary frequencies are stretched (YaRN, LongRoPE, Llama 3, PI, dynamic NTK) was trained to
    `max_position_embeddings`, and its formulas use the length before that: `formula_length`.
    """
    original, whole = _original_length(config), whole_length(config)
    if original and whole and _is_stretched(config):
        return max(whole, original, key=lambda length: length[0])
    return original or whole


def formula_length(config: Any, layer_type: str | None = None) -> tuple[int, str] | None:
    """Length that stands for L_train in the formulas of encodings, and its key; None if the config lacks it.

    It is the training length before a model was stretched.

    layer_type: the layers that are meant, if these have frequencies of their own.
    """
    return _original_length(config, layer_type) or whole_length(config)


def _original_length(config: Any, layer_type: str | None = None) -> tuple[int, str] | None:
    rope = _rope_parameters(config)
    nested = {key: value for key, value in rope.items() if isinstance(value, dict)}
    # The layers that are meant come first.
    places = [(rope, "rope_parameters."), *((nested[name], f"rope_parameters.{name}.") for name in nested)]
    places.sort(key=lambda place: place[1] != f"rope_parameters.{layer_type}.")
    for values, where in places:
        if values.get(ORIGINAL):
            return int(values[ORIGINAL]), where + ORIGINAL
    length = number_of(config, ORIGINAL)
    return (length, ORIGINAL) if length else None


def whole_length(config: Any) -> tuple[int, str] | None:
    """Length that a config gives, and its key; None if it lacks one, or says that there is no end."""
    for name in LENGTH_KEYS:
        length = number_of(config, name)
        if length and 0 < length <= _LONGEST:
            return length, name
    return None


def _is_stretched(config: Any) -> bool:
    classes = map(encoding_class, encoding_names())
    stretching = {cls.rope_type for cls in classes if issubclass(cls, RopeExtension)}
    rope = _rope_parameters(config)
    layers = [value for value in rope.values() if isinstance(value, dict)] or [rope]
    return any(layer.get("rope_type", layer.get("type")) in stretching for layer in layers)


def _rope_parameters(config: Any) -> dict[str, Any]:
    # Configs with code of their own may have the older key only.
    return getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}


def geometry_of(config: Any, layer_type: str | None = None) -> Geometry:
    """Geometry that a text config describes, of one of its layer types if these differ."""
    rope = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Geometry(
        head_dim=int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        n_heads=config.num_attention_heads,
        train_length=(formula_length(config, layer_type) or (0, ""))[0],
        rope_theta=float(rope["rope_theta"]),
        d_model=config.hidden_size,
    )
