"""A process that dies at any operation on a file: the next one makes of it what one without a death makes.

An audit hook and streams of our own count what changes a file below a folder: opening it for writing, each write,
renaming, removing, truncating. At the chosen operation, and at each one after it, the process is dead: half of a write
is done, and nothing that comes later, be it in a `finally`.
"""

import builtins
import io
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
from commands import hope_eval
from sharing import Killed, files, model, processes, wanted, work

from hope_eval.runs.processes import ALONE
from hope_eval.train.loop import train
from hope_eval.train.recipe import Recipe

# The dead close no files.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")]

# Fixtures.
__all__ = ["model", "wanted"]

_CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT


class _Death:
    """Where a process dies: at operation number `at` on files below `root`; None: nowhere."""

    root: str = ""
    at: int | None = None
    n: int = 0
    looks = True

    def comes(self, path) -> bool:
        """Count an operation; whether the process is dead at it."""
        if not self.root or not self.looks or not str(path).startswith(self.root):
            return False
        self.n += 1
        return self.at is not None and self.n >= self.at


DEATH = _Death()


def _hook(event: str, arguments: tuple) -> None:
    if not DEATH.root:
        return
    writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & _WRITING
    if (writes or event in _CHANGES) and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.fsdecode(arguments[0])
        # A lock changes nothing that is kept.
        if not path.endswith(".lock") and DEATH.comes(path):
            raise Killed(event)


class _Stream:
    """A stream whose writes are counted."""

    def __init__(self, stream, path) -> None:
        self._stream, self._path = stream, path

    def __getattr__(self, name):
        return getattr(self._stream, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stream.close()

    def __iter__(self):
        return iter(self._stream)

    def write(self, data):
        if DEATH.comes(self._path):
            if DEATH.n == DEATH.at:
                self._stream.write(data[: len(data) // 2])
                self._stream.flush()
            raise Killed("write")
        return self._stream.write(data)


@pytest.fixture(scope="module", autouse=True)
def hooked():
    """The hook, which stays as long as Python, and streams that count."""
    sys.addaudithook(_hook)
    opened = io.open

    def counting(file, mode="r", *arguments, **options):
        stream = opened(file, mode, *arguments, **options)
        is_ours = DEATH.root and isinstance(file, str | os.PathLike) and str(file).startswith(DEATH.root)
        return _Stream(stream, file) if is_ours and set(mode) & set("wax+") else stream

    io.open = builtins.open = counting
    yield
    io.open = builtins.open = opened


def dies(act, root: Path, at: int | None) -> int:
    """Do something that dies at an operation below a folder; gives the number of operations until then."""
    DEATH.root, DEATH.at, DEATH.n = str(root), at, 0
    try:
        act()
    except Killed:
        assert at is not None
    finally:
        n, DEATH.root = DEATH.n, ""
    return n


def each_death(prepare, act, contents, tmp_path: Path, fewest: int) -> None:
    """Die at each operation of `act` in a folder that `prepare` has made, act again, and compare the contents."""
    whole = tmp_path / "whole"
    prepare(whole)
    n = dies(lambda: act(whole), whole, None)
    wanted = contents(whole)
    assert n >= fewest
    for at in range(1, n + 1):
        root = tmp_path / str(at)
        prepare(root)
        dies(lambda root=root: act(root), root, at)
        act(root)
        assert contents(root) == wanted, f"after a death at operation {at} of {n}"
        shutil.rmtree(root)


@pytest.mark.parametrize(("task", "fewest"), [(False, 35), (True, 60)])
def test_a_measurement(task, fewest, model, wanted, tmp_path):
    each_death(Path.mkdir, lambda root: raised(work(ALONE, model, root, task)), files, tmp_path, fewest)


def raised(result):
    """`work` catches a death; this passes it on."""
    if DEATH.at is not None and DEATH.root and DEATH.n >= DEATH.at:
        raise Killed
    return result


@pytest.mark.parametrize(("task", "fewest"), [(False, 35), (True, 60)])
def test_the_merging_of_shards(task, fewest, model, wanted, tmp_path):
    shared = tmp_path / "shared"
    for ranks in processes(shared, 2):
        work(ranks, model, shared, task)
        ranks.close()
    shutil.rmtree(shared / ".sessions")
    each_death(
        lambda root: shutil.copytree(shared, root),
        lambda root: raised(work(ALONE, model, root, task)),
        files,
        tmp_path,
        fewest,
    )
    assert files(tmp_path / "whole") == wanted[task]


def test_a_training(tmp_path):
    recipe = Recipe(
        "rope", size="32x1x1", train_length=96, tokens=96 * 8 * 4, batch_tokens=96 * 8, texts=("python:click",),
        mix=(("copy", 0.2),),
    )  # fmt: skip
    work_folder = tmp_path / "work"
    train(recipe, tmp_path / "first", work=work_folder, device="cpu", save_steps=1)

    def contents(out: Path):
        log = [json.loads(line) for line in (out / "training.jsonl").read_text().splitlines()]
        curve = [{key: value for key, value in entry.items() if key != "seconds"} for entry in log]
        names = sorted(path.name for path in out.iterdir())
        return names, curve, (out / "model.safetensors").read_bytes(), (out / "tokenizer.json").read_bytes()

    each_death(
        lambda out: None,
        lambda out: train(recipe, out, work=work_folder, device="cpu", save_steps=1),
        contents,
        tmp_path,
        20,
    )


def test_a_report(model, tmp_path):
    runs = tmp_path / "runs"
    work(ALONE, model, runs, False)

    def contents(root: Path):
        return sorted(path.name for path in root.iterdir()), (root / "report.html").read_bytes()

    each_death(
        Path.mkdir,
        lambda root: hope_eval("report", runs, "--out", root / "report.html"),
        contents,
        tmp_path,
        2,
    )
