"""Comparisons whose verdicts are known beforehand, as the frames that a report is made of."""

import pandas

TRAINED = 256


def score(line, length, value, *, task="copy", metric="accuracy", **changes):
    """Return one row of `scores`; a value of None is a hole."""
    is_ppl = task == "ppl"
    half = 0.1 * abs(value) if value else 0.01
    nan = float("nan")
    return {
        "line": line, "model": f"zoo:{line}", "encoding": line, "family": "ppl" if is_ppl else "copy", "task": task,
        "section": "ppl@prefix" if is_ppl else "copy",
        "section_title": "Perplexity over the first L tokens" if is_ppl else "Copying",
        "protocol": f"ppl@prefix:L={length}" if is_ppl else f"{task}@v1",
        "length": length, "label": "", "train_length": TRAINED, "extrapolation": length / TRAINED, "n": 40,
        "n_questions": 40, "n_seeds": 1, "corpus": "generated", "metric": metric, "slice": "", "headline": True,
        "chance": None, "best": False, "run": f"{task}-{line}", "dtype": "float32", "prefix_token": 0,
        "status": "oom" if value is None else "ok",
        "value": nan if value is None else value,
        "low": nan if value is None else value - half,
        "high": nan if value is None else value + half,
        **changes,
    }  # fmt: skip


def difference(line, length, value, verdict, *, task="copy", metric="accuracy", **changes):
    """Return one row of `differences`, from rope."""
    is_ppl = task == "ppl"
    p = 0.5 if verdict == "not distinguishable" else 0.0001
    return {
        "section": "ppl@prefix" if is_ppl else "copy", "family": "ppl" if is_ppl else "copy", "task": task,
        "protocol": f"{task}@v1", "metric": "nll" if is_ppl else metric, "length": length, "label": "", "line": line,
        "baseline": "rope", "value": value, "low": value - 0.05, "high": value + 0.05, "p": p, "p_holm": p,
        "verdict": verdict, "n": 40, **changes,
    }  # fmt: skip


def reached(line, value, *, censored="", verdict="not distinguishable", **changes):
    """Return one row of `reach`."""
    compared = line != "rope"
    return {
        "line": line, "model": f"zoo:{line}", "encoding": line, "section": "copy", "family": "copy", "task": "copy",
        "metric": "accuracy", "definition": "relative", "train_length": TRAINED, "value": value,
        "low": value, "high": value, "censored": censored, "ratio": value / TRAINED,
        "in_window": -0.01 if compared else None, "in_window_low": -0.02 if compared else None,
        "in_window_high": 0.03 if compared else None, "in_window_verdict": verdict if compared else None, **changes,
    }  # fmt: skip


def frames(scores, differences=(), reach=(), wins=()):
    """Return the rows as frames, by the names of a report's arguments."""
    parts = {"scores": scores, "differences": differences, "reach": reach, "wins": wins}
    return {name: pandas.DataFrame(list(rows)) for name, rows in parts.items()}


# hope is better beyond 256 tokens and equal within; alibi is better beyond and worse within.
VERDICTS = {
    "hope": {256: ("not distinguishable", 0.0), 512: ("better", 0.4), 1024: ("better", 0.3)},
    "alibi": {256: ("worse", -0.2), 512: ("better", 0.5), 1024: ("not distinguishable", 0.01)},
}

SCORES = {
    "ppl": {"rope": (24.13, 44.88, 81.81), "hope": (24.12, 25.8, 26.07), "alibi": (25.15, 24.25, 19.02)},
    "copy": {"rope": (0.91, 0.11, 0.0123), "hope": (0.9, 0.51, 0.3123), "alibi": (0.71, 0.61, 0.0223)},
}

RUNS = [
    {
        "id": f"{task}-{line}-0123", "line": line, "model": f"zoo:{line}", "encoding": line, "task": task,
        "protocol": f"{task}@v1", "command": f"hope-eval run --task {task}", "corpus": "generated",
        "fingerprint": f"fp-{line}", "train_length": TRAINED, "machine": "x86_64", "seconds": 1.5,
        "versions": {"hope_eval": "0.1", "torch": "2.9"}, "commit": {"id": "0123456789abcdef", "dirty": False},
    }
    for task in SCORES
    for line in SCORES[task]
]  # fmt: skip

NOTES = ["copy@v1: repeat a string of random words", "[low, high]: 95 % interval"]


def everything():
    """Return the arguments of a report that has every section: pillars, differences, reach, wins, errors, depths."""
    scores = []
    for task, by_line in SCORES.items():
        metric = "perplexity" if task == "ppl" else "accuracy"
        for line, values in by_line.items():
            for length, value in zip((256, 512, 1024), values, strict=True):
                scores.append(score(line, length, value, task=task, metric=metric, best=value == 19.02))
    for line in SCORES["copy"]:
        scores.append(score(line, 2048, None))
        for length in (256, 512):
            for number, kind in enumerate(("skip", "repeat", "swap", "stop", "other")):
                scores.append(score(line, length, 0.01 + 0.02 * number, metric=f"error_{kind}", headline=False))
            for fifth in range(5):
                part = f"depth {fifth / 5:.1f}-{(fifth + 1) / 5:.1f}"
                scores.append(score(line, length, 0.1 + 0.15 * fifth, slice=part))
    differences = [
        difference(line, length, (-value if task == "ppl" else value), verdict, task=task)
        for task in SCORES
        for line, by_length in VERDICTS.items()
        for length, (verdict, value) in by_length.items()
    ]
    reach = [reached("rope", 256), reached("hope", 1024, censored=">="), reached("alibi", 512, verdict="worse")]
    wins = [
        {"section": "copy", "family": "copy", "task": "copy", "metric": "accuracy", "line": a, "other": b,
         "probability": 0.25 + 0.125 * number}
        for number, (a, b) in enumerate((a, b) for a in SCORES["copy"] for b in SCORES["copy"] if a != b)
    ]  # fmt: skip
    return {**frames(scores, differences, reach, wins), "runs": RUNS, "notes": NOTES, "title": "Three encodings"}
