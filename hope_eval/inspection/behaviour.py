"""Checks of what a model does: a fault that no config tells shows in the numbers.

A model reads text best with the encoding it was trained with. So each check changes one thing and asks whether the
model gets better (then the thing was wrong), or whether numbers change that must not.
"""

from collections.abc import Iterator
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hope_eval.inspection.patient import WORTH, Finding, Patient, Status, changed
from hope_eval.model.configs import heads_of
from hope_eval.model.in_effect import effective_inverse_frequencies, rotary_modules
from hope_eval.task import Prompt, Question, Sample

# Bases tried, as multiples of the base in effect, and as they are common.
_TIMES = (1 / 50, 1 / 10, 1 / 4, 4, 10, 50)
_COMMON = (10_000.0, 500_000.0, 1_000_000.0)

# Standard errors from which a change counts.
_SURE = 4.0

# Positions at which a short passage is read, and its tokens.
_OFFSETS, _SHORT = (1, 64, 1024, 4096, 16_384, 65_536), 64


def reads_text(patient: Patient) -> Iterator[Finding]:
    """Whether the model predicts text better than a uniform guess, without NaN."""
    nll = np.concatenate(patient.own_nll)
    rows = int(getattr(patient.config, "vocab_size", 0) or 0)
    if not np.isfinite(nll).all():
        yield Finding("text", "wrong", f"{np.mean(~np.isfinite(nll)):.0%} of the log-probabilities are NaN or infinite",
                      "--dtype float32; if that does not help, weights are damaged")  # fmt: skip
    elif rows and nll.mean() > 0.9 * np.log(rows):
        yield Finding("text", "wrong", f"{nll.mean():.2f} nats a token, and a uniform guess has {np.log(rows):.2f}",
                      "weights are untrained, damaged, or of another model")  # fmt: skip
    else:
        yield Finding("text", "ok", f"{nll.mean():.3f} nats a token on {len(nll):,} tokens")


def base(patient: Patient) -> Iterator[Finding]:
    """Whether another base of the frequencies reads text better."""
    name = "base"
    buffers = [
        value
        for _, _, module in rotary_modules(patient.module)
        for key, value in module.named_buffers(recurse=False)
        if key.endswith("inv_freq") and "original" not in key
    ]
    if not buffers or not patient.model.nested_safe:
        return
    own = {buffer: buffer.detach().clone() for buffer in buffers}
    first = next(iter(own.values())).double().cpu()
    positive = first[first > 0]
    if len(positive) < 2:
        return
    # Four digits: frequencies are in float32.
    current = float(f"{float(torch.exp(-torch.log(positive[1] / positive[0]) * len(first))):.4g}")
    tried = []
    for theta in sorted({*(current * times for times in _TIMES), *_COMMON}):
        if abs(np.log(theta / current)) < 0.2 or theta < 2 or not patient.has_time:
            continue
        # All frequencies get the ratio that the other base gives them: what is cut or stretched stays so.
        scaled = {
            buffer: value * (current / theta) ** (torch.arange(len(value), device=value.device) / len(value))
            for buffer, value in own.items()
        }
        with changed(scaled):
            tried.append((*patient.gain(), theta))
    if not tried:
        yield Finding(name, "not measured", "no time was left")
        return
    gain, sure, theta = max(tried)
    if gain > WORTH and sure > _SURE:
        yield Finding(name, "wrong", f"base {theta:,.0f} reads text {gain:.2f} nats a token better than "
                      f"{current:,.0f}: the base is wrong", "compare rope_theta with its makers' config")  # fmt: skip
    else:
        yield Finding(
            name, "ok", f"base {current:,.0f} is better than {len(tried)} others, by {-gain:.2f} nats or more"
        )


def layout(patient: Patient) -> Iterator[Finding]:
    """Whether the weights want their dimensions paired in another way: halves against neighbours."""
    name = "pairs"
    n_heads, n_kv_heads, head_dim = heads_of(patient.config) if patient.config is not None else (0, 0, 0)
    sizes = {2 * len(value) for _, _, m in rotary_modules(patient.module) for k, value in m.named_buffers(recurse=False)
             if k.endswith("inv_freq") and "original" not in k}  # fmt: skip
    found = [
        (weight, n)
        for path, module in patient.module.named_modules()
        for n in [n_heads if path.endswith(("q_proj", "query")) else n_kv_heads]
        if path.endswith(("q_proj", "k_proj", "query", "key")) and isinstance(module, nn.Linear)
        for weight in (module.weight, module.bias)
        if weight is not None and head_dim and len(weight) == n * head_dim
    ]
    turns = any(bool((value > 0).any()) for value in effective_inverse_frequencies(patient.module).values())
    if not found or len(sizes) != 1 or not turns or not patient.has_time:
        return
    (rotated,) = sizes
    if rotated > head_dim:
        return
    neighbours = torch.cat([torch.arange(0, rotated, 2), torch.arange(1, rotated, 2)])
    tried = []
    for order, way in ((neighbours, "neighbouring"), (torch.argsort(neighbours), "halved")):
        whole = torch.cat([order, torch.arange(rotated, head_dim)])
        with changed({weight: _permuted(weight.detach(), n, whole) for weight, n in found}):
            tried.append((*patient.gain(), way))
    gain, sure, way = max(tried)
    if gain > WORTH and sure > _SURE:
        yield Finding(name, "wrong", f"with {way} dimensions as pairs, text costs {gain:.2f} nats a token less: "
                      "queries and keys are stored for the other rotation",
                      "permute q_proj and k_proj, as the conversion script of the architecture does")  # fmt: skip
    else:
        yield Finding(name, "ok", f"dimensions are paired as the weights want it ({-gain:.2f} nats better)")


def _permuted(weight: Tensor, n_heads: int, order: Tensor) -> Tensor:
    shape = weight.shape
    return weight.reshape(n_heads, len(order), *shape[1:])[:, order.to(weight.device)].reshape(shape)


def offsets(patient: Patient) -> Iterator[Finding]:
    """Whether a passage costs the same wherever it stands, as it must under a relative encoding inside the window."""
    name = "offsets"
    ids = patient.prefixed(patient.passages[0])[:_SHORT]
    window = patient.model.train_length or 0
    own = patient.own_nll[0][: len(ids) - 1]
    worst, broken = 0.0, None
    try:
        for start in _OFFSETS:
            if start + len(ids) > (patient.model.max_length or 10**9) or not patient.has_time:
                break
            change = float(np.abs(patient.nll(ids, start=start) - own).mean())
            if start + len(ids) <= window:
                worst = max(worst, change)
            elif not change < 10 * WORTH and broken is None:
                broken = (start, change)
    except Exception as error:
        # Architectures of their own take no positions, with errors of any kind.
        yield Finding(name, "not measured", f"the model takes no positions ({type(error).__name__})")
        return
    relative = patient.model.max_length is None
    beyond = f"; from position {broken[0]:,} on it costs {broken[1]:.2f} nats a token" if broken else ""
    if relative and worst > 10 * WORTH:
        yield Finding(name, "wrong", f"a passage changes by {worst:.2f} nats a token with its place inside the window",
                      "its encoding is not relative, or positions lose precision: --dtype float32")  # fmt: skip
    else:
        kind = "its place changes nothing inside the window" if relative else f"a table of {patient.model.max_length:,}"
        yield Finding(name, "ok", f"{kind} ({worst:.4f} nats a token){beyond}")


def shifted(patient: Patient) -> Iterator[Finding]:
    """Whether positions that begin at another number read text better: off by one."""
    if patient.model.max_length is None or not patient.has_time:
        return
    try:
        gains = [(*patient.gain(start=start), start) for start in (1, 2)]
    except Exception:
        return
    gain, sure, start = max(gains)
    if gain > WORTH and sure > _SURE:
        yield Finding("offsets", "wrong", f"text costs {gain:.2f} nats a token less if positions begin at {start}",
                      "the table of positions is read at the wrong rows")  # fmt: skip


def causality(patient: Patient) -> Iterator[Finding]:
    """Whether predictions stay when what follows changes."""
    ids = patient.prefixed(patient.passages[0])[:64]
    other = ids.copy()
    other[-8:] = ids[:8]
    gap = float(np.abs(patient.nll(ids)[:-8] - patient.nll(other)[:-8]).max())
    if gap > 1e-2:
        yield Finding("causality", "wrong", f"predictions change by {gap:.3g} nats when later tokens change",
                      "it sees what follows: an encoder, or a missing mask")  # fmt: skip
    else:
        yield Finding("causality", "ok", f"later tokens change nothing ({gap:.1g} nats)")


def ways(patient: Patient) -> Iterator[Finding]:
    """Whether the ways of reading agree: whole, by chunks, in a batch, after a kept context."""
    model = patient.model
    ids = patient.prefixed(patient.passages[0])
    rows = [ids[: len(ids) // 2], ids[len(ids) // 2 : 2 * (len(ids) // 2)]]
    tolerance = 0.05 if model.dtype in (torch.bfloat16, torch.float16) else 1e-3
    chunked = float(np.abs(model.score([Sample(ids[:1], ids[1:])])[0].nll - patient.own_nll[0]).mean())
    alone = [model.score([Sample(row[:1], row[1:])])[0].nll for row in rows]
    together = [score.nll for score in model.score([Sample(row[:1], row[1:]) for row in rows])]
    batch = float(np.mean([np.abs(a - b).mean() for a, b in zip(alone, together, strict=True)]))
    half = len(ids) // 2
    prompt = Prompt(ids[:half], (Question(ids[half : half + 8], ids[half + 8 :]),) * 2)
    cached = float(np.abs(model.score_prompts([prompt])[0][0].nll - patient.own_nll[0][half + 7 :]).mean())
    for name, gap in (("chunked = whole", chunked), ("batch = alone", batch), ("after a kept context", cached)):
        if not gap <= tolerance:
            yield Finding("ways", "wrong", f"{name}: {gap:.3g} nats a token apart", "report it, with the architecture")
    if max(chunked, batch, cached) <= tolerance:
        kept = "kept contexts" if model.reading.keeps_contexts else "contexts read anew"
        yield Finding("ways", "ok", f"whole, chunks, batches and {kept} agree ({max(chunked, batch, cached):.1g} nats)")


def attention(patient: Patient) -> Iterator[Finding]:
    """Whether two implementations of attention agree."""
    module, config = cast(Any, patient.module), patient.config
    kind = getattr(config, "_attn_implementation", None)
    if kind not in ("sdpa", "eager") or not hasattr(module, "set_attn_implementation") or not patient.has_time:
        return
    other = "eager" if kind == "sdpa" else "sdpa"
    own = patient.own_nll[0]
    try:
        module.set_attn_implementation(other)
        gap = float(np.abs(patient.nll(patient.prefixed(patient.passages[0])) - own).mean())
    except Exception:
        return
    finally:
        module.set_attn_implementation(kind)
    status: Status = "ok" if gap < WORTH else "wrong"
    yield Finding("attention", status, f"{kind} and {other} are {gap:.1g} nats a token apart",
                  "" if status == "ok" else "report it, with the architecture")  # fmt: skip


def half_precision(patient: Patient) -> Iterator[Finding]:
    """What bfloat16 costs, where weights are in float32."""
    weight = next(patient.module.parameters())
    if (
        weight.dtype != torch.float32
        or sum(p.numel() for p in patient.module.parameters()) > 5e8
        or not patient.has_time
    ):
        return
    own = np.concatenate(patient.own_nll)
    values = {p: p.detach().to(torch.bfloat16).float() for p in patient.module.parameters()}
    with changed(values):
        cost = float((np.concatenate(patient.nll_of_passages()) - own).mean())
    status: Status = "ok" if abs(cost) < WORTH else "look"
    yield Finding("bfloat16", status, f"weights in bfloat16 cost {cost:+.4f} nats a token",
                  "" if status == "ok" else "--dtype float32")  # fmt: skip


def beginning(patient: Patient) -> Iterator[Finding]:
    """What a prefix token does: one, two, none; and whether the tokenizer or the template doubles it."""
    tokenizer = patient.model.tokenizer
    bos = getattr(tokenizer, "bos_token_id", None)
    if bos is None:
        yield Finding("beginning", "ok", "the tokenizer has no token for the beginning")
        return
    costs = []
    for n in (0, 1, 2):
        nll = [patient.nll(np.concatenate([np.full(n, bos, int), ids]))[n + 15 :] for ids in patient.passages]
        costs.append(float(np.concatenate(nll).mean()))
    none, one, two = costs
    figures = f"none {none - one:+.3f}, two {two - one:+.3f} nats a token, against one"
    doubled = _doubled(tokenizer, bos)
    if doubled:
        yield Finding("beginning", "wrong", f"{doubled}: {two - one:+.3f} nats a token",
                      "tokenize with add_special_tokens=False after the template")  # fmt: skip
    elif min(none, two) < one - WORTH:
        yield Finding(
            "beginning", "look", f"the model reads better without it or with two of them: {figures}", "--prefix none"
        )
    else:
        yield Finding("beginning", "ok", f"{tokenizer.convert_ids_to_tokens(bos)}: {figures}")


def _doubled(tokenizer: object, bos: int) -> str:
    """How the first token gets doubled; empty if it does not."""
    encode = getattr(tokenizer, "encode", None)
    if encode is None:
        return ""
    plain = list(encode("text"))
    if plain[:2] == [bos, bos]:
        return "the tokenizer writes the first token twice"
    if getattr(tokenizer, "chat_template", None):
        try:
            text = tokenizer.apply_chat_template([{"role": "user", "content": "text"}], tokenize=False)  # type: ignore[attr-defined]
        except Exception:
            return ""
        if list(encode(text))[:2] == [bos, bos]:
            return "the template writes the first token, and the tokenizer another"
    return ""


def reach(patient: Patient) -> Iterator[Finding]:
    """Where the model begins to degrade, as far as time and text allow."""
    model, window = patient.model, patient.model.train_length
    if not window:
        yield Finding("length", "not measured", "the training length is unknown", "--train-length 2k")
        return
    lengths, length = [], min(window, 512)
    while length <= 4 * window and length <= (model.max_length or length) and length < len(patient.long):
        lengths.append(length)
        length *= 2
    best, last = np.inf, 0
    for length in lengths:
        if not patient.has_time:
            break
        ids = patient.prefixed(patient.long[: length - 1])
        nll = model.score([Sample(ids[:1], ids[1:])])[0].nll
        if not np.isfinite(nll).all():
            yield Finding("length", "wrong", f"NaN or infinite from {length:,} tokens on", "--dtype float32")
            return
        # The same tokens, with more and more before them, would cost less: those at the end are others, of one text.
        mean = float(nll[length // 2 :].mean())
        if mean > best + 0.5:
            status: Status = "look" if length > window else "wrong"
            where = f"{length // 2:,} to {length:,}"
            yield Finding("length", status, f"degrades: {mean:.2f} nats a token at {where}, and {best:.2f} before "
                          f"(trained at {window:,})", "hope-eval ppl tells how far it reads")  # fmt: skip
            return
        best, last = min(best, mean), length
    short = f"; not measured past {last:,}" if last < 4 * window else ""
    if last:
        yield Finding("length", "ok", f"reads on to {last:,} tokens (trained at {window:,}){short}")
    else:
        yield Finding("length", "not measured", "no time or text was left")


CHECKS = (reads_text, base, layout, offsets, shifted, causality, ways, attention, half_precision, beginning, reach)
