"""PositionEncoding: the interface that every file of `hope_eval/encodings/` implements, and how a file is found.

An encoding is a torch module built for one model (`Geometry`), with its hyper-parameters as keyword arguments. It
overrides the hooks it needs; the base class overrides none and so is NoPE, no position information:

    inverse_frequencies   rotary: pair i of a query or key at position m is turned by m * inverse_frequencies[i]
    log_scales            decay: pair i of a query at m is multiplied by exp(log_scales[m, i]), of a key divided by it
    embed                 absolute: changes the token embeddings
    distance_bias         bias: added to the attention logits, as a table over distance per head
    bias                  bias: the same for encodings that look at more than the distance

Which hooks a class overrides decides its `kinds`; the rest of the package asks for those, and for the class variables
below. A file of your own works like a file of this folder: `--encoding my/halved.py`.

Shape letters: B batch, L length, D model width, E head_dim, H heads, N distances, Q queries, K keys, P points.
"""

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from hope_eval.errors import EncodingError, did_you_mean
from hope_eval.lengths import number_text
from hope_eval.plugins import module_from_file, module_name, only_class

# What an encoding acts on: queries and keys, embeddings, or the logits of attention.
Kind = Literal["rotary", "decay", "absolute", "bias"]

_HOOKS: dict[str, Kind] = {
    "inverse_frequencies": "rotary",
    "log_scales": "decay",
    "embed": "absolute",
    "distance_bias": "bias",
    "bias": "bias",
}

# Bases of rotary frequencies that `theta=` takes.
_THETA_LIMITS = (2.0, 1e12)


@dataclass(frozen=True)
class Geometry:
    """Facts of a model that an encoding is built from.

    head_dim:     dimensions of a query that are rotated; smaller than the head if only a part of it is rotated.
    n_heads:      query heads.
    train_length: the length in tokens that the model was trained at; never the length it is evaluated at.
    rope_theta:   the base of the rotary frequencies.
    d_model:      width of the token embeddings; 0 if the encoding does not need it.
    """

    head_dim: int
    n_heads: int
    train_length: int
    rope_theta: float = 10_000.0
    d_model: int = 0


@dataclass(frozen=True)
class Curve:
    """Bias that follows one number of query and key, as a curve of each head through equally spaced points.

        bias_h(i, j) = curve_h(by_distance[i - j] * by_query[i])

    by_distance_N and by_query_Q are float32 [N] and [Q], and their product is from 0 to 1. curve_HP are the values at
    P points from 0 to 1, float32 [H, P].
    """

    by_distance_N: Tensor
    by_query_Q: Tensor
    curve_HP: Tensor


class PositionEncoding(nn.Module):
    """No position information, and the interface of all encodings.

    source:      the paper that defines it, as an arXiv id.
    formula:     one line for the list of encodings.
    style:       (colour, dash, marker) of its lines in figures: `#rrggbb`; a word of `show.palette`; a letter of
                 matplotlib. Empty: figures choose a style by its name.
    limits:      the least and the greatest number of each parameter.
    whole:       parameters that are whole numbers.
    takes_theta: its frequencies follow from a base; `theta=` takes another base than that of the model.
    rope_type:   the rope type of transformers that computes its frequencies; empty: it is registered by its name.
    rope_types:  further rope types of transformers that are this encoding in the configs of checkpoints.
    relative:    shifting all positions by the same amount changes nothing.
    nested_safe: the prediction at a position does not depend on the number of tokens that follow.
    shared:      all layers share one set of its parameters; otherwise each layer has its own.
    """

    source: ClassVar[str] = ""
    formula: ClassVar[str] = ""
    style: ClassVar[tuple[str, str, str] | tuple[()]] = ()
    limits: ClassVar[Mapping[str, tuple[float, float]]] = {}
    whole: ClassVar[tuple[str, ...]] = ()
    takes_theta: ClassVar[bool] = False
    rope_type: ClassVar[str] = ""
    rope_types: ClassVar[tuple[str, ...]] = ()
    relative: ClassVar[bool] = True
    nested_safe: ClassVar[bool] = True
    shared: ClassVar[bool] = True

    def __init_subclass__(cls, **rest: Any) -> None:
        """Reset class variables that a subclass must not inherit to their defaults."""
        super().__init_subclass__(**rest)
        # HoPE derives from RoPE, and has another style.
        if "style" not in vars(cls):
            cls.style = PositionEncoding.style
        # Other frequencies are another rope type.
        if "inverse_frequencies" in vars(cls) and "rope_type" not in vars(cls):
            cls.rope_type = ""

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    @classmethod
    def kinds(cls) -> tuple[Kind, ...]:
        """Its kinds: rotary, decay, absolute, bias, or several of these; empty for NoPE."""
        return tuple(dict.fromkeys(kind for hook, kind in _HOOKS.items() if cls._overrides(hook)))

    @classmethod
    def kind(cls) -> str:
        """Its kinds in one word, for people and for provenance: `rotary`, `rotary+decay`, `bias`, `none`."""
        return "+".join(cls.kinds()) or "none"

    @classmethod
    def is_rope_type(cls) -> bool:
        """Whether a rope type can express it: it changes inverse frequencies, to zero if need be, and nothing else."""
        return set(cls.kinds()) <= {"rotary"}

    @classmethod
    def bias_form(cls) -> Literal["", "slopes", "table", "curve", "pairs"]:
        """How its bias is computed: by slopes or a table over distance, by a curve, or for each pair of tokens."""
        if cls._overrides("slopes"):
            return "slopes"
        if cls._overrides("distance_bias"):
            return "table"
        if cls._overrides("curve"):
            return "curve"
        return "pairs" if cls._overrides("bias") else ""

    @classmethod
    def name(cls) -> str:
        """Name of the file that defines it, which is its name everywhere."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def registered_as(cls) -> str:
        """Its rope type in a transformers config."""
        return cls.rope_type or cls.name()

    @classmethod
    def _overrides(cls, hook: str) -> bool:
        return getattr(cls, hook) is not getattr(PositionEncoding, hook)

    @property
    def max_length(self) -> int | None:
        """Number of positions it has; None: no end."""
        return None

    def inverse_frequencies(self) -> Tensor:
        """Angle in radians that each pair turns per position, float32 [E/2]; zero: not rotated."""
        return torch.zeros(self.geometry.head_dim // 2, dtype=torch.float32)

    def rope_parameters(self) -> dict[str, Any]:
        """The `rope_parameters` of a transformers config with this encoding."""
        return {
            "rope_type": self.registered_as(),
            "rope_theta": self.geometry.rope_theta,
            "original_max_position_embeddings": self.geometry.train_length,
            **{key: getattr(self, key) for key in hyper_parameters(type(self))},
        }

    def log_scales(self, positions_L: Tensor) -> Tensor | None:
        """Logarithm of the factor of each pair of a query, float32 [L, E/2]; None: no factor."""
        return None

    def embed(self, embeddings_BLD: Tensor, positions_BL: Tensor) -> Tensor:
        """Token embeddings with the positions added."""
        return embeddings_BLD

    def distance_bias(self, distances_N: Tensor) -> Tensor | None:
        """Numbers added to the logit of a query for a key `distance` >= 0 tokens back, [H, N]; None: no bias."""
        return None

    def slopes(self) -> list[float] | None:
        """m_h of each head [H], if `distance_bias` is - m_h * distance: the fastest kernel takes slopes."""
        return None

    def curve(self, query_positions_Q: Tensor, n_keys: int) -> Curve | None:
        """Numbers of `bias` for the first n keys as a curve, close enough for a kernel; None: there is no curve."""
        return None

    def bias(self, query_positions_Q: Tensor, key_positions_K: Tensor) -> Tensor | None:
        """Numbers added to the logits, float32 [H, Q, K], if `distance_bias` cannot express it; None: no bias.

        Keys after the query are masked; the numbers for them only have to be finite.
        """
        return None


class RopeExtension(PositionEncoding):
    """Way to stretch a checkpoint that was trained with RoPE, by a rope type of transformers."""

    takes_theta = True

    def inverse_frequencies(self) -> Tensor:
        """Frequencies that transformers computes."""
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        config = LlamaConfig(
            head_dim=self.geometry.head_dim,
            max_position_embeddings=self.geometry.train_length,
            rope_parameters=self.rope_parameters(),
        )
        frequencies: Tensor = ROPE_INIT_FUNCTIONS[self.rope_type](config, torch.device("cpu"))[0]
        return frequencies


@dataclass(frozen=True)
class EncodingSpec:
    """An encoding as it is written on a command line: `hope`, `hope:multiplier=2`."""

    name: str
    parameters: tuple[tuple[str, float], ...] = ()

    def __str__(self) -> str:
        if not self.parameters:
            return self.name
        return f"{self.name}:" + ",".join(f"{key}={number_text(value)}" for key, value in self.parameters)

    def build(self, geometry: Geometry) -> PositionEncoding:
        """Build the encoding for a model. Raises EncodingError for a parameter outside its limits."""
        cls = encoding_class(self.name)
        # The other weights of a model must not depend on the random numbers that an encoding draws.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return built(cls, geometry, dict(self.parameters))


def built(cls: type[PositionEncoding], geometry: Geometry, parameters: Mapping[str, float]) -> PositionEncoding:
    """Build an encoding for a model. Raises EncodingError for a parameter outside its limits."""
    for key, value in parameters.items():
        _check_limits(cls, key, value)
    own = dict(parameters)
    if _has_base(cls) and "theta" in own:
        geometry = replace(geometry, rope_theta=own.pop("theta"))
    return cls(geometry, **own)


def _check_limits(cls: type[PositionEncoding], key: str, value: float) -> None:
    limits = {**cls.limits, "theta": _THETA_LIMITS} if _has_base(cls) else cls.limits
    least, greatest = limits.get(key, (-math.inf, math.inf))
    is_whole = key not in cls.whole or value == math.floor(value) if math.isfinite(value) else False
    if not (is_whole and least <= value <= greatest):
        default = parameters_of(cls)[key]
        what = "a whole number from" if key in cls.whole else "from"
        raise EncodingError(
            f"`{key}` of `{cls.name()}` must be {what} {number_text(least)} to {number_text(greatest)}, "
            f"got {number_text(value)}",
            f"leave `{key}` out: it then follows from the model"
            if default is None
            else f"{cls.name()}:{key}={number_text(default)} is the default",
        )


def parse_encoding(text: str) -> EncodingSpec:
    """Read `name[:parameter=value,…]`; `path/to/mine.py` is a name too.

    Raises EncodingError for an unknown name or parameter, and for a value that is not a number or outside its limits.
    """
    name, _, rest = text.partition(":")
    cls = encoding_class(name)
    defaults = parameters_of(cls)
    parameters: list[tuple[str, float]] = []
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in defaults:
            allowed = f"it has {', '.join(defaults)}" if defaults else "it has none"
            raise EncodingError(f"`{name}` has no parameter `{key}`", did_you_mean(key, defaults, allowed))
        try:
            number = float(value)
        except ValueError:
            raise EncodingError(f"`{key}` of `{name}` must be a number, got `{value}`", f"{name}:{key}=2") from None
        _check_limits(cls, key, number)
        if any(key == other for other, _ in parameters):
            raise EncodingError(f"`{text}` gives `{key}` twice", f"{name}:{key}={number_text(number)}")
        parameters.append((key, number))
    if text.endswith(":"):
        raise EncodingError(f"`{text}` ends with a colon", name)
    return EncodingSpec(name, tuple(parameters))


def encoding_names() -> list[str]:
    """Names of the encodings of this package: its file names."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def encoding_class(name: str) -> type[PositionEncoding]:
    """Class of an encoding by its name, or by the path of a Python file that defines one.

    Raises EncodingError for an unknown name, and for a file whose name is taken.
    """
    if name.endswith(".py"):
        return _class_of_file(Path(name).expanduser(), name)
    if name not in encoding_names():
        raise EncodingError(
            f"no position encoding is called `{name}`",
            did_you_mean(name, encoding_names(), "`hope-eval encodings` lists all"),
        )
    return only_class(importlib.import_module(f"{__name__}.{name}"), PositionEncoding)


def _class_of_file(path: Path, name: str) -> type[PositionEncoding]:
    if not path.is_file():
        raise EncodingError(f"no file `{name}`", "--encoding takes a name or the path of a Python file")
    stem = module_name(path)
    owner = "hope-eval" if stem in encoding_names() else _library_with(stem)
    if owner:
        raise EncodingError(
            f"`{name}` cannot be used as an encoding: {owner} already has an encoding called `{stem}`",
            "rename the file",
        )
    return only_class(module_from_file(path, "hope_eval_encodings"), PositionEncoding)


def _library_with(rope_type: str) -> str:
    """Library that has a rope type of that name: mostly transformers; empty if no library has it."""
    from transformers import modeling_rope_utils

    classes = (encoding_class(name) for name in encoding_names())
    if any(rope_type in (cls.rope_type, *cls.rope_types) for cls in classes):
        return "transformers"
    validate = getattr(modeling_rope_utils.RotaryEmbeddingConfigMixin, f"_validate_{rope_type}_rope_parameters", None)
    function = modeling_rope_utils.ROPE_INIT_FUNCTIONS.get(rope_type, validate)
    library = str(function.__module__).partition(".")[0] if function else ""
    return "" if library == __name__.partition(".")[0] else library


def hyper_parameters(cls: type[PositionEncoding]) -> dict[str, float | None]:
    """Parameters that an encoding is built with, and their defaults; None: it follows from the model."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def parameters_of(cls: type[PositionEncoding]) -> dict[str, float | None]:
    """Parameters as they are written on a command line: hyper-parameters, and the base of kin of RoPE."""
    return {**hyper_parameters(cls), **({"theta": None} if _has_base(cls) else {})}


def _has_base(cls: type[PositionEncoding]) -> bool:
    """Whether `theta` is the base of its frequencies, and not a hyper-parameter of that name."""
    return cls.takes_theta and "theta" not in hyper_parameters(cls)


def facts_of(label: str) -> dict[str, Any]:
    """Name, kind and style of the encoding of a model, for the provenance of its runs: figures need nothing else.

    label: as in `LanguageModel.encoding`: `hope:multiplier=2(swap)`; an unknown encoding gets its name only.
    """
    # Of a mixture over layers, there is no kind and no style.
    label = label.removesuffix("(swap)")
    rule = re.match(r"[a-z]+=", label) if ";" not in label else None
    name = label[rule.end() if rule else 0 :].partition(":")[0]
    if not name.endswith(".py") and name not in encoding_names():
        return {"name": name}
    cls = encoding_class(name)
    style = dict(zip(("colour", "dash", "marker"), cls.style, strict=False))
    return {"name": cls.name(), "kind": cls.kind(), "style": style}
