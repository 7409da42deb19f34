"""A plan is held against the run that it plans: tokens and operations exactly, memory against what was measured."""

import contextlib
import json
import shlex
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
import transformers
from commands import hope_eval
from conftest import tiny_module
from fakes import zoo_tokenizer
from torch.utils.flop_counter import FlopCounterMode

from hope_eval.errors import LengthError, OptionError
from hope_eval.evaluation import cost, loop, speed
from hope_eval.evaluation.budget import within
from hope_eval.evaluation.cost import Forward, Shape
from hope_eval.evaluation.jobs import Choice
from hope_eval.evaluation.plan import commands, planned
from hope_eval.evaluation.run import Models, Options, evaluate
from hope_eval.evaluation.speed import Speed
from hope_eval.evaluation.suites import Entry, parse_measure
from hope_eval.model import contexts
from hope_eval.model.scoring import LanguageModel

LENGTHS = (160, 256, 320)
PLAIN = Options()


@dataclass(frozen=True)
class Given(Models):
    """Models that are there already."""

    models: tuple[LanguageModel, ...] = ()

    def check(self):
        pass

    def load(self):
        yield from self.models


def model(kind="llama", **changes):
    module = tiny_module(kind, vocab_size=len(zoo_tokenizer()), attn_implementation="eager", **changes)
    return LanguageModel("tiny", module, zoo_tokenizer(), 128, "a test")


def plan_of(names, *models, samples=3, lengths=LENGTHS, options=PLAIN, **rest):
    entries = [Entry(parse_measure(name), lengths, samples) for name in names]
    return planned(entries, Given(models=models), options, **rest)


@pytest.fixture(autouse=True)
def _no_benchmark(monkeypatch, request):
    if "timed" not in request.keywords:
        monkeypatch.setattr("hope_eval.evaluation.plan.benchmark", lambda *_: Speed.stated(1e9))


def counted(model, entries, root, options=PLAIN):
    """Return tokens that the first layer reads, its calls, and operations of all, of a whole run."""
    seen = []
    hook = model.module.model.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((args[0] if args else kwargs["hidden_states"]).shape[:2]), with_kwargs=True
    )
    with FlopCounterMode(display=False) as counter:
        evaluate(entries, Given(models=(model,)), root, options, lambda title: contextlib.nullcontext(lambda *_: None))
    hook.remove()
    return sum(rows * length for rows, length in seen), len(seen), counter.get_total_flops()


EVERYTHING = ["ppl", "ppl:sliding", "ppl:last-k", "copy", "passkey", "label_map", "rule_induction"]


@pytest.mark.parametrize("name", EVERYTHING)
def test_tokens_forwards_and_operations_are_those_of_the_run(name, stories, tmp_path):
    one = model()
    lengths = (288, 320) if name in ("ppl:last-k", "ppl:sliding") else LENGTHS
    options = Options(data=str(stories)) if name.startswith("ppl") else PLAIN
    plan = plan_of([name], one, lengths=lengths, options=options)
    (job,) = plan.jobs[0]
    shape = job.subject.shape
    forwards = job.forwards(plan.choices[0])
    expected = 0
    for forward, n in forwards.items():
        linear, attention, head = shape.operations(forward)
        # Eager attention computes what the mask hides.
        whole = len(shape.windows) * forward.n_read * (forward.n_past + forward.n_read)
        attention = attention * whole // shape.pairs(forward.n_read, forward.n_past)
        expected += n * (linear + attention + head)
    (row,) = [row for row in plan.rows() if row["what"] != "loading"]
    tokens, n_calls, operations = counted(one, list(plan.entries), tmp_path, options)
    assert (row["tokens"], row["forwards"]) == (tokens, n_calls)
    assert operations == expected


@pytest.mark.parametrize(
    "why",
    [
        "a batch",
        "length-dependent",
        *(pytest.param(w, marks=pytest.mark.slow) for w in ("few copies", "no kept contexts", "no controls")),
    ],
)
def test_tokens_are_those_of_the_run_however_it_reads(why, stories, tmp_path, monkeypatch):
    changes, names, options = {}, ["ppl", "passkey"], Options(data=str(stories))
    if why == "a batch":
        monkeypatch.setitem(loop.BATCH_TOKENS, "cpu", 700)
    if why == "few copies":
        names += ["label_map"]
        monkeypatch.setitem(contexts._COPIES_BYTES, "cpu", 1_000_000)
    if why == "length-dependent":
        changes["rope_parameters"] = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    if why == "no controls":
        options = Options(data=str(stories), controls=False)
    one = model(**changes)
    if why == "no kept contexts":
        one.reading = replace(one.reading, keeps_contexts=False)
    plan = plan_of(names, one, options=options)
    tokens, n_calls, _ = counted(one, list(plan.entries), tmp_path, options)
    rows = [row for row in plan.rows() if row["what"] != "loading"]
    assert sum(row["tokens"] for row in rows) == tokens
    assert sum(row["forwards"] for row in rows) == n_calls


def test_what_is_written_is_planned_to_its_end():
    plan = plan_of(["instruction_at_distance"], model(), samples=1, lengths=(400,), options=Options(controls=False))
    (job,) = plan.jobs[0]
    steps = [forward for forward in job.forwards(plan.choices[0]).elements() if forward.kind == "step"]
    # The floor, which is part of the headline, is planned without the other controls too.
    assert len(steps) == 2 * (job.measurement.task.n_new - 1)
    assert steps[-1].n_past == 400 - 2
    assert any("fewer than 96 tokens takes less" in note for note in plan.notes())


@pytest.mark.parametrize("window", [None, 1, 3, 5, 40])
@pytest.mark.parametrize(("n_read", "n_past"), [(1, 0), (7, 0), (4, 3), (1, 9), (6, 2)])
def test_pairs_are_those_a_query_may_look_at(n_read, n_past, window):
    wanted = sum(min(n_past + i + 1, window or 99) for i in range(n_read))
    assert cost._pairs(n_read, n_past, window) == wanted


@pytest.mark.parametrize(
    ("kind", "changes", "windows"),
    [
        ("llama", {}, (None, None)),
        ("mistral", {"sliding_window": 8}, (8, 8)),
        ("qwen2", {"sliding_window": 8, "use_sliding_window": False}, (None, None)),
        ("gemma2", {"sliding_window": 8}, (8, None)),
    ],
)
def test_layers_look_back_as_far_as_the_config_says(kind, changes, windows):
    shape = Shape.of(tiny_module(kind, **changes))
    assert shape.windows == windows
    assert (shape.n_kv_heads, shape.n_heads, shape.head_dim) == (1, 2, 16)


def test_experts_count_as_many_as_are_asked():
    dense = Shape.of(tiny_module("mixtral", num_local_experts=1, num_experts_per_tok=1))
    mixed = Shape.of(tiny_module("mixtral", num_local_experts=4, num_experts_per_tok=2))
    expert = 3 * 32 * 64 * 2
    gate = 3 * 32 * 2
    assert mixed.n_linear - dense.n_linear == expert + gate
    assert mixed.n_bytes - dense.n_bytes == 4 * (3 * expert + gate)


def llama(length, **changes):
    """Return GiB above the weights of a forward of a Llama of 128,256 tokens, in bfloat16."""
    config = transformers.LlamaConfig(vocab_size=128_256, **changes)
    with torch.device("meta"):
        module = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    return Shape.of(module).memory(Forward("score", 1, length, n_scored=length - 1), "cuda") / 2**30


SMALL = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
LARGE = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32}


@pytest.mark.parametrize(
    ("shape", "length", "measured"),
    # On one H200: results/benchmarks; the longer ones compiled, as long inputs are.
    [(SMALL, 32_768, 0.95), (SMALL, 131_072, 2.78), (LARGE, 32_768, 1.89), (LARGE, 131_072, 5.56)],
)
def test_memory_is_what_was_measured_on_a_gpu(shape, length, measured):
    assert llama(length, num_key_value_heads=8, **shape) == pytest.approx(measured, rel=0.03)


def test_an_outline_needs_no_weights_and_plans_the_same(checkpoint, stories, tmp_path):
    bare = tmp_path / checkpoint.name
    bare.mkdir()
    for file in checkpoint.iterdir():
        if file.suffix != ".safetensors":
            (bare / file.name).write_bytes(file.read_bytes())
    fixed = ("--task", "ppl", "--lengths", "32,64,256", "--data", stories, "--encoding", "native", "--encoding",
             "dynamic_ntk", "--format", "json", "--device", "cpu")  # fmt: skip
    loaded = json.loads(hope_eval("plan", "--model", checkpoint, *fixed).stdout)
    outlined = json.loads(hope_eval("plan", "--model", bare, "--no-benchmark", *fixed).stdout)
    loaded = [row for row in loaded if row["what"] != "loading"]
    for key in ("model", "encoding", "lengths", "samples", "forwards", "tokens", "flops", "peak_bytes"):
        assert [row[key] for row in outlined] == [row[key] for row in loaded], key
    native, dynamic = (row["tokens"] for row in outlined)
    assert (native, dynamic) == (3 * 256, 3 * (32 + 64 + 256)), "each length has a read of its own"
    assert [row["seconds"] for row in outlined] == [None, None]


def test_what_does_not_fit_is_said_and_left_out(stories):
    one, options = model(), Options(data=str(stories))
    shape = Shape.of(one.module)
    between = [shape.n_bytes + shape.memory(Forward("score", 1, n, n_scored=n), "cpu") for n in (256, 320)]
    plan = plan_of(["ppl", "passkey"], one, memory=sum(between) / 2, options=options)
    assert [row["too_long"] for row in plan.rows()][-2:] == ["320", "320"]
    assert any("does not fit at 320" in note for note in plan.notes())
    fewer = plan_of(["ppl", "passkey"], one, lengths=(160, 256), options=options)
    assert [row["tokens"] for row in plan.rows()] == [row["tokens"] for row in fewer.rows()]


def test_a_batch_that_does_not_fit_is_halved(stories, monkeypatch):
    monkeypatch.setitem(loop.BATCH_TOKENS, "cpu", 3 * 256)
    one, options = model(), Options(data=str(stories))
    shape = Shape.of(one.module)
    free = shape.n_bytes + shape.memory(Forward("score", 1, 256, n_scored=256), "cpu")
    (whole,) = plan_of(["ppl"], one, lengths=(256,), options=options).rows()[-1:]
    (halved,) = plan_of(["ppl"], one, lengths=(256,), options=options, memory=free).rows()[-1:]
    assert halved["peak_bytes"] <= free < whole["peak_bytes"]


def test_fewer_documents_take_less(stories):
    plan = plan_of(["ppl"], model(), options=Options(data=str(stories)))
    (job,) = plan.jobs[0]
    assert [job.cost(Choice(LENGTHS, n)).n_tokens for n in (1, 3)] == [320, 3 * 320]


def test_what_is_too_short_for_a_task_is_said_and_left_out():
    plan = plan_of(["passkey"], model(), lengths=(8, 256))
    assert any("8 is left out" in note for note in plan.notes())
    alone = plan_of(["passkey"], model(), lengths=(256,))
    assert [row["tokens"] for row in plan.rows()] == [row["tokens"] for row in alone.rows()]


def test_a_budget_takes_samples_then_lengths_then_controls():
    plan = plan_of(["copy", "passkey"], model(), samples=12)
    all_of_it = plan.seconds()
    floor = plan.seconds([Choice(LENGTHS, 5), Choice(LENGTHS, 5)])
    assert within(plan, all_of_it * 1.01) is plan

    fewer = within(plan, (all_of_it + floor) / 2)
    assert [choice.lengths for choice in fewer.choices] == [LENGTHS, LENGTHS]
    assert all(5 < choice.n < 12 and choice.controls for choice in fewer.choices)
    assert fewer.seconds() <= (all_of_it + floor) / 2
    assert "8 of 12 samples are left of copy, passkey" in fewer.dropped[0]

    shorter = within(plan, floor * 0.95)
    assert [choice.lengths for choice in shorter.choices] == [LENGTHS[:2], LENGTHS[:2]]
    assert all(choice.controls for choice in shorter.choices)
    assert "length 320" in shorter.dropped[0]
    assert shorter.seconds() <= floor * 0.95

    least = plan.seconds([Choice(LENGTHS[:1], 5, controls=False)] * 2)
    bare = within(plan, least * 1.001)
    assert [choice.lengths for choice in bare.choices] == [LENGTHS[:1], LENGTHS[:1]]
    assert not any(choice.controls for choice in bare.choices)
    assert all("--no-controls" in words for words, _ in commands(bare))
    assert not any("--no-controls" in words for words, _ in commands(shorter))
    with pytest.raises(OptionError, match="the least of this plan takes"):
        within(plan, least * 0.99)


def test_an_entry_goes_with_its_only_length(stories):
    entries = [Entry(parse_measure("ppl"), (160, 256), 5), Entry(parse_measure("ppl:bucket"), (320,), 5)]
    plan = planned(entries, Given(models=(model(),)), Options(data=str(stories)))
    shorter = within(plan, plan.seconds() * 0.9)
    assert shorter.choices[1] is None
    assert "ppl:bucket at 320, its only length" in shorter.dropped[0]


def test_the_command_that_is_printed_measures_what_is_left(stories, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_module(vocab_size=len(zoo_tokenizer()), max_position_embeddings=128).save_pretrained("ckpt")
    zoo_tokenizer().save_pretrained("ckpt")
    fixed = ("--model", "ckpt", "--device", "cpu", "--no-benchmark", "--tflops", "1e-6", "--lengths", "1x,2x")
    tasks = ("--task", "ppl:bucket", "--task", "passkey", "--samples", "8", "--data", stories)
    seconds = sum(row["seconds"] for row in json.loads(hope_eval("plan", *fixed, *tasks, "--format", "json").stdout))
    left = hope_eval("plan", *fixed, *tasks, "--budget", f"{0.45 * seconds:.3f}s")
    assert "dropped for the budget: length 256" in left.stdout
    commands = [shlex.split(line)[1:] for line in left.stdout.splitlines() if line.startswith("hope-eval")]
    assert [words[0] for words in commands] == ["ppl", "retrieve"]
    assert commands[0][1:5] == ["--model", "ckpt", "--device", "cpu"]
    assert all(words[words.index("--lengths") + 1] == "1x" for words in commands)
    for words in commands:
        hope_eval(*words)


@pytest.mark.parametrize("longest", [2048, 131_072])
@pytest.mark.parametrize("kept_bytes", [0, 8])
@pytest.mark.parametrize(("rows", "device"), [(1, "cpu"), (6, "cpu"), (1, "cuda"), (6, "cuda")])
def test_the_benchmark_finds_the_speed_that_a_device_has(rows, device, kept_bytes, longest, monkeypatch, request):
    monkeypatch.undo()
    one = model(max_position_embeddings=4096)
    shape = replace(Shape.of(one.module), kept_bytes=kept_bytes)
    first, fresh = 0.0, 0.0
    true = Speed(2e-3, 1e-8, 3e-8, 5e-8, answers_call=4e-3, step_call=6e-3, copied=2e-7)
    if device == "cuda":
        # What a call takes is seen only where it takes longer than the work.
        true = Speed(2e-3, 1e-11, 3e-11, 5e-11, answers_call=4e-3, step_call=6e-3, copied=2e-9, overlaps=True)
        first = 0.04
    if kept_bytes:
        fresh = 1e-8
    shapes, lengths = set(), set()

    def taken(*forwards):
        seconds = sum(true.seconds(shape, forward) for forward in forwards)
        for read in [forward for forward in forwards if forward.kind != "answers"]:
            seconds += 0 if (read.rows, read.n_read) in shapes else first
            seconds += 0 if read.n_read in lengths else fresh * read.n_read**2
            shapes.add((read.rows, read.n_read))
            lengths.add(read.n_read)
        return seconds

    def once(_, call):
        what, (argument, *rest) = call.func.__name__, call.args
        if what == "score":
            n_scored = sum(len(sample.target) for sample in argument)
            return taken(Forward("score", len(argument), argument[0].n_read, n_scored=n_scored))
        if what == "generate":
            return true.call + (rest[0] - 1) * true.step_call
        (prompt,) = argument
        n = len(prompt.context) - 1
        answers = Forward("answers", len(prompt.questions), 8, n, n_scored=4 * len(prompt.questions))
        return taken(Forward("context", 1, n), answers)

    def generate(prompts, n):
        return [[0] * n for _ in prompts]

    monkeypatch.setattr(speed, "_once", once)
    monkeypatch.setattr(type(one), "device", torch.device(device))
    monkeypatch.setattr(one, "generate", generate)
    found = speed.benchmark(one, shape, longest, rows_of=lambda n_read: rows)
    assert "131072" not in found.about, "long reads are predicted, not made"
    for forward in (
        Forward("score", 1, 131_072, n_scored=131_071),
        Forward("context", 1, 131_072),
        Forward("score", 1, 2, n_scored=1),
        Forward("answers", 1, 2, 2, n_scored=1),
        Forward("answers", 8, 5, 131_067, n_scored=16),
        Forward("step", 1, 1, 100, n_scored=1),
    ):
        # Little of what is that short takes longer than its call.
        rel = 0.05 if longest > 2048 else 0.1
        if forward.n_past + forward.n_read <= longest:
            assert found.seconds(shape, forward) == pytest.approx(true.seconds(shape, forward), rel=rel), forward
    assert found.first == pytest.approx(first, abs=1e-3)
    assert found.fresh == pytest.approx(fresh, rel=0.05)


def test_what_is_prepared_for_a_shape_is_counted_once():
    pace = Speed(1, 0, 0, 0, first=10, fresh=1e-2)
    shapes = [
        Forward("score", 1, 100, n_scored=99),
        Forward("score", 1, 100, n_scored=1),
        Forward("context", 2, 100),
        Forward("context", 1, 50),
    ]
    others = [Forward("answers", 1, 7, 100), Forward("step", 1, 1, 100)]
    assert pace.beforehand([*shapes, *others]) == pytest.approx(10 * 3 + 1e-2 * (100**2 + 50**2))


def test_a_plan_counts_what_is_prepared(stories):
    plan = plan_of(["ppl"], model(), options=Options(data=str(stories)))
    (job,) = plan.jobs[0]
    subject = replace(job.subject, speed=Speed(1, 0, 0, 0, first=10))
    shapes = {(forward.rows, forward.n_read) for forward in job.forwards(Choice(LENGTHS, 3))}
    seconds = replace(job, subject=subject).cost(Choice(LENGTHS, 3)).seconds
    assert seconds == pytest.approx(10 * len(shapes) + sum(job.forwards(Choice(LENGTHS, 3)).values()))


def test_a_fit_has_no_negative_speed():
    columns = np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
    assert speed._fitted(columns, np.array([3.0, 2.0, 1.0]))[1] == 0
    assert speed._fitted(columns, np.array([3.0, 5.0, 7.0])) == pytest.approx((1.0, 2.0))


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("--budget", "soon"), "`soon` is not a valid time", "--budget 30m"),
        (("--budget", "0m"), "`0m` is not a valid time", "--budget 30m"),
        (("--memory", "much"), "`much` is not a valid amount of memory", "--memory 80"),
        (("--tflops", "400"), "--tflops states a throughput", "--no-benchmark"),
        (("--no-benchmark", "--budget", "1m"), "needs a throughput", "--tflops"),
        (("--suite", "quick", "--task", "ppl"), "both choose the measurements", "leave one out"),
        (("--task", "pppl"), "no task is called `pppl`", "tasks"),
        (("--no-benchmark", "--loader", "a.py:load"), "no config with the shape", "leave --no-benchmark out"),
        (("--no-benchmark", "--device", "cudda"), "no device `cudda`", "--device cuda"),
    ],
)
def test_mistakes_are_explained(arguments, message, hint, checkpoint):
    result = hope_eval("plan", "--model", checkpoint, *arguments, code=1)
    assert message in result.stderr
    assert hint in result.stderr


def test_a_length_beyond_all_positions_is_an_error(stories):
    module = tiny_module("gpt2", n_positions=64, n_embd=32, n_head=2, n_layer=1, vocab_size=len(zoo_tokenizer()))
    one = LanguageModel("gpt2", module, zoo_tokenizer(), 64, "a test")
    options = Options(data=str(stories))
    plan = plan_of(["ppl"], one, lengths=(32, 128), options=options)
    assert any("64 positions: 128 is left out" in note for note in plan.notes())
    with pytest.raises(LengthError):
        plan_of(["ppl"], one, lengths=(128,), options=options).rows()


def test_other_devices_are_planned_for_with_their_batches(checkpoint, stories):
    fixed = ("plan", "--model", checkpoint, "--task", "ppl", "--lengths", "64", "--data", stories, "--no-benchmark",
             "--format", "json")  # fmt: skip
    cpu, cuda = (json.loads(hope_eval(*fixed, "--device", device).stdout)[0] for device in ("cpu", "cuda"))
    assert (cpu["forwards"], cuda["forwards"]) == (4, 1)
    assert cpu["tokens"] == cuda["tokens"]
    assert cpu["weight_bytes"] == 4 * sum(p.numel() for p in tiny_module().parameters())


def test_the_shortest_lengths_can_be_planned(stories):
    for lengths in ((2,), (2, 3)):
        (row,) = plan_of(["ppl"], model(), lengths=lengths, options=Options(data=str(stories))).rows()[-1:]
        assert row["tokens"] == 3 * max(lengths)
        found = speed.benchmark(model(), Shape.of(model().module), max(lengths))
        assert found.call > 0
