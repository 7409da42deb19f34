"""The zoo: small models that ship with this package, one for each position encoding, alike in all else.

    zoo:hope    3.4M parameters, trained at 256 tokens on 100M tokens of Python sources and task prompts

Each is a folder in transformers format with the facts of its training beside it. Seed 0 ships, whatever it came to.
The standard library, sympy and networkx were held out. All were trained by one command, which `training.json` holds.
"""

import json
from pathlib import Path
from typing import Any

from hope_eval.errors import CheckpointError, did_you_mean

PREFIX = "zoo:"

# RoPE and HoPE first: the two that are compared most.
_ORDER = ("rope", "hope", "nope", "prope", "xpos", "alibi", "kerple", "fire", "t5", "sinusoidal", "learned")


def names() -> list[str]:
    """Return the checkpoints of the zoo as `--model` takes them: zoo:rope, zoo:hope…"""
    return [PREFIX + name for name in _ORDER]


def folder(name: str) -> Path:
    """Return the folder of `zoo:hope`. Raises CheckpointError if the zoo has no such model."""
    path = Path(__file__).parent / name.removeprefix(PREFIX)
    if name not in names() or not path.is_dir():
        raise CheckpointError(f"the zoo has no `{name}`", did_you_mean(name, names(), "`hope-eval zoo` lists them"))
    return path


def facts(name: str) -> dict[str, Any]:
    """Return how a model of the zoo was trained, and what it took."""
    training: dict[str, Any] = json.loads((folder(name) / "training.json").read_text("utf-8"))
    return training


def describe() -> list[dict[str, Any]]:
    """Return one record for every model: its training, and the nll [nats] of held-out text at the end of it."""
    records = []
    for name in names():
        training = facts(name)
        records.append(
            {
                "model": name,
                "parameters": f"{training['n_parameters']:,}",
                "of the encoding": f"{training['n_encoding_parameters']:,}",
                "trained at": training["train_length"],
                "tokens": f"{training['tokens'] / 1e6:.0f}M",
                "seed": training["seed"],
                **{f"nll {times}": training["nll"].get(times, "-") for times in ("1x", "2x", "4x")},
            }
        )
    return records
