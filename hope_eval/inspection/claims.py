"""Checks of a checkpoint's claims: what its config and its tokenizer say, against what is in effect in the model."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from hope_eval.inspection.patient import Finding, Patient
from hope_eval.model.attach import differing_scalars
from hope_eval.model.configs import ORIGINAL, number_of
from hope_eval.model.in_effect import rebuilt_frequencies, rotary_modules

# Keys under which configs name the base of the frequencies, and the rotated part of a head.
_BASES = ("rope_theta", "rotary_emb_base", "rope_base", "rotary_base")
_PARTS = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rotary_percentage")

# Rope types that stretch a window.
_STRETCH = ("linear", "dynamic", "yarn", "longrope", "su", "llama3")


def frequencies(patient: Patient) -> Iterator[Finding]:
    """Whether rotary modules hold the frequencies that the config asks for, in float32."""
    name = "frequencies"
    modules = rotary_modules(patient.module)
    if not modules:
        yield Finding(name, "ok", f"no rotary encoding ({patient.model.encoding})")
        return
    wrong = 0
    for path, own, wanted in rebuilt_frequencies(patient.module):
        if own.shape != wanted.shape:
            wrong += 1
            yield Finding(
                name, "wrong",
                f"{path} rotates {2 * len(own)} dimensions of a head, and the config asks for {2 * len(wanted)}",
                "another library loaded this model, or its code ignores partial_rotary_factor",
            )  # fmt: skip
        elif not torch.equal(own.float(), wanted):
            wrong += 1
            yield Finding(name, "wrong", f"{path}: {_difference(own, wanted)}", "load the frequencies anew in float32")
    found = _base_in_effect(patient)
    for key, value in _named(patient.raw, _BASES):
        if found and not math.isclose(found, float(value), rel_tol=1e-3):
            wrong += 1
            yield Finding(
                name, "wrong", f"config.json says {key} {float(value):,g}, and {found:,.6g} is in effect",
                "write it as rope_parameters.rope_theta",
            )  # fmt: skip
    if not wrong:
        base = f", base {found:,.6g}" if found else ""
        yield Finding(name, "ok", f"{patient.model.encoding}: as the config asks, float32{base}")


def _difference(own: Tensor, wanted: Tensor) -> str:
    """In words, how frequencies differ from those that the config asks for."""
    for dtype in (torch.bfloat16, torch.float16):
        if own.dtype == dtype or torch.equal(own.float(), wanted.to(dtype).float()):
            off = float((own.double() - wanted.double()).abs().max())
            kind = str(dtype).removeprefix("torch.")
            return f"frequencies are rounded to {kind}: at position 32,768 angles are off by {off * 32768:.3g} radians"
    ratio = own.float()[wanted > 0] / wanted[wanted > 0]
    if len(ratio) > 2 and float(ratio.max() / ratio.min()) > 1.001:
        mine, theirs = _base(own.float()), _base(wanted)
        if mine and theirs:
            return f"the frequencies have base {mine:,.6g}, and the config asks for {theirs:,.6g}"
    return f"frequencies are {float(ratio.min()):.4g} to {float(ratio.max()):.4g} times those that the config asks for"


def _base(frequencies_P: Tensor) -> float | None:
    """Base of frequencies base^(-i/P); None if they follow no base."""
    n = len(frequencies_P)
    if n < 2 or not bool((frequencies_P > 0).all()):
        return None
    logs = -torch.log(frequencies_P.double())
    steps = logs[1:] / (torch.arange(1, n) / n)
    return float(torch.exp(steps[-1])) if float(steps.max() - steps.min()) < 1e-3 * float(steps.max()) else None


def _base_in_effect(patient: Patient) -> float | None:
    bases = {_base(own.float()) for _, own, _ in rebuilt_frequencies(patient.module)}
    return bases.pop() if len(bases) == 1 else None


def _named(raw: Any, keys: tuple[str, ...], path: str = "") -> Iterator[tuple[str, float]]:
    """(path, number) of every entry of that name in a config, however deep; not in parts for images and sounds."""
    if not isinstance(raw, dict):
        return
    for key, value in raw.items():
        if key in keys and isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{path}{key}", float(value)
        elif isinstance(value, dict) and not any(word in key for word in ("vision", "audio", "sliding", "local")):
            yield from _named(value, keys, f"{path}{key}.")


def rotated_part(patient: Patient) -> Iterator[Finding]:
    """Whether as much of each head is rotated as config.json says, by any of its names."""
    n_heads = number_of(patient.config, "num_attention_heads") or 1
    head_dim = number_of(patient.config, "head_dim") or (number_of(patient.config, "hidden_size") or 0) // n_heads
    for key, part in _named(patient.raw, _PARTS):
        for path, own, _ in rebuilt_frequencies(patient.module):
            if head_dim and 2 * len(own) != int(head_dim * part):
                yield Finding(
                    "frequencies", "wrong",
                    f"config.json says {key} {part:g}, which is {int(head_dim * part)} of {head_dim} dimensions, and "
                    f"{path} rotates {2 * len(own)}",
                    "write it as rope_parameters.partial_rotary_factor",
                )  # fmt: skip


def scales(patient: Patient) -> Iterator[Finding]:
    """Whether the plain numbers of all modules are those of a model built anew from the config."""
    name = "scales"
    differing = differing_scalars(patient.module)
    if differing is None:
        yield Finding(name, "not measured", "the architecture cannot be built anew from its config")
    elif differing:
        path, key, own, wanted = differing[0]
        yield Finding(
            name, "wrong",
            f"{len(differing)} numbers differ from those of a model built anew from the config, such as {path}.{key}: "
            f"{own:.6g}, and {wanted:.6g} is right",
            "something was left over when the model was changed: load it anew",
        )  # fmt: skip
    else:
        yield Finding(name, "ok", "as in a model built anew from the config")


def stretching(patient: Patient) -> Iterator[Finding]:
    """Whether the keys of a stretched window agree, and only layers with full attention are stretched."""
    rope = getattr(patient.config, "rope_parameters", None) or {}
    layers = {key: value for key, value in rope.items() if isinstance(value, dict)} or {"": rope}
    good = True
    for layer_type, values in layers.items():
        kind, factor = values.get("rope_type"), values.get("factor")
        if kind in _STRETCH and layer_type.startswith("sliding"):
            good = False
            yield Finding(
                "stretching", "wrong", f"{kind} stretches layers with a sliding window, which never see past it",
                '--encoding "sliding=rope"',
            )  # fmt: skip
        before = values.get(ORIGINAL) or number_of(patient.config, ORIGINAL)
        whole = number_of(patient.config, "max_position_embeddings")
        if kind in ("yarn", "longrope", "linear", "llama3") and factor and before and whole:
            implied = whole / before
            if kind != "llama3" and not math.isclose(implied, float(factor), rel_tol=0.05):
                good = False
                yield Finding(
                    "stretching", "look",
                    f"{kind} has factor {float(factor):g}, and the lengths {before:,} to {whole:,} make {implied:g}",
                    "the factor is in effect; correct the length that is wrong",
                )  # fmt: skip
    old = patient.raw.get("rope_scaling")
    new = patient.raw.get("rope_parameters")
    if isinstance(old, dict) and isinstance(new, dict) and old != new:
        good = False
        yield Finding("stretching", "look", "config.json has rope_scaling and rope_parameters, and they differ",
                      "rope_parameters is in effect; remove the other")  # fmt: skip
    if good:
        kinds = ", ".join(sorted({str(values.get("rope_type")) for values in layers.values() if values})) or "none"
        yield Finding("stretching", "ok", f"nothing contradicts ({kinds})")


def lengths(patient: Patient) -> Iterator[Finding]:
    """Whether tokenizer and config agree on the greatest length, and all ids have an embedding."""
    tokenizer, model = patient.model.tokenizer, patient.model
    most = getattr(tokenizer, "model_max_length", None)
    whole = number_of(patient.config, "max_position_embeddings")
    if most and whole and most < 1e9 and most != whole:
        yield Finding("tokenizer", "look", f"its greatest length is {int(most):,}, that of the config {whole:,}",
                      "hope-eval takes the config's")  # fmt: skip
    rows = getattr(getattr(patient.module, "get_input_embeddings", lambda: None)(), "num_embeddings", None)
    ids = list(getattr(tokenizer, "get_vocab", dict)().values())
    if rows and ids and max(ids) >= rows:
        n = sum(number >= rows for number in ids)
        yield Finding("tokenizer", "wrong", f"{n} of its ids have no embedding: {rows:,} rows, ids to {max(ids):,}",
                      "resize the embeddings, or take the tokenizer of this model")  # fmt: skip
    else:
        trained = f"{model.train_length:,}" if model.train_length else "?"
        yield Finding("tokenizer", "ok", f"{len(ids):,} ids, {rows or '?'} embeddings; trained at {trained}")


CHECKS = (frequencies, rotated_part, scales, stretching, lengths)
