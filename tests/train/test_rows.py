"""Training rows: as long as asked for, and those that the zoo was trained on."""

import hashlib

import numpy as np
import pytest
from prompting import LENGTHS

from hope_eval.task import generator, task_class
from hope_eval.train.rows import _KEYS, SHARES


@pytest.mark.parametrize("name", SHARES)
def test_a_line_to_train_on_is_as_long_as_asked_for_and_only_targets_are_scored(name, vocabulary):
    for length in LENGTHS:
        for index in range(5):
            rng = generator("test", name, 0, length, index)
            prompt = task_class(name)().varied(rng, length).prompt(vocabulary, length, rng, joined=True)
            ids, scored = prompt.row()
            # A rule's answers differ in length; `lines` is handed a row of exactly that length.
            assert len(ids) == length
            targets = np.concatenate([np.asarray(question.target) for question in prompt.questions])
            assert np.array_equal(ids[scored], targets)


@pytest.mark.parametrize(
    ("kind", "digest"),
    [
        ("copy", "bce71d1843af7db6"),
        ("associative_recall", "9f789d87f5389323"),
        ("passkey", "6371e3a01f086799"),
        ("label_map", "41438dd81a923332"),
        ("rule_induction", "157328748f8187ec"),
    ],
)
def test_training_lines_are_those_that_the_zoo_was_trained_on(kind, digest, vocabulary):
    """A change here means that the zoo has to be trained again: its command would no longer make its models."""
    assert kind in SHARES
    found = hashlib.sha256()
    for row in range(200):
        rng = generator("train", _KEYS.get(kind, kind), 0, 256, row)
        ids, scored = task_class(kind)().varied(rng, 256).prompt(vocabulary, 256, rng, joined=True).row()
        found.update(ids.astype("<i8").tobytes())
        found.update(scored.tobytes())
    assert found.hexdigest()[:16] == digest
