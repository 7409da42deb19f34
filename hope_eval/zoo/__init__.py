"""The zoo: small models that ship with this package, one for each position encoding, alike in all else.

    zoo:hope    3.4M parameters, trained at 256 tokens on 150M tokens of Python sources and task prompts

Each is a folder in transformers format, with the facts of its training in `training.json`. Seed 0 is bundled, whatever
its scores. The standard library, sympy and networkx were held out. One command trained all: `training.json` has it.
"""

import functools
import json
from pathlib import Path
from typing import Any

from hope_eval.errors import CheckpointError, did_you_mean

PREFIX = "zoo:"

_FOLDER = Path(__file__).parent


@functools.cache
def names() -> tuple[str, ...]:
    """Checkpoints of the zoo as `--model` takes them: zoo:rope, zoo:hope…, in the order in which they were trained."""
    trained = {path.parent.name: json.loads(path.read_text("utf-8")) for path in _FOLDER.glob("*/training.json")}
    # One command trained them all, and names them: RoPE and HoPE first, the two that are compared most.
    orders = {name: facts["command"].split() for name, facts in trained.items()}
    places = {name: (words.index(name) if name in words else len(words)) for name, words in orders.items()}
    return tuple(PREFIX + name for name in sorted(places, key=lambda name: (places[name], name)))


def folder(name: str) -> Path:
    """Folder of `zoo:hope`. Raises CheckpointError if the zoo has no such model."""
    if name not in names():
        raise CheckpointError(f"the zoo has no `{name}`", did_you_mean(name, names(), "`hope-eval zoo` lists them"))
    return _FOLDER / name.removeprefix(PREFIX)


def facts(name: str) -> dict[str, Any]:
    """Facts of the training of a model: data, tokens, seconds, nll."""
    training: dict[str, Any] = json.loads((folder(name) / "training.json").read_text("utf-8"))
    return training


def describe() -> list[dict[str, Any]]:
    """One record for every model: its training, and the nll [nats] of held-out text at the end of training."""
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
