"""Perplexity tables from stored tokens: of the protocol a run was made with, or of any other that it can fill."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hope_eval.analysis import stopping
from hope_eval.analysis.intervals import Clusters, Interval
from hope_eval.analysis.rows import Row, RunTable, without_seed
from hope_eval.analysis.stopping import Until
from hope_eval.errors import StoreError
from hope_eval.lengths import short_length
from hope_eval.protocols import Cell, Protocol, protocol_named
from hope_eval.runs.kinds import PERPLEXITY, PPL
from hope_eval.runs.store import RunStore, check_merged
from hope_eval.runs.token_store import TokenStore

# Raise it when the same command would give other numbers.
VERSION = 1


def table(
    stores: Sequence[TokenStore],
    protocol: Protocol | None = None,
    lengths: Sequence[int] | None = None,
    n_documents: int | None = None,
    missing: bool = False,
) -> RunTable:
    """Return the table of a run; by default of its own protocol, at its own lengths, over all of its documents.

    stores:  of one run, or of one for each training seed of a model: then of their mean.
    missing: what an interrupted run lacks is a hole, `missing`, rather than an error.

    Raises StoreError if a run does not hold the tokens that the protocol reads, or other documents than the first.
    """
    tokens = stores[0]
    identity = tokens.store.header["identity"]
    protocol = protocol or protocol_named(identity["protocol"], **identity["parameters"])
    samples = [one.sample(n_documents) for one in stores]
    documents = min(samples, key=len)
    ended_early = any(one.until for one in stores)
    for other, sample in zip(stores, samples, strict=True):
        if (sample[: len(documents)] if ended_early else sample) != documents:
            raise StoreError(
                f"{tokens.store.id} and {other.store.id} read different documents", "run both with the same --samples"
            )
    name = identity["model"] if len(stores) == 1 else f"{without_seed(identity['model'])} ({len(stores)} seeds)"
    rows = _rows(stores, name, protocol, lengths or identity["lengths"], documents, missing)
    notes = _notes(tokens, protocol, len(documents), len(stores))
    if len({len(sample) for sample in samples}) > 1:
        notes.append(f"{name} {identity['encoding']}: documents that all of its training seeds have read")
    for one in stores:
        who = f"{one.header['identity']['model']} {identity['encoding']}, ppl@{identity['protocol']}"
        ended = stopping.notes(who, "nll", "documents", {0: len(documents)}, one.until)
        notes += [note for note in ended if note not in notes]
    runs = ", ".join(one.store.id for one in stores)
    return RunTable(
        rows, notes, f"{name} {identity['encoding']}", _about(tokens), runs, stores=tuple(one.store for one in stores)
    )


def is_narrow(tokens: TokenStore, cells: Sequence[Cell], documents: Sequence[str], until: Until) -> bool:
    """Whether the nll of every cell that has a number is known well enough, from these documents."""
    filled = [_fill(tokens, cell, documents) for cell in cells]
    known = [one for one in filled if not isinstance(one, str)]
    return bool(known) and all(until.is_met(_clusters(one.nll, one.weight, list(documents))) for one in known)


def opened(path: Path) -> TokenStore:
    """Return the tokens of a run on disk. Raises StoreError if it is none of perplexity, or not merged yet."""
    tokens = TokenStore(RunStore.reading(path))
    task = tokens.store.header["identity"]["task"]
    if tokens.store.kind is not PERPLEXITY:
        raise StoreError(f"{path} is a run of `{task}`", "--from needs a run of `ppl`")
    check_merged(tokens.store)
    return tokens


def derived(
    stores: Sequence[TokenStore],
    name: str | None,
    parameters: dict[str, Any],
    lengths: Sequence[int] | None,
    n_documents: int | None,
) -> RunTable:
    """Return the table of another protocol, or of other lengths, from the tokens of a run, or of one for each seed.

    name:       of the protocol; None: the run's own.
    parameters: of the protocol; None: as in the run, or the default of another protocol.

    Raises StoreError if the run does not hold the tokens that the protocol reads, OptionError for a protocol or
    parameter that is not.
    """
    identity = stores[0].store.header["identity"]
    own = identity["parameters"] if name in (None, identity["protocol"]) else {}
    given = {key: value for key, value in parameters.items() if value is not None}
    prefixed = identity["prefix_token"] is not None
    protocol = protocol_named(name or identity["protocol"], **{**own, **given, "prefixed": prefixed})
    return table(stores, protocol, lengths, n_documents)


def _rows(
    stores: Sequence[TokenStore],
    name: str,
    protocol: Protocol,
    lengths: Sequence[int],
    documents: list[str],
    missing: bool,
) -> list[Row]:
    """Return one row per cell and metric.

    A cell that could not be read has the status `oom`, one with a NaN in it `nan`, one past the end of a learned
    position table `-`, one that an interrupted run lacks `missing`, and no value.
    """
    header = stores[0].store.header
    identity, provenance = header["identity"], header["provenance"]
    result: list[Row] = []
    reference: np.ndarray | None = None
    for cell in protocol.cells(lengths):
        base = {
            "model": name,
            "encoding": identity["encoding"],
            "family": PPL,
            "task": PPL,
            "protocol": f"ppl@{cell.protocol}",
            "length": cell.length,
            "label": cell.label,
            "train_length": identity["train_length"],
            "extrapolation": cell.length / identity["train_length"] if identity["train_length"] else None,
            "n": len(documents),
            "n_seeds": len(stores),
            "corpus": provenance["corpus"],
            "prefix_token": identity["prefix_token"],
            "dtype": identity["dtype"],
            "run": " ".join(tokens.store.id for tokens in stores),
        }
        end = identity.get("max_length")
        try:
            filled = "-" if end is not None and cell.length > end else _fill_all(stores, cell, documents)
        except StoreError:
            if not missing:
                raise
            filled = "missing"
        if isinstance(filled, str):
            result += [{**base, "metric": m, **_hole(filled)} for m in ("perplexity", "nll", "bits_per_byte")]
            continue
        base["n_tokens"] = int(filled.n_tokens.sum())
        nll = _clusters(filled.nll, filled.weight, documents)
        result.append(_row(base, "perplexity", nll, _exp))
        result.append(_row(base, "nll", nll))
        if filled.bits is not None:
            result.append(_row(base, "bits_per_byte", _clusters(filled.bits, filled.byte_weight, documents)))
        if protocol.name == "rolling" and filled.whole:
            for metric, count in (("word_perplexity", "n_words"), ("byte_perplexity", "n_bytes")):
                counts = np.array([stores[0].documents[document][count] for document in documents], float)
                result.append(_row(base, metric, _clusters(filled.nll, counts, documents), _exp))
        if protocol.name == "paired":
            reference = filled.nll if reference is None else reference
            gain = _clusters(reference - filled.nll, filled.weight, documents)
            result.append(_row(base, "context_gain", gain))
    return result


def _notes(tokens: TokenStore, protocol: Protocol, n_documents: int, n_seeds: int) -> list[str]:
    """Return how the numbers were obtained, one line a fact; lines that models share come out the same."""
    identity, provenance = tokens.store.header["identity"], tokens.store.header["provenance"]
    n_short = provenance["documents_too_short"]
    parameters = [f"{key}={value}" for key, value in protocol.parameters().items() if key != "prefixed"]
    lines = [
        f"protocol {' '.join([f'ppl@{protocol.name}', *parameters])}: {protocol.one_line}",
        f"{n_documents} documents of {provenance['corpus']} ({identity['corpus']})"
        + (f"; {n_short} with fewer than {provenance['tokens_needed']:,} tokens left out" if n_short else ""),
    ]
    if n_documents == 1:
        lines.append("one document: no interval")
    else:
        drawn = "documents" if n_seeds == 1 else f"documents and {n_seeds} training seeds"
        lines.append(f"[low, high]: 95 % interval, bootstrap over {drawn}")
    end = identity.get("max_length")
    if end is not None and any(cell.length > end for cell in protocol.cells(identity["lengths"])):
        lines.append(
            f"-: {identity['model']} {identity['encoding']} has a table of {end} positions and reads no further"
        )
    for record in tokens.out_of_memory[-1:]:
        figures = ", ".join(f"{key.removesuffix('_gib')} {value} GiB" for key, value in record["memory"].items())
        lines.append(
            f"oom: {identity['model']} {identity['encoding']} could not read {short_length(record['n_read'])} tokens"
            + (f" ({figures})" if figures else "")
        )
    return lines


def _about(tokens: TokenStore) -> str:
    """Return how the model of a run was read."""
    identity, provenance = tokens.store.header["identity"], tokens.store.header["provenance"]
    trained = f"{identity['train_length']:,} ({provenance['train_length_source']})" if identity["train_length"] else "?"
    head = identity["head"] + (f" ({provenance['head_reason']})" if provenance["head_reason"] else "")
    return (
        f"training length {trained}, {identity['dtype']} on {provenance['machine']}, attention {identity['kernel']}, "
        f"head {head}, prefix {provenance['prefix'] or 'none'}"
    )


def _hole(status: str) -> Row:
    nan = float("nan")
    return {"value": nan, "low": nan, "high": nan, "status": status}


def _row(base: Row, metric: str, clusters: Clusters, scale: Callable[[Interval], Row] = asdict) -> Row:
    return {**base, "metric": metric, **scale(clusters.interval()), "status": "ok", "clusters": clusters}


def _clusters(numerators: np.ndarray, denominators: np.ndarray, documents: list[str]) -> Clusters:
    numerators, denominators = np.broadcast_arrays(np.atleast_2d(numerators), denominators)
    return Clusters(numerators, denominators, tuple(documents))


def _exp(interval: Interval) -> Row:
    with np.errstate(over="ignore"):
        return {key: float(np.exp(value)) for key, value in asdict(interval).items()}


@dataclass(frozen=True)
class _Filled:
    """Numerators and denominators of one cell, a pair a document [n], or a document and seed [seeds, n]."""

    nll: np.ndarray
    weight: np.ndarray
    bits: np.ndarray | None
    byte_weight: np.ndarray
    n_tokens: np.ndarray
    whole: bool


def _fill_all(stores: Sequence[TokenStore], cell: Cell, documents: Sequence[str]) -> _Filled | str:
    """Return the numbers of a cell for all seeds, or why it is a hole."""
    filled = [_fill(tokens, cell, documents) for tokens in stores]
    holes = [one for one in filled if isinstance(one, str)]
    if holes:
        return holes[0]
    parts: list[_Filled] = [one for one in filled if not isinstance(one, str)]
    if len(parts) == 1:
        return parts[0]
    bits = [one.bits for one in parts if one.bits is not None]
    return _Filled(
        np.stack([one.nll for one in parts]),
        np.stack([one.weight for one in parts]),
        np.stack(bits) if len(bits) == len(parts) else None,
        np.stack([one.byte_weight for one in parts]),
        np.stack([one.n_tokens for one in parts]),
        all(one.whole for one in parts),
    )


def _fill(tokens: TokenStore, cell: Cell, documents: Iterable[str]) -> _Filled | str:
    """Return the numbers of a cell, or why it is a hole."""
    nll, weight, bits, byte_weight, n_tokens, whole = [], [], [], [], [], True
    for document in documents:
        record = tokens.documents[document]
        total, is_whole = record["n_tokens"], record.get("whole", True)
        windows = cell.windows(total)
        if not is_whole and cell.windows(total + 1) != windows:
            raise _not_held(tokens, cell, f"`{document}` to its end, of which {total:,} tokens were read")
        lost = next((window for window in windows if not tokens.covers(document, window)), None)
        if lost is not None:
            if any(lost.n_read >= record["n_read"] for record in tokens.out_of_memory):
                return "oom"
            raise _not_held(tokens, cell, f"tokens {lost.start + 1} to {lost.stop} of `{document}`")
        values = [tokens.nll(document, window).astype(np.float64) for window in windows]
        if not all(np.isfinite(value).all() for value in values):
            return "nan"
        sizes = tokens.bytes(document)
        spans = [int(sizes[w.scored_start : w.scored_stop].sum()) for w in windows] if sizes is not None else None
        numbers = _weighted(cell, values, spans)
        nll.append(numbers[0])
        weight.append(numbers[1])
        bits.append(numbers[2])
        byte_weight.append(numbers[3])
        n_tokens.append(sum(len(value) for value in values))
        whole = whole and is_whole and n_tokens[-1] == total
    known = all(not math.isnan(value) for value in bits)
    return _Filled(
        np.array(nll),
        np.array(weight),
        np.array(bits) if known else None,
        np.array(byte_weight),
        np.array(n_tokens),
        whole,
    )


def _not_held(tokens: TokenStore, cell: Cell, what: str) -> StoreError:
    return StoreError(
        f"the run {tokens.store.id} does not hold what `{cell.protocol}` reads: {what}",
        "leave --from out and give --model; an interrupted run goes on with its own command",
    )


def _weighted(cell: Cell, values: list[np.ndarray], spans: list[int] | None) -> tuple[float, float, float, float]:
    """Return numerator and denominator of nll [nats], then of bits per byte, of one document."""
    nan = float("nan")
    if cell.weighting == "window":
        bits = (
            sum(float(value.sum()) / math.log(2) / span for value, span in zip(values, spans, strict=True))
            if spans and all(spans)
            else nan
        )
        return sum(float(value.mean()) for value in values), len(values), bits, len(values)
    total, count = sum(float(value.sum()) for value in values), sum(len(value) for value in values)
    n_bytes = sum(spans) if spans else 0
    bits = total / math.log(2) if n_bytes else nan
    if cell.weighting == "token":
        return total, count, bits, n_bytes
    return total / count, 1, bits / n_bytes if n_bytes else nan, 1
