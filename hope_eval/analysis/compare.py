"""Runs side by side: any number of runs on disk -> the frames that tables, figures and the report are made of.

    opened      folders -> runs, each once
    compare     runs -> a table each -> `scores`, in which a column holds what was measured alike, or nothing
    Comparison  scores, and from them: differences from a baseline, effective lengths, probabilities of being better

Columns are lengths, or multiples of the training length; lines are models, or encodings over all training seeds.
The lines of a column may differ in the model. They may not differ in protocol, version and parameters of a task, texts
or samples, unless it is forced.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hope_eval.analysis import answers, perplexity
from hope_eval.analysis.differences import best, compared_rows, differences, win_probabilities
from hope_eval.analysis.reach import effective_lengths
from hope_eval.analysis.rows import INTERNAL, PILLARS, Row, RunTable, by_seed, joint_notes, subject
from hope_eval.errors import ComparisonError, OptionError, StoreError, did_you_mean
from hope_eval.lengths import short_length
from hope_eval.metrics import metric_of
from hope_eval.protocols import protocol_of_run
from hope_eval.runs.kinds import PERPLEXITY, PPL, kind_of
from hope_eval.runs.store import RunStore, is_run
from hope_eval.runs.token_store import TokenStore

if TYPE_CHECKING:
    from pandas import DataFrame

# In which order tables come.
_ORDER = list(PILLARS)


@dataclass(frozen=True)
class Comparison:
    """Scores of several models or encodings, and what follows from them.

    scores:   one line a number, with the columns of a table's rows, and
              line        what the number is of, as short as tells the lines apart
              section     which table it belongs to: the protocol of a perplexity, or the family of a task
              column      the heading of its column
              best        whether it is the best of its column, and distinguishable from all others
              clusters    what it is made of, by context (hope_eval.analysis.intervals.Clusters), or None
    baseline: the line that others are compared with; empty if there is one line only.
    notes:    how the numbers were obtained, one fact a line.
    runs:     the provenance of each run.
    """

    scores: "DataFrame"
    baseline: str
    notes: list[str]
    runs: list[dict[str, Any]]

    @cached_property
    def differences(self) -> "DataFrame":
        """Every line against the baseline, paired by context, in every column."""
        return differences(self.scores, self.baseline)

    @cached_property
    def reach(self) -> "DataFrame":
        """Effective length of each line, by each definition."""
        return effective_lengths(self.scores, self.differences)

    @cached_property
    def wins(self) -> "DataFrame":
        """Probability that each line is better than each other."""
        return win_probabilities(self.scores)

    def frame(self, name: str) -> "DataFrame":
        """One of FRAMES, without what is of use in memory only."""
        frame: DataFrame = getattr(self, name)
        return frame.drop(columns=list(INTERNAL), errors="ignore")


def opened(paths: Sequence[Path], warn: Callable[[str], None] = lambda text: None) -> list[RunStore]:
    """The runs at these paths: folders of a run, or folders of runs. An empty run is told of and left out.

    Raises StoreError where there is no run, where two of the same id differ, or where one was written by a newer
    version.
    """
    stores: dict[str, RunStore] = {}
    for path in (run for given in paths for run in _runs_in(given)):
        store = RunStore.reading(path)
        same = stores.get(store.id)
        if same is not None and same.path.resolve() != path.resolve():
            if _content(same.path) != _content(path):
                raise StoreError(
                    f"{same.path} and {path} are runs of the same id with different records",
                    "`hope-eval runs verify` tells which one is whole; give only that one",
                )
            continue
        if store.waiting:
            warn(f"{store.id}: {store.waiting}, and are left out; `{store.command}` merges them")
        if store.is_empty:
            warn(f"{store.id} is empty and left out; rerun `{store.command}` to resume")
            continue
        stores[store.id] = store
    if not stores:
        raise StoreError(
            f"no run with records in {', '.join(map(str, paths))}", "`hope-eval run --suite quick` makes some"
        )
    return list(stores.values())


def _runs_in(path: Path) -> list[Path]:
    if is_run(path):
        return [path]
    # As they were made: the order in which a user gave models and tasks.
    found = [header.parent for header in sorted(path.glob("*/run.json"), key=lambda run: (run.stat().st_mtime, run))]
    if not found:
        raise StoreError(f"no run at `{path}`", "give folders of runs, such as results/runs or results/runs/ppl-…")
    return found


def _content(path: Path) -> str:
    digest = hashlib.sha256()
    for name in ("records.jsonl", "arrays.bin"):
        if (path / name).exists():
            with (path / name).open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def tables_of(
    stores: Iterable[RunStore],
    pool_seeds: bool = False,
    by_fact: str = "",
    warn: Callable[[str], None] = lambda text: None,
) -> list[RunTable]:
    """A table of each run, or of each group of runs that differ in their training seed only.

    by_fact: a fact of the questions that tasks are broken down by too, where they have it.
    """
    groups = by_seed(stores) if pool_seeds else [[store] for store in stores]
    tables = [_table(group, by_fact) for group in groups]
    asked: dict[str, set[int]] = {}
    for table in tables:
        for row in table.rows:
            asked.setdefault(row["task"], set()).add(row["length"])
    for number, (group, table) in enumerate(zip(groups, tables, strict=True)):
        identity = group[0].header["identity"]
        end = identity["max_length"]
        lengths = {row["length"] for row in table.rows}
        # Nobody can ask a model past the end of its table; beside others, that is a hole to be seen.
        past = set() if end is None else {length for length in asked[identity["task"]] - lengths if length > end}
        if past and kind_of(identity) is not PERPLEXITY:
            tables[number] = _table(group, by_fact, sorted(lengths | past))
    for table in tables:
        for store in table.stores:
            if store.cut:
                warn(f"{store.id}: its last record was cut off and is left out; rerun `{store.command}` to resume")
        if any(row["status"] == "missing" for row in table.rows):
            again = table.stores[0].command
            warn(f"{table.run} was interrupted: numbers that it lacks are `missing`; rerun `{again}` to resume")
    return tables


def _table(group: Sequence[RunStore], by_fact: str, lengths: Sequence[int] | None = None) -> RunTable:
    """The table of runs that differ in their training seed only; what they lack is a hole."""
    if group[0].kind is PERPLEXITY:
        return perplexity.table([TokenStore(store) for store in group], missing=True)
    return answers.table(group, lengths, by=by_fact, missing=True)


def compare(
    tables: Sequence[RunTable],
    *,
    by: str = "model",
    baseline: str | None = None,
    columns: str = "tokens",
    tasks: Sequence[str] = (),
    force: bool = False,
) -> Comparison:
    """Put the tables of runs side by side.

    by:       one of BY.
    baseline: a line, or its encoding or model; None: the one with RoPE, else the first.
    columns:  one of COLUMNS.
    tasks:    which, by their names; none: all.
    force:    put into one column what was measured under different conditions.

    Raises ComparisonError for tables that do not belong together, or lines that cannot be told apart; OptionError for a
    baseline or task that is not there.
    """
    import pandas

    rows = [row for table in tables for row in _rows(table, columns)]
    # One pillar after the other, however they were measured.
    rows.sort(key=lambda row: _ORDER.index(row["family"]) if row["family"] in _ORDER else len(_ORDER))
    known = list(dict.fromkeys(row["task"] for row in rows))
    for name in tasks:
        if name not in [task.split(":")[0] for task in known] and name not in known:
            measured = f"the runs measure {', '.join(known)}"
            raise OptionError(f"no run measures `{name}`", did_you_mean(name, known, measured))
    if tasks:
        rows = [row for row in rows if row["task"] in tasks or row["task"].split(":")[0] in tasks]
    differing = _check_conditions(rows, force)
    rows, doubled = _once(rows)
    lines = _lines(rows, by)
    scores = pandas.DataFrame([{**row, "line": lines[_identity(row)]} for row in rows])
    for column in ("chance", "clusters", "n_questions"):
        if column not in scores:
            scores[column] = None
    names = list(dict.fromkeys(scores.line))
    chosen = "" if len(names) == 1 else _baseline(scores, names, baseline)
    scores["best"] = best(scores) if by != "task" else False
    used = set(scores.run)
    notes = joint_notes([table for table in tables if " ".join(store.id for store in table.stores) in used])
    runs = [
        {**_provenance(store), "line": lines.get(_identity(row), "")}
        for table in tables
        for row in table.rows[:1]
        for store in table.stores
        if row["run"] in used
    ]
    return Comparison(
        scores, chosen, [*differing, *doubled, *_on_tokenizers(scores), *_on_numbers(scores), *notes], runs
    )


def _rows(table: RunTable, columns: str) -> Iterable[Row]:
    """Yield the rows of a table with what a comparison needs to know of them."""
    identity = table.stores[0].header["identity"]
    provenance = table.stores[0].header["provenance"]
    conditions = _conditions(table)
    protocol = protocol_of_run(table.stores[0].header) if kind_of(identity) is PERPLEXITY else None
    settings = {
        "dtype": identity["dtype"],
        "prefix token": identity["prefix_token"],
        "chat": identity.get("chat", False),
    }
    settings |= {"weights": identity["fingerprint"][:8], "device": identity["device"]}
    digest = hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()[:12]
    for row in table.rows:
        heading = row["label"] or short_length(row["length"])
        if columns == "multiples":
            heading = f"{row['extrapolation']:.3g}x" if row["extrapolation"] else "?"
        yield {
            "slice": "",
            "headline": metric_of(row["metric"]).shown == "always",
            "clusters": None,
            "share": False,
            **row,
            "section": f"{PPL}@{identity['protocol']}" if protocol else row["family"],
            "section_title": protocol.title if protocol else PILLARS.get(row["family"], row["family"]),
            "axis": protocol.axis if protocol else "length",
            "style": _style(identity["encoding"], provenance),
            "column": heading,
            "tokenizer": provenance.get("tokenizer", ""),
            "conditions": digest,
            "stated": conditions,
            "settings": settings,
        }


def _style(encoding: str, provenance: Mapping[str, Any]) -> str:
    """The style in figures that a run notes of a user's encoding: `#117733 dashed s`; empty for one of the package."""
    noted = provenance.get("encoding", {}).get("style") if ".py" in encoding else None
    return " ".join(noted.values()) if noted else ""


def _conditions(table: RunTable) -> dict[str, str]:
    """Conditions that the lines of one column must share, by name."""
    identity, provenance = table.stores[0].header["identity"], table.stores[0].header["provenance"]
    if kind_of(identity) is PERPLEXITY:
        return {
            "protocol": protocol_of_run(table.stores[0].header).shared_id(table.rows[0]["protocol"]),
            "version": str(identity["version"]),
            "corpus": f"{provenance['corpus']} ({identity['corpus']})",
            "seed": str(identity["seed"]),
        }
    return {
        "version": f"{identity['version']} ({identity['task_fingerprint']}), answers {identity['answers']}",
        "data": f"{provenance['data']} ({identity['data']})" if identity["data"] else provenance["data"],
        "seed": str(identity["seed"]),
    }


def _check_conditions(rows: Sequence[Row], force: bool) -> list[str]:
    """Conditions that differ within a task, one a line. Raises ComparisonError for one, unless it is forced."""
    notes = []
    for section, task in dict.fromkeys((row["section"], row["task"]) for row in rows):
        mine = [row for row in rows if (row["section"], row["task"]) == (section, task)]
        differing = []
        for name in mine[0]["stated"]:
            values = list(dict.fromkeys(row["stated"][name] for row in mine))
            if len(values) > 1:
                runs = {v: list(dict.fromkeys(r["run"] for r in mine if r["stated"][name] == v)) for v in values}
                differing.append(f"{name}: " + "; ".join(f"{value} in {', '.join(runs[value])}" for value in values))
        if differing and not force:
            raise ComparisonError(
                f"these runs of `{task}` cannot be compared: they differ in\n  " + "\n  ".join(differing),
                "name runs that were measured alike, or choose with --task; --force compares these anyway",
            )
        notes += [f"forced: {task} differs in {one}" for one in differing]
    return notes


def _on_tokenizers(scores: "DataFrame") -> list[str]:
    known = [one for one in dict.fromkeys(scores.tokenizer) if one]
    if len(known) < 2:
        return []
    return ["tokenizers differ: bits per byte are compared, and no number that depends on tokens"]


def _on_numbers(scores: "DataFrame") -> list[str]:
    shown = compared_rows(scores[scores.status == "ok"])
    numbers = shown.groupby(["section", "task", "metric", "column"], sort=False).n.nunique()
    if not (numbers > 1).any():
        return []
    return ["lines have different numbers of contexts: a difference is over the contexts that both have"]


def _identity(row: Row) -> tuple[str, str, str]:
    """Identity of a line: model, encoding, and the settings that tell several runs of these apart."""
    return row["model"], row["encoding"], row.get("twin", "")


def _once(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows with each number once, and what was done about those that were there twice.

    Of several runs of one model that differ in nothing but lengths and samples, the one with the most contexts gives a
    column. Those that differ in more are lines of their own, `twin` by what differs: dtype, weights…
    """
    groups: dict[tuple[str, ...], dict[str, Row]] = {}
    for row in rows:
        group = (row["section"], row["task"], row["model"], row["encoding"])
        groups.setdefault(group, {})[row["run"]] = row
    notes = []
    for (_, _, model, encoding), runs in groups.items():
        settings = {run: row["settings"] for run, row in runs.items()}
        differing = [
            name for name in next(iter(settings.values())) if len({str(s[name]) for s in settings.values()}) > 1
        ]
        for row in rows:
            if row["run"] in runs and differing:
                row["twin"] = ", ".join(f"{name} {settings[row['run']][name]}" for name in differing)
        if len(runs) > 1 and not differing:
            of = subject(next(iter(runs.values())))
            notes.append(f"{model} {encoding}: {len(runs)} runs of {of}, of each column the one with most contexts")
    kept: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        place = (*_identity(row), row["section"], row["task"], row["metric"], row["slice"], row["column"])
        before = kept.get(place)
        if before is None or _worth(row) > _worth(before):
            kept[place] = row
    return list(kept.values()), notes


def _worth(row: Row) -> tuple[bool, int]:
    """Order of two numbers of one cell: a number before a hole, then by contexts."""
    return row["status"] == "ok", row.get("n", 0)


def _lines(rows: Sequence[Row], by: str) -> dict[tuple[str, str, str], str]:
    """Name of each model and encoding, as short as tells them apart.

    Raises ComparisonError for two models with one encoding, by encoding.
    """
    identities = list(dict.fromkeys(map(_identity, rows)))
    pairs = list(dict.fromkeys((model, encoding) for model, encoding, _ in identities))
    n_models, n_encodings = (len({pair[part] for pair in pairs}) for part in (0, 1))
    if by == "encoding" and len(pairs) > n_encodings:
        doubled = next(encoding for _, encoding in pairs if sum(one == encoding for _, one in pairs) > 1)
        others = ", ".join(model for model, one in pairs if one == doubled)
        raise ComparisonError(
            f"several models have the encoding `{doubled}`: {others}", "--by model, or name runs of one model each"
        )

    def name(model: str, encoding: str, twin: str) -> str:
        called = f"{model} {encoding}"
        if by == "encoding" or (n_models == 1 and n_encodings > 1):
            called = encoding
        elif len(pairs) == n_models:
            called = model
        return f"{called} ({twin})" if twin else called

    return {identity: name(*identity) for identity in identities}


def _baseline(scores: "DataFrame", names: list[str], wanted: str | None) -> str:
    lines = scores.drop_duplicates("line")
    if wanted is None:
        rope = [row.line for row in lines.itertuples() if row.encoding == "rope"]
        return str(rope[0]) if len(rope) == 1 else names[0]
    for column in ("line", "encoding", "model"):
        found = lines[lines[column].map(lambda value: value == wanted)]
        if len(found) == 1:
            return str(found.line.iloc[0])
        if len(found) > 1:
            raise OptionError(
                f"`--baseline {wanted}` is several lines", f"--baseline with one of {', '.join(found.line)}"
            )
    raise OptionError(
        f"no line is called `{wanted}`", did_you_mean(wanted, names, f"--baseline with one of {', '.join(names)}")
    )


def _provenance(store: RunStore) -> dict[str, Any]:
    """Provenance of a run, flat, for readers."""
    identity, provenance = store.header["identity"], store.header["provenance"]
    sessions = store.sessions()
    commands = [str(one["command"]) for one in (provenance, *sessions) if one.get("command")]
    peaks = [session["peak_memory_gib"] for session in sessions if "peak_memory_gib" in session]
    is_ppl = store.kind is PERPLEXITY
    return {
        "id": store.id,
        "model": identity["model"],
        "encoding": identity["encoding"],
        "task": identity["task"],
        "protocol": f"ppl@{identity['protocol']}" if is_ppl else f"{identity['task']}@v{identity['version']}",
        "version": identity["version"],
        "task_fingerprint": identity.get("task_fingerprint", ""),
        "command": "\n".join(dict.fromkeys(commands)),
        "corpus": provenance["corpus"] if is_ppl else provenance["data"],
        "corpus_fingerprint": identity["corpus"] if is_ppl else identity["data"],
        "fingerprint": identity["fingerprint"],
        "train_length": identity["train_length"],
        "prefix_token": identity["prefix_token"],
        "dtype": identity["dtype"],
        "device": identity["device"],
        "kernel": identity["kernel"],
        "head": identity["head"],
        "machine": provenance["machine"],
        "versions": provenance["versions"],
        "commit": provenance["commit"],
        "started": sessions[0]["started"] if sessions else "",
        "seconds": round(sum(session["seconds"] for session in sessions), 3),
        "peak_memory_gib": max(peaks, default=None),
    }
