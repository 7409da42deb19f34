import math

import numpy as np
import pytest
from frames import frame, row

from hope_eval.analysis.differences import differences
from hope_eval.analysis.reach import effective_lengths, worded

LENGTHS = (128, 256, 512, 1024, 2048, 4096)


def far(rows, definition, metric=None):
    scores = frame(*rows)
    found = effective_lengths(scores, differences(scores, scores.line.iloc[0]))
    found = found[found.definition == definition]
    return found[found.metric == metric].iloc[0] if metric else found.iloc[0]


def falling(shares, lengths=LENGTHS, n=50, seed=0, **changes):
    """Return accuracies on the same contexts, which differ in how hard they are, at each length."""
    rng = np.random.default_rng(seed)
    hard = rng.uniform(0, 1, (n, 8))
    return [row("hope", at, (hard < p).sum(1), **changes) for at, p in zip(lengths, shares, strict=True)]


@pytest.mark.parametrize("definition", ["relative", "ci", "half"])
@pytest.mark.parametrize("window", [256, 512, 2048])
def test_a_model_that_remembers_w_tokens_reads_w_within_a_step_of_the_grid(definition, window):
    found = far(falling([0.97 if length <= window else 0.02 for length in LENGTHS]), definition)
    assert window <= found.value <= 2 * window
    assert found.low <= found.value <= found.high
    assert found.low >= window / 2
    assert found.high <= 2 * window
    assert found.ratio == found.value / 256


def test_a_length_counts_only_if_all_shorter_ones_do():
    assert far(falling([1, 0.3, 1, 1, 0, 0]), "relative").value == 128


def test_where_even_the_greatest_length_passes_it_is_at_least_that():
    found = far(falling([0.9] * 6), "relative")
    assert (found.value, found.censored) == (4096, ">=")
    assert worded(found) == ("≥ 4k", "[4k, 4k]")
    assert far(falling([0.9] * 6), "half").censored == ">="


def test_a_share_of_the_first_score_is_above_chance():
    """0.85 of 0.6 is 0.51, and 0.53 would pass; above a chance of 0.25 it is 0.55."""
    rows = falling([0.6, 0.6, 0.53, 0.25, 0.25, 0.25], n=400, metric="choice_accuracy", chance=0.25)
    assert far(rows, "relative").value == 256
    assert far([{**one, "chance": None} for one in rows], "relative").value == 512


def test_a_model_at_chance_reads_no_distance():
    found = far(falling([0.25] * 6, metric="choice_accuracy", chance=0.25), "relative")
    assert math.isnan(found.value)
    assert worded(found) == ("not above chance", "")


def test_the_floor_that_was_measured_is_a_chance_too():
    rows = [*falling([0.3] * 6), *({**one, "metric": "floor", "headline": False} for one in falling([0.3] * 6, seed=1))]
    assert far(rows, "relative").censored == "not above chance"


def test_out_of_memory_ends_what_is_known_and_a_table_of_positions_what_can_be_read():
    rows = falling([0.9, 0.9, 0.9, 0.9, 0.9, 0.9])
    oom = [one if one["length"] < 2048 else row("hope", one["length"], status="oom") for one in rows]
    assert (far(oom, "relative").value, far(oom, "relative").censored) == (1024, ">=")
    end = [one if one["length"] < 2048 else row("hope", one["length"], status="-") for one in rows]
    assert (far(end, "relative").value, far(end, "relative").censored) == (1024, "")


def test_half_way_is_never_past_what_a_model_can_read():
    """A learned table of positions of 256: 512 cannot be read, and nor can 362."""
    rows = falling([1, 1], lengths=(128, 256)) + [row("hope", at, None, status="-") for at in (512, 1024)]
    found = far(rows, "half")
    assert (found.value, found.low, found.high) == (256, 256, 256)


def test_half_way_lies_between_lengths():
    """From 1 to 0 in a straight line over log2: half at the middle."""
    found = far(falling([1, 0.8, 0.6, 0.4, 0.2, 0.0], n=400), "half")
    assert math.log2(found.value) == pytest.approx((math.log2(128) + math.log2(4096)) / 2, abs=0.1)
    assert found.low < found.value < found.high


def test_a_bump_does_not_break_the_fit():
    bumpy = far(falling([1, 0.9, 0.4, 0.6, 0.1, 0.0], n=400), "half").value
    level = far(falling([1, 0.9, 0.5, 0.5, 0.1, 0.0], n=400), "half").value
    assert math.log2(bumpy) == pytest.approx(math.log2(level), abs=0.15)


@pytest.mark.slow
def test_the_interval_of_half_holds_the_truth():
    """A logistic fall: its half is where it was put, between the lengths that were measured."""
    lengths = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    truth = math.log2(700)
    shares = [1 / (1 + 2 ** (2 * (math.log2(length) - truth))) for length in lengths]
    held = []
    for seed in range(40):
        found = far(falling(shares, lengths, seed=seed), "half")
        held.append(found.low <= 2**truth <= found.high)
    assert np.mean(held) >= 0.93


def buckets(line, values, lengths=LENGTHS, n=30):
    level = np.random.default_rng(0).normal(0, 0.5, n)
    noise = np.random.default_rng(1).normal(0, 0.01, (len(lengths), n))
    return [
        row(line, length, value + level + one, metric="nll")
        for length, value, one in zip(lengths, values, noise, strict=True)
    ]


def test_perplexity_reads_up_to_the_last_bucket_that_is_as_good_as_the_best_of_the_window():
    assert far(buckets("rope", [3.3, 3.0, 3.04, 3.5, 4, 4]), "ppl").value == 512
    # Before the best bucket there is less context, and after a hard text another may be as good.
    assert far(buckets("rope", [3.3, 3.0, 3.2, 2.9, 3.5, 4]), "ppl").value == 1024
    assert far(buckets("rope", [3.3, 3.0, 2.9, 2.8, 2.8, 2.7]), "ppl").censored == ">="


def test_parity_in_the_window_stands_beside_how_far():
    found = far([*buckets("rope", [3.3, 3.0, 4, 5, 5, 5]), *buckets("hope", [3.6, 3.4, 3.4, 3.4, 3.4, 3.4])], "ppl")
    assert found.line == "rope"
    assert found.in_window_verdict == ""
    scores = frame(*buckets("rope", [3.3, 3.0, 4, 5, 5, 5]), *buckets("hope", [3.6, 3.4, 3.4, 3.4, 3.4, 3.4]))
    table = effective_lengths(scores, differences(scores, "rope"))
    (mine,) = (one for one in table.itertuples() if one.line == "hope" and one.definition == "ppl")
    assert mine.in_window == pytest.approx(0.4, abs=0.01)
    assert mine.in_window_verdict == "worse"


def test_the_area_is_the_mean_over_octaves():
    found = far(buckets("rope", [3, 3, 3, 4, 4, 4]), "area")
    assert found.value == pytest.approx(3.5 + np.random.default_rng(0).normal(0, 0.5, 30).mean(), abs=0.02)
    assert found.low < found.value < found.high
    assert math.isnan(found.ratio)


def test_what_cannot_be_read_is_answered_wrong():
    rows = [*falling([1, 1, 1], LENGTHS[:3], n=400), *(row("hope", at, status="-") for at in LENGTHS[3:])]
    assert far(rows, "area").value == pytest.approx(2.5 / 5)
    end = [*buckets("rope", [3, 3, 3], LENGTHS[:3]), row("rope", 1024, metric="nll", status="-")]
    assert worded(far(end, "area")) == ("reads no further", "")


def paired(values, noise=0.02, n=30, seed=1, seeds=(0.0,)):
    """Return the nll of a block after more and more context; each training seed adds its own to all."""
    level = np.random.default_rng(0).normal(3, 0.5, n)
    rng = np.random.default_rng(seed)
    return [
        row("hope", 128 << at, [level + value + rng.normal(0, noise, n) + at * extra for extra in seeds], metric="nll",
            section="ppl@paired", axis="context")
        for at, value in enumerate(values)
    ]  # fmt: skip


def test_useful_context_and_breaking_point():
    rows = paired([0, -0.2, -0.4, -0.4, 0.5])
    assert (far(rows, "useful").value, far(rows, "useful").censored) == (512, "")
    assert (far(rows, "breaking").value, far(rows, "breaking").censored) == (2048, "")
    assert worded(far(rows, "useful")) == ("512", "[512, 512]")
    assert worded(far(rows, "breaking")) in (("2k", "[1k, 2k]"), ("2k", "[2k, 2k]"))


def test_harm_counts_against_the_best_shorter_context_not_the_shortest():
    rows = paired([0, -0.5, -0.2])
    assert far(rows, "breaking").value == 512


def test_context_that_never_harms_has_no_breaking_point():
    rows = paired([0, -0.2, -0.4])
    assert (far(rows, "useful").value, far(rows, "useful").censored) == (512, ">=")
    assert worded(far(rows, "breaking")) == ("> 512", "")


def test_few_contexts_that_are_all_right_leave_doubt_about_how_far():
    few = far(falling([1, 1, 0.9, 0, 0, 0], n=4), "relative")
    assert few.low < few.high
    many = far(falling([1, 1, 0.95, 0, 0, 0], n=400), "relative")
    assert many.low == many.high == 512


def test_a_score_that_begins_at_chance_and_rises_is_told_apart_from_one_that_stays_there():
    found = far(falling([0, 1, 1, 1, 0, 0]), "relative")
    assert found.censored == "not above chance at 128"


def test_no_gain_is_said_only_where_a_gain_that_matters_could_have_been_seen():
    rows = paired([0, 0.001, -0.001, 0.0005])
    assert worded(far(rows, "useful")) == ("no gain", "")
    assert worded(far(rows, "breaking")) == ("> 1k", "")
    # The same changes, in documents that differ far more.
    rows = paired([0, 0.001, -0.001, 0.0005], noise=0.5)
    assert worded(far(rows, "useful")) == worded(far(rows, "breaking")) == ("cannot tell", "")
    # A gain that is as large as the noise.
    assert worded(far(paired([0, -0.1, -0.1], noise=0.5), "useful")) == ("cannot tell", "")


def test_the_interval_of_a_gain_that_may_go_on_reaches_further():
    found = far(paired([0, -0.4, -0.5, -0.5], noise=0.25), "useful")
    assert found.value == 256
    assert (found.low, found.high) == (256, 1024)
    # A harm that may begin earlier.
    found = far(paired([0, 0.1, 0.5, 0.9], noise=0.25), "breaking")
    assert (found.low, found.value, found.high) == (256, 512, 512)


def test_training_seeds_are_not_drawn_for_useful_context():
    """Seeds that differ in their gain: the gain of these three is sure, that of others is not."""
    rows = paired([0, -0.3, -0.3], seeds=(0.0, 0.1, -0.2))
    assert far(rows, "useful").value == 512
    one = paired([0, -0.3, -0.3])
    assert far(one, "useful").value == 256


@pytest.mark.slow
def test_intervals_of_useful_context_and_breaking_point_hold_the_truth():
    held = {"useful": 0, "breaking": 0}
    for seed in range(100):
        rows = paired([0, -0.2, -0.35, -0.35, 0.0], noise=0.25, seed=seed)
        for definition, truth in (("useful", 512), ("breaking", 2048)):
            found = far(rows, definition)
            # Without a value the cell claims nothing.
            held[definition] += bool(math.isnan(found.value) or found.low <= truth <= found.high)
    assert min(held.values()) >= 93, held


def test_one_document_gives_neither():
    assert worded(far(paired([0, -0.4], n=1), "useful")) == ("one document", "")


def test_areas_are_over_the_same_lengths():
    rows = [*falling([1, 1, 0, 0, 0, 0]), *({**one, "line": "rope"} for one in falling([1, 1, 0], LENGTHS[:3]))]
    scores = frame(*rows)
    table = effective_lengths(scores, differences(scores, "rope"))
    values = [one.value for one in table.itertuples() if one.definition == "area"]
    assert values == pytest.approx([0.75, 0.75])


def test_less_than_the_least_length_has_an_interval_that_begins_at_none():
    found = far(falling([0.6, 0.6, 0.6, 0.6, 0.6, 0.6], n=6), "ci")
    assert (found.censored, found.value, found.low) == ("<", 128, 0)
