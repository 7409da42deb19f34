"""Which layers of a model get which encoding: the form of `--encoding`.

    hope                              the layers with full attention; all layers, if none has full attention
    all=hope                          all layers
    full=yarn:factor=4;sliding=hope   by the kind of attention
    0-7=rope;8-=nope;3,5=native       by number, from 0; a later rule wins

Semicolons stand between layers, commas between parameters. Layers that are not named keep their own encoding.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hope_eval.encodings import EncodingSpec, parse_encoding
from hope_eval.errors import EncodingError

# The encoding that a layer comes with.
NATIVE = "native"

# Kind of attention of a layer, by what transformers' configs call it.
_SUFFIX = "_attention"

_RULE = re.compile(r"\s*([a-z]+|[\d,-]+)\s*=")


@dataclass(frozen=True)
class LayerChoice:
    """Rules (layers, encoding), in order; None: the layers keep their own.

    plain: it was written without layers.
    """

    rules: tuple[tuple[str, EncodingSpec | None], ...]
    plain: bool = False

    def __str__(self) -> str:
        return ";".join(f"{layers}={spec or NATIVE}" for layers, spec in self.rules)

    @property
    def specs(self) -> list[EncodingSpec]:
        """The encodings that it names."""
        return [spec for _, spec in self.rules if spec]

    def label(self, kinds: list[str]) -> str:
        """Its name in tables: that of the encoding, if all layers have the same.

        kinds: as for `of_layers`.
        """
        chosen = set(self.of_layers(kinds))
        return str(chosen.pop()) if len(chosen) == 1 else str(self)

    def of_layers(self, kinds: list[str]) -> list[EncodingSpec | None]:
        """The encoding of each layer; None: its own.

        kinds: of attention, by layer: `full`, `sliding`, `chunked`, …

        Raises EncodingError for layers that the model does not have.
        """
        chosen: list[EncodingSpec | None] = [None] * len(kinds)
        for layers, spec in self.rules:
            if self.plain and "full" not in kinds:
                layers = "all"
            for index in self._indices(layers, kinds):
                chosen[index] = spec
        return chosen

    def _indices(self, layers: str, kinds: list[str]) -> Iterator[int]:
        if layers == "all":
            yield from range(len(kinds))
        elif layers.isalpha():
            if layers not in kinds:
                raise EncodingError(
                    f"`{self}` names `{layers}` layers, and the layers of this model are: "
                    f"{', '.join(sorted(set(kinds)))}",
                    f'--encoding "{sorted(set(kinds))[0]}={self.specs[0] if self.specs else NATIVE}", or all=…',
                )
            yield from (index for index, kind in enumerate(kinds) if kind == layers)
        else:
            for part in layers.split(","):
                first, dash, last = part.partition("-")
                start, end = int(first or 0), (int(last) if last else len(kinds) - 1) if dash else int(first)
                if not start <= end < len(kinds):
                    raise EncodingError(
                        f"`{self}` names the layers `{part}`, and this model has layers 0 to {len(kinds) - 1}",
                        f'--encoding "0-{(len(kinds) - 1) // 2}=rope;{(len(kinds) + 1) // 2}-=nope"',
                    )
                yield from range(start, end + 1)


def is_mixture(text: str) -> bool:
    """Whether an encoding is written with layers."""
    return ";" in text or bool(_RULE.match(text))


def parse_choice(text: str) -> LayerChoice:
    """Read an encoding, with or without layers.

    Raises EncodingError for what is neither, and for an unknown encoding.
    """
    if not is_mixture(text):
        return LayerChoice((("full", parse_encoding(text)),), plain=True)
    rules = []
    for part in filter(None, (part.strip() for part in text.split(";"))):
        match = _RULE.match(part)
        if not match or not re.fullmatch(r"[a-z]+|(\d+(-\d*)?|-\d+)(,(\d+(-\d*)?|-\d+))*", match[1]):
            raise EncodingError(
                f"`{part}` of `--encoding {text}` is not layers and their encoding",
                '--encoding "full=yarn:factor=4;sliding=native", or "0-7=rope;8-=nope"',
            )
        encoding = part[match.end() :].strip()
        rules.append((match[1], None if encoding == NATIVE else parse_encoding(encoding)))
    if not any(spec for _, spec in rules):
        raise EncodingError(f"`--encoding {text}` changes no layer", '--encoding native, or "full=hope;sliding=native"')
    return LayerChoice(tuple(rules))


def kinds_of(config: Any) -> list[str]:
    """Kind of attention of each layer of a text config: `full`, `sliding`, `chunked`, `linear`…"""
    n_layers = int(getattr(config, "num_hidden_layers", 0) or 0)
    types = getattr(config, "layer_types", None)
    if types:
        return [str(kind).removesuffix(_SUFFIX) for kind in types]
    slides = getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)
    return ["sliding" if slides else "full"] * n_layers


def window_of(config: Any, kind: str) -> int | None:
    """Tokens that a layer of that kind of attention sees; None: all."""
    name = {"sliding": "sliding_window", "chunked": "attention_chunk_size"}.get(kind)
    size = getattr(config, name, None) if name else None
    return int(size) if size else None
