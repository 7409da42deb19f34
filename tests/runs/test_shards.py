"""Several processes measure what one does: the same records, whatever dies on the way."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
import torch
from asking import read
from asking import run as ask
from commands import hope_eval
from conftest import ROOT, story
from fakes import Uniform, zoo_tokenizer
from sharing import PPL, SUITE, TASK, TEXTS, Killed, files, model, processes, wanted, work

from hope_eval.errors import OptionError, StoreError
from hope_eval.model.scoring import LanguageModel
from hope_eval.protocols import protocol_named
from hope_eval.runs import launch
from hope_eval.runs import manage as runs
from hope_eval.runs import processes as meeting
from hope_eval.runs import shards as sharding
from hope_eval.runs.processes import ALONE, Ranks
from hope_eval.runs.store import RunStore, shards_of
from hope_eval.runs.token_store import TokenStore
from hope_eval.runs.verify import verify
from hope_eval.task import parse_task

# Fixtures.
__all__ = ["model", "wanted"]


def session(model, root: Path, task: bool, n: int, deaths=None) -> None:
    """Let n processes share the work, one after the other; some die after so many batches. Raises what rank 0 does."""
    deaths = deaths or {}
    group = processes(root, n)
    try:
        for ranks in group:
            work(ranks, model, root, task, deaths.get(ranks.rank))
        for ranks in reversed(group):
            if ranks.rank not in deaths:
                assert ranks.finish() == (ranks.rank == 0)
            elif ranks.rank:
                ranks.close()
    finally:
        for ranks in group:
            ranks.close()


@pytest.mark.parametrize("task", [False, True])
@pytest.mark.parametrize("n", [1, 2, 4, 13])
def test_any_number_of_processes_writes_the_same_bytes(n, task, model, wanted, tmp_path):
    if n == 1:
        work(Ranks(), model, tmp_path, task)
    else:
        session(model, tmp_path, task, n)
    assert files(tmp_path) == wanted[task]
    sessions = [json.loads(line) for line in (runs.runs_in(tmp_path)[0] / "sessions.jsonl").read_text().splitlines()]
    assert {one.get("rank", 0) for one in sessions} <= set(range(n))
    assert len(sessions) <= n


@pytest.mark.parametrize("task", [False, True])
def test_each_process_reads_its_share_and_nothing_twice(task, model, wanted, tmp_path):
    group = processes(tmp_path, 3)
    sizes = []
    for ranks in group:
        work(ranks, model, tmp_path, task)
        shard = next(iter(ranks._shards.values()))
        own = RunStore(shard.path, shard.header).records
        kinds = {record["kind"] for record in own}
        assert ("document" in kinds) <= (ranks.rank == 0)
        sizes.append(sum(record["kind"] in ("window", "answer") for record in own))
    assert sum(sizes) == sum(json.loads(line)["kind"] in ("window", "answer") for line in wanted[task][0].splitlines())
    assert max(sizes) - min(sizes) <= (1 if not task else 20)


@pytest.mark.parametrize("task", [False, True])
@pytest.mark.parametrize("then", [1, 2, 3])
def test_a_dead_process_loses_nothing_and_the_rest_finish(then, task, model, wanted, tmp_path):
    with pytest.raises(StoreError, match="process 1 of 3 ended early: it was killed; missing: ") as caught:
        session(model, tmp_path, task, 3, {1: 2})
    assert "rerun the command" in caught.value.hint
    (run,) = runs.runs_in(tmp_path)
    held = sum(RunStore(shard, {}).n_records for shard in shards_of(run))
    assert not (run / "records.jsonl").exists(), "nothing is merged while something is missing"
    # A kill in the middle of a line.
    with (shards_of(run)[1] / "records.jsonl").open("ab") as stream:
        stream.write(b'{"kind": "win')
    assert held > len(wanted[task][0].splitlines()) / 2
    if then == 1:
        read = []
        work(ALONE, model, tmp_path, task, report=lambda done, total: read.append((done, total)))
        assert read[0][0] > read[0][1] / 2, "what the shards hold is not measured again"
    else:
        session(model, tmp_path, task, then)
    assert files(tmp_path) == wanted[task]


@pytest.mark.parametrize("task", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_whatever_dies_whenever_the_records_come_out_the_same(seed, task, model, wanted, tmp_path):
    rng = random.Random(seed)
    for _ in range(4):
        n = rng.randint(1, 4)
        if n == 1:
            work(ALONE, model, tmp_path, task, rng.randint(1, 6))
            continue
        deaths = {rank: rng.randint(1, 5) for rank in range(n) if rng.random() < 0.7}
        with contextlib.suppress(StoreError):
            session(model, tmp_path, task, n, deaths)
    work(ALONE, model, tmp_path, task)
    assert files(tmp_path) == wanted[task]


def test_other_samples_than_those_of_the_shards_are_kept(model, tmp_path):
    group = processes(tmp_path, 2)
    for ranks in group:
        work(ranks, model, tmp_path, True, 6)
        ranks.close()
    store = ask(model, TASK, (256,), tmp_path, 2, controls=True)
    assert store.path == runs.runs_in(tmp_path)[0]
    assert runs.state(verify(store.path)) == "ok"
    assert {record["length"] for record in store.records} >= {200, 256}


@pytest.mark.parametrize("task", [False, True])
def test_a_merge_that_is_killed_at_any_step_is_done_again(task, model, wanted, tmp_path, monkeypatch):
    group = processes(tmp_path / "whole", 2)
    for ranks in group:
        work(ranks, model, tmp_path / "whole", task)
        ranks.close()
    (run,) = runs.runs_in(tmp_path / "whole")
    n, step, left = len(wanted[task][0].splitlines()), 0, [0]

    def killing(place, name):
        real = getattr(place, name)

        def method(*arguments, **options):
            left[0] -= 1
            if left[0] == 0:
                raise Killed
            return real(*arguments, **options)

        return method

    while True:
        # The records in the middle are much alike.
        step += max(1, n // 10) if 3 < step < n - n // 10 - 3 else 1
        again = tmp_path / str(step) / run.name
        shutil.copytree(run, again)
        header = RunStore.reading(again).header
        left[0] = step
        with monkeypatch.context() as patched:
            for place, names in ((RunStore, ("append", "sync", "log_session")), (Path, ("unlink", "rmdir"))):
                for name in names:
                    patched.setattr(place, name, killing(place, name))
            try:
                with RunStore(again, header).appending() as store:
                    sharding.merge(store, sharding.shards_in(again, header))
                survived = True
            except Killed:
                survived = False
        if not survived:
            work(ALONE, model, tmp_path / str(step), task)
        assert files(again.parent) == wanted[task]
        assert len((again / "sessions.jsonl").read_text().splitlines()) == 2
        if survived:
            break
        shutil.rmtree(again.parent)
    assert step > 20


class Narrow(Uniform):
    """Reads so many tokens and no more."""

    limit = 40

    def forward(self, ids_BL):
        if ids_BL.shape[1] > self.limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 62 GiB.")
        return super().forward(ids_BL)


@pytest.mark.parametrize("narrow", [{0}, {1}, {0, 1, 2}])
@pytest.mark.parametrize("protocol", ["prefix", "windows"])
def test_what_does_not_fit_is_read_shorter_by_the_process_that_has_it(protocol, narrow, tmp_path):
    roomy, tight = (LanguageModel("narrow", Narrow(), zoo_tokenizer(), 64) for _ in range(2))
    roomy.module.limit = 1000

    def measured(model, root, ranks=ALONE):
        return read(model, TEXTS, protocol_named(protocol), (16, 32, 64), root, ranks=ranks)

    group = processes(tmp_path / "many", 3)
    stores = [measured(tight if ranks.rank in narrow else roomy, tmp_path / "many", ranks) for ranks in group]
    shards = shards_of(runs.runs_in(tmp_path / "many")[0])
    n_read = sum(r["kind"] == "window" for shard in shards for r in RunStore(shard, {}).records)
    assert [ranks.finish() for ranks in reversed(group)] == [False, False, True]
    together = TokenStore(stores[0].store.whole())
    assert runs.state(verify(together.store.path)) == "ok"
    assert len(together.out_of_memory) == 1
    assert sum(r["kind"] == "window" for r in together.store.records) == n_read, "nothing is read twice"
    alone = measured(tight, tmp_path / "alone")
    for document in alone.documents:
        for window, _ in (pair for key, held in alone._windows.items() if key[0] == document for pair in held):
            assert together.covers(document, window)


def test_controls_come_in_the_order_of_their_task(model, tmp_path):
    task = parse_task("label_map")
    assert list(task.controls) != sorted(task.controls)
    group = processes(tmp_path / "many", 2)
    for ranks in (*group, ALONE):
        root = tmp_path / ("alone" if ranks is ALONE else "many")
        ask(model, task, (400,), root, 1, controls=True, ranks=ranks)
    assert [ranks.finish() for ranks in reversed(group)] == [False, True]
    assert files(tmp_path / "many") == files(tmp_path / "alone")


def test_a_run_that_comes_twice_is_shared_out_once(model, wanted, tmp_path):
    group = processes(tmp_path, 3)
    for ranks in group:
        for _ in range(2):
            run = work(ranks, model, tmp_path, False).parent.parent
    own = [RunStore(shard, {}).n_records for shard in shards_of(run)]
    assert sum(own) == len(wanted[False][0].splitlines())
    assert [ranks.finish() for ranks in reversed(group)] == [False, False, True]
    assert files(tmp_path) == wanted[False]


@pytest.mark.parametrize("task", [False, True])
def test_a_process_that_dies_before_its_very_last_record_is_missed(task, model, wanted, tmp_path):
    group = processes(tmp_path, 2)
    run = [work(ranks, model, tmp_path, task) for ranks in group][1].parent.parent
    group[1].close()
    file = shards_of(run)[1] / "records.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    assert not task or json.loads(lines[-1])["n_questions"] > 1
    file.write_bytes(b"".join(lines[:-1]))
    with pytest.raises(StoreError, match=rf"missing: 1 {'context' if task else 'window'}s of"):
        group[0].finish()
    group[0].close()
    work(ALONE, model, tmp_path, task)
    assert files(tmp_path) == wanted[task]


@pytest.mark.slow
def test_a_run_that_is_being_written_is_left_alone(model, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "LOOK", 0.1)
    (mine, its) = processes(tmp_path, 2)
    work(its, model, tmp_path, False)
    for ranks in (ALONE, *processes(tmp_path, 2)):
        with pytest.raises(StoreError, match="another process is writing"):
            read(model, TEXTS, PPL, (32, 64), tmp_path, ranks=ranks)
        ranks.close()
    mine.close()
    its.close()


def test_what_waits_to_be_merged_is_told_of(model, tmp_path, monkeypatch):
    with pytest.raises(StoreError):
        session(model, tmp_path, False, 3, {1: 2})
    (run,) = runs.runs_in(tmp_path)
    assert "split" in hope_eval("runs", "--out", tmp_path).stdout
    n = sum(RunStore(shard, {}).n_records for shard in shards_of(run))
    told = f"{n} records in 3 shards wait to be merged"
    assert told in hope_eval("runs", "verify", run.name, "--out", tmp_path).stdout
    assert told in hope_eval("runs", "show", run.name, "--out", tmp_path).stdout
    assert told in hope_eval("ppl", "--from", run, code=1).stderr
    assert told in hope_eval("compare", run, code=1).stderr
    (run / "shards" / "notes.txt").write_text("mine")
    assert "notes.txt" in hope_eval("runs", "rm", "--yes", run, code=1).stderr
    (run / "shards" / "notes.txt").unlink()
    with filelock.FileLock(shards_of(run)[0] / "run.lock"):
        assert "another process" in hope_eval("runs", "rm", "--yes", run, code=1).stderr
    hope_eval("runs", "rm", "--yes", run)
    assert not run.exists()


def test_each_process_has_a_gpu_of_its_own(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert Ranks(11, 16).device("auto") == Ranks(11, 16).device("cuda") == "cuda:3"
    assert chosen == [3, 3]
    assert (Ranks(11, 16).device("cpu"), Ranks().device("auto")) == ("cpu", "auto")
    monkeypatch.setenv("LOCAL_RANK", "4")
    with pytest.raises(OptionError, match="has no GPU, there are 4"):
        Ranks(12, 16).device("auto")


def test_what_is_left_of_sessions_is_removed_and_links_are_not_followed(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    for folder in (tmp_path / "out" / ".sessions" / "dead", elsewhere / "other"):
        folder.mkdir(parents=True)
        (folder / "0.lock").write_text("")
        (folder / "0.done").write_text("")
    (tmp_path / "out" / ".sessions" / "linked").symlink_to(elsewhere / "other")
    meeting._sweep(tmp_path / "out" / ".sessions")
    assert [path.name for path in (tmp_path / "out" / ".sessions").iterdir()] == ["linked"]
    (tmp_path / "linked").symlink_to(elsewhere)
    meeting._sweep(tmp_path / "linked")
    assert len(list((elsewhere / "other").iterdir())) == 2


def test_a_linked_folder_of_shards_is_an_error_before_anything_is_written(model, tmp_path):
    (run,) = runs.runs_in(work(ALONE, model, tmp_path, False, 2))
    (tmp_path.parent / f"{tmp_path.name}-elsewhere").mkdir()
    (run / "shards").symlink_to(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    with pytest.raises(StoreError, match="is a link"):
        session(model, tmp_path, False, 2)


# From here on, with torchrun.

LOADER = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from conftest import tiny_module
from fakes import zoo_tokenizer
from hope_eval.runs.shards import Shard

left = int(os.environ.get("DIES_AT", 0))
append = Shard.append

def append_or_die(*arguments, **options):
    global left
    left -= 1
    if left == 0 and os.environ["RANK"] in os.environ["WHO"]:
        os.killpg(0, signal.SIGKILL) if os.environ.get("WATCHER_TOO") else os.kill(os.getpid(), signal.SIGKILL)
    append(*arguments, **options)

def load(name):
    Shard.append = append_or_die
    return tiny_module(vocab_size=len(zoo_tokenizer()), max_position_embeddings=64), zoo_tokenizer()
"""


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Arguments of a run of perplexity and a task."""
    folder = tmp_path_factory.mktemp("command")
    (folder / "loader.py").write_text(LOADER.format(tests=str(ROOT / "tests")))
    (folder / "suite.toml").write_text(SUITE)
    texts = [{"text": story(40, 100 * n)} for n in range(5)]
    (folder / "stories.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts))
    return ("run", "--suite", f"{folder}/suite.toml:both", "--loader", f"{folder}/loader.py:load", "--model", "m",
            "--data", str(folder / "stories.jsonl"), "--device", "cpu", "--format", "csv")  # fmt: skip


@pytest.fixture(scope="module")
def by_one(command, tmp_path_factory):
    root = tmp_path_factory.mktemp("one")
    return hope_eval(*command, "--out", root).stdout, contents(root)


def contents(root: Path) -> dict[str, tuple[bytes, bytes]]:
    """Return records and arrays of all runs below a folder that holds nothing else."""
    assert {path.parent for path in root.glob("*/run.json")} == set(root.iterdir())
    found = {}
    for run in runs.runs_in(root):
        assert runs.state(verify(run)) == "ok"
        assert not (run / "shards").exists()
        found[run.name] = (run / "records.jsonl").read_bytes(), (run / "arrays.bin").read_bytes()
    return found


def torchrun(n: int, command, root: Path, code: int = 0, **environment) -> subprocess.CompletedProcess:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(n)]
    done = subprocess.run(
        [*launch, "-m", "hope_eval", *command, "--out", str(root)],
        env={**os.environ, **environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    return done


@pytest.mark.slow
def test_two_processes_of_torchrun_write_and_say_what_one_does(command, by_one, tmp_path):
    done = torchrun(2, command, tmp_path / "two")
    assert contents(tmp_path / "two") == by_one[1]
    assert done.stdout == by_one[0]
    assert done.stderr.count("tokens to go") == 2, "a line for each of two runs"


def test_jobs_do_too_without_torchrun(command, by_one, tmp_path):
    """It is torchrun that starts them; and what they say is not said again by what has started it."""
    arguments = ["-m", "hope_eval", *command, "--out", str(tmp_path / "two"), "--jobs", "2"]
    done = subprocess.run(
        [sys.executable, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
        check=True, timeout=120,
    )  # fmt: skip
    assert contents(tmp_path / "two") == by_one[1]
    assert done.stdout == by_one[0]
    assert done.stderr.count("tokens to go") == 2
    assert done.stderr.startswith("both")
    assert done.stderr.splitlines().count("both") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_jobs_that_are_interrupted_end_with_a_word_and_go_on(number, command, by_one, tmp_path):
    arguments = ["-m", "hope_eval", *command, "--out", str(tmp_path / "runs"), "--jobs", "2"]
    started = subprocess.Popen(
        [sys.executable, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    # Both have begun, and neither is near its end.
    while len(list((tmp_path / "runs").glob(".sessions/*/*.lock"))) < 2:
        time.sleep(0.01)
    started.send_signal(number)
    said = started.communicate(timeout=60)[1]
    assert started.returncode == 128 + number
    assert "Traceback" not in said
    assert f"Error: ended by {number.name}\nhint: rerun the command to resume" in said
    goes_on_with(1, command, tmp_path / "runs", by_one)


@pytest.mark.slow
def test_jobs_whose_command_is_killed_end_and_release_the_run(command, by_one, tmp_path):
    root = tmp_path / "runs"
    arguments = ["-m", "hope_eval", *command, "--out", str(root), "--jobs", "2"]
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
    with subprocess.Popen(
        [sys.executable, *arguments], env={**os.environ, "OMP_NUM_THREADS": "1"}, **options
    ) as started:
        while len(list(root.glob(".sessions/*/*.lock"))) < 2:
            assert started.poll() is None, "it ended by itself"
            time.sleep(0.05)
        locks = list(root.glob(".sessions/*/*.lock"))
        started.kill()
    deadline = time.monotonic() + 5
    while not all(map(sharding.is_free, locks)):
        assert time.monotonic() < deadline, "a process outlives its command"
    hope_eval(*command, "--out", root)
    # The folder of the killed session stays until processes meet there again.
    shutil.rmtree(root / ".sessions")
    assert contents(root) == by_one[1]


@pytest.mark.slow
def test_of_jobs_one_is_killed_and_the_others_finish(command, by_one, tmp_path):
    root = tmp_path / "runs"
    done = subprocess.run(
        [sys.executable, "-m", "hope_eval", *command, "--out", str(root), "--jobs", "3"],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DIES_AT": "7", "WHO": "1"}, capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    assert "process 1 of 3 ended early: it was killed; missing: " in done.stderr
    assert "Traceback" not in done.stderr
    goes_on_with(1, command, root, by_one)


def test_what_jobs_cannot_do_is_said_before_any_is_started(command, tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr("torch.distributed.run.run", started.append)
    assert "no checkpoint at `nowhere/`" in hope_eval("ppl", "--model", "nowhere/", "--jobs", "2", code=1).stderr
    assert "--device-map" in hope_eval(*command, "--device-map", "auto", "--jobs", "2", code=1).stderr
    assert "--until-ci" in hope_eval(*command, "--until-ci", "0.1", "--jobs", "2", code=1).stderr
    alone = hope_eval(*command, "--jobs", "3", "--tensor-parallel", "2", code=1).stderr
    assert "needs a multiple of 2 processes" in alone
    assert "hint: --jobs 4\n" in alone
    assert (
        "--from measures nothing, so --jobs has nothing to share"
        in hope_eval("ppl", "--from", tmp_path, "--jobs", "2", code=1).stderr
    )
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(launch.PIPE, "")
    assert "leave --jobs out" in hope_eval(*command, "--jobs", "2", code=1).stderr
    assert not started


@pytest.mark.parametrize(("jobs", "together", "rank", "device"), [
    ("", 1, 0, "cuda:0"), ("", 1, 1, "cuda:1"), ("", 1, 2, None), ("5", 1, 2, "cuda:0"), ("5", 1, 3, "cuda:1"),
    ("4", 2, 2, None),
])  # fmt: skip
def test_jobs_share_gpus_and_processes_of_torchrun_do_not(jobs, together, rank, device, monkeypatch, tmp_path):
    """Nor do those that hold a model together: NCCL wants a GPU for each."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.set_device", lambda n: None)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    if jobs:
        monkeypatch.setenv(launch.JOBS, jobs)
    ranks = Ranks(rank, 6, "session", tmp_path, tensor_parallel=together)
    if device is None:
        with pytest.raises(OptionError, match="has no GPU, there are 2"):
            ranks.device("auto")
    else:
        assert ranks.device("auto") == device
        assert ranks.device("cpu") == "cpu"


@pytest.mark.slow
def test_four_processes_of_torchrun_do_too(command, by_one, tmp_path):
    done = torchrun(4, command, tmp_path / "four")
    assert contents(tmp_path / "four") == by_one[1]
    assert done.stdout == by_one[0]
    again = torchrun(2, command, tmp_path / "four")
    assert again.stdout == by_one[0]
    assert again.stderr.count("were already done") == 2


def goes_on_with(n, command, root, by_one):
    """The same command with n processes, and everything is as if one had done it."""
    if n == 1:
        assert hope_eval(*command, "--out", root).stdout == by_one[0]
    else:
        assert torchrun(n, command, root).stdout == by_one[0]
    shutil.rmtree(root / ".sessions", ignore_errors=True)
    assert contents(root) == by_one[1]


@pytest.mark.slow
@pytest.mark.parametrize(("who", "then"), [("1", 4), ("0", 1), ("2", 2)])
def test_of_three_processes_one_is_killed_and_the_others_finish(who, then, command, by_one, tmp_path):
    root = tmp_path / "runs"
    done = torchrun(3, command, root, 1, DIES_AT="7", WHO=who)
    assert not done.stdout
    assert "rerun the command to resume" in done.stderr
    if who != "0":
        assert f"process {who} of 3 ended early: it was killed; missing: " in done.stderr
    held = {}
    for run in runs.runs_in(root):
        for shard in shards_of(run):
            rank = shard.name[-1]
            held[rank] = held.get(rank, 0) + sum(r["kind"] == "answer" for r in RunStore(shard, {}).records)
    others = {rank for rank in "012" if rank != who}
    assert all(held.get(rank, 0) >= 5 for rank in others), "they finished what is theirs"
    assert not held.get(who)
    goes_on_with(then, command, root, by_one)


@pytest.mark.slow
@pytest.mark.parametrize("then", [1, 4])
def test_all_processes_are_killed_and_another_number_goes_on(then, command, by_one, tmp_path):
    root = tmp_path / "runs"
    torchrun(2, command, root, 1, DIES_AT="7", WHO="01", WATCHER_TOO="1")
    assert any(RunStore(shard, {}).n_records for run in root.glob("[a-z]*") for shard in shards_of(run))
    goes_on_with(then, command, root, by_one)


@pytest.mark.slow
def test_torchrun_itself_goes_on_if_it_may(command, by_one, tmp_path):
    """A process that dies once is replaced when the others have ended, and goes on where it was."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--max-restarts=9"]
    done = subprocess.run(
        [*launch, "-m", "hope_eval", *command, "--out", str(tmp_path / "runs")],
        env={**os.environ, "OMP_NUM_THREADS": "1", "DIES_AT": "7", "WHO": "1"}, capture_output=True, text=True,
        check=True, timeout=300,
    )  # fmt: skip
    assert done.stdout == by_one[0]
    assert contents(tmp_path / "runs") == by_one[1]


def test_what_torchrun_cannot_do_is_an_error(command, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(launch.PIPE, "")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    assert "did not find each other" in hope_eval(*command, "--out", tmp_path, code=1).stderr
    assert "--device-map" in hope_eval(*command, "--device-map", "auto", code=1).stderr
