import pytest
from frames import frame, row

from hope_eval.analysis.differences import differences
from hope_eval.analysis.gate import NOT_RUN, ONE_LENGTH
from hope_eval.analysis.holding import held
from hope_eval.show.report import shows
from hope_eval.show.report.frames import Results, rows_of


def sentences(*rows, against=None, baseline="rope"):
    """Return what the report says of these rows, by task and metric."""
    scores = frame(*rows)
    scores["held"] = held(scores)
    results = Results(rows_of(scores), rows_of(differences(scores, baseline)), [], [])
    return {name: texts for topic in results.topics for name, texts in shows.of_topic(results, topic, against)}


def line(name, inside, twice, fourfold, **changes):
    """Return the scores of one line, of eight questions on each of 20 contexts."""
    return [row(name, at, [hits] * 20, **changes) for at, hits in ((256, inside), (512, twice), (1024, fourfold))]


def test_who_holds_up_at_each_length_and_who_does_not():
    told = sentences(*line("rope", 8, 1, 0), *line("hope", 8, 8, 7), *line("alibi", 8, 6, 8), against=["hope"])
    inside, twice, fourfold, hope = told["passkey, accuracy"]
    assert inside == "At 256, inside the training window: 1.000 for all; none is distinguishable from rope."
    assert twice.startswith(
        "At 512 (2\u00a0\u00d7 the training length), against 85 % of the line's own score inside the window"
    )
    assert "not below: hope 1.000; distinguishably below: rope 0.125" in twice
    assert "alibi 0.750" in twice.split("not below")[1].split(";", 1)[1]
    assert "not below: hope 0.875 and alibi 1.000; distinguishably below: rope 0.000" in fourfold
    assert hope.startswith("hope minus rope: 0.000 [")
    assert hope.count("(better)") == 2
    assert hope.count("(not distinguishable)") == 1


def test_inside_the_window_the_ends_and_the_verdicts_are_told():
    told = sentences(*line("rope", 6, 6, 6), *line("hope", 2, 2, 2), *line("alibi", 8, 8, 8))["passkey, accuracy"]
    assert told[0] == (
        "At 256, inside the training window: from 0.250 (hope) to 1.000 (alibi); better than rope: alibi; worse than "
        "rope: hope."
    )


def test_of_several_lines_with_one_number_none_is_the_winner():
    rows = [
        cell for name, hits in (("rope", 6), ("hope", 8), ("alibi", 8), ("t5", 6)) for cell in line(name, hits, 8, 8)
    ]
    told = sentences(*rows)["passkey, accuracy"][0]
    assert "from 0.750 (rope and t5) to 1.000 (hope and alibi)" in told


def test_differences_of_few_lines_are_told_and_of_many_are_not():
    names = ("rope", "hope", "alibi", "t5", "fire")
    rows = [cell for name in names for cell in line(name, 8, 8, 8)]
    assert sum("minus rope" in text for text in sentences(*rows[:-3])["passkey, accuracy"]) == 3
    assert not any("minus rope" in text for text in sentences(*rows)["passkey, accuracy"])


@pytest.mark.parametrize("words", [ONE_LENGTH, NOT_RUN])
@pytest.mark.parametrize("at_fault", ["rope", "hope"])
def test_where_the_gate_does_not_pass_nothing_is_told_beyond_the_window(words, at_fault):
    rows = [
        *line("rope", 8, 1, 0, gate=words * (at_fault == "rope")),
        *line("hope", 8, 7, 0, gate=words * (at_fault == "hope")),
    ]
    told = sentences(*rows, against=["hope"])["passkey, accuracy"]
    assert f"{words.capitalize()}, so that nothing is claimed beyond the window: {at_fault}." in told
    assert all(at_fault not in text for text in told if text.startswith(("At 512", "At 1024")))
    difference = next(text for text in told if text.startswith("hope minus rope"))
    assert "at 256" in difference
    assert "at 512" not in difference


def test_without_a_signal_nothing_is_told_beyond_the_window():
    rows = [*line("rope", 4, 1, 0, chance=0.5), *line("hope", 8, 8, 0, chance=0.5)]
    told = sentences(*rows, against=["hope"])["passkey, accuracy"]
    assert "No signal (inside the window not distinguishably above chance or the floor): rope." in told
    assert not any("rope" in text for text in told if text.startswith("At 512"))
    difference = next(text for text in told if text.startswith("hope minus rope"))
    assert "at 256" in difference
    assert "at 512" not in difference


def test_a_loss_is_told_in_its_own_words():
    def losses(name, *values):
        rows = []
        for at, value in zip((256, 512), values, strict=True):
            numbers = [value + number / 1000 for number in range(20)]
            rows += [row(name, at, numbers, metric=metric) for metric in ("nll", "perplexity")]
        return rows

    told = sentences(*losses("rope", 3, 4), *losses("hope", 3, 3.01), against=["hope"])
    _, twice, hope = told["perplexity"]
    assert twice.endswith(
        "against the line's own nll inside the window plus 0.05 nats: not above: hope 3.019; distinguishably above: "
        "rope 4.010."
    )
    assert hope.startswith("hope minus rope, in nats: 0.000 [")
    assert "\u22120.990 [" in hope
    assert "(better)" in hope


def test_what_cannot_be_read_is_told():
    rows = [*line("rope", 8, 8, 8), row("learned", 256, [8] * 20), row("learned", 512, status="-")]
    assert "; cannot read so far: learned." in sentences(*rows)["passkey, accuracy"][1]
    unlearned = [{**cell, "gate": NOT_RUN} for cell in rows]
    assert not any("cannot read" in text for text in sentences(*unlearned)["passkey, accuracy"])


def test_controls_are_not_told_of_as_scores():
    controls = [row("rope", at, [8] * 20, metric="permuted") for at in (256, 512)]
    assert list(sentences(*line("rope", 8, 8, 8), *controls, baseline="")) == ["passkey, accuracy"]


def test_both_halves_of_a_task_are_told():
    rows = []
    for name, far, near in (("rope", 8, 8), ("hope", 3, 8), ("alibi", 4, 4)):
        rows += line(name, 8, 8, 8, chance=0.5)
        for part, hits in (("nearer decoy", far), ("nearer right", near)):
            rows += line(name, hits, hits, hits, chance=0.5, slice=part)
    told = [text for text in sentences(*rows)["passkey, accuracy"] if "hal" in text]
    assert len(told) == 3
    assert told[0] == (
        "At 256, above chance in both halves: rope; in one half only: hope (0.375 with nearer decoy, 1.000 with nearer "
        "right); in neither: alibi (0.500 with nearer decoy, 0.500 with nearer right)."
    )


def test_a_low_ceiling_is_told():
    rows = [*line("rope", 2, 2, 2), *line("hope", 2, 2, 2)]
    rows += [row(name, 256, [hits] * 20, metric="ceiling", headline=False) for name, hits in (("rope", 2), ("hope", 8))]
    told = sentences(*rows)["passkey, accuracy"]
    assert "With nothing else in the context (ceiling), less than 0.5 are right: rope 0.250." in told
