"""Notes that say which intervals are not to be trusted."""

import numpy as np
import pytest
from frames import clusters

from hope_eval.analysis.doubts import LEAST_DOCUMENTS, doubts, is_doubtful

FEW = 26


def normal(n, seed=0, n_seeds=1):
    return clusters(np.random.default_rng(seed).normal(3, 1, (n_seeds, n)))


def test_few_documents_are_a_doubt_at_all_lengths_in_one_line():
    told = doubts("zoo:rope rope", [("512", normal(10)), ("1k", normal(10, 1))], "document")
    assert told == [
        "do not trust [low, high]: 10 documents are few. 60 % of such samples have no document of a kind that makes up "
        "5 %, and no interval can show that: --samples 27 or more"
    ]
    assert is_doubtful(normal(LEAST_DOCUMENTS - 1))


def test_well_behaved_documents_are_no_doubt():
    noted = [is_doubtful(normal(LEAST_DOCUMENTS, seed)) for seed in range(500)]
    assert np.mean(noted) < 0.01
    assert not is_doubtful(normal(30, n_seeds=3))
    assert not is_doubtful(clusters(np.full((3, 30), 2.5))), "nor are equal ones"


def test_a_document_that_makes_up_most_of_the_variance_is_named_with_its_lengths():
    numbers = np.random.default_rng(0).normal(3, 0.4, 30)
    far = numbers.copy()
    far[4] += 6
    names = [f"d{n}" for n in range(30)]
    cells = [(length, clusters(one, names=names)) for length, one in (("512", far), ("1k", numbers), ("2k", far))]
    assert doubts("zoo:rope rope", cells, "document") == [
        "do not trust the interval of zoo:rope rope at 512, 2k: document d4 makes up most of the variance; more "
        "documents would show how rare such ones are"
    ]


def test_two_training_seeds_are_a_doubt():
    (told,) = doubts("x", [("512", normal(30, n_seeds=2))], "context")
    assert told.startswith("do not trust [low, high]: 2 training seeds")


@pytest.mark.parametrize("made", [clusters(np.full(5, 8), 8, True), normal(1)])
def test_shares_and_what_has_no_interval_have_no_doubts(made):
    assert not is_doubtful(made)
