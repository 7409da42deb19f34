"""Measuring that ends when enough is known: where, with what records, and how often the interval then is right."""

import json
from functools import partial

import asking
import numpy as np
import pytest
import torch
from commands import hope_eval
from conftest import story, tiny_module
from fakes import Oracle, fake, zoo_tokenizer

from hope_eval.analysis import answers, perplexity
from hope_eval.analysis import compare as comparison
from hope_eval.analysis.differences import win_probabilities
from hope_eval.analysis.intervals import Clusters
from hope_eval.analysis.stopping import FIRST, Until, check, stages
from hope_eval.data.corpora import Corpus, Document
from hope_eval.errors import OptionError
from hope_eval.evaluation import loop
from hope_eval.evaluation.material import vocabulary_for
from hope_eval.evaluation.questions import Questions
from hope_eval.model.reading import OutOfMemory
from hope_eval.model.scoring import LanguageModel
from hope_eval.protocols import protocol_named
from hope_eval.runs.processes import ALONE, Ranks
from hope_eval.runs.verify import verify
from hope_eval.task import generator, parse_task

TASK = parse_task("associative_recall:n_questions=2")
LENGTHS = (100, 150)
N = 60

# As many words as the place of a document says: some are read more easily than others.
TEXTS = Corpus(
    "stories",
    tuple(Document(f"d{n}", (f"word{n % 7} " * (n % 5 + 1) + story(2, 100 * n)) * 6) for n in range(N)),
    "stories",
)
PREFIX = protocol_named("prefix")


class Killed(BaseException):
    """What no except clause of the program catches."""


def dies_after(n):
    left = [n]

    def report(done, total):
        if left[0] == 0:
            raise Killed
        left[0] -= 1

    return report


def clusters(hits, questions=1):
    hits = np.atleast_2d(np.asarray(hits, float))
    return Clusters(hits, np.full_like(hits, questions), tuple(map(str, range(hits.shape[1]))), proportion=True)


# Where it ends


def test_there_is_a_look_each_time_half_as_many_again_are_there():
    assert list(stages(100, Until(0.05))) == [(0, 20), (20, 30), (30, 45), (45, 67), (67, 100)]
    assert list(stages(400, Until(0.05)))[:4] == list(stages(100, Until(0.05)))[:4], "wherever they end"
    assert list(stages(20, Until(0.05))) == [(0, 20)]
    assert list(stages(100, None)) == [(0, 100)]


def test_few_contexts_that_happen_to_be_alike_are_not_enough():
    alike = clusters([35] * (FIRST - 1) + [36], 40)
    assert alike.interval().high - alike.interval().low < 0.1
    assert not Until(0.05).is_met(alike)
    assert Until(0.05).is_met(clusters([35] * 99 + [36], 40))
    assert not Until(0.05).is_met(clusters([5] * (FIRST - 1) + [4], 40)), "nor of those that are mostly wrong"


def test_the_width_is_that_of_half_the_interval():
    numbers = np.random.default_rng(0).normal(3, 1, (1, 50))
    mean = Clusters(numbers, np.ones((1, 50)), tuple(map(str, range(50))))
    half = (mean.interval().high - mean.interval().low) / 2
    assert Until(half * 1.001).is_met(mean)
    assert not Until(half * 0.999).is_met(mean)
    assert not Until(1e9).is_met(Clusters(numbers[:, :1], np.ones((1, 1)), ("0",))), "one has no interval"


def test_what_cannot_end_early_is_refused():
    check(Until(0.05), [None, 4])
    check(Until(0.05), [FIRST + 1, 4])
    with pytest.raises(OptionError, match="20 samples first, and there are 6 at most"):
        check(Until(0.05), [6, 4])
    with pytest.raises(OptionError, match="each of 2 processes has only its own"):
        check(Until(0.05), [None], n_processes=2)


# How often the interval is right


def coverage(draw, truth, half_width, n_most, n_repetitions):
    """Return in which share of repetitions the interval at a stop holds the truth, and after how many that is."""
    rng, until = np.random.default_rng(0), Until(half_width)
    held, ended = [], []
    for _ in range(n_repetitions):
        numbers, denominators, proportion = draw(rng, n_most)
        for _, stop in stages(n_most, until):
            names = tuple(map(str, range(stop)))
            seen = Clusters(numbers[None, :stop], denominators[None, :stop], names, proportion)
            if until.is_met(seen):
                break
        found = seen.interval()
        held.append(found.low <= truth <= found.high)
        ended.append(stop)
    return np.mean(held), np.mean(ended)


def questions(rng, n, *, right, alike, of=8):
    """Draw how many of 8 questions on each context are right; `alike` is their intraclass correlation."""
    own = rng.beta(right * (1 - alike) / alike, (1 - right) * (1 - alike) / alike, n) if alike else np.full(n, right)
    return rng.binomial(of, own).astype(float), np.full(n, float(of)), True


def documents(rng, n, *, kind, spread):
    """Draw the nll of documents, 0 on average."""
    values = rng.standard_normal(n) if kind == "normal" else rng.exponential(1, n) - 1
    return spread * values, np.ones(n), False


@pytest.mark.parametrize(("right", "alike", "least"), [(0.7, 0.05, 0.94), (0.9, 0.4, 0.92), (0.95, 0.2, 0.93)])
def test_the_interval_of_an_accuracy_at_a_stop_holds_the_truth(right, alike, least):
    share, n = coverage(partial(questions, right=right, alike=alike), right, 0.05, 400, 1000)
    assert share > least
    assert FIRST < n < 200, "it does end early"


def test_the_interval_of_nll_at_a_stop_holds_the_truth():
    share, n = coverage(partial(documents, kind="normal", spread=0.13), 0, 0.05, 150, 300)
    assert share > 0.93
    assert FIRST < n < 60


@pytest.mark.slow
def test_how_often_intervals_at_a_stop_hold_the_truth():
    """The table in `results/stopping.py`; run with -s to see it."""
    for of, alike, mean, least in ((1, 0, 95, 93), (8, 0.05, 94.5, 93), (8, 0.2, 94, 91), (8, 0.4, 93.5, 88)):
        found = [
            100 * coverage(partial(questions, right=right, alike=alike, of=of), right, width, 1000, 1000)[0]
            for width in (0.03, 0.05, 0.1, 0.15)
            for right in (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
        ]
        print(f"{of} questions, alike by {alike}: {np.mean(found):.1f}, at worst {min(found):.1f}")
        assert np.mean(found) > mean
        assert min(found) > least
    for kind, mean, least in (("normal", 94, 92.5), ("exponential", 90, 88)):
        found = [
            100 * coverage(partial(documents, kind=kind, spread=0.025 * n**0.5), 0, 0.05, 300, 1000)[0]
            for n in (12, 20, 28, 40, 60, 90)
        ]
        print(f"nll, {kind}: {np.mean(found):.1f}, at worst {min(found):.1f}")
        assert np.mean(found) > mean
        assert min(found) > least


# Tasks


@pytest.fixture(scope="module")
def told():
    """An oracle that knows all answers at 100 tokens, and those on every third context at 150."""
    vocabulary = vocabulary_for(zoo_tokenizer(), TASK)
    prompts = [
        TASK.prompt(vocabulary, length, generator("test", str(TASK), 0, index))
        for length in LENGTHS
        for index in range(N)
        if length == 100 or index % 3 == 0
    ]
    return Oracle(prompts)


def asked(told, root, half_width=0.08, n=N, **options):
    model = fake(told)
    until = None if half_width is None else Until(half_width)
    return asking.run(model, TASK, LENGTHS, root, n, until=until, **options)


def records(store, kind="answer"):
    return [record for record in store.records if record["kind"] == kind]


def counts(store):
    """Return how many contexts of each length were asked."""
    return {length: len({r["index"] for r in records(store) if r["length"] == length}) for length in LENGTHS}


def content(store):
    return (store.path / "records.jsonl").read_bytes()


def rows_of(table, metric="accuracy"):
    return {row["length"]: row for row in table.rows if row["metric"] == metric}


def test_a_length_ends_when_it_is_known_well_enough_and_no_sooner(told, tmp_path):
    store = asked(told, tmp_path)
    assert counts(store) == {100: 30, 150: N}
    rows = rows_of(answers.table([store], LENGTHS, N))
    assert {length: row["n"] for length, row in rows.items()} == {100: 30, 150: N}
    assert rows[100]["high"] - rows[100]["low"] < 0.16 < rows[150]["high"] - rows[150]["low"]
    assert [(r["length"], r["n"], r["of"], r["narrow"]) for r in records(store, "until")] == [
        (100, 30, N, True),
        (150, N, N, False),
    ]


def test_the_table_says_where_it_ended(told, tmp_path):
    notes = answers.table([asked(told, tmp_path)], LENGTHS, N).notes
    (line,) = [note for note in notes if "stopped" in note]
    assert line.endswith(
        "stopped at 30 of 60 contexts (at 100): interval of accuracy within 0.08; not within 0.08 at 60 of 60 contexts "
        "(at 150)"
    )
    assert any("of simulations" in note for note in notes)
    notes = answers.table([asked(told, tmp_path, None)], LENGTHS, N).notes
    assert not any("stopped" in note for note in notes), "when all has been asked, it did not"


def test_what_is_asked_later_makes_it_the_run_that_it_would_have_been(told, tmp_path):
    store = asked(told, tmp_path / "early")
    whole = asked(told, tmp_path / "whole", None)
    assert store.id == whole.id
    assert records(store)[: 2 * 30] == records(whole)[: 2 * 30]
    later = asked(told, tmp_path / "early", None)
    assert sorted(map(json.dumps, records(later))) == sorted(map(json.dumps, records(whole)))
    verify(later.path)


def test_the_same_again_asks_and_writes_nothing(told, tmp_path):
    before = content(asked(told, tmp_path))
    assert content(asked(told, tmp_path)) == before
    assert content(asked(told, tmp_path, 0.2)) == before, "a run is not cut for a wider interval"
    assert counts(asked(told, tmp_path, 0.05)) == {100: 45, 150: N}


@pytest.mark.parametrize("n", [1, 19, 20, 21, 31, 32, 50, 92])
def test_a_run_that_was_interrupted_goes_on_to_the_same_records(told, n, tmp_path):
    wanted = asked(told, tmp_path / "whole", controls=True)
    with pytest.raises(Killed):
        asked(told, tmp_path / "killed", controls=True, report=dies_after(n))
    assert content(asked(told, tmp_path / "killed", controls=True)) == content(wanted)
    verify(wanted.path)


def test_what_is_there_already_is_not_cut(told, tmp_path):
    before = content(asked(told, tmp_path, None))
    store = asked(told, tmp_path)
    assert content(store) == before + b"".join(content(store)[len(before) :].splitlines(keepends=True))
    assert [r["length"] for r in records(store, "until")] == [150], "which is not narrow with all of them"
    assert {row["n"] for row in answers.table([store], LENGTHS, N).rows} == {N}
    fewer = asked(told, tmp_path / "fewer", None, n=37)
    fewer = asked(told, tmp_path / "fewer")
    assert counts(fewer) == {100: 37, 150: N}
    assert "37 of 60 contexts (at 100)" in "".join(answers.table([fewer], LENGTHS, N).notes)


def test_controls_are_asked_on_a_share_of_the_contexts_of_their_length(told, tmp_path):
    store = asked(told, tmp_path, controls=True)
    by_control = {
        (length, control): len({r["index"] for r in records(store) if (r["length"], r["control"]) == (length, control)})
        for length, control in ((0, "ceiling"), (100, "floor"), (150, "floor"))
    }
    assert by_control == {(0, "ceiling"): N // 4, (100, "floor"): 30 // 4, (150, "floor"): N // 4}


@pytest.mark.parametrize("name", ["associative_recall", "label_map", "instruction_at_distance"])
def test_a_look_sees_the_interval_of_the_table(name, tmp_path):
    task = parse_task(name)
    torch.manual_seed(0)
    model = LanguageModel(
        "tiny", tiny_module(vocab_size=len(zoo_tokenizer()), max_position_embeddings=512), zoo_tokenizer(), 64, "a test"
    )
    store = asking.run(model, task, (300,), tmp_path, 6)
    (row, *_) = [row for row in answers.table([store]).rows if row["metric"] == task.metric]
    seen = answers.clusters_of(store.records, 300, "", task.metric)
    assert seen.names == row["clusters"].names
    assert (seen.numerators == row["clusters"].numerators).all()
    assert (seen.denominators == row["clusters"].denominators).all()
    if task.metric == "choice_accuracy":
        assert 0 < row["value"] < 1


def test_what_does_not_fit_into_memory_is_a_hole_and_the_rest_ends(told, tmp_path, monkeypatch):
    whole = LanguageModel.score_prompts

    def score(self, prompts):
        if len(prompts[0].context) > 120:
            raise OutOfMemory(150, {}, "a test")
        return whole(self, prompts)

    monkeypatch.setattr(LanguageModel, "score_prompts", score)
    store = asked(told, tmp_path)
    assert counts(store) == {100: 30, 150: 0}
    assert [r["length"] for r in records(store, "until")] == [100]
    assert len(records(store, "oom")) == 1
    assert rows_of(answers.table([store], LENGTHS, N))[150]["status"] == "oom"


# Perplexity


@pytest.fixture(scope="module")
def reader():
    torch.manual_seed(0)
    module = tiny_module(vocab_size=len(zoo_tokenizer()), max_position_embeddings=64)
    return LanguageModel("tiny", module, zoo_tokenizer(), 64, "a test")


def read(reader, root, half_width, n=N, protocol=PREFIX, lengths=(16, 64), **options):
    until = None if half_width is None else Until(half_width)
    tokens = asking.read(reader, TEXTS, protocol, lengths, root, n_documents=n, until=until, **options)
    return tokens, len(tokens.sample(n))


def half_widths(reader, root):
    """Return the half widths of both lengths by documents, and one that they all reach with 45 and not with 30."""
    tokens, n = read(reader, root, None)
    halves = {}
    for k in (20, 30, 45, n):
        rows = [row for row in perplexity.table([tokens], n_documents=k).rows if row["metric"] == "nll"]
        halves[k] = [(row["high"] - row["low"]) / 2 for row in rows]
    return halves, tokens


@pytest.fixture(scope="module")
def width(reader, tmp_path_factory):
    halves, _ = half_widths(reader, tmp_path_factory.mktemp("width"))
    assert max(halves[45]) < max(halves[30]) < max(halves[20])
    assert min(halves[30]) < max(halves[45]), "one length alone would have been known sooner"
    return max(halves[45]) * 1.001


def test_documents_end_when_all_lengths_are_known_and_all_have_the_same(reader, width, tmp_path):
    tokens, n = read(reader, tmp_path, width)
    assert (n, len(tokens.documents)) == (45, 45)
    table = perplexity.table([tokens], n_documents=n)
    assert {row["n"] for row in table.rows} == {45}
    wanted = f"stopped at 45 of 60 documents: interval of nll within {width:g}"
    assert any(note.endswith(wanted) for note in table.notes)
    assert verify(tokens.store.path)


def test_documents_that_are_read_later_make_it_the_run_that_it_would_have_been(reader, width, tmp_path):
    read(reader, tmp_path / "early", width)
    later, n = read(reader, tmp_path / "early", None)
    whole, _ = read(reader, tmp_path / "whole", None)
    assert n == N
    tables = [perplexity.table([tokens]) for tokens in (later, whole)]
    assert [row["value"] for row in tables[0].rows] == [row["value"] for row in tables[1].rows]
    assert later.store.id == whole.store.id
    assert not any("stopped" in note for note in tables[0].notes)
    assert read(reader, tmp_path / "early", width)[1] == N, "and it is not cut"


@pytest.mark.parametrize("name", ["prefix", "windows"])
@pytest.mark.parametrize("n", [1, 19, 21, 44])
def test_documents_go_on_after_a_kill_to_the_same_records(reader, width, name, n, tmp_path):
    options = {"protocol": protocol_named(name)}
    wanted, _ = read(reader, tmp_path / "whole", width, **options)
    with pytest.raises(Killed):
        read(reader, tmp_path / "killed", width, report=dies_after(n), **options)
    found, _ = read(reader, tmp_path / "killed", width, **options)
    assert content(found.store) == content(wanted.store)


def test_a_run_that_was_interrupted_may_end_early(reader, width, tmp_path):
    for n, wanted in ((10, 45), (51, 51)):
        root = tmp_path / str(n)
        with pytest.raises(Killed):
            read(reader, root, None, report=dies_after(n))
        tokens, found = read(reader, root, width)
        assert found == wanted
        assert {row["n"] for row in perplexity.table([tokens], n_documents=found).rows} == {wanted}
        (table,) = comparison.tables_of([tokens.store])
        assert {(row["status"], row["n"]) for row in table.rows} == {("ok", wanted)}
        assert any(f"stopped at {wanted} of 60" in note for note in table.notes)
        whole, _ = read(reader, root, None)
        assert {row["n"] for row in comparison.tables_of([whole.store])[0].rows} == {N}


def test_what_processes_have_left_behind_is_seen(reader, width, tmp_path):
    folder = tmp_path / ".sessions" / "20260101T000000-0"
    folder.mkdir(parents=True)
    group = [Ranks(rank, 2, folder.name, folder) for rank in range(2)]
    read(reader, tmp_path, None, ranks=group[1])
    for ranks in group:
        ranks.close()
    tokens, n = read(reader, tmp_path, width, ranks=ALONE)
    wanted, _ = read(reader, tmp_path / "alone", None)
    assert n == 46, "the other one of the two has read the 46th, not the 47th"
    rows = [perplexity.table([one], n_documents=46).rows for one in (tokens, wanted)]
    assert [row["value"] for row in rows[0]] == [row["value"] for row in rows[1]]


def test_a_length_that_does_not_fit_into_memory_does_not_hold_up_the_others(reader, width, tmp_path, monkeypatch):
    whole = LanguageModel.score
    tried = []

    def score(self, samples):
        n_read = len(samples[0].context) + len(samples[0].target)
        if n_read > 40:
            tried.append(n_read)
            raise OutOfMemory(64, {}, "a test")
        return whole(self, samples)

    monkeypatch.setattr(LanguageModel, "score", score)
    tokens, n = read(reader, tmp_path, 2.0)
    assert n == FIRST
    assert len(tried) == 1
    _, n = read(reader, tmp_path, 0.001)
    assert n == N
    assert len(tried) == 2, "once a session, and not after every look"
    statuses = {row["length"]: row["status"] for row in perplexity.table([tokens], n_documents=n).rows}
    assert statuses == {16: "ok", 64: "oom"}


def test_training_seeds_that_ended_at_different_numbers_share_the_documents_of_all(width, tmp_path):
    stores = []
    for seed, half_width in ((0, width), (1, None)):
        torch.manual_seed(seed)
        module = tiny_module(seed=seed, vocab_size=len(zoo_tokenizer()), max_position_embeddings=64)
        model = LanguageModel(f"hope-{seed}", module, zoo_tokenizer(), 64, "a test")
        stores.append(read(model, tmp_path, half_width)[0])
    assert len(stores[0].documents) < N
    pooled = perplexity.table(stores)
    assert {row["n"] for row in pooled.rows} == {len(stores[0].documents)}
    assert any("all of its training seeds have read" in note for note in pooled.notes)


# Beside each other


def test_runs_that_ended_at_different_numbers_are_paired_by_what_both_have(told, tmp_path):
    early, late = asked(told, tmp_path / "early"), asked(told, tmp_path / "late", None)
    header = json.loads((late.path / "run.json").read_text())
    header["identity"]["model"] = "other"
    (late.path / "run.json").write_text(json.dumps(header))
    stores = comparison.readable_runs([early.path, late.path.rename(late.path.with_name("other"))])
    found = comparison.compare(comparison.tables_of(stores))
    gaps = found.differences[found.differences.metric == "accuracy"].set_index("length")
    assert list(gaps.n) == [30, N]
    assert gaps.paired.all()
    assert list(gaps.value) == [0, 0]
    assert sum("the contexts that both have" in note for note in found.notes) == 1
    assert any("stopped at 30 of 60" in note for note in found.notes)


def test_who_wins_is_seen_on_what_all_have():
    import pandas
    from frames import row

    rng = np.random.default_rng(1)
    level, noise = rng.normal(3, 1, 60), rng.normal(0, 0.01, 60)
    lines = [row("rope", 256, level, metric="nll"), row("hope", 256, (level - 0.05 + noise)[:30], metric="nll")]
    found = win_probabilities(pandas.DataFrame(lines)).set_index("line")
    assert found.probability["hope"] == 1, "documents differ far more than models do"


# As it is typed


RUN = ("--model", "zoo:hope", "--device", "cpu", "--until-ci", "0.3")


def test_the_command_ends_early_and_says_so(tmp_path):
    command = ("retrieve", "--task", "passkey", "--lengths", "64", "--no-controls", "--out", tmp_path, *RUN)
    found = hope_eval(*command, "--samples", "50", "--format", "json")
    assert "stopped at 20 of 50 contexts (at 64): interval of accuracy within 0.3" in found.stderr
    assert {row["n"] for row in json.loads(found.stdout)} == {20}
    assert "stopped at 20 of 50" in hope_eval("compare", tmp_path).stdout
    again = hope_eval(*command[:-2], "--samples", "25", "--format", "json")
    assert {row["n"] for row in json.loads(again.stdout)} == {25}, "without, the same run goes on"
    assert len(list(tmp_path.iterdir())) == 1


def test_perplexity_reads_up_to_400_documents(tmp_path):
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": document.text}) + "\n" for document in TEXTS.documents))
    found = hope_eval("ppl", *RUN, "--data", texts, "--lengths", "32,64", "--out", tmp_path / "runs")
    assert "stopped at 20 of 60 documents: interval of nll within 0.3" in found.stdout
    plan = hope_eval("plan", "--task", "ppl", *RUN, "--data", texts, "--lengths", "32,64")
    assert "upper bounds: with --until-ci" in plan.stdout
    (command,) = [line for line in plan.stdout.splitlines() if line.startswith("hope-eval ppl")]
    assert "--until-ci 0.3" in command
    assert "--samples 60" in command


def test_what_is_planned_is_what_is_read_where_nothing_ends_early(reader, tmp_path, monkeypatch):
    monkeypatch.setitem(loop.BATCH_TOKENS, "cpu", 700)
    questions, batches = Questions.of(reader, TASK, (100,), n_contexts=50, controls=False), []
    monkeypatch.setattr(Questions, "read", lambda self, model, batch: batches.append(batch) or [])
    loop.measure(questions, reader, tmp_path, until=Until(0.05))
    assert batches == list(questions.all_batches("cpu", Until(0.05)))
    assert [len(numbers) for _, numbers in batches] == [7, 7, 6, 7, 3, 7, 7, 1, 5]


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (("copy", *RUN, "--samples", "20"), "looks at 20 samples first, and there are 20 at most", "--samples 400"),
        (("run", "--suite", "quick", *RUN), "looks at 20 samples first, and there are 6 at most", "--samples 400"),
        (("plan", "--suite", "quick", *RUN), "looks at 20 samples first", "--samples 400"),
        (("ppl", "--from", "x", "--until-ci", "0.1"), "--from measures nothing", "leave one out"),
        (("copy", "--from", "x", "--until-ci", "0.1"), "--from measures nothing", "leave one out"),
    ],
)
def test_mistakes_are_explained(arguments, message, hint):
    found = hope_eval(*arguments, code=1)
    assert message in found.stderr
    assert hint in found.stderr


@pytest.mark.parametrize("width", ["0", "1", "-0.1", "nan", "narrow"])
def test_a_width_lies_between_0_and_1(width):
    assert "--until-ci" in hope_eval("copy", "--until-ci", width, code=2).stderr


def test_several_processes_refuse_it(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("hope_eval.runs.launch.watch", lambda: None)
    found = hope_eval("copy", *RUN, code=1)
    assert "each of 2 processes has only its own" in found.stderr
    assert "leave torchrun and --jobs out" in found.stderr
