"""The headline: which numbers hold up, the order of the lines, and what its sentences say of planted results."""

import math
import re

import numpy as np
import pytest
from frames import frame, row
from rich.console import Console

from hope_eval.analysis import reach
from hope_eval.analysis.compare import Comparison
from hope_eval.analysis.gate import ONE_LENGTH
from hope_eval.analysis.headline import PILLARS, TIMES, headline
from hope_eval.analysis.holding import SHARE, SLACK
from hope_eval.analysis.holding import held as kept
from hope_eval.show.headline import render, sentences

TASKS = {"copying": ("copy", "token_accuracy"), "recall": ("associative_recall", "accuracy")}


def noise(n, spread=0.01):
    """Numbers of n texts around 0, the same in each call."""
    return np.linspace(-spread, spread, n)


def line(name, perplexity=(20, 20, 20), copying=(8, 8, 8), recall=(8, 8, 8), lengths=(256, 512, 1024), **changes):
    """Rows of one line at 1x, 2x and 4x: perplexities, and hits of 8 in each of twelve contexts; None is a hole."""
    for length, value in zip(lengths, perplexity, strict=True):
        numbers = None if value is None else math.log(value) + noise(12)
        status = "-" if value is None else "ok"
        nll = row(name, length, numbers, metric="nll", status=status, **changes)
        yield nll
        yield {**nll, "metric": "perplexity", "value": math.exp(nll["value"]), "clusters": None}
    for pillar, hits in (("copying", copying), ("recall", recall)):
        task, metric = TASKS[pillar]
        for length, hit in zip(lengths, hits, strict=True):
            yield row(
                name, length, None if hit is None else [hit] * 12, metric=metric, task=task, family="x", section="x",
                status="-" if hit is None else "ok", **changes,
            )  # fmt: skip


def comparison(*lines, baseline="rope"):
    scores = frame(*(each for rows in lines for each in rows))
    scores["held"] = kept(scores)
    return Comparison(scores, baseline if len(lines) > 1 else "", [], [])


def names(*lines, **options):
    return [each.name for each in headline(comparison(*lines), **options).lines]


def holds(rows, pillar, times):
    return headline(comparison(rows)).lines[0].cells[pillar, times].holds


def test_numbers_hold_up_by_the_thresholds_of_effective_lengths():
    assert (SLACK, SHARE) == (reach._SLACK, reach._SHARE)


@pytest.mark.parametrize(
    ("perplexities", "held"),
    [((20, 20.9, 21.1), [True, False]), ((20, 12, 12), [True, True]), ((20, 40, None), [False, False])],
)
def test_a_perplexity_holds_up_within_the_slack_of_the_effective_length(perplexities, held):
    assert math.log(20.9 / 20) < SLACK < math.log(21.1 / 20)
    rows = list(line("a", perplexity=perplexities))
    assert [holds(rows, "perplexity", times) for times in (2, 4)] == held


@pytest.mark.parametrize(
    ("hits", "held"), [((8, 7, 6.7), [True, False]), ((4, 4, 3), [True, False]), ((0, 0, 0), [False, False])]
)
@pytest.mark.parametrize("pillar", ["copying", "recall"])
def test_a_score_holds_up_at_85_percent_of_a_score_inside_that_is_above_chance(pillar, hits, held):
    rows = list(line("a", **{pillar: hits}))
    assert [holds(rows, pillar, times) for times in (2, 4)] == held
    assert holds(rows, pillar, 1) is None


def test_the_share_of_a_score_is_counted_from_chance():
    # 0.6 is 85 % of 0.7, but 80 % of it above a chance of 0.2.
    rows = list(line("a", recall=(5.6, 4.8, 5.3), chance=0.2))
    assert [holds(rows, "recall", times) for times in (2, 4)] == [False, True]


def test_lines_that_hold_up_more_often_come_first_then_those_with_less_perplexity():
    lines = (
        line("rope", perplexity=(20, 80, 140), copying=(8, 0, 0), recall=(8, 2, 0)),
        line("short", perplexity=(18, None, None), copying=(8, None, None), recall=(8, None, None)),
        line("worse", perplexity=(19, 60, 200), copying=(8, 0, 0), recall=(8, 2, 0)),
        line("far", perplexity=(25, 25, 25)),
        line("halfway", perplexity=(21, 21, 40), copying=(8, 8, 2)),
    )
    assert names(*lines) == ["far", "halfway", "rope", "worse", "short"]


def at_one_length(rows, task="copy"):
    return [{**each, "gate": ONE_LENGTH if each["task"] == task else ""} for each in rows]


def test_a_task_that_a_line_has_learned_at_one_length_only_does_not_move_it_forward():
    lines = [list(line("rope", recall=(8, 8, 0))), list(line("fixed", recall=(8, 0, 0)))]
    assert names(*lines) == ["rope", "fixed"]
    lines[0] = at_one_length(lines[0])
    assert names(*lines) == ["fixed", "rope"]
    found = headline(comparison(*lines))
    # Its numbers stay in the table.
    assert [found.lines[1].cells["copying", times].value for times in TIMES] == [1.0, 1.0, 1.0]
    assert found.lines[1].at_one_length == ("copying",)


@pytest.mark.parametrize("which", [0, 1])
def test_nothing_is_said_of_what_a_line_or_the_baseline_has_learned_at_one_length_only(which):
    lines = [list(line("rope", copying=(8, 0, 0))), list(line("hope"))]
    assert "better than rope in copying: hope" in sentences(headline(comparison(*lines)))[0]
    lines[which] = at_one_length(lines[which])
    assert "copying" not in sentences(headline(comparison(*lines)))[0]


def test_buckets_that_end_elsewhere_count_for_the_multiple_above():
    # Trained at 300 tokens: 128-256 lies inside, 256-512 is cut by the end of the window.
    rows = line("a", perplexity=(20, 30, 40), train_length=300)
    cells = headline(comparison(rows)).lines[0].cells
    assert [round(cells["perplexity", times].value) for times in TIMES] == [20, 30, 40]


def test_other_lengths_inside_the_window_do_not_replace_the_window_itself():
    rows = [*line("a"), *line("a", copying=(1, 2, 3), lengths=(64, 128, 192))]
    cells = headline(comparison(rows)).lines[0].cells
    assert [cells["copying", times].value for times in TIMES] == [1.0, 1.0, 1.0]


def test_sentences_name_who_is_better_and_worse_and_who_is_neither():
    beyond, inside = sentences(
        headline(
            comparison(
                line("rope", perplexity=(20, 80, 140), copying=(8, 0, 0), recall=(8, 2, 0)),
                line("hope", perplexity=(20, 21, 22)),
                line("t5", perplexity=(22, 30, 90), copying=(8, 8, 0), recall=(8, 8, 0)),
                line("prope", perplexity=(20, 80, 140), copying=(8, 0, 0), recall=(8, 2, 0)),
                line("sinusoidal", perplexity=(26, 150, 250), copying=(8, 0, 0), recall=(8, 0, 0)),
                line("learned", perplexity=(25, None, None), copying=(8, None, None), recall=(8, None, None)),
            )
        )
    )
    assert beyond == (
        "At 4x the training length, better than rope in all pillars: hope; in perplexity: t5; worse than rope in "
        "perplexity: sinusoidal; not distinguishable from rope: prope."
    )
    assert inside == (
        "Inside the training window, worse than rope in perplexity: t5, sinusoidal and learned; not distinguishable "
        "from rope: hope and prope."
    )


def test_what_is_not_distinguishable_is_called_neither_better_nor_worse():
    noisy = np.random.default_rng(1).standard_normal(12)
    rows = [row("rope", 1024, 3 + noisy, metric="nll"), row("hope", 1024, 2.9 - noisy, metric="nll")]
    beyond, inside = sentences(headline(comparison(rows, [])))
    assert beyond == "At 4x the training length, not distinguishable from rope: hope."
    assert inside == "Inside the training window, no number can be compared with rope."


def test_a_line_alone_is_compared_with_itself_inside_the_window():
    alone = sentences(headline(comparison(line("rope", perplexity=(20, 80, 15), copying=(8, 8, 0), recall=(8, 1, 0)))))
    assert alone == [
        "Against its numbers inside the training window, rope is worse: perplexity at 2x, copying at 4x, "
        "recall at 2x and 4x; better: perplexity at 4x.",
        "Not distinguishable from inside: copying at 2x.",
    ]
    same = sentences(headline(comparison(line("hope"))))
    assert same == ["No number of hope beyond the training window is distinguishable from the one inside."]
    short = line("learned", (25, None, None), (8, None, None), (8, None, None))
    assert sentences(headline(comparison(short))) == ["learned has no number beyond the training window."]


def printed(capsys, *lines, form="table"):
    render(headline(comparison(*lines)), form)
    return capsys.readouterr().out


def test_the_table_fits_80_columns_with_one_line_each(capsys):
    lines = [line("rope", perplexity=(20, 12345, 99999)), line("sinusoidal", (25, None, None), (8, 1, 0), (8, 0, 0))]
    out = printed(capsys, *lines)
    assert max(map(len, out.splitlines())) <= 80
    assert "[" not in out
    (sinusoidal,) = [text.split() for text in out.splitlines() if text.startswith("sinusoidal ")]
    assert sinusoidal[1:] == ["25.00", "-", "-", "1.000", "0.125", "0.000", "1.000", "0.000", "0.000"]
    assert "-: the model has a table of positions and reads no further" in out
    assert "20 strings, accuracy of tokens" in out


def test_every_number_is_on_a_screen_of_any_width(capsys, monkeypatch):
    shown = headline(comparison(line("rope", perplexity=(20, 12345, 99999)), line("sinusoidal", copying=(8, 3, 1))))
    pages = {}
    for width in (*range(60, 121), 100_000):
        monkeypatch.setattr("hope_eval.show.headline.plain_console", lambda width=width: Console(width=width))
        render(shown, "table")
        pages[width] = capsys.readouterr().out
    numbers = set(re.findall(r"\d[\d.]*k?", pages[100_000]))
    assert {"12.3k", "0.375"} <= numbers
    assert not {(width, number) for width, page in pages.items() for number in numbers if number not in page}


def test_a_long_name_is_folded_and_a_long_status_shortened(capsys):
    rows = line("SmolLM2-135M-Instruct hope(swap)")
    rows = [
        {**each, "status": "infeasible (needs 138)", "value": math.nan} if each["task"] == "copy" else each
        for each in rows
    ]
    out = printed(capsys, rows)
    assert max(map(len, out.splitlines())) <= 80
    assert "n/a: needs 138 tokens" in out
    assert len([text for text in out.splitlines() if "20.00" in text]) == 1


def test_other_formats_name_each_column(capsys):
    out = printed(capsys, line("rope"), line("hope"), form="markdown")
    for pillar in PILLARS:
        for heading in ("inside", "2x", "4x"):
            assert f"| {pillar.name} {heading} " in out
    assert "Inside the training window" in out
    assert r"\toprule" in printed(capsys, line("rope"), form="latex")
