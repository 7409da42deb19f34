"""Make results/README.md from README.in.md and the summaries that it names; make summaries from runs.

    python results/build.py                                          make README.md
    python results/build.py --add zoo/tasks --by encoding RUN...     make zoo/tasks.json from runs, then README.md
    python results/build.py --prune smollm2                          drop what is not of today's tasks from smollm2.json
    python results/build.py --demo                                   run the demo, and show it in the project's README

A summary holds the tables of a comparison and its provenance: commands, machines, versions, fingerprints of tasks,
texts and models. A line of README.in.md such as `{{zoo/tasks.json scores family=copy}}` becomes a part of that summary,
with only the rows that have these values:

    scores, differences, reach   a table
    findings                     sentences, as in the report; against=hope: its differences from the baseline too
    notes, commands, provenance  how the numbers were obtained

`{{zoo models}}`, `{{zoo command}}` and `{{zoo cost}}` tell of the bundled models, from their training.json;
`{{definitions sentences}}`, `gate` and `reach a|b` define words. All claims of the page are made from the numbers.
"""

import argparse
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pandas
from rich.console import Console

from hope_eval import zoo
from hope_eval.analysis import compare, gate, perplexity, reach
from hope_eval.analysis.rows import BY
from hope_eval.evaluation.suites import parse_measure
from hope_eval.runs.kinds import PPL
from hope_eval.show import comparison_tables
from hope_eval.show.report import frames, shows
from hope_eval.show.report.words import listed, span
from hope_eval.show.tables import draw

HERE = Path(__file__).parent

_NOTICE = "<!-- Made by `python results/build.py` from README.in.md: edit that file. -->\n\n"

# Columns of each frame that a summary keeps.
_KEPT = {
    "scores": "line model encoding section family task protocol metric slice column length label train_length n "
    "n_seeds value low high status headline chance best extrapolation gate held",
    "differences": "line baseline section family task metric column length value low high p_holm verdict n paired "
    "gate baseline_gate",
    "reach": "line section family task metric definition train_length value low high censored "
    "in_window in_window_low in_window_high in_window_verdict gate",
}

# Facts that runs of one group share.
_SHARED = (
    "task", "protocol", "version", "task_fingerprint", "corpus", "corpus_fingerprint", "dtype", "device", "machine",
    "versions", "commit",
)  # fmt: skip


class Summary:
    """A comparison in a file: frames, the baseline, notes, and the provenance of its runs."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.baseline: str = content["baseline"]
        self.notes: list[str] = content["notes"]
        self.runs: list[dict[str, Any]] = content["runs"]
        self._frames = {
            name: pandas.DataFrame(content[name]["data"], columns=content[name]["columns"]) for name in _KEPT
        }

    @classmethod
    def read(cls, name: str) -> "Summary":
        """The summary in a file next to this one."""
        return cls(json.loads((HERE / name).read_text("utf-8")))

    def where(self, **wanted: str) -> "Summary":
        """The rows whose columns have these values."""
        part = Summary.__new__(Summary)
        part.baseline, part.notes, part.runs = self.baseline, self.notes, self.runs
        part._frames = {
            name: frame[
                [all(str(row[key]) in value.split("|") for key, value in wanted.items() if key in row) for row in rows]
            ]
            if (rows := comparison_tables.rows_of(frame))
            else frame
            for name, frame in self._frames.items()
        }
        return part

    def frame(self, name: str) -> pandas.DataFrame:
        """Its scores, differences or reach."""
        return self._frames[name]


def main() -> None:
    """Add a summary if --add is given, then write README.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", metavar="NAME", help="the summary to make, such as zoo/tasks")
    parser.add_argument("--by", default="model", choices=BY)
    parser.add_argument("--baseline")
    parser.add_argument("--prune", metavar="NAME", help="the summary to keep today's tasks of, such as smollm2")
    parser.add_argument("--demo", action="store_true", help="show the demo of today's models in the project's README")
    parser.add_argument("runs", nargs="*", type=Path)
    given = parser.parse_args()
    if given.demo:
        command = [sys.executable, "-m", "hope_eval", "demo"]
        printed = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True, check=True).stdout
        page = HERE.parent / "README.md"
        comparison_tables.write(page, with_demo(page.read_text("utf-8"), printed))
        return
    if given.add:
        path = HERE / f"{given.add}.json"
        tables = compare.tables_of(compare.readable_runs(given.runs, print), given.by == "encoding", warn=print)
        comparison = compare.compare(tables, by=given.by, baseline=given.baseline)
        comparison_tables.write(path, summarised(comparison))
        print(path)
    if given.prune:
        path = HERE / f"{given.prune}.json"
        comparison_tables.write(path, pruned(json.loads(path.read_text("utf-8"))))
        print(path)
    comparison_tables.write(HERE / "README.md", readme())


def summarised(comparison: compare.Comparison) -> str:
    """A comparison as a summary, one row a line."""
    frames = {name: comparison.frame(name)[names.split()] for name, names in _KEPT.items()}
    scores = frames["scores"]
    kept = scores.metric.isin(["nll", "floor", "ceiling"]) | scores.metric.str.startswith("error_")
    frames["scores"] = scores[scores.headline.astype(bool) | kept]
    return _written(_facts(comparison), frames)


def _written(facts: dict[str, Any], frames: dict[str, pandas.DataFrame]) -> str:
    parts = [f' "{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in facts.items()]
    for name, frame in frames.items():
        rows = ",\n   ".join(json.dumps([_rounded(value) for value in row]) for row in frame.itertuples(index=False))
        data = f"[\n   {rows}\n  ]" if rows else "[]"
        parts.append(f' "{name}": {{\n  "columns": {json.dumps(list(frame))},\n  "data": {data}\n }}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def pruned(content: dict[str, Any]) -> str:
    """A summary without the runs of tasks and protocols that have changed since, their numbers and their notes."""
    kept = [run for run in content["runs"] if is_of_today(run)]
    tasks = {run["task"] for run in kept}
    tables = {
        name: pandas.DataFrame(content[name]["data"], columns=content[name]["columns"], dtype=object) for name in _KEPT
    }
    protocols = {run["protocol"] for run in kept}
    named = [(note, re.match(r"(?:protocol )?([\w:=,.]+@\w+)", note)) for note in content["notes"]]
    notes = [note for note, name in named if name is None or name[1] in protocols]
    facts = {"baseline": content["baseline"], "notes": notes, "runs": kept}
    return _written(facts, {name: table[table.task.isin(tasks)] for name, table in tables.items()})


def is_of_today(run: dict[str, Any]) -> bool:
    """Whether a run measured a task, or a protocol, as it is today."""
    if run["task"] == PPL:
        return bool(run["version"] == perplexity.VERSION)
    task = parse_measure(run["task"])
    return (run["version"], run["task_fingerprint"]) == (task.version, task.fingerprint)


def _facts(comparison: compare.Comparison) -> dict[str, Any]:
    groups: dict[str, dict[str, Any]] = {}
    for run in comparison.runs:
        shared = {key: run[key] for key in _SHARED}
        group = groups.setdefault(
            json.dumps(shared, sort_keys=True),
            {**shared, "runs": 0, "seconds": 0.0, "models": {}, "commands": [], "started": run["started"][:10]},
        )
        group["runs"] += 1
        group["seconds"] = round(group["seconds"] + run["seconds"], 1)
        group["models"][f"{run['model']} {run['encoding']}"] = run["fingerprint"]
        group["commands"] += [command for command in run["command"].split("\n") if command not in group["commands"]]
    # Notes about models and runs are in `runs` already.
    notes = [note for note in comparison.notes if not re.match(r"runs? ", note) and "training length " not in note]
    return {"baseline": comparison.baseline, "notes": notes, "runs": list(groups.values())}


def _rounded(value: Any) -> Any:
    """A number with six significant digits; None for NaN and infinity."""
    value = value.item() if hasattr(value, "item") else value
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else None


def with_demo(page: str, printed: str) -> str:
    """The project's README with the table that the demo prints in place of the one before."""
    table = printed.split("\n\n")[0]
    block = "".join(f"{line.rstrip()}\n" for line in table.splitlines())
    replaced, n = re.subn(
        r"(`hope-eval demo`:\n\n```\n).*?(?=```)", lambda match: match[1] + block, page, count=1, flags=re.DOTALL
    )
    assert n, "the README shows no demo"
    return replaced


def readme() -> str:
    """README.md, from README.in.md and the summaries that it names."""
    text = (HERE / "README.in.md").read_text("utf-8")
    return _NOTICE + re.sub(
        r"^\{\{(\S+) (\S+)(.*)\}\}\n", lambda match: _part(*match.groups()), text, flags=re.MULTILINE
    )


def _part(name: str, kind: str, filters: str) -> str:
    if name == "zoo":
        return _ZOO[kind]()
    if name == "definitions":
        words = filters.strip().split("|") if filters.strip() else list(_DEFINED[kind])
        return "".join(f"- *{word}*: {_DEFINED[kind][word]}\n" for word in words)
    wanted = dict(word.split("=", 1) for word in filters.split())
    against = wanted.pop("against", "").split()
    summary = Summary.read(name).where(**wanted)
    if kind == "findings":
        return "".join(_findings(summary, against))
    if kind in _LISTED:
        return "".join(f"{line}\n" for line in _LISTED[kind](summary))
    stream = StringIO()
    console = Console(file=stream, width=10_000)
    for block in comparison_tables.blocks(summary, (kind,)):
        draw(block.grid, "markdown", (), console)
        stream.write("\n")
    return stream.getvalue()[:-1]


_DEFINED = {"sentences": shows.DEFINITIONS, "gate": gate.DEFINITIONS, "reach": reach.DEFINITIONS}


def _findings(summary: Summary, against: list[str]) -> Iterator[str]:
    """Yield what each task and metric shows, as the report says it."""
    rows = [frames.rows_of(summary.frame(name)) for name in ("scores", "differences", "reach")]
    results = frames.Results(*rows, [])
    for topic in results.topics:
        for name, sentences in shows.of_topic(results, topic, against):
            yield "".join([f"- **{name}**\n", *(f"  - {sentence}\n" for sentence in sentences)])


def _commands(summary: Summary) -> Iterator[str]:
    yield "```console"
    yield from (f"$ {command}" for command in dict.fromkeys(text for run in summary.runs for text in run["commands"]))
    yield "```"


def _provenance(summary: Summary) -> Iterator[str]:
    for run in summary.runs:
        versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items() if name != "python")
        task = f" ({run['task_fingerprint'][:8]})" if run["task_fingerprint"] else ""
        texts = f"{run['corpus']} ({run['corpus_fingerprint']})" if run["corpus_fingerprint"] else run["corpus"]
        took = f", {run['seconds']:.0f} s" if run["seconds"] else ""
        yield (
            f"- {run['protocol']}{task}: {run['runs']} runs{took}; {texts}; {run['dtype']} on "
            f"{run['machine']}, {run['started']}; {versions}"
        )


# Parts of a summary that are lines of text.
_LISTED = {
    "notes": lambda summary: (f"- {note}" for note in summary.notes),
    "commands": _commands,
    "provenance": _provenance,
}


def _models() -> str:
    """What the bundled models are, in one sentence each."""
    facts = {name.removeprefix(zoo.PREFIX): zoo.facts(name) for name in zoo.names()}
    same = {key: sorted({one[key] for one in facts.values()}) for key in ("train_length", "tokens", "seed")}
    assert all(len(values) == 1 for values in same.values()), same
    sizes = sorted(one["n_parameters"] - one["n_encoding_parameters"] for one in facts.values())
    return (
        f"{len(facts)} models ({listed(list(facts))}), which differ in their encoding only. Each has "
        f"{sizes[0]:,} parameters, those of its encoding not counted, and was trained at {span(same['train_length'])} "
        f"tokens, on {same['tokens'][0]:,} tokens, with seed {same['seed'][0]}.\n"
    )


def _command() -> str:
    """The commands that trained the bundled models."""
    commands = dict.fromkeys(zoo.facts(name)["command"] for name in zoo.names())
    return "".join(["```console\n", *(f"$ {command}\n" for command in commands), "```\n"])


def _cost() -> str:
    """The cost of training each bundled model, as a table."""
    lines = [
        "| encoding | parameters of its own | seconds | tokens/s | peak memory | machine |",
        "|---|---:|---:|---:|---:|---|",
    ]
    for name in zoo.names():
        one = zoo.facts(name)
        lines.append(
            f"| {name.removeprefix(zoo.PREFIX)} | {one['n_encoding_parameters']:,} | {one['seconds']:.0f} | "
            f"{one['tokens'] / one['seconds']:,.0f} | {one['peak_memory_gib']:.2f} GiB | {one['machine']} |"
        )
    return "".join(f"{line}\n" for line in lines)


_ZOO = {"models": _models, "command": _command, "cost": _cost}


if __name__ == "__main__":
    main()
