"""Whatever is in the folder of a run, a command ends with a result or with one error that a user understands."""

import contextlib
import json
import random
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner
from commands import hope_eval
from sharing import model, work

from hope_eval.cli import main
from hope_eval.errors import HopeEvalError
from hope_eval.runs.processes import ALONE

# Fixture.
__all__ = ["model"]

FILES = ("run.json", "records.jsonl", "arrays.bin", "sessions.jsonl")

VALUES = (
    None, True, False, -1, 0, 5, 999, 1 << 31, 10**30, -5.5, 1e308, float("nan"), float("inf"), "", "x", "\ud800",
    "\x1b[31m", "../../x", "x" * 1000, "ppl", [], [1], [None], {}, {"a": 1}, [[0, 3, 0, 3, True]],
)  # fmt: skip


@pytest.fixture(scope="module")
def sound(model, tmp_path_factory):
    """A folder with a run of perplexity and a run of a task."""
    root = tmp_path_factory.mktemp("sound")
    work(ALONE, model, root, False)
    work(ALONE, model, root, True)
    return root


def mutated(rng: random.Random, value):
    """Return a JSON value with one of its values changed, removed, or added."""
    places = []

    def collect(inner):
        items = inner.items() if isinstance(inner, dict) else enumerate(inner) if isinstance(inner, list) else ()
        for key, item in items:
            places.append((inner, key))
            collect(item)

    collect(value)
    if not places or rng.random() < 0.03:
        return rng.choice(VALUES)
    inner, key = rng.choice(places)
    if rng.random() < 0.3:
        del inner[key]
    else:
        inner[key] = rng.choice(VALUES)
    return value


def damage(rng: random.Random, run: Path) -> str:
    """Damage a file of a run; gives what was done."""
    name = rng.choice([name for name in FILES if (run / name).is_file() and (run / name).stat().st_size])
    file = run / name
    content = file.read_bytes()
    how = rng.choice(["delete", "cut", "flip", "noise", "folder", "nest", *["change"] * 6])
    if how == "delete":
        file.unlink()
    elif how == "folder":
        file.unlink()
        file.mkdir()
    elif how == "cut":
        file.write_bytes(content[: rng.randrange(len(content))])
    elif how == "flip":
        at = rng.randrange(len(content))
        file.write_bytes(content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :])
    elif how == "noise":
        at = rng.randrange(len(content))
        file.write_bytes(content[:at] + rng.randbytes(rng.randrange(1, 200)) + content[at:])
    elif how == "nest":
        file.write_bytes(b"[" * 100_000 + b"\n" + content)
    elif name != "arrays.bin":
        lines = [content] if name == "run.json" else content.splitlines()
        at = rng.randrange(len(lines))
        with contextlib.suppress(ValueError, RecursionError):
            # A second damage may meet what is no JSON any more.
            lines[at] = json.dumps(mutated(rng, json.loads(lines[at]))).encode()
        file.write_bytes(b"".join(line + b"\n" for line in lines))
    return f"{how} {name}"


def tried(seed: int, sound: Path, model, root: Path, with_report: bool = False) -> str:
    """Damage one of two runs, and use both; gives what failed with a traceback, or an empty text."""
    rng = random.Random(seed)
    shutil.copytree(sound, root)
    runs = sorted(path for path in root.iterdir() if path.is_dir())
    run = rng.choice(runs)
    done = " and ".join(damage(rng, run) for _ in range(rng.choice([1, 1, 1, 2])))
    lists = ["runs", "--out", root, "--format", rng.choice(["table", "json"])]
    commands = [lists, ["runs", "show", run], ["runs", "verify", "--out", root], ["compare", root]]
    commands += [["report", root, "--out", root / "r.html"]] * with_report
    for command in commands:
        result = CliRunner().invoke(main, list(map(str, command)))
        lines = result.stderr.strip().splitlines()
        errors = [line for line in lines if line.startswith("Error: ")]
        if result.exit_code and (not errors or "a fault of hope-eval" in result.stderr):
            return f"seed {seed}: {done}: {' '.join(map(str, command))}: {result.stderr}"
        if command == lists and result.exit_code:
            return f"seed {seed}: {done}: one run keeps the others from being listed: {result.stderr}"
    try:
        with contextlib.suppress(HopeEvalError):
            work(ALONE, model, root, run == runs[0])
    except Exception as error:
        return f"seed {seed}: {done}: resume: {error!r}"
    return ""


def tried_all(seeds, sound, model, root: Path, report_every: int) -> list[str]:
    failed = []
    for seed in seeds:
        fault = tried(seed, sound, model, root / str(seed), with_report=seed % report_every == 0)
        shutil.rmtree(root / str(seed))
        failed += [fault] if fault else []
    return failed


def test_no_damage_of_a_run_ends_in_a_traceback(sound, model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert tried_all(range(1, 61), sound, model, tmp_path, 40) == []


@pytest.mark.slow
def test_no_damage_of_a_run_ends_in_a_traceback_in_a_thousand(sound, model, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert tried_all(range(61, 1061), sound, model, tmp_path, 10) == []


@pytest.fixture
def copied(sound, tmp_path):
    """A copy of the sound runs: of perplexity, and of a task."""
    root = shutil.copytree(sound, tmp_path / "runs")
    task, ppl = sorted(root.iterdir())
    assert ppl.name.startswith("ppl")
    return root, ppl, task


def test_one_flipped_bit_is_damage_and_not_an_interruption(copied):
    root, ppl, _ = copied
    content = bytearray((ppl / "arrays.bin").read_bytes())
    content[-1] ^= 1
    (ppl / "arrays.bin").write_bytes(content)
    said = hope_eval("compare", root, code=1).stderr
    assert f"{ppl / 'arrays.bin'} is damaged at byte" in said
    assert f"hint: `hope-eval runs rm {ppl}`, then rerun its command" in said


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"hits": 999}, "more hits than tokens"),
        ({"hits": -1}, "hits"),
        ({"kind": "odd"}, "no records of the kind `odd`"),
    ],
)
def test_a_record_that_is_not_possible_is_named_with_its_run(change, why, copied):
    root, _, task = copied
    lines = (task / "records.jsonl").read_text().splitlines()
    lines[-1] = json.dumps({**json.loads(lines[-1]), **change})
    (task / "records.jsonl").write_text("\n".join(lines) + "\n")
    said = hope_eval("compare", root, code=1).stderr
    assert said.startswith(f"Error: {task} has a damaged record: ")
    assert why in said


def test_one_bad_header_keeps_no_run_from_being_listed(copied):
    root, ppl, task = copied
    header = json.loads((ppl / "run.json").read_text())
    (ppl / "run.json").write_text(json.dumps({**header, "identity": {**header["identity"], "lengths": 5}}))
    states = {
        run["id"]: run["state"] for run in json.loads(hope_eval("runs", "--out", root, "--format", "json").stdout)
    }
    assert states == {ppl.name: "bad", task.name: "ok"}
    assert "`lengths` of its identity is 5" in hope_eval("runs", "show", ppl, code=1).stderr


def test_runs_of_an_older_version_are_compared(copied):
    root, ppl, task = copied
    for run in (ppl, task):
        header = json.loads((run / "run.json").read_text())
        provenance = {key: header["provenance"][key] for key in ("family", "metric") if key in header["provenance"]}
        (run / "run.json").write_text(json.dumps({**header, "provenance": provenance}))
        (run / "sessions.jsonl").unlink()
    hope_eval("compare", root)
    hope_eval("report", root, "--out", root / "r.html")
