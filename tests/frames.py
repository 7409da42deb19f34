"""Scores of models that never were: the frames that comparisons, figures and the report are made of."""

import numpy as np
import pandas

from hope_eval.analysis.intervals import Clusters


def clusters(numbers, counts=1.0, proportion=False, names=None) -> Clusters:
    """Return numbers by context [n], or by seed and context [seeds, n]."""
    numbers = np.atleast_2d(np.asarray(numbers, float))
    names = tuple(names or map(str, range(numbers.shape[1])))
    return Clusters(numbers, np.full(numbers.shape, float(counts)), names, proportion)


def row(line, length, numbers=None, *, metric="accuracy", counts=8, status="ok", **changes):
    """Return one row of `scores`: of hits by context, or of nll by document."""
    is_ppl = metric in ("nll", "perplexity", "bits_per_byte")
    made = None if numbers is None else clusters(numbers, 1 if is_ppl else counts, not is_ppl)
    found = made.interval() if made is not None and status == "ok" else None
    nan = float("nan")
    return {
        "line": line, "model": f"zoo:{line}", "encoding": line, "family": "ppl" if is_ppl else "retrieve",
        "task": "ppl" if is_ppl else "passkey", "section": "ppl@bucket" if is_ppl else "retrieve",
        "protocol": f"ppl@bucket:L={length}" if is_ppl else "passkey@v1", "length": length, "label": "",
        "axis": "position" if is_ppl else "length",
        "column": str(length), "train_length": 256, "extrapolation": length / 256, "n": 20, "n_seeds": 1,
        "n_questions": 160, "corpus": "generated", "metric": metric, "slice": "", "headline": metric != "nll",
        "chance": None, "status": status, "best": False, "run": f"{line}-run", "dtype": "float32", "prefix_token": 0,
        "gate": "", "held": "", "tokenizer": "a", "conditions": "c", "clusters": made,
        "value": found.value if found else nan, "low": found.low if found else nan,
        "high": found.high if found else nan,
        **changes,
    }  # fmt: skip


def frame(*rows) -> pandas.DataFrame:
    return pandas.DataFrame(list(rows))
