"""The benchmarks run on a tiny model and say what they found; the page of their figures is what the command makes."""

import json
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from commands import hope_eval
from conftest import committed, tiny_model

from benchmarks import common, everything, peers, table, zoo_suite
from benchmarks.__main__ import main
from hope_eval.evaluation.speed import Speed
from hope_eval.model.reading import OutOfMemory

FIGURES = [path for path in committed("results/benchmarks") if path.suffix == ".json"]
PAGE = (table.FOLDER / table.SOURCE).read_text("utf-8")

pytestmark = pytest.mark.filterwarnings("ignore")


def run(words, out):
    result = CliRunner().invoke(main, [*shlex.split(words), "--out", str(out)])
    if result.exception:
        raise result.exception
    return json.loads(out.read_text())


def seconds(report, way):
    return next(figure["seconds"] for figure in report["figures"] if figure["way"] == way)


def test_ours_and_the_peers_read_the_same_long_text(tmp_path):
    pytest.importorskip("lm_eval")
    report = run(everything.TINY["long_forward_8b"], tmp_path / "x.json")
    assert [figure["way"] for figure in report["figures"]] == [common.OURS, common.FULL_LOGITS, common.LM_EVAL] * 2
    assert all(figure["status"] == "ok" and figure["seconds"] > 0 for figure in report["figures"])
    assert report["agreement_of_nll"] < 1e-5
    assert report["versions"]["lm_eval"]
    assert report["machine"]
    shares = [line["share"] for line in report["profile"]]
    assert shares == sorted(shares, reverse=True)
    assert 0.3 < sum(shares) < 1.01


def test_several_lengths_are_the_same_tokens_whoever_reads_them(tmp_path):
    pytest.importorskip("lm_eval")
    report = run(everything.TINY["nested_lengths"], tmp_path / "x.json")
    assert len(report["figures"]) == 8
    assert report["agreement_of_nll"] < 1e-5
    rolling = [figure["nll"] for figure in report["figures"] if "rolling" in figure["way"]]
    assert [set(nll) for nll in rolling] == [{"32", "64", "128"}] * 3
    first = next(line for line in report["targets"] if line["what"].startswith("prefix"))
    prefix, alone = (seconds(report, f"{common.OURS}, {way}") for way in ("prefix", "longest alone"))
    assert first["value"] == pytest.approx(prefix / alone, rel=1e-3)
    assert first["met"] is None, "nothing is promised of a CPU"


@pytest.mark.parametrize("tied", [True, False])
def test_peers_run_plain_transformers_on_the_same_weights(tied):
    model = tiny_model(tie_word_embeddings=tied)
    plain = peers.plain(model)
    assert [p.data_ptr() for p in plain.parameters()] == [p.data_ptr() for p in model.module.parameters()]
    ids = torch.arange(20)[None]
    wanted = model.module(ids).logits
    torch.testing.assert_close(plain(ids).logits, wanted)
    model.module.model.layers[0].mlp.forward = lambda x: 0 * x
    torch.testing.assert_close(plain(ids).logits, wanted)
    assert (model.module(ids).logits - wanted).abs().max() > 0.1


def test_what_is_not_installed_is_said_and_the_rest_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(peers, "INSTALLED", False)
    for name in ("shared_context", "short_lengths"):
        report = run(everything.TINY[name], tmp_path / "x.json")
        status = {figure["way"].split(",")[0]: figure["status"] for figure in report["figures"]}
        assert status == {common.OURS: "ok", "transformers": "ok", common.LM_EVAL: "not installed"}
        assert report["agreement_of_nll"] < 1e-5


def test_answers_are_scored_alike_and_their_time_is_multiplied(tmp_path):
    pytest.importorskip("lm_eval")
    report = run(everything.TINY["shared_context"], tmp_path / "x.json")
    assert report["agreement_of_nll"] < 1e-5
    alone = next(figure for figure in report["figures"] if figure["way"].endswith("a read for each"))
    assert alone["seconds"] == pytest.approx(2 * alone["all_seconds"][0], rel=1e-3)
    assert alone["seconds_are"] == "2 times what was timed"


def test_attention_of_every_encoding_is_timed(tmp_path):
    report = run(everything.TINY["attention"], tmp_path / "x.json")
    timed = {figure["encoding"] for figure in report["figures"] if "encoding" in figure and figure["seconds"] > 0}
    assert timed == {"rope", "alibi", "t5", "kerple", "fire"}
    status = {figure["way"]: figure["status"] for figure in report["figures"]}
    assert status["PyTorch, flash"] == "ok"
    if not torch.cuda.is_available():
        assert status["PyTorch, cuDNN"] == "not available"


def test_a_real_checkpoint_is_read_beside_the_peers(checkpoint, stories, tmp_path):
    pytest.importorskip("lm_eval")
    words = f"checkpoint --model {checkpoint} --data {stories} --lengths 32,64 --documents 3 --repeats 1"
    report = run(words, tmp_path / "x.json")
    assert report["documents"] == 3
    assert report["agreement_of_nll"] < 1e-5
    assert {figure["status"] for figure in report["figures"]} == {"ok"}


def test_plans_stand_beside_the_truth(stories, tmp_path, monkeypatch):
    monkeypatch.setattr("hope_eval.evaluation.plan.benchmark", lambda *_: Speed.stated(1e9))
    words = f"plan-truth --model zoo:rope --measures ppl --lengths 64,128 --samples 2 --data {stories}"
    (figure,) = run(words, tmp_path / "x.json")["figures"]
    assert figure["tokens"] == 2 * 128
    assert figure["ratio_of_seconds"] == pytest.approx(figure["seconds_planned"] / figure["seconds"], rel=0.01)


def test_a_suite_is_timed_with_its_parts(checkpoint, stories, tmp_path, monkeypatch):
    monkeypatch.setattr(zoo_suite, "run", lambda words: hope_eval(*words))
    (tmp_path / "mine.toml").write_text('[mine]\ntasks = ["ppl"]\nlengths = "32"\n')
    report = run(f"zoo-suite --suite {tmp_path}/mine.toml --model {checkpoint} --data {stories}", tmp_path / "x.json")
    parts = {figure["way"]: figure["seconds"] for figure in report["figures"]}
    assert {"the runs of task ppl", "the runs of model tiny-llama"} < set(parts)
    assert next(iter(parts.values())) >= parts["the runs of task ppl"]


@pytest.mark.slow
def test_training_is_timed(tmp_path):
    words = "training-speed --steps 22 --size 16x1x1 --batch-tokens 512 --no-compile --encodings rope --peers ''"
    (figure,) = run(f"{words} --data python:click,rich", tmp_path / "x.json")["figures"]
    assert figure["milliseconds_per_step"] > 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(), OutOfMemory(8, {}, "")])
def test_out_of_memory_is_an_outcome(error):
    def call():
        raise error

    assert common.measured(common.Work("x", call, 8), 1) == {"way": "x", "status": "out of memory"}


def test_a_peer_that_fails_is_an_outcome_and_our_failure_is_an_error():
    def call():
        raise KeyError("x")

    assert common.measured(common.Work(f"{common.LM_EVAL} y", call, 8), 1)["status"] == "failed: KeyError: 'x'"
    with pytest.raises(KeyError):
        common.measured(common.Work(common.OURS, call, 8), 1)


def test_a_run_that_left_something_out_has_no_time(monkeypatch):
    model = common.language_model("tiny")
    error = OutOfMemory(64, {}, "no memory")
    monkeypatch.setattr(type(model), "score", lambda *_: (_ for _ in ()).throw(error))
    corpus = common.corpus_of([common.random_ids(model, 64)])
    with pytest.raises(OutOfMemory):
        common.Run(model, corpus, 1, "bos", "prefix", [64])


def test_tokens_that_are_not_the_same_show():
    figures = [{"way": way, "length": 8, "nll": nll} for way, nll in (("a", 5.0), ("b", 5.5))]
    assert common.agreement(figures) == 0.1
    assert common.agreement(figures[:1]) is None
    by_length = [{"scored": "x", "nll": {"8": 5.0, "16": 6.0}}, {"scored": "y", "nll": {"8": 9.0}}]
    assert common.agreement(by_length) is None
    assert common.agreement([*by_length, {"scored": "x", "nll": {"16": 6.3}}]) == pytest.approx(0.05)


@pytest.mark.parametrize(("value", "wanted", "met"), [(601, ">= 600 TFLOP/s", True), (599.0, ">= 600", False),
                                                      (1.2, "<= 1.1", False), (None, "<= 1.1", False)])  # fmt: skip
def test_a_target_is_held_against_the_machine_that_it_was_promised_of(value, wanted, met, monkeypatch):
    assert common.target("x", value, wanted)["met"] is None
    monkeypatch.setattr(common, "DEVICE", torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H200")
    assert common.target("x", value, wanted)["met"] is met
    assert common.target("x", value, wanted, applies=False)["target"] is None


def test_texts_of_ids_come_back_from_their_tokenizer():
    ids = np.array([common.BOS, 10, 200, 5, 100])
    (document,) = common.corpus_of([ids]).documents
    assert common.number_tokenizer(257)(document.text)["input_ids"] == [10, 200, 5, 100]


def test_operations_are_those_of_the_products():
    module = tiny_model().module
    n = sum(p.numel() for p in module.parameters()) - 257 * 32
    assert common.operations(module, 10) == 2 * n * 10 + 2 * 10**2 * 32 * 2


def test_all_commands_can_be_read_and_have_a_place_on_the_page():
    known = {**everything.commands("m", "d"), **{f"tiny {k}": v for k, v in everything.commands(tiny=True).items()}}
    for words in known.values():
        main.commands[words[0]].make_context(words[0], [*words[1:], "--out", "x.json"])
    shown = set(re.findall(r"^\{\{([\w.]+)\}\}$", PAGE, re.MULTILINE)) - {"targets"}
    written = {path.stem for path in FIGURES}
    assert written | set(everything.commands("m")) == shown


def test_all_are_run_one_by_one_and_a_failure_is_named(tmp_path, monkeypatch):
    (tmp_path / table.SOURCE).write_text("{{attention}}\n{{targets}}\n")
    seen = []

    def ran(words, **_):
        seen.append(words[3])
        if words[3] == "attention":
            run(" ".join(words[3:-2]), tmp_path / "attention.json")
        return SimpleNamespace(returncode=int(words[3] == "zoo-suite"))

    monkeypatch.setattr(everything, "subprocess", SimpleNamespace(run=ran, TimeoutExpired=TimeoutError))
    result = CliRunner().invoke(main, ["all", "--tiny", "--only", "attention,zoo_suite", "--out", str(tmp_path)])
    assert seen == ["attention", "zoo-suite"]
    assert result.exit_code == 1
    assert "without figures: zoo_suite" in result.stderr
    page = (tmp_path / "README.md").read_text()
    assert "| hope-eval, t5 | 16 |" in page
    assert "No target has been measured yet" in page


@pytest.mark.slow
@pytest.mark.parametrize("share", ["model", "text"])
def test_what_several_processes_read_together_is_what_one_reads(share, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "benchmarks"]
    words = ["tensor-parallel", "--size", "tiny", "--length", "512", "--repeats", "1", "--share", share]
    folders = ["--folder", str(tmp_path / "model"), "--out", str(tmp_path / "x.json")]
    root = table.FOLDER.parent.parent
    subprocess.run([*launch, *words, *folders], cwd=root, check=True, capture_output=True, timeout=120)
    report = json.loads((tmp_path / "x.json").read_text())
    assert [figure["gpus"] for figure in report["figures"]] == [1, 2]
    assert report["agreement_of_nll"] < 1e-3
    assert report["command"].startswith("torchrun --nproc-per-node 2 -m benchmarks tensor-parallel --size tiny")
    assert not list((tmp_path / "model").iterdir()), "the model is removed again"


@pytest.mark.parametrize(("n", "start"), [(1, "python"), (2, "torchrun --nproc-per-node 2")])
def test_a_command_is_kept_without_its_file(n, start, monkeypatch):
    monkeypatch.setattr("sys.argv", ["x", "attention", "--length", "64", "--out", "/tmp/x.json", "--repeats", "1"])
    monkeypatch.setenv("WORLD_SIZE", str(n))
    assert common.command_line() == f"{start} -m benchmarks attention --length 64 --repeats 1"


def test_a_promise_says_what_optional_package_was_there(tmp_path):
    (tmp_path / table.SOURCE).write_text("{{targets}}\n")
    promise = {"what": "speed", "value": 7.0, "target": ">= 5", "met": True}
    for name, versions in (("with", {"flash-attn-4": "4"}), ("without", {})):
        (tmp_path / f"{name}.json").write_text(json.dumps({"targets": [promise], "versions": versions}))
    lines = [line for line in table.page(tmp_path).splitlines() if line.startswith("| speed")]
    assert [line.split("|")[1].strip() for line in lines] == ["speed, flash-attn-4 installed", "speed"]


def test_the_page_is_what_the_command_makes(tmp_path):
    for path in (*FIGURES, table.FOLDER / table.SOURCE):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    assert (table.FOLDER / "README.md").read_text("utf-8") == table.page(tmp_path), (
        "python -m benchmarks table makes it again"
    )


@pytest.mark.parametrize("path", FIGURES, ids=lambda path: path.stem)
def test_every_figure_says_where_it_comes_from(path):
    report = json.loads(path.read_text("utf-8"))
    assert report["command"].startswith(("python ", "torchrun "))
    assert report["machine"]
    assert report["versions"]["torch"]
    assert report["figures"]
