"""The list of encodings, and the numbers that one encoding gives a model: for `hope-eval encodings`."""

import math
from typing import Any

import torch

from hope_eval import zoo
from hope_eval.encodings import PositionEncoding, encoding_class, encoding_names, parameters_of
from hope_eval.lengths import number_text


def listed() -> list[dict[str, Any]]:
    """One record for every encoding of this package."""
    return [
        {
            "encoding": name,
            "kind": cls.kind(),
            "parameters": ", ".join(
                key if value is None else f"{key}={number_text(value)}" for key, value in parameters_of(cls).items()
            ),
            "relative": "yes" if cls.relative else "no",
            "nested-safe": "yes" if cls.nested_safe else "no",
            "zoo": "yes" if f"{zoo.PREFIX}{name}" in zoo.names() else "no",
            "source": f"arXiv {cls.source}",
            "formula": cls.formula,
        }
        for name, cls in ((name, encoding_class(name)) for name in encoding_names())
    ]


def biases(encoding: PositionEncoding) -> list[dict[str, Any]]:
    """One record for every doubling of distance, to 16 times the training length: the bias before any training.

    Empty for an encoding without a bias.
    """
    last = 16 * encoding.geometry.train_length
    distances = [0, *(1 << power for power in range(last.bit_length()) if 1 << power <= last)]
    bias_HN = encoding.distance_bias(torch.tensor(distances))
    if bias_HN is None:
        bias_HQK = encoding.bias(torch.tensor([last]), last - torch.tensor(distances))
        if bias_HQK is None:
            return []
        bias_HN = bias_HQK[:, 0]
    return [
        {"distance": distance, **{f"head {head + 1}": float(bias) for head, bias in enumerate(column)}}
        for distance, column in zip(distances, bias_HN.detach().T.tolist(), strict=True)
    ]


def rotations(encoding: PositionEncoding) -> list[dict[str, Any]]:
    """One record for every pair of dimensions of a query: how it is rotated."""
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
