"""Encodings as rope types of transformers: registered for every library that loads models through transformers.

A checkpoint whose config says `rope_parameters: {rope_type: hope, …}` is read with HoPE. An encoding whose frequencies
transformers computes itself (YaRN, PI…) keeps the rope type of transformers.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from hope_eval.encodings import PositionEncoding, built, encoding_class, encoding_names, hyper_parameters
from hope_eval.errors import EncodingError
from hope_eval.model.configs import geometry_of

# By rope type; those of users' files join when they are registered.
_ENCODINGS: dict[str, type[PositionEncoding]] = {}


def register_all(rope_module: Any) -> None:
    """Register every encoding of this package that is a rope type with transformers' `modeling_rope_utils`."""
    for name in encoding_names():
        cls = encoding_class(name)
        if cls.is_rope_type():
            register(rope_module, cls)


def register(rope_module: Any, cls: type[PositionEncoding]) -> None:
    """Let `rope_type: name` be this encoding, with its hyper-parameters as further keys of rope_parameters.

    Nothing changes for an encoding that transformers computes. Raises EncodingError for a name of another library.
    """
    name = cls.registered_as()
    _ENCODINGS[name] = cls
    if cls.rope_type:
        return
    functions: dict[str, Callable[..., Any]] = rope_module.ROPE_INIT_FUNCTIONS
    if name in functions and functions[name].__module__ != __name__:
        raise EncodingError(
            f"the encoding `{name}` cannot be registered with transformers: "
            f"{functions[name].__module__.partition('.')[0]} already has a rope type of that name",
            "rename the file",
        )
    optional = {"rope_theta", "original_max_position_embeddings", *hyper_parameters(cls)}

    def initialise(
        config: Any, device: Any = None, seq_len: int | None = None, layer_type: str | None = None, **_: Any
    ) -> tuple[Tensor, float]:
        rope = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
        parameters = {key: rope[key] for key in hyper_parameters(cls) if key in rope}
        encoding = built(cls, geometry_of(config, layer_type), parameters)
        frequencies_P, n = encoding.inverse_frequencies(), encoding.geometry.head_dim // 2
        if not isinstance(frequencies_P, Tensor) or frequencies_P.shape != (n,):
            raise EncodingError(
                f"`inverse_frequencies` of `{name}` does not give a tensor of {n} numbers",
                "mend the file",
            )
        return frequencies_P.to(device), 1.0

    def validate(self: Any, rope_parameters: dict[str, Any], ignore_keys: set[str] | None = None) -> None:
        self._check_received_keys(
            name, set(rope_parameters), {"rope_type"}, optional_keys=set(optional), ignore_keys=ignore_keys
        )

    functions[name] = initialise
    setattr(rope_module.RotaryEmbeddingConfigMixin, f"_validate_{name}_rope_parameters", validate)


def encoding_of(rope_type: str) -> type[PositionEncoding] | None:
    """Encoding of a rope type of transformers: `linear` is PI; None for a rope type without an encoding here."""
    if rope_type in _ENCODINGS:
        return _ENCODINGS[rope_type]
    classes = [cls for cls in map(encoding_class, encoding_names()) if cls.is_rope_type()]
    return next((cls for cls in classes if rope_type in (cls.rope_type, *cls.rope_types)), None)
