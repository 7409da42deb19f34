"""Runs side by side: any number of runs on disk -> the frames that tables, figures and the report are made of.

    readable_runs  folders -> runs, each once
    compare        tables of runs -> `scores`: a column holds only numbers that were measured alike
    Comparison     scores, and from them: differences from a baseline, effective lengths, probabilities of being better

Columns are lengths, or multiples of the training length; lines are models, or encodings over all training seeds.
The lines of a column may differ in the model. They must agree in protocol, version and parameters of the task, texts
and samples, unless --force is given.
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
from hope_eval.analysis.holding import held
from hope_eval.analysis.reach import effective_lengths
from hope_eval.analysis.rows import INTERNAL, PILLARS, Row, RunTable, by_seed, joint_notes, subject
from hope_eval.errors import ComparisonError, OptionError, StoreError, did_you_mean
from hope_eval.lengths import Times, short_length
from hope_eval.metrics import metric_of
from hope_eval.protocols import protocol_of_run
from hope_eval.runs.kinds import PERPLEXITY, PPL, kind_of
from hope_eval.runs.store import RunStore, is_run
from hope_eval.runs.token_store import TokenStore

if TYPE_CHECKING:
    from pandas import DataFrame

# Order of the tables.
_ORDER = list(PILLARS)


@dataclass(frozen=True)
class Comparison:
    """Scores of several models or encodings, and what follows from them.

    scores:   one row a number, with the columns of a table's rows, and
              line        name of the model or encoding, as short as is unambiguous
              section     its table: the protocol of a perplexity, or the family of a task
              column      the heading of its column
              best        whether it is the best of its column, and distinguishable from all others
              held        what the line keeps of its number inside the window (hope_eval/analysis/holding.py)
              clusters    numerators and denominators by context (hope_eval.analysis.intervals.Clusters), or None
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
        """One of FRAMES, without the columns that are used in memory only."""
        frame: DataFrame = getattr(self, name)
        return frame.drop(columns=list(INTERNAL), errors="ignore")


def readable_runs(paths: Sequence[Path], warn: Callable[[str], None] = lambda text: None) -> list[RunStore]:
    """The runs at these paths: folders of a run, or folders of runs. Empty runs are left out with a warning.

    Raises StoreError where there is no run, where two of the same id differ, or where one was written by a newer
    version.
    """
    stores: dict[str, RunStore] = {}
    for path in (run for given in paths for run in _runs_in(given)):
        store = RunStore.reading(path).completed()
        same = stores.get(store.id)
        if same is not None and same.path.resolve() != path.resolve():
            if _content(same.path) != _content(path):
                raise StoreError(
                    f"{same.path} and {path} are runs of the same id with different records",
                    "`hope-eval runs verify` shows which one is complete; give only that one",
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
    # By time: the order in which a user gave models and tasks.
    runs = [header.parent for header in sorted(path.glob("*/run.json"), key=lambda run: (run.stat().st_mtime, run))]
    if not runs:
        raise StoreError(f"no run at `{path}`", "give folders of runs, such as results/runs or results/runs/ppl-…")
    return runs


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

    by_fact: a fact of the questions; tasks that have it are divided by it too.
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
        # A model cannot be asked past the end of its position table; next to other models, such lengths show as `-`.
        past = set() if end is None else {length for length in asked[identity["task"]] - lengths if length > end}
        if past and kind_of(identity) is not PERPLEXITY:
            tables[number] = _table(group, by_fact, sorted(lengths | past))
    for table in tables:
        for store in table.stores:
            if store.cut:
                warn(f"{store.id}: its last record was cut off and is left out; rerun `{store.command}` to resume")
        if any(row["status"] == "missing" for row in table.rows):
            command = table.stores[0].command
            warn(f"{table.run} was interrupted: numbers that it lacks are `missing`; rerun `{command}` to resume")
    return tables


def _table(group: Sequence[RunStore], by_fact: str, lengths: Sequence[int] | None = None) -> RunTable:
    """The table of runs that differ in their training seed only; numbers that they lack are `missing`."""
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
    tasks:    names of tasks; none: all.
    force:    compare numbers that were measured under different conditions.

    Raises ComparisonError for tables that cannot be compared, or two models with one name; OptionError for an unknown
    baseline or task.
    """
    import pandas

    rows = [row for table in tables for row in _rows(table, columns)]
    # One pillar after the other, in whatever order they were measured.
    rows.sort(key=lambda row: _ORDER.index(row["family"]) if row["family"] in _ORDER else len(_ORDER))
    all_tasks = list(dict.fromkeys(row["task"] for row in rows))
    for name in tasks:
        if name not in [task.split(":")[0] for task in all_tasks] and name not in all_tasks:
            measured = f"the runs measure {', '.join(all_tasks)}"
            raise OptionError(f"no run measures `{name}`", did_you_mean(name, all_tasks, measured))
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
    scores["held"] = held(scores)
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
    """Yield the rows of a table with the facts that a comparison needs."""
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
            trained = identity["train_length"]
            heading = Times.heading(row["length"], trained) if trained else "?"
        yield {
            "slice": "",
            "headline": metric_of(row["metric"]).shown == "always",
            "clusters": None,
            "share": False,
            "gate": "",
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
    """Conditions that differ within a task, one a line. Raises ComparisonError if there are any, unless `force`."""
    notes = []
    for section, task in dict.fromkeys((row["section"], row["task"]) for row in rows):
        rows_of_task = [row for row in rows if (row["section"], row["task"]) == (section, task)]
        differing = []
        for name in rows_of_task[0]["stated"]:
            values = list(dict.fromkeys(row["stated"][name] for row in rows_of_task))
            if len(values) > 1:
                runs = {
                    v: list(dict.fromkeys(r["run"] for r in rows_of_task if r["stated"][name] == v)) for v in values
                }
                differing.append(f"{name}: " + "; ".join(f"{value} in {', '.join(runs[value])}" for value in values))
        if differing and not force:
            raise ComparisonError(
                f"these runs of `{task}` cannot be compared: they differ in\n  " + "\n  ".join(differing),
                "name runs that were measured alike, or choose with --task; --force compares these anyway",
            )
        notes += [f"forced: {task} differs in {difference}" for difference in differing]
    return notes


def _on_tokenizers(scores: "DataFrame") -> list[str]:
    tokenizers = [tokenizer for tokenizer in dict.fromkeys(scores.tokenizer) if tokenizer]
    if len(tokenizers) < 2:
        return []
    return ["tokenizers differ: only bits per byte are compared, since other numbers depend on tokens"]


def _on_numbers(scores: "DataFrame") -> list[str]:
    shown = compared_rows(scores[scores.status == "ok"])
    numbers = shown.groupby(["section", "task", "metric", "column"], sort=False).n.nunique()
    if not (numbers > 1).any():
        return []
    return ["lines have different numbers of contexts: a difference is over the contexts that both have"]


def _identity(row: Row) -> tuple[str, str, str]:
    """Identity of a line: model, encoding, and the settings in which several runs of these differ."""
    return row["model"], row["encoding"], row.get("twin", "")


def _once(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """The rows without duplicates, and notes on the duplicates.

    If several runs of one model differ only in lengths and samples, each column comes from the run with the most
    contexts. Runs that differ in more are separate lines; `twin` names the difference: dtype, weights…
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
            notes.append(
                f"{model} {encoding}: {len(runs)} runs of {of}; each column is from the run with the most contexts"
            )
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
    """Names of lines, as short as is unambiguous.

    Raises ComparisonError by encoding, if two models have the same one.
    """
    identities = list(dict.fromkeys(map(_identity, rows)))
    pairs = list(dict.fromkeys((model, encoding) for model, encoding, _ in identities))
    n_models, n_encodings = (len({pair[part] for pair in pairs}) for part in (0, 1))
    if by == "encoding" and len(pairs) > n_encodings:
        doubled = next(encoding for _, encoding in pairs if sum(other == encoding for _, other in pairs) > 1)
        others = ", ".join(model for model, encoding in pairs if encoding == doubled)
        raise ComparisonError(
            f"several models have the encoding `{doubled}`: {others}", "--by model, or name runs of one model each"
        )

    def name(model: str, encoding: str, twin: str) -> str:
        short = f"{model} {encoding}"
        if by == "encoding" or (n_models == 1 and n_encodings > 1):
            short = encoding
        elif len(pairs) == n_models:
            short = model
        return f"{short} ({twin})" if twin else short

    return {identity: name(*identity) for identity in identities}


def _baseline(scores: "DataFrame", names: list[str], wanted: str | None) -> str:
    lines = scores.drop_duplicates("line")
    if wanted is None:
        rope = [row.line for row in lines.itertuples() if row.encoding == "rope"]
        return str(rope[0]) if len(rope) == 1 else names[0]
    for column in ("line", "encoding", "model"):
        matching = lines[lines[column].map(lambda value: value == wanted)]
        if len(matching) == 1:
            return str(matching.line.iloc[0])
        if len(matching) > 1:
            raise OptionError(
                f"several lines match `--baseline {wanted}`", f"--baseline with one of {', '.join(matching.line)}"
            )
    raise OptionError(
        f"no line is called `{wanted}`", did_you_mean(wanted, names, f"--baseline with one of {', '.join(names)}")
    )


def _provenance(store: RunStore) -> dict[str, Any]:
    """Provenance of a run as one flat mapping."""
    identity, provenance = store.header["identity"], store.header["provenance"]
    sessions = store.sessions()
    commands = [str(source["command"]) for source in (provenance, *sessions) if source.get("command")]
    peaks = [session["peak_memory_gib"] for session in sessions if session.get("peak_memory_gib")]
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
        "started": sessions[0].get("started") or "" if sessions else "",
        "seconds": round(sum(session.get("seconds") or 0 for session in sessions), 3),
        "peak_memory_gib": max(peaks, default=None),
    }
