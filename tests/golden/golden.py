"""The golden run: what hope-eval measures and prints, pinned before its modules move and after.

A refactor must not change a number, the name of a run, or a byte of its records. This script runs the commands of
hope-eval with the code of a checkout, and writes hashes of all that they leave behind. It knows that code by its
command line and by its files only, so that the same script runs old code and new code.

    python tests/golden/golden.py make    --code CHECKOUT --out DIR   # run all; 20 minutes on two idle cores
    python tests/golden/golden.py compare tests/golden/hashes.json DIR/hashes.json
    python tests/golden/golden.py start   --code OLD --out HALF       # every second run, each killed in the middle
    python tests/golden/golden.py finish  --code NEW --out HALF       # goes on with all of them, and makes the rest

`--only NAME` (repeatable) takes the commands whose names begin so, for a short check; those that read runs need those
that measure them. `make` and `finish` go on where they were stopped: a command that is done has a file in DIR/done,
which can be removed to run it again. `hash` makes hashes.json anew, and runs nothing.

DIR/runs holds the runs, a folder a command. DIR/out holds what was printed, drawn or written, as it was; DIR/normal the
same without paths, dates, seconds, versions, memory and machine. Differences can be read there. DIR/hashes.json has

    runs      of each run: its name, a hash of its identity, hashes of its records and arrays
    outputs   of each output: exit code; hashes of its numbers, of the numbers in its notes, and of its words

`compare` lists every difference, and exits with 1 if there is one. Words may be rewritten on purpose: where nothing but
words differs it says so, and that is no difference unless `--words` is given.

hashes.json is of the models and tasks before prompts of all lengths were trained on: make it again before code moves.

The outcome holds for one thread a process, for the versions of Python, torch, transformers and numpy that it was made
with, and for the processor; hashes.json names the versions. The texts are those of Python's standard library.
"""

import argparse
import concurrent.futures
import contextlib
import hashlib
import html.parser
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

Json = Any

ZOO = ("zoo:rope", "zoo:hope", "zoo:alibi", "zoo:learned")
TASKS = {
    "copy": ("copy", "copy_text", "copy_shuffled", "ngram_prefix", "ngram_suffix", "duplicate_ngram", "copy_distance"),
    "retrieve-keys": ("associative_recall", "key_value"),
    "retrieve-needles": ("needle", "needle_multi_key", "needle_multi_value", "needle_multi_query"),
    "retrieve-numbers": ("passkey", "recency_decoy", "variable_tracking"),
    "fewshot": ("instruction_at_distance", "label_map", "rule_induction"),
}
PROTOCOLS = {
    "prefix": ("64,128,256,512",),
    "bucket": ("64,128,256,512",),
    "last-k": ("128,256,512", "--k", "64"),
    "windows": ("64,128,256,512",),
    "sliding": ("128,256,512", "--stride", "64"),
    "rolling": ("64,128,256,512", "--tokens", "700"),
    "paired": ("64,128,256,512", "--k", "64"),
}

# Lines are as wide as they need, and nothing is in colour.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "COLUMNS": "200",
    "NO_COLOR": "1",
    "TERM": "dumb",
    "PYTHONHASHSEED": "0",
}

# What a number must not stand next to, to be one: letters and digits of a name.
_NUMBER = re.compile(r"(?<![\w.\-])[-+\u2212]?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w)")

# What tells of the machine, the time and the state of the code.
_PASSING = {
    "command", "machine", "versions", "commit", "started", "seconds", "peak_memory_gib", "free_bytes",
}  # fmt: skip

# Records of a run that is not in hashes.json, before it is killed.
_SOME_RECORDS = 6

_LOADER = '''
"""A model of the zoo for which reads of more than 200 tokens do not fit into memory."""

import os

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import hope_eval


def narrow(name):
    folder = os.environ["GOLDEN_ZOO"] + "/rope"
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def check(decoder, arguments, options):
        ids = options.get("input_ids", arguments[0] if arguments else None)
        if ids is not None and ids.numel() > 200:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 62 GiB.")

    module.base_model.register_forward_pre_hook(check, with_kwargs=True)
    return module, AutoTokenizer.from_pretrained(folder)
'''


@dataclass(frozen=True)
class Command:
    """One command.

    words: its arguments. {out} is the folder of the golden run, {runs:A,B} the runs of commands whose names begin so.
    to:    where it measures; the name of the command, or that of another; empty: it measures nothing.
    file:  the ending of what it writes beside what it prints.
    form:  what it prints: table, json, csv or text.
    """

    name: str
    words: Sequence[str]
    to: str = ""
    file: str = ""
    form: str = "table"


@dataclass
class Golden:
    """A folder of a golden run, and the code that it is made with."""

    code: Path
    out: Path
    only: Sequence[str] = ()
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def chosen(self, commands: Sequence[Command]) -> list[Command]:
        """Return the commands that are asked for."""
        return [one for one in commands if not self.only or one.name.startswith(tuple(self.only))]

    def prepare(self) -> None:
        """Write texts, labelled texts, the loader and models of two seeds."""
        for name in ("runs", "out", "err", "normal", "done", "given"):
            (self.out / name).mkdir(parents=True, exist_ok=True)
        given = self.out / "given"
        (given / "narrow.py").write_text(_LOADER, "utf-8")
        words = ("the", "of", "a", "red", "small", "house", "tree", "river", "walks", "sees", "under", "over", "seven",
                 "nine", "and", "but", "or", "quickly", "never")  # fmt: skip
        lines = []
        for number, n in enumerate((900, 20, 1500, 700, 60, 1100, 800)):
            text = " ".join(words[(i * i * (number + 3) + i // 7 + number) % len(words)] for i in range(n))
            lines.append(json.dumps({"text": text}))
        (given / "texts.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
        labelled = ["text,label"]
        for i in range(160):
            kind = ("animal", "tool", "place", "dish")[i % 4]
            labelled.append(f"{words[i % len(words)]} {words[(3 * i) % len(words)]} {kind[:2]} {i},{kind}")
        (given / "labelled.csv").write_text("\n".join(labelled) + "\n", "utf-8")
        for seed in (0, 1):
            folder = given / f"rope-{seed}"
            if not (folder / "model.safetensors").exists():
                shutil.copytree(self.zoo / "rope", folder, dirs_exist_ok=True)
        self._disturb(given / "rope-1")

    def _disturb(self, folder: Path) -> None:
        """Make another model of a copy: its last norm is weaker."""
        from safetensors.torch import load_file, save_file

        if (folder / "disturbed").exists():
            return
        weights = load_file(folder / "model.safetensors")
        name = next(key for key in weights if key.endswith("norm.weight") and "layers" not in key)
        weights[name] = weights[name] * 0.75
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "disturbed").write_text("")

    @property
    def zoo(self) -> Path:
        """The folder of the bundled models."""
        return next(path.parent.parent for path in sorted(self.code.glob("hope_eval/**/rope/model.safetensors")))

    def argv(self, command: Command) -> list[str]:
        """Return the words of a command, with paths for what stands in braces."""
        words: list[str] = []
        for word in command.words:
            if word.startswith("{runs:"):
                words += [str(path) for path in self.runs_of(word[6:-1].split(","))]
            elif word.startswith("{from:"):
                words += [part for path in self.runs_of(word[6:-1].split(",")) for part in ("--from", str(path))]
            else:
                words.append(word.replace("{out}", str(self.out)))
        if command.to:
            words += ["--out", str(self.out / "runs" / command.to)]
        if command.file:
            words += ["--out", str(self.out / "out" / f"{command.name}{command.file}")]
        return [sys.executable, "-m", "hope_eval", *words]

    def runs_of(self, names: Sequence[str]) -> list[Path]:
        """Return the runs of the commands whose names begin so; `NAME/BEGIN`: those whose own names begin so too."""
        found = []
        for name in names:
            command, _, own = name.partition("/")
            pattern = f"{command}/{own}*/run.json" if own else f"{command}*/*/run.json"
            found += [path.parent for path in (self.out / "runs").glob(pattern)]
        return sorted(set(found), key=lambda path: (path.parent.name, path.name))

    def begin(self, command: Command) -> subprocess.Popen[bytes]:
        """Start a command; what it prints goes into files."""
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "OMP_", "WORLD_"))}
        environment |= {**ENVIRONMENT, "PYTHONPATH": str(self.code), "GOLDEN_ZOO": str(self.zoo)}
        with (
            (self.out / "out" / f"{command.name}.txt").open("wb") as out,
            (self.out / "err" / f"{command.name}.txt").open("wb") as err,
        ):
            return subprocess.Popen(
                self.argv(command), cwd=self.code, env=environment, stdout=out, stderr=err, start_new_session=True
            )

    def run(self, command: Command) -> None:
        """Run a command to its end, unless that was done."""
        done = self.out / "done" / f"{command.name}.json"
        if done.exists():
            return
        start = time.monotonic()
        code = self.begin(command).wait()
        seconds = round(time.monotonic() - start, 1)
        print(f"{command.name}: exit {code}, {seconds} s", flush=True)
        done.write_text(json.dumps({"code": code, "seconds": seconds}) + "\n")

    def kill(self, command: Command, most: int) -> None:
        """Run a command until so many records are written, and kill it."""
        if (self.out / "done" / f"{command.name}.json").exists():
            return
        process = self.begin(command)
        folder = self.out / "runs" / command.to
        while process.poll() is None:
            if (n := n_records(folder)) >= most:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                print(f"{command.name}: killed at {n} records, {n_records(folder)} are written", flush=True)
                return
            time.sleep(0.01)
        print(f"{command.name}: finished before it was killed, exit {process.returncode}", flush=True)

    def all(self, commands: Sequence[Command], act: Callable[[Command], None]) -> None:
        """Do something with each command, two at a time."""
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for future in [pool.submit(act, command) for command in commands]:
                future.result()


def n_records(folder: Path) -> int:
    """Return how many records are in the runs of a folder, and in their shards."""
    n = 0
    for path in folder.rglob("records.jsonl"):
        with contextlib.suppress(OSError):
            n += path.read_bytes().count(b"\n")
    return n


def _models(*names: str) -> list[str]:
    return [word for name in names for word in ("--model", name)]


def _tasks(*names: str) -> list[str]:
    return [word for name in names for word in ("--task", name)]


def measuring() -> list[Command]:
    """Return the commands that measure, those that take longest first."""
    three = ("--samples", "3")
    found = []
    for family, tasks in TASKS.items():
        words = [family.split("-")[0], *_models(*ZOO), *_tasks(*tasks), "--lengths", "64,256,512", *three]
        found.append(Command(f"main-{family}", words))
    for protocol, (lengths, *more) in PROTOCOLS.items():
        words = ["ppl", *_models(*ZOO), "--protocol", protocol, "--lengths", lengths, *more, *three]
        found.append(Command(f"main-ppl-{protocol}", words))
    narrow = ["--loader", "{out}/given/narrow.py:narrow", *_models("narrow")]
    until = ["--lengths", "64,128", "--samples", "50"]
    pair = _models("zoo:rope", "zoo:alibi")
    seeds = [*_models("{out}/given/rope-0", "{out}/given/rope-1"), "--pool-seeds", "--lengths", "128,256"]
    swaps = [
        word for name in ("native", "yarn:factor=4", "hope", "dynamic_ntk:factor=2") for word in ("--encoding", name)
    ]
    short = ["--lengths", "128,320", "--samples", "3"]
    texts = ["--data", "{out}/given/texts.jsonl"]
    others: dict[str, list[str]] = {
        "until-ppl": ["ppl", *pair, *until, "--until-ci", "0.25"],
        "until-ppl-windows": ["ppl", *pair, *until, "--protocol", "windows", "--until-ci", "0.2"],
        "until-recall": ["retrieve", *pair, *_tasks("associative_recall"), *until, "--until-ci", "0.12"],
        "until-copy": ["copy", *pair, *_tasks("duplicate_ngram"), *until, "--until-ci", "0.1"],
        "oom-ppl": ["ppl", *narrow, "--lengths", "64,128,256,512", *three],
        "oom-ppl-windows": ["ppl", *narrow, "--protocol", "windows", "--lengths", "64,128,256", *three],
        "oom-ppl-until": ["ppl", *narrow, "--lengths", "64,256", "--samples", "40", "--until-ci", "0.25"],
        "oom-copy": ["copy", *narrow, *_tasks("copy", "ngram_prefix"), "--lengths", "128,256,512", *three],
        "oom-retrieve": ["retrieve", *narrow, *_tasks("passkey", "needle"), "--lengths", "160,256,512", *three],
        "oom-fewshot": ["fewshot", *narrow, *_tasks("instruction_at_distance"), "--lengths", "160,256", *three],
        "oom-until": ["retrieve", *narrow, *_tasks("key_value"), "--lengths", "128,256", "--samples", "40",
                      "--until-ci", "0.15"],
        "swap-ppl": ["ppl", *_models("zoo:rope"), *swaps, *short],
        "swap-tasks": ["retrieve", *_models("zoo:rope"), *swaps, *_tasks("passkey", "associative_recall"), *short],
        "seeds-ppl": ["ppl", *seeds, "--samples", "4"],
        "seeds-copy": ["copy", *seeds, "--samples", "4"],
        "data-ppl": ["ppl", *pair, *texts, "--lengths", "64,256", "--samples", "4", "--prefix", "none", "--seed", "3"],
        "data-sliding": ["ppl", *pair, *texts, "--lengths", "128,256", "--samples", "4", "--protocol", "sliding",
                         "--stride", "100", "--weighting", "window"],
        "data-needle": ["retrieve", *pair, *_tasks("needle"), *texts, "--distance", "50,100", *short, "--seed", "1"],
        "data-labels": ["fewshot", *pair, *_tasks("label_map:n_shots=8"), "--data", "{out}/given/labelled.csv", *short,
                        "--no-controls"],
        "depth-passkey": ["retrieve", *pair, *_tasks("passkey"), "--lengths", "256", "--samples", "12",
                          "--by", "depth"],
        "jobs-ppl": ["ppl", *pair, *short, "--protocol", "windows", "--jobs", "2"],
        "jobs-copy": ["copy", *pair, *_tasks("ngram_suffix"), "--lengths", "64,128", "--samples", "6", "--jobs", "2"],
        "suite-quick": ["run", "--suite", "quick", *_models("zoo:rope", "zoo:hope"), "--lengths", "128,256",
                        "--samples", "3"],
    }  # fmt: skip
    found += [Command(name, words) for name, words in others.items()]
    return [Command(one.name, one.words, to=one.name) for one in found]


def following() -> list[Command]:
    """Return the commands that read the runs of those that measure."""
    again = {command.name: command for command in measuring()}
    found = []
    # The same command once more finds all it needs, and prints it in another format.
    for name, form in (
        ("main-ppl-prefix", "json"), ("main-copy", "csv"), ("oom-ppl", "json"), ("until-recall", "json"),
        ("suite-quick", "csv"), ("seeds-ppl", "json"), ("main-retrieve-numbers", "latex"),
        ("main-ppl-paired", "markdown"),
    ):  # fmt: skip
        kind = form if form in ("json", "csv") else "table"
        found.append(Command(f"again-{name}-{form}", [*again[name].words, "--format", form], to=name, form=kind))
    for name, words, form in (
        ("from-bucket", ["ppl", "{from:main-ppl-prefix}", "--protocol", "bucket", "--format", "json"], "json"),
        ("from-last-k", ["ppl", "{from:main-ppl-prefix}", "--protocol", "last-k", "--k", "32"], "table"),
        ("from-fewer", ["ppl", "{from:main-ppl-windows}", "--samples", "2", "--lengths", "64,256"], "table"),
        ("from-seeds", ["ppl", "{from:seeds-ppl}", "--pool-seeds", "--format", "csv"], "csv"),
        ("from-until", ["ppl", "{from:until-ppl/ppl}", "--format", "json"], "json"),
        ("from-oom", ["ppl", "{from:oom-ppl-windows}", "--format", "json"], "json"),
        ("from-depth", ["retrieve", "{from:main-retrieve-numbers/passkey}", "--by", "depth", "--format", "json"],
         "json"),
        ("from-rule", ["fewshot", "{from:main-fewshot/rule_induction}", "--by", "rule"], "table"),
        ("from-oom-tasks", ["copy", "{from:oom-copy}", "--format", "json"], "json"),
    ):  # fmt: skip
        found.append(Command(name, words, form=form))
    for form in ("json", "csv", "table", "latex", "markdown"):
        kind = form if form in ("json", "csv") else "table"
        found.append(Command(f"compare-main-{form}", ["compare", "{runs:main-}", "--format", form], form=kind))
    for group in ("until-", "oom-", "swap-", "data-", "jobs-", "suite-"):
        words = ["compare", f"{{runs:{group}}}", "--format", "json", "--force"]
        found.append(Command(f"compare-{group}json", words, form="json"))
    main = ["{runs:main-}"]
    for name, words, form in (
        ("by-task", ["compare", *main, "--by", "task"], "table"),
        ("by-encoding", ["compare", "{runs:seeds-,main-ppl-bucket/ppl-zoo_hope}", "--by", "encoding",
                         "--format", "json"], "json"),
        ("multiples", ["compare", *main, "--columns", "multiples", "--baseline", "zoo:alibi", "--show", "differences",
                       "--format", "csv"], "csv"),
        ("reach", ["compare", *main, "--show", "reach", "--format", "csv"], "csv"),
        ("wins", ["compare", *main, "--show", "wins", "--format", "csv"], "csv"),
        ("wide", ["compare", *main, "--show", "scores", "--wide", "--format", "csv"], "csv"),
    ):  # fmt: skip
        found.append(Command(f"compare-{name}", words, form=form))
    for kind, words in (
        ("curve", ["--section", "ppl@prefix"]),
        ("accuracy", ["--task", "passkey", "--task", "associative_recall"]),
        ("heatmap", ["--task", "passkey"]),
        ("gain", []),
        ("errors", ["--task", "copy", "--task", "copy_text"]),
        ("difference", ["--section", "ppl@prefix"]),
    ):
        name = f"plot-{kind}"
        runs = {"gain": "{runs:main-ppl-paired}", "heatmap": "{runs:main-retrieve-numbers}"}.get(kind, main[0])
        found.append(Command(name, ["plot", runs, "--kind", kind, *words], file=".svg", form="text"))
    found.append(Command("plot-terminal", ["plot", *main, "--section", "ppl@prefix"]))
    found.append(Command("report-main", ["report", *main], file=".html", form="text"))
    found.append(Command("report-oom", ["report", "{runs:oom-}", "--force"], file=".html", form="text"))
    plan = [
        "plan",
        "--no-benchmark",
        *_models("zoo:rope", "zoo:learned"),
        "--lengths",
        "64,128,512",
        "--format",
        "json",
    ]
    tasks = [name for names in TASKS.values() for name in names]
    perplexities = [f"ppl:{protocol}" for protocol in ("prefix", "bucket", "windows", "rolling")]
    found.append(Command("plan-tasks", [*plan, *_tasks(*tasks), "--samples", "3"], form="json"))
    found.append(Command("plan-ppl", [*plan, *_tasks(*perplexities), "--samples", "3"], form="json"))
    swapped = [
        "plan",
        "--no-benchmark",
        *_models("zoo:rope"),
        "--encoding",
        "dynamic_ntk:factor=2",
        "--lengths",
        "64,512",
    ]
    swapped += [*_tasks("ppl", "copy"), "--samples", "30", "--until-ci", "0.1", "--format", "json"]
    found.append(Command("plan-swapped", swapped, form="json"))
    suite = ["plan", "--suite", "standard", "--no-benchmark", *_models("zoo:hope"), "--format", "json"]
    found.append(Command("plan-suite", suite, form="json"))
    for task in ("needle", "label_map", "recency_decoy"):
        found.append(Command(f"tasks-{task}", ["tasks", task, "--length", "256"], form="text"))
    return found


class _Page(html.parser.HTMLParser):
    """What a report shows above its provenance, and the data of its charts."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.charts = ""
        self._inside = ""
        self._over = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take note of scripts, of the order of cells, and of where provenance begins."""
        told = dict(attrs)
        self._over = self._over or (tag == "section" and told.get("id") == "provenance")
        self._inside = tag if tag in ("style", "script") else self._inside
        if tag == "script" and told.get("type") == "application/json":
            self._inside = "charts"
        if told.get("data-order") is not None and not self._over:
            self.texts.append(f" {told['data-order']}")

    def handle_endtag(self, tag: str) -> None:
        """Leave a script."""
        if tag in ("style", "script"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        """Keep what is shown, and the data of charts."""
        if self._inside == "charts":
            self.charts += data
        elif not self._inside and not self._over and data.strip():
            self.texts.append(data.strip())


def leaves(value: Json, path: str = "") -> Iterator[tuple[str, Json]]:
    """Yield what is no list and no mapping in a value, each with its path; what passes is left out."""
    if isinstance(value, dict):
        for key, one in sorted(value.items()):
            if key not in _PASSING:
                yield from leaves(one, f"{path}.{key}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from leaves(one, f"{path}[{number}]")
    else:
        yield path, value


def split(value: Json) -> tuple[list[str], list[str]]:
    """Return the numbers of a value of JSON, each with its path, and its words in the same way."""
    numbers: list[str] = []
    words: list[str] = []
    for path, one in leaves(value):
        (words if isinstance(one, str) else numbers).append(f"{path} {json.dumps(one, ensure_ascii=False)}")
    return numbers, words


def numbers_in(text: str) -> list[str]:
    """Return the numbers in a text, one a line."""
    return _NUMBER.findall(text)


@dataclass
class Output:
    """An output in parts: its numbers, those of its notes, and its words; one a line."""

    numbers: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    words: list[str] = field(default_factory=list)


def output_of(text: str, form: str) -> Output:
    """Return what was printed, in parts."""
    if form == "json" and text.strip():
        value = json.loads(text)
        notes = value.pop("notes", []) if isinstance(value, dict) else []
        numbers, words = split(value)
        return Output(numbers, numbers_in("\n".join(notes)), [*words, *notes])
    lines = [line.rstrip() for line in text.splitlines()]
    if form == "csv":
        return Output([number for line in lines for number in re.findall(r"[^,\n]*\d[^,\n]*", line)], [], lines)
    is_row = [line.startswith((" ", "|")) or "&" in line for line in lines]
    rows = [line for line, row in zip(lines, is_row, strict=True) if row]
    rest = [line for line, row in zip(lines, is_row, strict=True) if not row]
    return Output(numbers_in("\n".join(rows)), numbers_in("\n".join(rest)), lines)


def output_of_file(path: Path) -> Output:
    """Return what a file shows, in parts."""
    text = path.read_text("utf-8")
    if path.suffix == ".svg":
        text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.S)
        bare = re.sub(r'\b(?:id|xlink:href|style|clip-path)="[^"]*"', "", text)
        return Output(numbers_in(bare), [], re.findall(r"<text[^>]*>([^<]*)<", text))
    page = _Page()
    page.feed(text)
    numbers, words = split(json.loads(page.charts)) if page.charts else ([], [])
    shown = [one for one in page.texts if "hope-eval " not in one]
    return Output([*numbers, *numbers_in("\n".join(shown))], [], [*words, *shown])


def digest(lines: Sequence[str]) -> str:
    """Return a hash of lines."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]


def hashes(golden: Golden, commands: Sequence[Command]) -> Json:
    """Return the hashes of all runs and outputs of these commands; parts of outputs are written to be read."""
    found: dict[str, Any] = {"versions": _versions(), "runs": {}, "outputs": {}}
    names = {command.to for command in commands if command.to}
    for name in sorted(names):
        for header in sorted((golden.out / "runs" / name).glob("*/run.json")):
            run, identity = header.parent, json.loads(header.read_bytes())["identity"]
            found["runs"][f"{name}/{run.name}"] = {
                "identity": digest([json.dumps(identity, sort_keys=True)]),
                "n_records": n_records(run),
                "left": sorted(path.name for path in run.iterdir()),
                **{file: _hash_of(run / file) for file in ("records.jsonl", "arrays.bin")},
            }
    for command in commands:
        done = golden.out / "done" / f"{command.name}.json"
        if not done.exists():
            continue
        text = (golden.out / "out" / f"{command.name}.txt").read_text("utf-8")
        for path, name in ((golden.out, "OUT"), (golden.code, "CODE")):
            text = text.replace(str(path), name)
        kinds = {"": output_of(text, command.form)}
        file = golden.out / "out" / f"{command.name}{command.file}"
        if command.file and file.exists():
            kinds[command.file] = output_of_file(file)
        for ending, output in kinds.items():
            parts = {"numbers": output.numbers, "notes": output.notes, "words": output.words}
            for part, lines in parts.items():
                (golden.out / "normal" / f"{command.name}{ending}.{part}").write_text("\n".join(lines) + "\n", "utf-8")
            found["outputs"][f"{command.name}{ending}"] = {
                "code": json.loads(done.read_text())["code"],
                "n_numbers": len(output.numbers),
                **{part: digest(lines) for part, lines in parts.items()},
            }
    return found


def _hash_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "none"


def _versions() -> dict[str, str]:
    packages = ("torch", "transformers", "tokenizers", "numpy", "pandas", "matplotlib", "altair")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}


def differences(old: Json, new: Json, words: bool) -> tuple[list[str], list[str]]:
    """Return what differs, and what differs in its words only."""
    found = [f"versions: {old['versions']} and {new['versions']}"] if old["versions"] != new["versions"] else []
    rewritten = []
    for kind in ("runs", "outputs"):
        for name in sorted(old[kind].keys() | new[kind].keys()):
            one, other = old[kind].get(name), new[kind].get(name)
            if one is None or other is None:
                found.append(f"{kind} {name}: only in the {'second' if one is None else 'first'}")
                continue
            parts = [part for part in sorted(one.keys() | other.keys()) if one.get(part) != other.get(part)]
            if parts == ["words"] and not words:
                rewritten.append(name)
            elif parts:
                found.append(f"{kind} {name}: {', '.join(parts)}")
    return found, rewritten


def compare(old: Path, new: Path, words: bool, only: Sequence[str]) -> int:
    """Print what differs between two golden runs, and return the exit code."""
    one, other = (json.loads(path.read_text("utf-8")) for path in (old, new))
    for whole in (one, other):
        for kind in ("runs", "outputs"):
            whole[kind] = {k: v for k, v in whole[kind].items() if not only or k.startswith(tuple(only))}
    found, rewritten = differences(one, other, words)
    for line in found:
        print(line)
    if rewritten:
        print(f"the words of {len(rewritten)} outputs differ, and no number: {', '.join(rewritten)}")
    n = {kind: len(one[kind]) for kind in ("runs", "outputs")}
    print(f"{len(found)} differences in {n['runs']} runs and {n['outputs']} outputs")
    return bool(found)


def main() -> int:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    modes = parser.add_subparsers(dest="mode", required=True)
    for mode in ("make", "start", "finish", "hash"):
        one = modes.add_parser(mode)
        one.add_argument("--code", type=Path, required=True)
        one.add_argument("--out", type=Path, required=True)
        one.add_argument("--only", action="append", default=[])
    one = modes.add_parser("compare")
    one.add_argument("old", type=Path)
    one.add_argument("new", type=Path)
    one.add_argument("--words", action="store_true")
    one.add_argument("--only", action="append", default=[])
    given = parser.parse_args()
    if given.mode == "compare":
        return compare(given.old, given.new, given.words, given.only)
    golden = Golden(given.code.resolve(), given.out.resolve(), given.only)
    golden.prepare()
    first, then = golden.chosen(measuring()), golden.chosen(following())
    if given.mode == "start":
        known = Path(__file__).with_name("hashes.json")
        runs = json.loads(known.read_text())["runs"] if known.exists() else {}
        whole = {
            c.name: sum(run["n_records"] for name, run in runs.items() if name.startswith(f"{c.to}/")) for c in first
        }
        golden.all(first[::2], lambda command: golden.kill(command, whole[command.name] // 2 or _SOME_RECORDS))
        return 0
    if given.mode != "hash":
        golden.all(first, golden.run)
        golden.all(then, golden.run)
    found = hashes(golden, [*first, *then])
    (golden.out / "hashes.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")
    codes = {name: one["code"] for name, one in found["outputs"].items() if one["code"]}
    print(f"{len(found['runs'])} runs, {len(found['outputs'])} outputs; exit codes that are not 0: {codes or 'none'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
