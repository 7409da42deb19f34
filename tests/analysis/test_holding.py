import numpy as np
import pytest
from frames import frame, row

from hope_eval.analysis.gate import NOT_RUN, ONE_LENGTH
from hope_eval.analysis.holding import KEPT, LOST, NO_SIGNAL, SHARE, SLACK, UNCLEAR, held


def verdicts(*rows):
    """Return the verdicts of the lengths of one line."""
    scores = frame(*rows)
    return dict(zip(scores.length, held(scores), strict=True))


def many(share, n=30, counts=8):
    """Return hits by context, each about that share of the questions."""
    wanted = round(share * n * counts)
    return [wanted // n + (number < wanted % n) for number in range(n)]


def test_a_score_is_kept_lost_or_unclear_against_its_own_share_inside():
    found = verdicts(
        row("hope", 128, many(1)),
        row("hope", 256, many(0.9)),
        row("hope", 512, many(0.9 * SHARE + 0.01)),
        row("hope", 1024, many(0.9 * SHARE - 0.01)),
        row("hope", 2048, many(0.5)),
    )
    assert found == {128: "", 256: "", 512: KEPT, 1024: UNCLEAR, 2048: LOST}


def test_what_must_be_kept_is_above_chance():
    # Of 0.9 at chance 0.5, 0.84 must be left: 0.5 + 0.85 x 0.4. Of 0.9 alone, 0.765 would do.
    at_chance = verdicts(*(row("hope", at, many(x), chance=0.5) for at, x in ((256, 0.9), (512, 0.85), (1024, 0.74))))
    assert at_chance == {256: "", 512: KEPT, 1024: LOST}
    alone = verdicts(*(row("hope", at, many(x)) for at, x in ((256, 0.9), (512, 0.85), (1024, 0.78))))
    assert alone == {256: "", 512: KEPT, 1024: KEPT}


def test_exactly_what_must_be_kept_is_kept():
    # 37 of 40 questions are 0.5 + 0.85 x 0.5, but not in floating point.
    for n in (20, 40, 60):
        rows = [row("hope", at, many(x, n, 2), counts=2, chance=0.5) for at, x in ((256, 1), (512, 0.925))]
        assert verdicts(*rows)[512] == KEPT


def test_the_floor_that_was_measured_counts_as_chance():
    floor = row("hope", 256, many(0.5), metric="floor", headline=False)
    found = verdicts(row("hope", 256, many(0.9)), row("hope", 512, many(0.74)), floor)
    assert found[512] == LOST
    scores = frame(row("hope", 256, many(0.9)), row("hope", 512, many(0.74)), {**floor, "task": "needle"})
    assert held(scores).tolist()[1] != LOST


def test_without_a_signal_inside_there_is_nothing_to_keep():
    found = verdicts(row("hope", 256, many(0.52), chance=0.5), row("hope", 512, many(0.1), chance=0.5))
    assert found == {256: NO_SIGNAL, 512: ""}


@pytest.mark.parametrize("words", [ONE_LENGTH, NOT_RUN])
def test_where_the_gate_does_not_pass_nothing_is_said(words):
    found = verdicts(row("hope", 256, many(0.9), gate=words), row("hope", 512, many(0.1), gate=words))
    assert found == {256: "", 512: ""}


def test_a_loss_may_rise_by_the_slack():
    noise = np.linspace(-0.001, 0.001, 30)
    losses = {256: 3.0, 512: 3.0 + SLACK - 0.01, 1024: 3.0 + SLACK + 0.01, 2048: 2.0}
    found = verdicts(*(row("hope", at, value + noise * (at != 1024), metric="nll") for at, value in losses.items()))
    assert found == {256: "", 512: KEPT, 1024: LOST, 2048: KEPT}
    wide = np.linspace(-2, 2, 30)
    found = verdicts(row("hope", 256, 3 + noise, metric="nll"), row("hope", 512, 3.1 + wide, metric="nll"))
    assert found == {256: "", 512: UNCLEAR}


def test_p_values_are_corrected_for_the_lengths_beyond():
    inside, beyond = many(1, 20, 1), [1] * 10 + [0] * 10
    alone = verdicts(row("hope", 256, inside, counts=1), row("hope", 512, beyond, counts=1))
    together = verdicts(*(row("hope", 256 * 2**n, beyond if n else inside, counts=1) for n in range(9)))
    assert (alone[512], together[512]) == (LOST, UNCLEAR)


def test_holes_other_metrics_and_unknown_training_lengths_have_no_verdict():
    nan = float("nan")
    assert set(
        verdicts(row("hope", 256, many(0.9), train_length=nan), row("hope", 512, many(0), train_length=nan)).values()
    ) == {""}
    found = verdicts(row("hope", 256, many(0.9)), row("hope", 512, status="-"), row("hope", 1024, many(0.1)))
    assert found == {256: "", 512: "", 1024: LOST}
    slices = verdicts(row("hope", 256, many(0.9), slice="depth 0"), row("hope", 512, many(0), slice="depth 0"))
    assert set(slices.values()) == {""}
