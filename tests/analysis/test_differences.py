import numpy as np
import pytest
from frames import frame, row

from hope_eval.analysis.differences import best, differences, verdict, win_probabilities

RNG = np.random.default_rng(0)
LEVEL = RNG.normal(3, 1, 30)


def nll(line, length, shift, noise=0.05, **changes):
    numbers = LEVEL + shift + noise * np.random.default_rng(length).standard_normal(30)
    return row(line, length, numbers, metric="nll", **changes)


def hits(line, length, share, n=40, **changes):
    numbers = np.random.default_rng(length).binomial(8, share, n)
    return row(line, length, numbers, **changes)


def test_a_line_is_compared_with_the_baseline_in_every_column():
    found = differences(
        frame(nll("rope", 256, 0), nll("rope", 512, 0), nll("hope", 256, 0.5), nll("hope", 512, -0.5)), "rope"
    )
    assert list(found.line) == ["hope", "hope"]
    assert list(found.value) == pytest.approx([0.5, -0.5], abs=1e-9)
    assert list(found.verdict) == ["worse", "better"]
    assert (found.low <= found.value).all()
    assert (found.p_holm >= found.p).all()


def test_more_is_better_of_accuracies():
    found = differences(frame(hits("rope", 512, 0.2), hits("hope", 512, 0.9)), "rope")
    assert list(found.verdict) == ["better"]
    assert found.value[0] > 0.5


def test_what_is_small_is_not_distinguishable():
    # The same noise would be no noise: pairs differ.
    a, b = nll("rope", 256, 0), row("hope", 256, LEVEL + 0.001 + RNG.normal(0, 0.05, 30), metric="nll")
    assert list(differences(frame(a, b), "rope").verdict) == ["not distinguishable"]


def test_looking_at_many_columns_takes_more_to_be_sure():
    rng = np.random.default_rng(3)
    shift = 0.02
    numbers = LEVEL + shift + rng.normal(0, 0.05, 30)
    one = differences(frame(row("rope", 256, LEVEL, metric="nll"), row("hope", 256, numbers, metric="nll")), "rope")
    assert one.verdict[0] == "worse"
    more = [
        row("hope", length, LEVEL + rng.normal(0, 0.05, 30), metric="nll", column=str(length))
        for length in range(300, 330)
    ]
    same = [row("rope", one["length"], LEVEL, metric="nll", column=one["column"]) for one in more]
    many = differences(
        frame(row("rope", 256, LEVEL, metric="nll"), row("hope", 256, numbers, metric="nll"), *same, *more), "rope"
    )
    assert many.p[0] == one.p[0]
    assert many.verdict[0] == "not distinguishable"


def test_holes_are_compared_with_nothing():
    found = differences(frame(nll("rope", 512, 0), row("learned", 512, metric="nll", status="-")), "rope")
    assert found.empty


def test_other_tokenizers_are_compared_by_byte_only():
    rows = [
        nll("rope", 256, 0, tokenizer="a"),
        nll("hope", 256, 1, tokenizer="b"),
        {**nll("rope", 256, 0, tokenizer="a"), "metric": "bits_per_byte"},
        {**nll("hope", 256, 1, tokenizer="b"), "metric": "bits_per_byte"},
    ]
    assert list(differences(frame(*rows), "rope").metric) == ["bits_per_byte"]


def test_other_texts_are_not_paired():
    rows = [nll("rope", 256, 0, conditions="a"), nll("hope", 256, 0.2, conditions="b")]
    apart = differences(frame(*rows), "rope")
    together = differences(frame(*({**one, "conditions": "a"} for one in rows)), "rope")
    assert apart.p[0] > 0.3
    assert together.p[0] < 1e-6
    assert (apart.paired[0], together.paired[0]) == (False, True)
    assert list(best(frame(*rows))) == [False, False]
    assert list(best(frame(*({**one, "conditions": "a"} for one in rows)))) == [True, False]


def test_only_what_both_read_is_paired():
    a, b = nll("rope", 256, 0), nll("hope", 256, 0.2)
    names = b["clusters"].names
    b["clusters"] = b["clusters"].on([*reversed(names[5:])])
    found = differences(frame(a, b), "rope")
    assert found.n[0] == 25
    assert found.value[0] == pytest.approx(0.2)


def test_the_best_is_marked_if_it_beats_every_other():
    rows = [nll("rope", 256, 0.5), nll("hope", 256, 0), nll("alibi", 256, 0.3)]
    assert list(best(frame(*rows))) == [False, True, False]
    close = row("kerple", 256, LEVEL + 0.001 + RNG.normal(0, 0.05, 30), metric="nll")
    assert not best(frame(*rows, close)).any()


def test_a_line_alone_is_not_the_best():
    assert not best(frame(nll("rope", 256, 0), row("learned", 256, metric="nll", status="-"))).any()


def test_who_wins_and_how_surely():
    rows = [
        line for shift, name in ((0, "rope"), (0.5, "hope")) for line in (nll(name, 256, shift), nll(name, 512, shift))
    ]
    found = win_probabilities(frame(*rows)).set_index(["line", "other"]).probability
    assert found["rope", "hope"] == 1
    assert found["hope", "rope"] == 0
    even = [row(name, 256, np.random.default_rng(at).normal(3, 1, 50), metric="nll") for at, name in enumerate("ab")]
    found = win_probabilities(frame(*even)).set_index(["line", "other"]).probability
    assert 0.02 < found["a", "b"] < 0.98
    assert found["a", "b"] + found["b", "a"] == pytest.approx(1)


def test_a_tie_is_half_a_win():
    found = win_probabilities(frame(nll("rope", 256, 0), nll("hope", 256, 0)))
    assert set(found.probability) == {0.5}


@pytest.mark.parametrize(
    ("metric", "value", "p", "said"),
    [
        ("nll", -1, 0.01, "better"),
        ("nll", 1, 0.01, "worse"),
        ("accuracy", 1, 0.01, "better"),
        ("accuracy", 1, 0.06, "not distinguishable"),
        ("accuracy", 1, float("nan"), "not distinguishable"),
    ],
)
def test_a_verdict_needs_a_small_p(metric, value, p, said):
    assert verdict(metric, value, p) == said
