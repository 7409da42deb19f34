"""`hope-eval demo` as users call it: one look, what it costs, where the report lies."""

import json

import pytest
from commands import hope_eval
from conftest import story, tiny_module
from transformers import AutoTokenizer

from hope_eval import zoo
from hope_eval.cli.progress import joint_progress
from hope_eval.errors import LengthError
from hope_eval.lengths import parse_lengths, resolved
from hope_eval.show import report


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint with a window of 160 tokens and the words that tasks need, and texts."""
    folder = tmp_path_factory.mktemp("demo")
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder("zoo:hope"))
    tiny_module(vocab_size=len(tokenizer), max_position_embeddings=160).save_pretrained(folder / "ckpt")
    tokenizer.save_pretrained(folder / "ckpt")
    texts = [json.dumps({"text": story(120, 1000 * number)}) for number in range(6)]
    (folder / "texts.jsonl").write_text("\n".join(texts) + "\n")
    return folder


@pytest.fixture(scope="module")
def demo(folder):
    """Return what runs the demo on the checkpoint."""

    def run(*arguments, code: int = 0):
        where = (
            "--model",
            folder / "ckpt",
            "--device",
            "cpu",
            "--data",
            folder / "texts.jsonl",
            "--out",
            folder / "runs",
        )
        return hope_eval("demo", *where, *arguments, code=code)

    return run


def test_the_demo_shows_one_line_an_encoding_and_resumes(demo, folder, monkeypatch):
    # The page itself has tests of its own.
    monkeypatch.setattr(report, "render", lambda content: f"{content.title}: {set(content.scores.task)}")
    first = demo("--encoding", "native", "--encoding", "nope")
    lines = first.stdout.splitlines()
    # The last line ends with a path, which may be long.
    assert max(map(len, lines[:-1])) <= 80
    assert lines[1].split() == ["encoding", *["inside", "2x", "4x"] * 3]
    assert sorted(line.split()[0] for line in lines[3:5]) == ["nope(swap)", "rope"]
    assert all(len(line.split()) == 10 for line in lines[3:5])
    text = " ".join(first.stdout.split())
    assert "At 4x the training length, " in text
    assert "Inside the training window, " in text
    # The cost stands before the progress.
    cost, *progress = first.stderr.splitlines()
    assert "tokens to read" in cost
    assert "hope-eval plan --suite demo" in cost
    assert "demo: 100 % to go" in progress
    assert lines[-1] == f"report, with all intervals: {folder / 'runs/demo.html'}"
    assert "associative_recall" in (folder / "runs/demo.html").read_text("utf-8")
    # Again, for programs: nothing is left to read.
    again = demo("--encoding", "native", "--encoding", "nope", "--format", "json")
    rows = json.loads(again.stdout)
    assert {row["task"] for row in rows} == {"ppl", "copy", "associative_recall"}
    assert {row["length"] for row in rows if row["task"] == "copy"} == {48, 96, 160, 320, 640}
    assert "demo: 100 of 100 % were already done" in again.stderr
    assert "to go" not in again.stderr
    assert "demo.html" in again.stderr


def test_an_unknown_training_length_has_a_remedy_that_every_command_takes():
    with pytest.raises(LengthError, match="--train-length"):
        resolved(parse_lengths("1x,2x"), None)


def test_help_has_examples():
    text = hope_eval("demo", "--help").stdout
    assert "hope-eval demo --model path/to/checkpoint" in text
    assert "--encoding" in text


def test_progress_over_several_pieces_counts_those_of_earlier_sessions_together(capsys):
    def run(*pieces):
        with joint_progress("demo", len(pieces)) as progress:
            for number, reports in enumerate(pieces):
                with progress(f"piece {number}") as report:
                    for done in reports:
                        report(done, 8)
        return capsys.readouterr().err.splitlines()

    assert run([0, 4, 8], [0, 8]) == ["demo: 100 % to go"]
    assert run([8], [8], [8], [4, 8]) == ["demo: 88 of 100 % were already done", "demo: 12 % to go"]
    assert run([8], [8]) == ["demo: 100 of 100 % were already done"]
