"""The page on statistics holds what the simulations give."""

import pytest

from benchmarks import coverage


def committed(name):
    """The lines of a table of the page."""
    text = coverage.PAGE.read_text("utf-8").split(f"<!-- {name} -->\n")[1].split(f"<!-- end of {name} -->")[0]
    return [line for line in text.splitlines() if line]


def test_the_page_has_a_line_for_everything_that_is_simulated():
    for name, kinds in (("means", coverage.means()), ("accuracies", coverage.shares())):
        assert [line.split(" | ")[0].removeprefix("| ") for line in committed(name)[2:]] == [kind for kind, _ in kinds]
    assert committed("unseen") == coverage.unseen()


def test_without_a_note_intervals_hold_the_truth_as_often_as_the_page_promises():
    """Of samples that hold all kinds of documents. The figures are those of the page, which a slow test makes again."""
    for line in committed("means")[2:]:
        _, _, bare, complete = (cell.strip(" %") for cell in line.split("|")[2:6])
        assert not bare or float(complete or bare) >= 93, line
    for line in committed("accuracies")[2:]:
        assert float(line.split("|")[2].strip(" %")) >= 93 or "alike by 0.5" in line, line


def test_a_kind_of_data_is_simulated_alike_each_time(monkeypatch):
    monkeypatch.setattr(coverage, "REPETITIONS", 20)
    first, again = (coverage.table(coverage.means(), with_notes=True)[:6] for _ in range(2))
    assert first == again
    assert len(first[0].split("|")) == len(first[2].split("|"))


@pytest.mark.slow
def test_the_page_on_statistics_is_what_the_simulations_give():
    text = coverage.PAGE.read_text("utf-8")
    assert coverage.page(text) == text
