"""PositionEncoding: the interface that every file of `hope_eval/encodings/` implements, and how they are found.

An encoding is a torch module built for one model (`Geometry`), with its hyper-parameters as keyword arguments. It
overrides the hooks it needs; the base class overrides none and so is NoPE, no position information:

    inverse_frequencies   rotary: pair i of a query or key at position m is turned by m * inverse_frequencies[i]
    log_scales            pair i of a query at m is multiplied by exp(log_scales[m, i]), of a key divided by it
    embed                 absolute: what becomes of the token embeddings
    distance_bias         relative: what is added to the attention logits, as a table over distance per head
    bias                  the same for encodings that look at more than the distance

Rotary encodings are registered with transformers as rope types, so that a checkpoint whose config says
`rope_parameters: {rope_type: hope, …}` is one for every library that loads it through transformers.

Shape letters: B batch, L length, D model width, E head_dim, H heads, N distances, Q queries, K keys, P points.
"""

import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hope_eval.errors import EncodingError, did_you_mean
from hope_eval.plugins import module_from_file, only_class


@dataclass(frozen=True)
class Geometry:
    """What an encoding is told of the model it is built for.

    head_dim:     dimensions of a query that are rotated; smaller than the head where only part of it is.
    n_heads:      query heads.
    train_length: the length in tokens that the model was trained at; never the length it is evaluated at.
    rope_theta:   the base of the rotary frequencies.
    d_model:      width of the token embeddings; 0 where nobody asks.
    """

    head_dim: int
    n_heads: int
    train_length: int
    rope_theta: float = 10_000.0
    d_model: int = 0


@dataclass(frozen=True)
class Curve:
    """A bias that follows one number of query and key, as a curve of each head through equally far points.

        bias_h(i, j) = curve_h(by_distance[i - j] * by_query[i])

    by_distance_N and by_query_Q are float32 [N] and [Q], and their product is from 0 to 1. curve_HP are the values at
    P points from 0 to 1, float32 [H, P].
    """

    by_distance_N: Tensor
    by_query_Q: Tensor
    curve_HP: Tensor


class PositionEncoding(nn.Module):
    """No position information, and the interface of all that have some.

    source:      the paper that defines it, as an arXiv id.
    formula:     one line for the list of encodings.
    relative:    shifting all positions by the same amount changes nothing.
    nested_safe: the prediction at a position does not depend on how much follows it.
    shared:      all layers use one set of its parameters; otherwise each has its own.
    """

    source: ClassVar[str]
    formula: ClassVar[str]
    relative: ClassVar[bool] = True
    nested_safe: ClassVar[bool] = True
    shared: ClassVar[bool] = True

    def __init__(self, geometry: Geometry) -> None:
        super().__init__()
        self.geometry = geometry

    @property
    def max_length(self) -> int | None:
        """Tokens after which it has no positions left; None: it goes on."""
        return None

    @property
    def name(self) -> str:
        """The name of the file that defines it, which is its name everywhere."""
        return type(self).__module__.rpartition(".")[2]

    def inverse_frequencies(self) -> Tensor:
        """Return the angle in radians that each pair turns per position, float32 [E/2]; zero: not rotated."""
        return torch.zeros(self.geometry.head_dim // 2, dtype=torch.float32)

    def rope_parameters(self) -> dict[str, Any]:
        """Return what a transformers config says of it; a rotary encoding is a rope type of its own name."""
        return {
            "rope_type": self.name,
            "rope_theta": self.geometry.rope_theta,
            "original_max_position_embeddings": self.geometry.train_length,
            **{key: getattr(self, key) for key in hyper_parameters(type(self))},
        }

    def log_scales(self, positions_L: Tensor) -> Tensor | None:
        """Return the logarithm of what multiplies each pair of a query, float32 [L, E/2]; None: nothing does."""
        return None

    def embed(self, embeddings_BLD: Tensor, positions_BL: Tensor) -> Tensor:
        """Return the token embeddings with what this encoding adds to them."""
        return embeddings_BLD

    def distance_bias(self, distances_N: Tensor) -> Tensor | None:
        """Return what is added to the logit of a query for a key `distance` >= 0 tokens back, [H, N]; None: nothing."""
        return None

    def slopes(self) -> list[float] | None:
        """Return m_h of every head [H], where `distance_bias` is - m_h * distance and so fit for the fastest kernel."""
        return None

    def curve(self, query_positions_Q: Tensor, n_keys: int) -> Curve | None:
        """Return what `bias` computes for the first n keys, where a curve says it closely, and is fit for a kernel."""
        return None

    def bias(self, query_positions_Q: Tensor, key_positions_K: Tensor) -> Tensor | None:
        """Return what is added to the logits, float32 [H, Q, K], where `distance_bias` cannot say it; None: nothing.

        Keys after the query are masked; what is returned for them only has to be finite.
        """
        return None


class RopeExtension(PositionEncoding):
    """A way to stretch a checkpoint that was trained with RoPE, by a rope type of transformers.

    rope_type: what transformers calls it.
    """

    rope_type: ClassVar[str]

    def rope_parameters(self) -> dict[str, Any]:
        """Return what a transformers config says of it."""
        return {**super().rope_parameters(), "rope_type": self.rope_type}

    def inverse_frequencies(self) -> Tensor:
        """Return what transformers computes for it."""
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
        return f"{self.name}:" + ",".join(f"{key}={value:g}" for key, value in self.parameters)

    def build(self, geometry: Geometry) -> PositionEncoding:
        """Return the encoding for a model of that geometry."""
        # Whatever an encoding starts from is its own: the other weights of a model do not depend on it.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return encoding_class(self.name)(geometry, **dict(self.parameters))


def parse_encoding(text: str) -> EncodingSpec:
    """Read `name[:parameter=value,…]`; `path/to/mine.py` is a name too.

    Raises EncodingError for an unknown name or parameter and for a value that is no number.
    """
    name, _, rest = text.partition(":")
    known = hyper_parameters(encoding_class(name))
    parameters = []
    for part in filter(None, rest.split(",")):
        key, _, value = part.partition("=")
        if key not in known:
            allowed = f"it has {', '.join(known)}" if known else "it has none"
            raise EncodingError(f"`{name}` has no parameter `{key}`", did_you_mean(key, known, allowed))
        try:
            parameters.append((key, float(value)))
        except ValueError:
            raise EncodingError(f"`{key}` of `{name}` must be a number, got `{value}`", f"{name}:{key}=2") from None
    return EncodingSpec(name, tuple(parameters))


def encoding_names() -> list[str]:
    """Return the names of the encodings of this package: its file names."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def encoding_class(name: str) -> type[PositionEncoding]:
    """Return the class of an encoding by its name, or by the path of a Python file that defines one.

    Raises EncodingError if there is none of that name.
    """
    if name.endswith(".py"):
        if not Path(name).expanduser().is_file():
            raise EncodingError(f"no file `{name}`", "--encoding takes a name or the path of a Python file")
        module = module_from_file(Path(name), "hope_eval_encodings")
    elif name in encoding_names():
        module = importlib.import_module(f"{__name__}.{name}")
    else:
        raise EncodingError(
            f"no position encoding is called `{name}`",
            did_you_mean(name, encoding_names(), "`hope-eval encodings` lists all"),
        )
    return only_class(module, PositionEncoding)


def hyper_parameters(cls: type[PositionEncoding]) -> dict[str, float]:
    """Return the names of an encoding's own parameters with their defaults."""
    parameters = inspect.signature(cls).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def is_rotary(cls: type[PositionEncoding]) -> bool:
    """Return whether a rope type can express the encoding: it changes inverse frequencies and nothing else."""
    hooks = ("embed", "log_scales", "distance_bias", "bias")
    return all(getattr(cls, hook) is getattr(PositionEncoding, hook) for hook in hooks)


def training_length(config: Any) -> tuple[int, str] | None:
    """Return the training length that a transformers text config tells, and which of its keys tells it."""
    rope = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in rope.values() if isinstance(value, dict)]
    key = "original_max_position_embeddings"
    for values, where in [(rope, "rope_parameters."), *((value, "rope_parameters.*.") for value in nested)]:
        if values.get(key):
            return int(values[key]), where + key
    for name in (key, "max_position_embeddings", "n_positions", "max_seq_len", "seq_length"):
        if getattr(config, name, None):
            return int(getattr(config, name)), name
    return None


def geometry_of(config: Any, layer_type: str | None = None) -> Geometry:
    """Return the geometry of a transformers text config, for one of its layer types where these differ."""
    rope = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Geometry(
        head_dim=int(head_dim * rope.get("partial_rotary_factor", 1.0)),
        n_heads=config.num_attention_heads,
        train_length=(training_length(config) or (0, ""))[0],
        rope_theta=float(rope["rope_theta"]),
        d_model=config.hidden_size,
    )


def register_rope_types(rope_module: Any) -> None:
    """Tell transformers' `modeling_rope_utils` of every rotary encoding of this package.

    `rope` itself is transformers' own "default" and needs no telling.
    """
    for name in encoding_names():
        cls = encoding_class(name)
        if is_rotary(cls):
            register_rope_type(rope_module, cls)


def register_rope_type(rope_module: Any, cls: type[PositionEncoding]) -> None:
    """Make `rope_type: name` mean this encoding, with its hyper-parameters as further keys of rope_parameters.

    Nothing is done for those that transformers has itself.
    """
    name = cls.__module__.rpartition(".")[2]
    if name == "rope" or issubclass(cls, RopeExtension):
        return
    optional = {"rope_theta", "original_max_position_embeddings", *hyper_parameters(cls)}

    def initialise(
        config: Any, device: Any = None, seq_len: int | None = None, layer_type: str | None = None, **_: Any
    ) -> tuple[Tensor, float]:
        rope = config.rope_parameters[layer_type] if layer_type else config.rope_parameters
        parameters = {key: rope[key] for key in hyper_parameters(cls) if key in rope}
        encoding = cls(geometry_of(config, layer_type), **parameters)
        return encoding.inverse_frequencies().to(device), 1.0

    def validate(self: Any, rope_parameters: dict[str, Any], ignore_keys: set[str] | None = None) -> None:
        self._check_received_keys(
            name, set(rope_parameters), {"rope_type"}, optional_keys=set(optional), ignore_keys=ignore_keys
        )

    functions: dict[str, Callable[..., Any]] = rope_module.ROPE_INIT_FUNCTIONS
    functions[name] = initialise
    setattr(rope_module.RotaryEmbeddingConfigMixin, f"_validate_{name}_rope_parameters", validate)


def describe_all() -> list[dict[str, Any]]:
    """Return one record for every encoding of this package."""
    return [
        {
            "encoding": name,
            "parameters": ", ".join(f"{key}={value:g}" for key, value in hyper_parameters(cls).items()),
            "relative": "yes" if cls.relative else "no",
            "nested-safe": "yes" if cls.nested_safe else "no",
            "source": f"arXiv {cls.source}",
            "formula": cls.formula,
        }
        for name, cls in ((name, encoding_class(name)) for name in encoding_names())
    ]


def describe_bias(encoding: PositionEncoding) -> list[dict[str, Any]]:
    """Return one record for every doubling of distance, to 16 times the training length: the bias as it starts out.

    Empty for an encoding that adds nothing to the logits.
    """
    last = 16 * encoding.geometry.train_length
    distances = [0, *(1 << power for power in range(last.bit_length()) if 1 << power <= last)]
    by_distance = encoding.distance_bias(torch.tensor(distances))
    if by_distance is None:
        own = encoding.bias(torch.tensor([last]), last - torch.tensor(distances))
        if own is None:
            return []
        by_distance = own[:, 0]
    return [
        {"distance": distance, **{f"head {head + 1}": float(bias) for head, bias in enumerate(column)}}
        for distance, column in zip(distances, by_distance.detach().T.tolist(), strict=True)
    ]


def describe_pairs(encoding: PositionEncoding) -> list[dict[str, Any]]:
    """Return one record for every pair of dimensions of a query: how it is rotated."""
    return [
        {
            "pair": pair,
            "theta [rad/token]": theta,
            "wavelength [tokens]": 2 * math.pi / theta if theta else math.inf,
            "turns in training": encoding.geometry.train_length * theta / (2 * math.pi),
            "rotated": "yes" if theta else "no",
        }
        for pair, theta in enumerate(encoding.inverse_frequencies().tolist())
    ]
