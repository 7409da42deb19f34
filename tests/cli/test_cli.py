import csv
import io
import json
import resource
import shutil
import subprocess
import sys
import weakref

import pytest
import torch
from commands import hope_eval
from conftest import tiny_module
from rich.console import Console

from hope_eval.model import checkpoint as checkpoints
from hope_eval.model.reading import Reader
from hope_eval.model.scoring import LanguageModel
from hope_eval.show.tables import render


@pytest.fixture
def ppl(checkpoint, stories, tmp_path):
    def run(*arguments, code: int = 0):
        fixed = ("--model", checkpoint, "--data", stories, "--out", tmp_path / "runs", "--device", "cpu")
        return hope_eval("ppl", *fixed, *arguments, code=code)

    return run


def test_the_main_command_prints_a_table(ppl):
    result = ppl("--lengths", "32,64,256")
    lines = result.stdout.splitlines()
    assert [word for word in lines[1].split() if word.isdigit()] == ["32", "64", "256"]
    assert sum("perplexity" in line for line in lines) == 1
    assert sum("bits per byte" in line for line in lines) == 1
    row = next(line for line in lines if "perplexity" in line)
    marks = [word.endswith("*") for word in row.split()[-3:]]
    assert marks == [False, False, True], "the training length is 64"
    assert "* beyond the training length" in result.stdout
    assert "ppl@prefix" in result.stdout
    assert "3 documents of stories.jsonl" in result.stdout
    assert "1 with fewer than 255 tokens left out" in result.stdout
    assert "training length 64 (max_position_embeddings)" in result.stdout


def test_the_same_command_again_resumes(ppl):
    first = ppl("--lengths", "32,64", "--format", "csv")
    assert "already done" not in first.stderr
    again = ppl("--lengths", "32,64", "--format", "csv")
    assert "256 of 256 tokens were already done" in again.stderr
    assert again.stdout == first.stdout


def test_more_samples_go_on_with_the_run_of_fewer(ppl, tmp_path):
    ppl("--lengths", "32,64", "--samples", "1")
    result = ppl("--lengths", "32,64", "--samples", "3")
    assert "64 of 192 tokens were already done" in result.stderr
    assert len(list((tmp_path / "runs").iterdir())) == 1
    fewer = json.loads(ppl("--lengths", "32,64", "--samples", "1", "--format", "json").stdout)
    assert {row["n"] for row in fewer} == {1}
    assert {row["low"] for row in fewer} == {None}, "one document allows no interval"


def test_a_change_is_another_run_and_never_a_stale_hit(checkpoint, stories, tmp_path):
    changed = shutil.copytree(checkpoint, tmp_path / "b" / checkpoint.name)
    tiny_module(seed=1).save_pretrained(changed)
    fixed = ("--data", stories, "--device", "cpu", "--lengths", "32", "--format", "csv", "--out", tmp_path / "runs")
    other_text = tmp_path / stories.name
    other_text.write_text(stories.read_text().replace("ships", "boats"))
    tables = {
        hope_eval("ppl", "--model", model, *fixed, *more).stdout
        for model, more in [
            (checkpoint, ()),
            (changed, ()),
            (checkpoint, ("--dtype", "bfloat16")),
            (checkpoint, ("--encoding", "hope")),
            (checkpoint, ("--encoding", "hope:multiplier=2")),
            (checkpoint, ("--prefix", "none")),
            (checkpoint, ("--protocol", "windows")),
            (checkpoint, ("--protocol", "windows", "--tokens", "100")),
            (checkpoint, ("--train-length", "32")),
            (checkpoint, ("--data", other_text)),
            (checkpoint, ("--seed", "1", "--samples", "1")),
        ]
    }
    assert len(tables) == 11
    assert len(list((tmp_path / "runs").iterdir())) == 11


def test_a_narrow_terminal_gets_lengths_one_below_the_other():
    rows = [
        {"model": "m", "encoding": "rope", "task": "ppl", "train_length": 64, "metric": "perplexity", "status": "ok",
         "run": "r", "length": length, "label": "", "value": 12.345, "low": 11.0, "high": 13.0}
        for length in (32, 64, 128, 256)
    ]  # fmt: skip
    for width, n_lines in ((200, 1), (80, 4)):
        stream = io.StringIO()
        render(rows, "table", console=Console(file=stream, width=width, highlight=False))
        text = stream.getvalue()
        assert sum("12.3" in line for line in text.splitlines()) == n_lines
        assert text.count("[11.00, 13.00]") == 4
        assert all(len(line) <= width for line in text.splitlines())


def test_models_and_encodings_make_one_table(ppl, checkpoint):
    result = ppl("--lengths", "32,256", "--encoding", "native", "--encoding", "hope", "--format", "markdown")
    lines = [line for line in result.stdout.splitlines() if line.startswith("|")]
    assert lines[0] == "| model | encoding | trained at | metric | 32 | 256 |"
    assert [line.split("|")[2].strip() for line in lines[2:]] == ["rope", "hope(swap)"] * 2


def test_formats(ppl):
    rows = json.loads(ppl("--lengths", "32,256", "--format", "json").stdout)
    assert {row["metric"] for row in rows} == {"perplexity", "nll", "bits_per_byte"}
    keys = {"model", "encoding", "task", "protocol", "length", "metric", "value", "low", "high", "n"}
    assert all(keys <= row.keys() for row in rows)
    table = list(csv.DictReader(io.StringIO(ppl("--lengths", "32,256", "--format", "csv").stdout)))
    assert [float(row["value"]) for row in table] == [row["value"] for row in rows]
    latex = ppl("--lengths", "32,256", "--format", "latex").stdout
    assert r"\begin{tabular}{llrlrr}" in latex
    assert latex.count(r"\\") == 3
    assert "$^{*}$" in latex


def test_other_protocols_are_filled_from_a_run(ppl, tmp_path):
    ppl("--lengths", "256")
    (run,) = (tmp_path / "runs").iterdir()
    rows = json.loads(hope_eval("ppl", "--from", run, "--protocol", "bucket", "--format", "json").stdout)
    assert {row["label"] for row in rows} == {"32-64", "64-128", "128-256"}
    hope_eval("ppl", "--from", run, "--model", "x", code=1)
    assert "no run at" in hope_eval("ppl", "--from", tmp_path, code=1).stderr


def test_default_lengths_follow_the_training_length(ppl):
    rows = json.loads(ppl("--format", "json").stdout)
    assert sorted({row["length"] for row in rows}) == [32, 64, 128, 256]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["--lengths", "64,32"], "lengths must ascend", "--lengths 32,64"),
        (["--lengths", "1"], "at least 2", "--lengths"),
        (["--lengths", "many"], "`many` is not a valid length", "2k,8k"),
        (["--encoding", "hoep"], "no position encoding is called `hoep`", "did you mean `hope`"),
        (["--model", "no/such/folder"], "no checkpoint at", "give a folder"),
        (["--data", "nowhere.txt"], "no text at", "--data"),
        (["--protocol", "slidng"], "no protocol is called", "did you mean `sliding`"),
        (["--lengths", "8k"], "the longest has", "lower --lengths"),
        (["--stride", "4"], "has no parameter `stride`", "--protocol"),
        (["--device", "abacus"], "cannot be used", "--device auto"),
        (["--dtype", "float7"], "no dtype", "bfloat16"),
        (["--out", __file__ + "/x"], "cannot write", "--out"),
    ],
)
def test_bad_input_is_one_error_and_a_hint(ppl, arguments, message, hint, tmp_path):
    result = ppl(*arguments, code=1)
    error, _, advice = result.stderr.strip().rpartition("\nhint: ")
    assert message in error
    assert hint in advice
    assert "Error: " in error
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert not (tmp_path / "runs").exists(), "nothing half-written"


def test_nan_is_marked_and_the_exit_code_is_1(ppl, monkeypatch):
    own = LanguageModel.score

    def score(self, samples):
        scores = own(self, samples)
        for one in scores:
            one.nll[40:] = float("nan")
        return scores

    monkeypatch.setattr(LanguageModel, "score", score)
    result = ppl("--lengths", "32,64", "--format", "json", code=1)
    by_length = {row["length"]: row for row in json.loads(result.stdout)}
    assert by_length[64] | {"status": "nan", "value": None} == by_length[64]
    assert by_length[32]["status"] == "ok"
    assert "NaN" in result.stderr


def test_out_of_memory_is_marked_and_explained(ppl, monkeypatch):
    own = Reader.forwarded

    def scored(self, samples):
        if samples[0].n_read > 100:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 62.60 GiB.")
        return own(self, samples)

    monkeypatch.setattr(Reader, "forwarded", scored)
    result = ppl("--lengths", "32,64,256")
    assert "oom*" in result.stdout
    assert "could not read 256 tokens" in result.stdout


def test_encodings_lists_and_explains():
    listed = hope_eval("encodings").stdout
    for name in ("rope", "hope", "nope"):
        assert f" {name} " in listed
    shown = hope_eval("encodings", "hope", "--length", "512", "--head-dim", "64").stdout
    assert "16 of 32 pairs are rotated" in shown
    assert "did you mean" in hope_eval("encodings", "hoep", code=1).stderr


def test_help_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys\nfrom hope_eval.cli import main\n"
        "try:\n    main(['ppl', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)

    def seconds(*arguments):
        """Return seconds of the processor, which do not grow because other tests run; the fewest of five."""
        taken = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(taken)

    # Promised: 0.3 s where click alone takes 0.06 s. Some machines take three times as long for both.
    assert seconds("-m", "hope_eval", "--help") < 8 * seconds("-c", "import click")


@pytest.mark.parametrize("command", [[], ["ppl"], ["encodings"]])
def test_every_command_has_help_with_an_example(command):
    assert "hope-eval " + (command[0] if command else "ppl") in hope_eval(*command, "--help").stdout.split("Options")[0]


def test_usage_errors_exit_with_2():
    hope_eval("ppl", "--no-such-option", code=2)
    hope_eval("ppl", "--format", "xml", code=2)


def test_no_two_models_are_in_memory_at_once(checkpoint, stories, tmp_path, monkeypatch):
    loaded, alive = [], []
    own = checkpoints.load_checkpoint

    def watched(name, **how):
        alive.append(sum(module() is not None for module in loaded))
        one = own(name, **how)
        loaded.append(weakref.ref(one.module))
        return one

    monkeypatch.setattr(checkpoints, "load_checkpoint", watched)
    hope_eval("ppl", *["--model", checkpoint] * 3, "--data", stories, "--lengths", "8", "--out", tmp_path)
    assert alive == [0, 0, 0]


def test_a_fault_of_ours_is_one_line_and_its_traceback_a_file(tmp_path, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("boom\nsecond line")

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("hope_eval.runs.manage.runs_in", fail)
    said = hope_eval("runs", code=1).stderr.splitlines()
    assert said[0] == "Error: this is a fault of hope-eval: RuntimeError: boom"
    (file,) = (tmp_path / "hope-eval").iterdir()
    assert said[1] == f"hint: please report it with the command and the file {file}"
    assert 'RuntimeError("boom' in file.read_text()


@pytest.mark.parametrize(("command", "kept"), [("runs", "rerun the command"), ("train", "the last checkpoint of each")])
def test_an_interrupt_is_one_line_that_says_what_is_kept(command, kept, tmp_path, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("hope_eval.runs.manage.runs_in", interrupt)
    monkeypatch.setattr("hope_eval.train.jobs.prepare_all", interrupt)
    arguments = ["rope", "--out", tmp_path / "out"] if command == "train" else []
    said = hope_eval(command, *arguments, code=130).stderr
    assert said.startswith("Error: interrupted\nhint: ")
    assert kept in said


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        Exception("No space left on device (os error 28)"),
        OSError("456126 requested and 99968 written"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 2499520 vs 2499408"),
    ],
)
def test_a_full_disk_is_said_in_words_whatever_library_meets_it(error, tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("hope_eval.train.jobs.prepare_all", fail)
    said = hope_eval("train", "rope", "--out", tmp_path / "out", code=1).stderr
    assert said.startswith(f"Error: no space left to write {tmp_path / 'out'}; the results so far are kept\n")
    monkeypatch.setattr("hope_eval.runs.manage.runs_in", fail)
    assert "Error: no space left on the disk\n" in hope_eval("runs", code=1).stderr
