"""The reference results: what is published is what the summaries say, and of tasks as they are today."""

import importlib.util
import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import committed
from frames import frame, row

import hope_eval as package
from hope_eval.analysis import perplexity
from hope_eval.analysis.differences import differences
from hope_eval.analysis.reach import effective_lengths
from hope_eval.encodings import encoding_names
from hope_eval.evaluation.suites import parse_measure
from hope_eval.protocols import protocol_names
from hope_eval.show import comparison_tables

RESULTS = Path(package.__file__).parent.parent / "results"
SUMMARIES = [
    RESULTS / name
    for name in dict.fromkeys(
        re.findall(r"^\{\{(\S+\.json) ", (RESULTS / "README.in.md").read_text("utf-8"), flags=re.MULTILINE)
    )
]


@pytest.fixture(scope="module")
def build():
    spec = importlib.util.spec_from_file_location("results_build", RESULTS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_there_are_results():
    assert len(SUMMARIES) >= 2


def test_the_readme_is_what_the_command_makes(build):
    assert (RESULTS / "README.md").read_text("utf-8") == build.readme(), "python results/build.py makes it again"


def claims(prose):
    """Return the sentences of a page's source that could say what numbers show, and are not made from them.

    Such a sentence names an encoding, has a number with decimals, or a word that weighs results.
    """
    prose = re.sub(r"```.*?```|^\{\{.*?\}\}$|\(\S+\)|`hope-eval [^`]*`", "", prose, flags=re.DOTALL | re.MULTILINE)
    # The program has an encoding in its name, and `learned` is a word.
    prose = re.sub(r"\bhope-eval\b", "", prose)
    names = "|".join(set(encoding_names()) - {"learned"} | {"learned positions"})
    weighs = (
        r"hardly|never|nearly|almost|nothing under|to nothing|next to nothing|ahead|farther|predicts?|harm\w*|helps?|"
        r"falls?|fell|drops?|loses?|lost|wins?|beats?|keeps?|degrade\w*|works?|copies|recalls?|finds?|reach(es)?"
    )
    suspect = re.compile(rf"\b({names})s?\b|(?<![\d.])\d+\.\d+(?!\.?\d)|\b({weighs})\b", re.IGNORECASE)
    sentences = re.split(r"(?<=[.:;!?])\s+|\n\s*\n|\n-\s", prose)
    return [sentence for sentence in sentences if suspect.search(sentence)]


def test_no_sentence_claims_what_is_not_made_from_the_numbers():
    assert claims((RESULTS / "README.in.md").read_text("utf-8")) == []


@pytest.mark.parametrize(
    "sentence",
    [
        "Past the window RoPE and HoPE fall to 0.",
        "Models that did not meet the form score next to nothing under rotary encodings.",
        "At 2 times the window, T5's buckets copy no whole string.",
        "Within the window, encodings hardly differ.",
        "It never harms them.",
        "`hope` is better at 1k.",
        "The score is 0.90.",
        "Learned positions end there.",
        "A model of this size works up to 8k.",
    ],
)
def test_a_sentence_that_claims_something_is_seen(sentence):
    assert claims(f"# Title\n\nHow it was measured. {sentence} It goes on.\n\n{{{{x.json scores}}}}\n") == [sentence]


def test_every_committed_summary_is_shown():
    published = [path for path in committed("results") if path.suffix == ".json" and "benchmarks" not in path.parts]
    assert sorted(SUMMARIES) == sorted(published)


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.stem)
def test_results_are_of_todays_tasks_and_protocols(path):
    for run in json.loads(path.read_text("utf-8"))["runs"]:
        if run["task"] == "ppl":
            assert run["protocol"].removeprefix("ppl@") in protocol_names()
            assert run["version"] == perplexity.VERSION
        else:
            task = parse_measure(run["task"])
            assert (run["version"], run["task_fingerprint"]) == (task.version, task.fingerprint), run["task"]


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.stem)
def test_every_result_says_where_it_comes_from(path):
    content = json.loads(path.read_text("utf-8"))
    for run in content["runs"]:
        assert run["machine"]
        assert run["versions"]["torch"]
        assert all(command.startswith("hope-eval ") for command in run["commands"])
        assert run["commands"]
        assert run["models"]


@pytest.mark.parametrize("path", SUMMARIES, ids=lambda path: path.stem)
def test_every_number_carries_its_interval(path):
    content = json.loads(path.read_text("utf-8"))["scores"]
    for values in content["data"]:
        one = dict(zip(content["columns"], values, strict=True))
        if one["status"] == "ok":
            assert one["low"] <= one["value"] <= one["high"], one
        else:
            assert one["value"] is None


def test_a_summary_shows_what_the_comparison_does(build, tmp_path, monkeypatch):
    scores = frame(row("rope", 256, [8, 7, 8]), row("hope", 256, [8, 8, 8]), row("rope", 512, [0, 1, 0]),
                   row("hope", 512, [8, 7, 8]))  # fmt: skip
    against = differences(scores, "rope")

    class Found:
        baseline = "rope"
        notes = ("a fact", "runs a, b", "rope rope: training length 256 (config)")
        run = dict.fromkeys(build._SHARED, "x") | {"model": "m", "encoding": "e", "fingerprint": "f", "seconds": 1.5}
        runs = (run | {"command": "hope-eval x", "started": "2026-01-01T00"},) * 2

        def frame(self, name):
            return {"scores": scores, "differences": against, "reach": effective_lengths(scores, against)}[name]

    content = json.loads(build.summarised(Found()))
    assert content["notes"] == ["a fact"]
    assert [(run["runs"], run["seconds"], run["commands"]) for run in content["runs"]] == [(2, 3.0, ["hope-eval x"])]
    monkeypatch.setattr(build, "HERE", tmp_path)
    (tmp_path / "x.json").write_text(json.dumps(content))
    (tmp_path / "README.in.md").write_text("Before\n\n{{x.json scores column=512}}\nAfter\n\n{{x.json differences}}\n")
    made = build.readme()
    assert "| zoo:hope | hope | 256 | passkey accuracy | 0.958\\* [" in made
    assert "| 256 |\n" not in made.split("After")[0]
    assert "| hope | passkey accuracy | +0.042 ≈ [" in made
    assert made.index("Before") < made.index("zoo:hope") < made.index("After")


def test_areas_stand_beside_the_difference_inside_the_window():
    scores = frame(row("rope", 256, [8, 7, 8]), row("hope", 256, [8, 8, 8]), row("rope", 512, [0, 1, 0]),
                   row("hope", 512, [8, 7, 8]))  # fmt: skip
    extents = effective_lengths(scores, differences(scores, "rope"))
    content = {"reach": extents}
    compared = SimpleNamespace(baseline="rope", frame=content.__getitem__)
    blocks = list(comparison_tables.blocks(compared, ("reach",)))
    assert len(blocks) == 2
    for block in blocks:
        assert block.grid.columns[-1] == "in window"
        assert any(cells[-1].value for _, cells in block.grid.lines)


def test_the_demo_of_the_readme_is_made_again_by_the_command(build):
    page = (RESULTS.parent / "README.md").read_text("utf-8")
    table = "    perplexity \nencoding  inside\nrope  20.00\n"
    made = build.with_demo(page, f"{table}\nsentences\n\nreport: demo.html\n")
    assert "\n```\n    perplexity\nencoding  inside\nrope  20.00\n```\n" in made
    assert "report: demo.html" not in made
    # The page shows that table and no other, and nothing else changes.
    shown = page.split("`hope-eval demo`:\n\n```\n")[1].split("```")[0]
    assert build.with_demo(made, shown) == page
    assert shown.count("inside") == 3
