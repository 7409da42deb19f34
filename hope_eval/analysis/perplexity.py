"""Perplexity tables from stored tokens: by the protocol of a run, or by any other that its tokens can fill.

A run gives one row per cell and metric, with notes. Every number is a ratio over documents: `CellNumbers` holds the
numerator and the denominator of each document.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from hope_eval.analysis import stopping
from hope_eval.analysis.doubts import doubts
from hope_eval.analysis.intervals import Clusters, Interval
from hope_eval.analysis.rows import Row, RunTable, without_seed
from hope_eval.analysis.stopping import Until
from hope_eval.errors import OptionError, StoreError
from hope_eval.lengths import short_length
from hope_eval.protocols import Cell, Column, Protocol, WindowsOf, protocol_class, protocol_named, protocol_of_run
from hope_eval.runs.kinds import PERPLEXITY, PPL
from hope_eval.runs.records.oom import OOM
from hope_eval.runs.store import RunStore, check_merged
from hope_eval.runs.token_store import TokenStore

# Raise it when the same command would give other numbers.
VERSION = 1

# Metrics that every protocol gives for each cell.
METRICS = ("perplexity", "nll", "bits_per_byte")


def table(
    stores: Sequence[TokenStore],
    protocol: Protocol | None = None,
    lengths: Sequence[int] | None = None,
    n_documents: int | None = None,
    missing: bool = False,
) -> RunTable:
    """The table of a run; by default of its own protocol, at its own lengths, over all of its documents.

    stores:  one run, or one for each training seed of a model: then the table is of their mean.
    missing: cells that an interrupted run lacks get the status `missing`; otherwise they raise an error.

    Raises StoreError if a run does not hold the tokens that the protocol reads, or if runs read different documents.
    """
    tokens = stores[0]
    identity = tokens.header["identity"]
    protocol = protocol or protocol_of_run(tokens.header)
    samples = [store.sample(n_documents) for store in stores]
    documents = min(samples, key=len)
    _check_same_documents(stores, samples, documents)
    name = identity["model"] if len(stores) == 1 else f"{without_seed(identity['model'])} ({len(stores)} seeds)"
    builder = _Rows(stores, name, protocol, documents, missing)
    rows = [row for cell in protocol.cells(lengths or identity["lengths"]) for row in builder.of(cell)]
    notes = _notes(tokens, protocol, len(documents), len(stores))
    notes += [f"{metric} needs whole documents, and is left out" for metric in builder.left_out]
    if len({len(sample) for sample in samples}) > 1:
        notes.append(f"{name} {identity['encoding']}: documents that all of its training seeds have read")
    for store in stores:
        who = f"{store.header['identity']['model']} {identity['encoding']}, ppl@{identity['protocol']}"
        ended = stopping.notes(who, "nll", "documents", {0: len(documents)}, store.until)
        notes += [note for note in ended if note not in notes]
    nlls = [row for row in rows if row["metric"] == "nll" and row["status"] == "ok"]
    cells = [(row["label"] or short_length(row["length"]), row["clusters"]) for row in nlls]
    notes += doubts(f"{name} {identity['encoding']}", cells, "document")
    ids = ", ".join(store.store.id for store in stores)
    return RunTable(
        rows,
        notes,
        f"{name} {identity['encoding']}",
        _about(tokens),
        ids,
        stores=tuple(store.store for store in stores),
    )


def _check_same_documents(stores: Sequence[TokenStore], samples: Sequence[list[str]], documents: list[str]) -> None:
    ended_early = any(store.until for store in stores)
    for store, sample in zip(stores, samples, strict=True):
        if (sample[: len(documents)] if ended_early else sample) != documents:
            raise StoreError(
                f"{stores[0].store.id} and {store.store.id} read different documents",
                "run both with the same --samples",
            )


def is_narrow(tokens: TokenStore, cells: Sequence[Cell], documents: Sequence[str], until: Until) -> bool:
    """Whether the interval of the nll is narrow enough in every cell that has a number."""
    numbers = [_numbers(tokens, cell, cell.windows, documents) for cell in cells]
    measured = [cell_numbers for cell_numbers in numbers if isinstance(cell_numbers, CellNumbers)]
    return bool(measured) and all(
        until.is_met(_clusters(cell_numbers.nll, cell_numbers.weight, list(documents))) for cell_numbers in measured
    )


def tokens_of(path: Path) -> TokenStore:
    """The tokens of a run on disk. Raises StoreError if it is a run of a task, or not merged yet."""
    store = RunStore.reading(path)
    if store.kind is not PERPLEXITY:
        raise StoreError(f"{path} is a run of `{store.header['identity']['task']}`", "--from needs a run of `ppl`")
    check_merged(store)
    return TokenStore(store.completed())


def other_table(
    stores: Sequence[TokenStore],
    name: str | None,
    parameters: Mapping[str, object],
    lengths: Sequence[int] | None,
    n_documents: int | None,
) -> RunTable:
    """The table of another protocol, or of other lengths, from the tokens of one run, or of one for each seed.

    name:       of the protocol, or the path of its file; None: the protocol of the run.
    parameters: None: as in the run, or the default of another protocol.

    Raises StoreError if the run does not hold the tokens that the protocol reads; OptionError for an unknown protocol
    or parameter.
    """
    header = stores[0].header
    identity = header["identity"]
    given = {key: value for key, value in parameters.items() if value is not None}
    if name is None and not given:
        return table(stores, None, lengths, n_documents)
    if name is None and header["provenance"].get("protocol"):
        # The file that a run names is not executed unless a user names it too: the run may be somebody else's.
        raise OptionError(f"other parameters of `{identity['protocol']}` need the file of the protocol", "--protocol")
    name = name or identity["protocol"]
    if protocol_class(name).name == identity["protocol"]:
        given = {**identity["parameters"], **given}
    prefixed = identity["prefix_token"] is not None
    protocol = protocol_named(name, **{**given, "prefixed": prefixed}).fitted(identity["train_length"])
    return table(stores, protocol, lengths, n_documents)


@dataclass(frozen=True)
class CellNumbers:
    """Sums over the windows of one cell: a number for each document [n], or each seed and document [seeds, n].

    nll, weight:        numerator and denominator of the mean nll, in nats.
    bits, byte_weight:  those of bits per byte; None if the tokenizer does not say how many bytes a token has.
    total:              nll of all scored tokens, in nats.
    whole:              all tokens of all documents are scored.
    """

    nll: np.ndarray
    weight: np.ndarray
    bits: np.ndarray | None
    byte_weight: np.ndarray
    total: np.ndarray
    n_tokens: np.ndarray
    whole: bool


@dataclass
class _Rows:
    """Makes the rows of cells, one row per metric.

    A cell that did not fit in memory has the status `oom`; with a NaN in it, `nan`; past the end of a learned position
    table, `-`; not measured by an interrupted run, `missing`. Then it has no value.

    left_out: further columns that could not be computed.
    """

    stores: Sequence[TokenStore]
    name: str
    protocol: Protocol
    documents: list[str]
    missing: bool
    left_out: list[str] = field(default_factory=list)
    _by_windows: dict[WindowsOf, CellNumbers | str] = field(default_factory=dict)

    def of(self, cell: Cell) -> Iterator[Row]:
        """The rows of a cell."""
        base = self._base(cell)
        numbers = self._numbers(cell, cell.windows)
        if isinstance(numbers, str):
            yield from ({**base, "metric": metric, **_no_value(numbers)} for metric in METRICS)
            return
        base["n_tokens"] = int(numbers.n_tokens.sum())
        nll = _clusters(numbers.nll, numbers.weight, self.documents)
        yield _row(base, "perplexity", nll, _exp)
        yield _row(base, "nll", nll)
        if numbers.bits is not None:
            yield _row(base, "bits_per_byte", _clusters(numbers.bits, numbers.byte_weight, self.documents))
        for column in cell.columns:
            yield from self._column(base, cell, column)

    def _base(self, cell: Cell) -> Row:
        """Columns that all rows of a cell share."""
        identity, provenance = self.stores[0].header["identity"], self.stores[0].header["provenance"]
        return {
            "model": self.name,
            "encoding": identity["encoding"],
            "family": PPL,
            "task": PPL,
            "protocol": f"ppl@{cell.protocol}",
            "length": cell.length,
            "label": cell.label,
            "train_length": identity["train_length"],
            "extrapolation": cell.length / identity["train_length"] if identity["train_length"] else None,
            "n": len(self.documents),
            "n_seeds": len(self.stores),
            "corpus": provenance["corpus"],
            "prefix_token": identity["prefix_token"],
            "dtype": identity["dtype"],
            "run": " ".join(tokens.store.id for tokens in self.stores),
        }

    def _column(self, base: Row, cell: Cell, column: Column) -> Iterator[Row]:
        """The row of a column that only this protocol has."""
        numbers = self._numbers(cell, column.of or cell.windows)
        subtracted = self._numbers(cell, column.minus) if column.minus else None
        status = next((side for side in (numbers, subtracted) if isinstance(side, str)), None)
        if isinstance(numbers, str) or isinstance(subtracted, str):
            yield {**base, "metric": column.metric, **_no_value(str(status))}
            return
        numerators, denominators = (numbers.nll, numbers.weight)
        if column.per != "token":
            if not numbers.whole:
                self.left_out += [column.metric] * (column.metric not in self.left_out)
                return
            key = f"n_{column.per}s"
            numerators = numbers.total
            denominators = np.array([self.stores[0].documents[document][key] for document in self.documents], float)
        if subtracted is not None:
            numerators = numerators - subtracted.nll * (denominators / subtracted.weight)
        clusters = _clusters(numerators, denominators, self.documents)
        yield _row(base, column.metric, clusters, _exp if column.exponentiated else asdict)

    def _numbers(self, cell: Cell, windows: WindowsOf) -> CellNumbers | str:
        """The numbers of all seeds, or the status of a cell without numbers; cached, since cells share windows."""
        if windows not in self._by_windows:
            self._by_windows[windows] = self._read(cell, windows)
        return self._by_windows[windows]

    def _read(self, cell: Cell, windows: WindowsOf) -> CellNumbers | str:
        end = self.stores[0].header["identity"].get("max_length")
        if end is not None and cell.length > end:
            return "-"
        try:
            numbers = [_numbers(tokens, cell, windows, self.documents) for tokens in self.stores]
        except _NotHeldError:
            if not self.missing:
                raise
            return "missing"
        status = next((of_seed for of_seed in numbers if isinstance(of_seed, str)), None)
        return status or _joined([of_seed for of_seed in numbers if isinstance(of_seed, CellNumbers)])


def _joined(seeds: Sequence[CellNumbers]) -> CellNumbers:
    """The numbers of several seeds as arrays [seeds, n]; of one seed as they are."""
    if len(seeds) == 1:
        return seeds[0]
    bits = [seed.bits for seed in seeds if seed.bits is not None]
    return CellNumbers(
        np.stack([seed.nll for seed in seeds]),
        np.stack([seed.weight for seed in seeds]),
        np.stack(bits) if len(bits) == len(seeds) else None,
        np.stack([seed.byte_weight for seed in seeds]),
        np.stack([seed.total for seed in seeds]),
        np.stack([seed.n_tokens for seed in seeds]),
        all(seed.whole for seed in seeds),
    )


def _numbers(tokens: TokenStore, cell: Cell, windows: WindowsOf, documents: Sequence[str]) -> CellNumbers | str:
    """The numbers of a cell for some windows, or its status if it has none."""
    rows, whole = [], True
    for document in documents:
        scores = _scores(tokens, cell, windows, document)
        if isinstance(scores, str):
            return scores
        nlls, n_bytes, is_whole = scores
        n_tokens, total = sum(map(len, nlls)), sum(float(nll.sum()) for nll in nlls)
        rows.append((*_weighted(cell, nlls, n_bytes), total, n_tokens))
        whole = whole and is_whole and n_tokens == tokens.documents[document]["n_tokens"]
    columns = zip(*rows, strict=True) if rows else [()] * 6
    nll, weight, bits, byte_weight, totals, counts = map(np.array, columns)
    has_bytes = not np.isnan(bits).any()
    return CellNumbers(nll, weight, bits if has_bytes else None, byte_weight, totals, counts, whole)


def _scores(
    tokens: TokenStore, cell: Cell, windows_of: WindowsOf, document: str
) -> tuple[list[np.ndarray], list[int] | None, bool] | str:
    """The nll and bytes of each window of a document, and whether all its tokens were read; or a status."""
    record = tokens.documents[document]
    n_tokens, is_whole = record["n_tokens"], record.get("whole", True)
    windows, name = windows_of(n_tokens), record.get("name", document)
    if not is_whole and windows_of(n_tokens + 1) != windows:
        raise _not_held(tokens, cell, f"`{name}` to its end; {n_tokens:,} of its tokens were read")
    unread = next((window for window in windows if not tokens.covers(document, window)), None)
    if unread is not None:
        lost = [failure for failure in tokens.out_of_memory if unread.n_read >= failure["n_read"]]
        if lost:
            return OOM.status(lost[0])
        raise _not_held(tokens, cell, f"tokens {unread.start + 1} to {unread.stop} of `{name}`")
    nlls = [tokens.nll(document, window).astype(np.float64) for window in windows]
    if not all(np.isfinite(nll).all() for nll in nlls):
        return "nan"
    sizes = tokens.bytes(document)
    n_bytes = [int(sizes[w.scored_start : w.scored_stop].sum()) for w in windows] if sizes is not None else None
    return nlls, n_bytes, is_whole


class _NotHeldError(StoreError):
    """Tokens that a run does not hold: it was interrupted, or another protocol reads them."""


def _not_held(tokens: TokenStore, cell: Cell, what: str) -> StoreError:
    return _NotHeldError(
        f"the run {tokens.store.id} does not hold what `{cell.protocol}` reads: {what}",
        "leave --from out and give --model; to finish an interrupted run, rerun its command",
    )


def _weighted(cell: Cell, nlls: list[np.ndarray], n_bytes: list[int] | None) -> tuple[float, float, float, float]:
    """Numerator and denominator of the mean nll [nats], then of bits per byte, of one document."""
    nan = float("nan")
    if cell.weighting == "window":
        bits = (
            sum(float(nll.sum()) / math.log(2) / size for nll, size in zip(nlls, n_bytes, strict=True))
            if n_bytes and all(n_bytes)
            else nan
        )
        return sum(float(nll.mean()) for nll in nlls), len(nlls), bits, len(nlls)
    total, count = sum(float(nll.sum()) for nll in nlls), sum(len(nll) for nll in nlls)
    total_bytes = sum(n_bytes) if n_bytes else 0
    bits = total / math.log(2) if total_bytes else nan
    if cell.weighting == "token":
        return total, count, bits, total_bytes
    return total / count, 1, bits / total_bytes if total_bytes else nan, 1


def _notes(tokens: TokenStore, protocol: Protocol, n_documents: int, n_seeds: int) -> list[str]:
    """Notes on how the numbers were obtained, one fact a line; facts that models share give the same line."""
    identity, provenance = tokens.header["identity"], tokens.header["provenance"]
    n_short = provenance["documents_too_short"]
    settings = protocol.parameters().items()
    parameters = [f"{key}={value}" for key, value in settings if key != "prefixed" and value is not None]
    lines = [
        f"protocol {' '.join([f'ppl@{protocol.name}', *parameters])}: {protocol.one_line}",
        f"{n_documents} documents of {provenance['corpus']} ({identity['corpus']})"
        + (f"; {n_short} with fewer than {provenance['tokens_needed']:,} tokens left out" if n_short else ""),
    ]
    if provenance.get("corpus_note"):
        lines.append(f"{provenance['corpus']}: {provenance['corpus_note']}")
    if n_documents == 1:
        lines.append("one document: no interval; --split 4k makes pieces of about 4k tokens of it, which give one")
    else:
        over = "documents" if n_seeds == 1 else f"documents and {n_seeds} training seeds"
        lines.append(f"[low, high]: 95 % interval, Student's t over {over}, longer where documents are skewed")
    who, end = f"{identity['model']} {identity['encoding']}", identity.get("max_length")
    lines += [f"{who}: {note}" for note in provenance.get("model_notes", ())]
    if end is not None and any(cell.length > end for cell in protocol.cells(identity["lengths"])):
        lines.append(f"-: {who} has a table of {end} positions and reads no further")
    for record in tokens.out_of_memory[-1:]:
        length = short_length(record["n_read"])
        lines.append(f"{OOM.status(record)}: {who} could not read {length} tokens{OOM.why(record)}")
    return lines


def _about(tokens: TokenStore) -> str:
    """How the model of a run was loaded: training length, dtype, machine, attention, head, prefix."""
    identity, provenance = tokens.header["identity"], tokens.header["provenance"]
    trained = f"{identity['train_length']:,} ({provenance['train_length_source']})" if identity["train_length"] else "?"
    head = identity["head"] + (f" ({provenance['head_reason']})" if provenance["head_reason"] else "")
    return (
        f"training length {trained}, {identity['dtype']} on {provenance['machine']}, attention {identity['kernel']}, "
        f"head {head}, prefix {provenance['prefix'] or 'none'}"
    )


def _no_value(status: str) -> Row:
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
