"""Files of one's own: what goes wrong in them is told with their name and line, never as a traceback."""

import sys

import pytest
from click.testing import CliRunner

from hope_eval.cli import main
from hope_eval.task import task_class

_TASK = """
from dataclasses import dataclass
from hope_eval.task import Prompt, Question, Task

@dataclass(frozen=True)
class Mine(Task):
    family = "copy"
    source = "0000.00000"
    version = 1
    one_line = "a task of one's own"

    def prompt(self, vocabulary, size, rng, joined=False):
        {body}
"""

_ENCODING = """
from hope_eval.encodings import PositionEncoding

class Mine(PositionEncoding):
    source = "0000.00000"
    formula = "nothing"

    def __init__(self, geometry):
        super().__init__(geometry)
        {init}

    def inverse_frequencies(self):
        {frequencies}
"""


def run(*arguments):
    done = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert done.exit_code == 1, done.output
    assert "Traceback" not in done.output
    return done.output


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_that_name", "`mine.py`, line 1: ModuleNotFoundError: No module named"),
        ("x = 1\n1 / 0", "`mine.py`, line 2: ZeroDivisionError: division by zero"),
        ("def (", "`mine.py`, line 1: SyntaxError: invalid syntax"),
        ("x = 3", "defines no task"),
        (_TASK.format(body="raise ValueError('boom')"), "`mine.py`, line 13: ValueError: boom"),
        (_TASK.format(body="return 3"), "`prompt` of `mine` gives int"),
        (_TASK.format(body="return Prompt([1], (Question((), ()),))"), "a question of `mine` has no target"),
        (_TASK.format(body="return Prompt([1, -5], (Question((), (3,)),))"), "[1, -5]…, which are no token ids"),
        (_TASK.format(body="return Prompt(['a'], (Question((), (3,)),))"), "['a']…, which are no token ids"),
        (_TASK.format(body="return Prompt([1], ())"), "gives no questions"),
        (_TASK.format(body="pass").replace("source", "sauce"), "the task `mine` of `mine.py` lacks source"),
    ],
)
def test_tasks(text, said, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    out = ("--lengths", "64", "--samples", "1", "--no-controls", "--out", tmp_path / "runs")
    assert said in run("copy", "--model", "zoo:nope", "--task", path, *out)


@pytest.mark.parametrize(
    ("init", "frequencies", "said"),
    [
        ("1 / 0", "return None", "line 10: ZeroDivisionError"),
        ("pass", "raise KeyError('boom')", "line 13: KeyError: 'boom'"),
        ("pass", "return 3", "`inverse_frequencies` of `mine` does not give a tensor of 32 numbers"),
    ],
)
def test_encodings(init, frequencies, said, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(_ENCODING.format(init=init, frequencies=frequencies))
    out = ("--lengths", "64", "--samples", "1", "--out", tmp_path / "runs")
    assert said in run("ppl", "--model", "zoo:rope", "--encoding", path, *out)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def load(name):\n    raise OSError('boom')", "line 2: OSError: boom"),
        ("def load(name):\n    return 3", "returned int"),
        ("def load():\n    return 3", "mine.py"),
    ],
)
def test_loaders(text, said, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(text)
    out = ("--lengths", "64", "--samples", "1", "--out", tmp_path / "runs")
    assert said in run("ppl", "--loader", f"{path}:load", *out)


def test_another_task_of_the_same_name_is_another_run(tmp_path):
    """A file is edited before its version is raised."""
    prints = set()
    for n in (3, 4):
        path = tmp_path / str(n) / "mine.py"
        path.parent.mkdir()
        path.write_text(_TASK.format(body=f"return Prompt([1], (Question((), ({n},)),))"))
        prints.add(task_class(str(path))().fingerprint)
        del sys.modules["hope_eval_tasks_of_ones_own.mine"]
    assert len(prints) == 2


def test_a_device_without_numbers_is_refused():
    assert "the device `meta` holds no numbers" in run("ppl", "--model", "zoo:nope", "--device", "meta")


@pytest.mark.parametrize("name", ["~nouser/x", "a" * 300, "a\0b", "\ud800"])
def test_an_out_that_is_no_path_is_refused(name):
    assert "cannot be a path" in run("ppl", "--model", "zoo:nope", "--lengths", "64", "--out", name)
