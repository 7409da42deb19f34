"""Training: all else is equal, nothing is lost, and what cannot work is said before any work is done."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
import torch
from commands import hope_eval
from filelock import FileLock
from transformers import AutoModelForCausalLM, AutoTokenizer

from hope_eval.data.corpora import load_corpus
from hope_eval.errors import EncodingError, OptionError, TrainingError
from hope_eval.task import Vocabulary
from hope_eval.train import rows
from hope_eval.train.loop import Loop, Processes, new_model, train
from hope_eval.train.prepare import prepare
from hope_eval.train.recipe import HELD_OUT, MIX, PACKAGES, Recipe, claim, held, parse_size

TEXTS = ("python:click,rich",)
TINY = {"size": "64x2x2", "train_length": 96, "tokens": 96 * 16 * 12, "batch_tokens": 96 * 16, "texts": TEXTS}
ARGUMENTS = [
    "--size", "64x2x2", "--train-length", "96", "--tokens", str(96 * 16 * 12), "--batch-tokens", str(96 * 16),
    "--data", TEXTS[0], "--device", "cpu",
]  # fmt: skip


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Where the rows of these tests are made, once."""
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def trained(work, tmp_path_factory):
    """Tiny models with RoPE and ALiBi, trained alike; once for all processes of pytest."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    with FileLock(folder.with_suffix(".lock")):
        # `train` leaves alone what is trained already.
        return {name: train(Recipe(name, **TINY), folder / name, work=work, device="cpu") for name in ("rope", "alibi")}


def curve(folder):
    """Return the log without what differs from run to run."""
    entries = [json.loads(line) for line in (folder / "training.jsonl").read_text().splitlines()]
    return [{key: value for key, value in entry.items() if key != "seconds"} for entry in entries]


def test_a_trained_model_is_a_plain_checkpoint_with_its_facts(trained):
    folder = trained["alibi"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert model.config.encoding == "alibi"
    assert len(tokenizer) == model.config.vocab_size == 4096
    facts = json.loads((folder / "training.json").read_text())
    assert facts["n_steps"] == 12
    assert facts["n_parameters"] == sum(p.numel() for p in model.parameters())
    assert set(facts["nll"]) == {"1x", "2x", "4x"}
    assert not (folder / ".work").exists()


def test_the_loss_falls_and_is_logged(trained):
    losses = [entry["loss"] for entry in curve(trained["rope"]) if "loss" in entry]
    assert len(losses) == 12
    assert losses[0] == pytest.approx(np.log(4096), abs=0.3)
    assert losses[-1] < losses[0] - 0.3


def test_encodings_of_one_seed_differ_in_nothing_else(work):
    prepared = prepare(Recipe("rope", **TINY), work)
    loops = {
        name: Loop(Recipe(name, **TINY), prepared, Processes(torch.device("cpu")), False)
        for name in ("rope", "hope", "t5", "fire", "learned")
    }
    reference = dict(loops["rope"].model.named_parameters())
    for loop in loops.values():
        for name, parameter in loop.model.named_parameters():
            assert "encoding" in name or torch.equal(parameter, reference[name]), name
        assert torch.equal(loop.batch(5)[0], loops["rope"].batch(5)[0])
        assert [loop.rate(step) for step in range(12)] == [loops["rope"].rate(step) for step in range(12)]
        decays = {id(p) for group in loop.optimizer.param_groups if group["weight_decay"] for p in group["params"]}
        for name, parameter in loop.model.named_parameters():
            assert (id(parameter) in decays) == (parameter.ndim > 1 and "encoding." not in name), name


def test_another_seed_starts_from_other_weights_and_rows(work):
    first, second = (prepare(Recipe("rope", seed=seed, **TINY), work) for seed in (0, 1))
    assert not np.array_equal(first.rows.ids[:16], second.rows.ids[:16])
    weights = [new_model(Recipe("rope", seed=seed), 4096).lm_head.weight for seed in (0, 1)]
    assert not torch.equal(*weights)


def test_the_learning_rate_warms_up_and_ends_at_nothing(work):
    recipe = Recipe("rope", **{**TINY, "tokens": 96 * 16 * 300})
    loop = Loop.__new__(Loop)
    loop.recipe, loop.learning_rate = recipe, 2e-3
    rates = [loop.rate(step) for step in range(300)]
    assert rates[0] == pytest.approx(2e-4)
    assert max(rates) == rates[10] == 2e-3
    assert rates[155] == pytest.approx(1e-3, rel=0.02)
    assert 0 < rates[-1] < 1e-6


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_losses(trained, work, tmp_path):
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "hope_eval", "train", "rope", "--out", str(out), "--save-steps", "1", *ARGUMENTS]
    (out / ".work").mkdir(parents=True)
    for folder in work.iterdir():
        if folder.is_dir():
            shutil.copytree(folder, out / ".work" / folder.name)
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as process:
        log = out / "training.jsonl"
        deadline = time.monotonic() + 100
        while not (log.is_file() and '"step": 4' in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    interrupted = curve(out)
    assert 4 <= interrupted[-1]["step"] < 12, "killed on the way"
    assert not (out / "training.json").exists()
    with log.open("a") as stream:
        stream.write('{"step": 5, "lo')
    done = hope_eval(*command[3:])
    assert "were already done" in done.stderr
    wanted = curve(trained["rope"])
    for mine, its in zip(curve(out), wanted, strict=True):
        assert mine.keys() == its.keys()
        assert mine.get("loss", 0) == pytest.approx(its.get("loss", 0), rel=1e-6)
    again = hope_eval(*command[3:])
    assert again.stdout.strip() == str(out)


def test_fewer_tokens_than_a_step_of_the_optimiser_are_rounded_up_aloud(tmp_path, monkeypatch):
    monkeypatch.setattr("hope_eval.train.jobs.prepare_all", lambda *given: None)
    monkeypatch.setattr("hope_eval.train.loop.train", lambda *given, **how: None)
    for tokens, told in (("2k", True), ("100M", False)):
        result = hope_eval("train", "rope", "--tokens", tokens, "--out", tmp_path)
        assert ("less than one step of the optimiser: 32,768 tokens are read" in result.stderr) == told


@pytest.mark.slow
def test_several_trainings_side_by_side_are_those_of_each_alone(trained, tmp_path):
    hope_eval("train", "rope", "alibi", "--jobs", "2", "--out", tmp_path / "both", *ARGUMENTS)
    for name in ("rope", "alibi"):
        for mine, its in zip(curve(tmp_path / "both" / f"{name}-0"), curve(trained[name]), strict=True):
            assert mine.get("loss", 0) == pytest.approx(its.get("loss", 0), rel=1e-4)
    assert not (tmp_path / "both" / ".work").exists()


@pytest.mark.slow
def test_trainings_side_by_side_end_with_the_command_that_started_them(tmp_path):
    arguments = [word if word != str(96 * 16 * 12) else "3M" for word in ARGUMENTS]
    code = "from hope_eval.train import rows\nrows.MOST_EPOCHS = 1e9\nfrom hope_eval.cli import main\nmain()"
    command = [sys.executable, "-c", code, "train", "rope", "alibi", *arguments, "--jobs", "2", "--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        logs = [tmp_path / f"{name}-0" / "training.jsonl" for name in ("rope", "alibi")]
        deadline = time.monotonic() + 300
        while not all(log.is_file() and log.stat().st_size for log in logs) and time.monotonic() < deadline:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGKILL)
    time.sleep(4)
    sizes = [log.stat().st_size for log in logs]
    time.sleep(4)
    assert [log.stat().st_size for log in logs] == sizes


def test_two_trainings_into_one_folder_are_an_error(tmp_path):
    code = "import pathlib, sys; from hope_eval.train.recipe import held; held(pathlib.Path(sys.argv[1])).__enter__()"
    with held(tmp_path), held(tmp_path):
        done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert "another command is training into" in done.stderr
    assert not (tmp_path / ".train.lock").exists(), "a checkpoint folder holds no lock"


def test_force_removes_links_and_not_their_targets(work, tmp_path):
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine").write_text("mine")
    claim(Recipe("rope", **TINY), out, False)
    (out / "linked").symlink_to(elsewhere)
    with pytest.raises(TrainingError, match="is a link"), held(out):
        pass
    claim(Recipe("alibi", **TINY), out, True)
    assert [path.name for path in out.iterdir()] == ["recipe.json"]
    (tmp_path / "link").symlink_to(out)
    with pytest.raises(TrainingError, match="is a link"):
        claim(Recipe("rope", **TINY), tmp_path / "link", True)
    assert (elsewhere / "mine").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("to_group", [False, True])
def test_one_interrupt_stops_all_trainings(to_group, tmp_path):
    arguments = [word if word != str(96 * 16 * 12) else "3M" for word in ARGUMENTS]
    code = "from hope_eval.train import rows\nrows.MOST_EPOCHS = 1e9\nfrom hope_eval.cli import main\nmain()"
    command = [sys.executable, "-c", code, "train", "rope", "alibi", "nope", *arguments, "--jobs", "2"]
    logs = [tmp_path / f"{name}-0" / "training.jsonl" for name in ("rope", "alibi")]
    deadline = time.monotonic() + 200
    options = {"stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    with subprocess.Popen([*command, "--out", str(tmp_path)], **options) as process:
        while not all(log.is_file() and log.stat().st_size for log in logs) and time.monotonic() < deadline:
            time.sleep(0.1)
        (os.killpg if to_group else os.kill)(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Error: interrupted\nhint: " in said
    assert "rerun the command to resume" in said
    assert "Traceback" not in said
    # Whoever wrote to this pipe has ended, for `communicate` waits for all of them.
    assert not (tmp_path / "nope-0" / "training.jsonl").exists()


@pytest.mark.slow
def test_two_processes_train_what_one_does(trained, tmp_path):
    out = tmp_path / "two"
    command = ["-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "hope_eval", "train", "rope"]
    subprocess.run([sys.executable, *command, "--out", str(out), *ARGUMENTS], check=True, capture_output=True)
    for mine, its in zip(curve(out), curve(trained["rope"]), strict=True):
        assert mine.get("loss", 0) == pytest.approx(its.get("loss", 0), rel=1e-4)
        assert mine.get("grad_norm", 0) == pytest.approx(its.get("grad_norm", 0), rel=1e-3)


def test_rows_are_text_and_prompts_in_their_shares(work):
    prepared = prepare(Recipe("rope", **{**TINY, "tokens": 96 * 16 * 100}), work)
    ids, scored = prepared.rows.ids, prepared.rows.scored
    assert (ids[:, 0] == 0).all()
    assert not scored[:, 0].any()
    text = scored[:, 1:].all(axis=1)
    assert text.mean() == pytest.approx(1 - sum(MIX.values()), abs=0.04)
    assert 0.01 < scored[~text].mean() < 0.5
    whole = text & (ids[:, 1:] != 0).all(axis=1)
    stretches = [prepared.tokenizer.decode(ids[row, 1:].tolist()) for row in np.flatnonzero(whole)[:10]]
    found = [any(stretch in document.text for document in load_corpus(TEXTS[0]).documents) for stretch in stretches]
    # A character may be cut at either end.
    assert sum(found) >= 7


def test_row_i_does_not_depend_on_how_many_there_are(work):
    few = prepare(Recipe("rope", **TINY), work)
    ids = np.array(few.rows.ids)
    many = prepare(Recipe("rope", **{**TINY, "tokens": 2 * TINY["tokens"]}), work)
    assert len(many.rows) == 2 * len(ids)
    assert np.array_equal(many.rows.ids[: len(ids)], ids)


def test_rows_made_by_many_processes_are_the_same(tmp_path, work, monkeypatch):
    tokenizer = prepare(Recipe("rope", **TINY), work).tokenizer
    vocabulary, texts = Vocabulary(tokenizer, 0), tmp_path / "texts.npy"
    np.save(texts, np.arange(5000) % 4000)

    def made(folder):
        return rows.make_rows(tmp_path / folder, {}, vocabulary, texts, 300, 96, 0, MIX)

    alone = made("alone")
    monkeypatch.setattr(rows, "_CHUNK", 64)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    together = made("together")
    assert np.array_equal(alone.ids, together.ids)
    assert np.array_equal(alone.scored, together.scored)


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["rope", "--size", "4m"], "no size is called `4m`", "3m"),
        (["rope", "--size", "100x2x3"], "does not divide into 3 heads", "--size"),
        (["hope", "--train-length", "6"], "leaves `hope` no pair to rotate", "at least 7"),
        (["roep"], "no position encoding is called `roep`", "`rope`"),
        (["rope", "--data", "nowhere.txt"], "no text at `nowhere.txt`", "--data"),
        (["rope", "--tokens", "many"], "`many` is not a valid number of tokens", "100M"),
        (["rope", "--seed", "one"], "not a list of whole numbers", "0,1,2"),
        (["rope", "--tokens", "100B"], "take 279.4 GiB", "--out"),
        (["rope", "--device", "abacus"], "the device `abacus` cannot be used", "--device auto"),
        (["rope", "--tokenizer", "nowhere"], "no checkpoint folder at `nowhere`", "--tokenizer new"),
        (["rope", "--train-length", "32"], "fits into rows of 32", "--train-length"),
        (["rope", "--mix", "copy=0.2,cpy=0.1"], "no task is called `cpy`", "`copy`"),
        (["rope", "--mix", "copy"], "`copy` in `--mix copy` is not a task and its share", "--mix copy=0.2"),
    ],
)
def test_what_cannot_work_is_one_error_and_one_hint(arguments, message, hint, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(1 << 38, 0, 1 << 38))
    given = [*arguments[:1], "--out", tmp_path / "out", *ARGUMENTS, *arguments[1:]]
    if "--tokenizer" not in arguments and "nowhere.txt" not in arguments and "32" not in arguments:
        monkeypatch.setattr(rows, "MOST_EPOCHS", 10**9)
    result = hope_eval("train", *given, code=1)
    assert message in result.stderr
    assert hint in result.stderr.partition("hint: ")[2]
    assert "Traceback" not in result.stderr


def test_a_text_that_is_too_small_is_an_error(tmp_path):
    (tmp_path / "small.txt").write_text("so little to read. " * 50)
    texts = (str(tmp_path / "small.txt"), *TEXTS)
    prepared = prepare(Recipe("rope", **{**TINY, "texts": texts}), tmp_path / "work")
    vocabulary = Vocabulary(prepared.tokenizer, 0)
    np.save(tmp_path / "texts.npy", np.arange(500))
    with pytest.raises(TrainingError, match="may be read 100 times at most"):
        rows.make_rows(tmp_path, {}, vocabulary, tmp_path / "texts.npy", 2000, 96, 0, MIX)


def test_another_training_in_the_folder_is_left_alone(trained):
    with pytest.raises(TrainingError, match="a training with a different recipe: seed"):
        train(Recipe("rope", **TINY, seed=3), trained["rope"], device="cpu")
    assert (trained["rope"] / "model.safetensors").is_file()


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(TrainingError, match="is not empty"):
        train(Recipe("rope", **TINY), tmp_path, device="cpu", force=True)
    assert (tmp_path / "thesis.tex").is_file()


def test_a_loss_that_is_no_number_stops_the_training(work, tmp_path):
    with pytest.raises(TrainingError, match=r"loss of `rope` is (nan|inf)") as caught:
        train(Recipe("rope", **TINY, learning_rate=1e30), tmp_path / "out", work=work, device="cpu")
    assert "--learning-rate" in caught.value.hint


def test_sizes():
    assert str(parse_size("3m")) == "192x6x3"
    model = new_model(Recipe("rope"), 4096)
    assert sum(p.numel() for p in model.parameters()) == 3_443_136
    with pytest.raises(OptionError):
        parse_size("0x2x2")
    with pytest.raises(EncodingError):
        Recipe("hope:multiplier=100").check()


@pytest.mark.slow
def test_what_is_held_out_is_not_trained_on():
    """Neither by name, nor by file: no module of the training texts is one of the held-out texts."""
    assert not {"sympy", "networkx", "python"} & set(PACKAGES)
    for name in PACKAGES:
        assert name not in sys.stdlib_module_names

    def modules(names):
        for name in names:
            for document in load_corpus(name).documents:
                parts = document.text.split("\n# ")
                yield from (part.partition("\n\n")[2].strip() for part in parts)

    held_out = {text for text in modules(HELD_OUT) if len(text) > 200}
    assert len(held_out) > 1000
    for package in PACKAGES:
        for text in modules([f"python:{package}"]):
            assert len(text) <= 200 or text not in held_out, text[:300]
