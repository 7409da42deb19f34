"""The loop around measurements: progress, memory, and one place that reads."""

import ast
from pathlib import Path

import asking
import pytest
from conftest import story
from fakes import Uniform, fake

import hope_eval
from hope_eval.data.corpora import Corpus, Document
from hope_eval.errors import HopeEvalError
from hope_eval.evaluation import loop, questions
from hope_eval.evaluation.perplexity import Perplexity
from hope_eval.evaluation.questions import Questions
from hope_eval.model.reading import OutOfMemory
from hope_eval.model.scoring import LanguageModel
from hope_eval.protocols import protocol_named
from hope_eval.task import parse_task

TEXTS = Corpus("stories", tuple(Document(str(n), story(30, 1000 * n)) for n in range(3)), "stories")
TASK = parse_task("passkey")


def measurements(model):
    yield Perplexity.of(model, protocol_named("windows"), (32, 64), TEXTS)
    yield Questions.of(model, TASK, (150, 200), n_contexts=3)


@pytest.mark.parametrize("number", [0, 1])
def test_progress_ends_at_all_that_fits_in_memory(number, tmp_path, monkeypatch):
    model, reported = fake(Uniform()), []
    measurement = list(measurements(model))[number]
    limit = (64, 200)[number]
    read = type(measurement).read

    def narrow(self, model, batch):
        if self.n_tokens(batch) >= limit:
            raise OutOfMemory(limit, {}, "a test")
        return read(self, model, batch)

    monkeypatch.setattr(type(measurement), "read", narrow)
    store = loop.measure(measurement, model, tmp_path, lambda *now: reported.append(now))
    done, total = reported[-1]
    assert done == total == sum(measurement.n_tokens(b) for b in measurement.all_batches("cpu", None, limit))
    assert [now[0] for now in reported] == sorted(now[0] for now in reported)
    assert sum(record["kind"] == "oom" for record in store.records) == 1


@pytest.mark.parametrize("number", [0, 1])
def test_a_batch_that_breaks_leaves_no_record(number, tmp_path, monkeypatch):
    model = fake(Uniform())
    measurement = list(measurements(model))[number]
    read = type(measurement).read

    def broken(self, model, batch):
        yield from read(self, model, batch)
        raise HopeEvalError("broken")

    monkeypatch.setattr(type(measurement), "read", broken)
    with pytest.raises(HopeEvalError, match="broken"):
        loop.measure(measurement, model, tmp_path)
    monkeypatch.setattr(type(measurement), "read", read)
    held = measurement.holdings(loop.measure(measurement, model, tmp_path / "whole"))
    assert not any(held.missing(batch) for batch in measurement.all_batches("cpu", None))
    (run,) = [path.parent for path in tmp_path.glob("*/records.jsonl")] or [next(tmp_path.glob("*-*"))]
    lines = (run / "records.jsonl").read_text().splitlines()
    assert not any('"window"' in line or '"answer"' in line for line in lines)
    assert not (run / "sessions.jsonl").exists(), "nothing was read to the end"


def test_a_smaller_measurement_reads_some_of_the_batches():
    for measurement in measurements(fake(Uniform())):
        whole = [repr(batch) for batch in measurement.all_batches("cpu", None)]
        fewer = measurement.smaller(measurement.lengths, 2, controls=False)
        batches = [repr(batch) for batch in fewer.all_batches("cpu", None)]
        assert fewer.n_samples == 2
        assert 0 < len(batches) < len(whole)


def test_models_that_share_a_tokenizer_share_the_least_length_of_a_task(monkeypatch):
    monkeypatch.setattr(questions, "_tokens_needed", {})
    prompts = []
    monkeypatch.setattr(questions, "_needed", lambda task, vocabulary, seed, index: prompts.append(index) or 21)
    for _ in range(2):
        assert Questions.of(fake(Uniform()), TASK, (150,), n_contexts=4).needed == 21
    assert prompts == [0, 1, 2, 3]
    Questions.of(fake(Uniform()), TASK, (150,), n_contexts=5)
    Questions.of(fake(Uniform()), parse_task("passkey:digits=7"), (150,), n_contexts=4)
    Questions.of(fake(Uniform()), TASK, (150,), n_contexts=4, seed=1)
    assert len(prompts) == 4 + 5 + 4 + 4, "other prompts are looked at"


def test_models_are_read_from_one_place():
    """`read` is called in the loop only, and the loop's `read` is where batches meet a model."""
    places = []
    for path in sorted((Path(hope_eval.__file__).parent / "evaluation").glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "read":
                places.append(path.name)
    assert places == ["loop.py"]


def test_a_run_is_read_with_little_ceremony(tmp_path):
    model = fake(Uniform())
    store = loop.measure(Questions.of(model, TASK, (150,), n_contexts=2, controls=False), model, tmp_path)
    assert store.records == asking.run(model, TASK, (150,), tmp_path / "again").records
    assert isinstance(model, LanguageModel)
