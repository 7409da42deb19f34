"""The test of the house: an encoding, a task with a metric and a protocol with a column are one file each.

The files are the examples of CONTRIBUTING, in a temporary folder. Every command runs on them as users type it, and
nothing else is edited.
"""

import json
import re
from pathlib import Path

import pytest
from commands import hope_eval
from conftest import ROOT

# The examples of CONTRIBUTING, by the names that their docstrings give them.
EXAMPLES = {
    code.split(":")[0].strip('"').lower(): code
    for code in re.findall(r'```python\n(""".*?)```', (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.DOTALL)
}

SUITE = """
[mine]
about = "one of each"
lengths = "64,128"
samples = 3
controls = false
tasks = ["{folder}/brief.py", "ppl:{folder}/halves.py:parts=4"]
"""


class House:
    """A folder with the files, runs measured with them by a suite, and those files gone."""

    def __init__(self, folder, stories) -> None:
        self.folder, self.runs, self.stories = folder, folder / "runs", stories
        for name in ("halved", "brief", "halves"):
            (folder / f"{name}.py").write_text(EXAMPLES[name])
        (folder / "suite.toml").write_text(SUITE.format(folder=folder))

    def models(self, *encodings):
        """Options that name a model, with and without the encoding."""
        encodings = encodings or ("native", self.folder / "halved.py")
        return ("--model", "zoo:rope", "--device", "cpu", *(word for e in encodings for word in ("--encoding", e)))

    def measures(self, command, *arguments, out):
        return hope_eval(command, *self.models(), "--out", self.folder / out, *arguments)


@pytest.fixture(scope="module")
def house(tmp_path_factory, stories):
    house = House(tmp_path_factory.mktemp("house"), stories)
    house.printed = house.measures("run", "--suite", house.folder / "suite.toml", "--data", stories, out="runs").stdout
    return house


@pytest.fixture(scope="module")
def alone(house):
    """The runs, where the files that they were measured with are gone."""
    files = {path: path.read_text() for path in house.folder.glob("*.py")}
    for path in files:
        path.unlink()
    yield house
    for path, text in files.items():
        path.write_text(text)


def rows_of(result):
    return json.loads(result.stdout)


def metrics(rows):
    # An encoding is called as users typed it: `folder/halved.py`.
    return {(Path(row["encoding"]).stem, row["metric"]) for row in rows if row["status"] == "ok"}


BOTH = ("rope", "halved")


def test_a_protocol_prints_its_own_column(house):
    arguments = ("--protocol", f"{house.folder}/halves.py", "--data", house.stories, "--lengths", "64,128")
    rows = rows_of(house.measures("ppl", *arguments, "--format", "json", out="ppl"))
    assert {(name, metric) for name in BOTH for metric in ("perplexity", "half_gain")} <= metrics(rows)
    assert {row["protocol"] for row in rows} == {"ppl@halves:L=64,parts=2", "ppl@halves:L=128,parts=2"}
    table = house.measures("ppl", *arguments, out="ppl").stdout
    assert "half gain" in table
    assert "halved" in table
    assert "ppl@halves" in table


def test_a_task_prints_its_own_metric(house):
    arguments = ("--task", house.folder / "brief.py", "--lengths", "64,128", "--samples", "3", "--no-controls")
    rows = rows_of(house.measures("fewshot", *arguments, "--format", "json", out="tasks"))
    assert {(name, "brevity") for name in BOTH} <= metrics(rows)
    assert all(10 < row["value"] <= 100 for row in rows if row["metric"] == "brevity")
    table = house.measures("fewshot", *arguments, out="tasks").stdout
    assert "brevity" in table
    assert "halved" in table


def test_a_task_shows_a_sample_and_an_encoding_itself(house):
    assert "In one word:" in hope_eval("tasks", house.folder / "brief.py", "--length", "64").stdout
    assert "rotate pair i by position * theta_i / 2" in hope_eval("encodings", house.folder / "halved.py").stdout


def test_a_suite_measures_all_three(house):
    assert len([path for path in house.runs.iterdir() if path.is_dir() and path.name[0] != "."]) == 4
    for word in ("halved", "brevity", "ppl@halves"):
        assert word in house.printed


def test_a_plan_counts_all_three(house):
    models = house.models()
    where = ("--suite", house.folder / "suite.toml", "--data", house.stories, "--no-benchmark", "--tflops", "1")
    rows = rows_of(hope_eval("plan", *where, *models, "--format", "json"))
    text = json.dumps(rows)
    for word in ("halved", "brief", "halves"):
        assert word in text
    assert "brief" in hope_eval("plan", *where, *models).stdout


def test_all_three_are_compared_without_their_files(alone):
    content = rows_of(hope_eval("compare", alone.runs, "--format", "json"))
    rows = content["scores"]
    wanted = {(name, metric) for name in BOTH for metric in ("perplexity", "half_gain", "brevity")}
    assert wanted <= metrics(rows)
    compared = {row["metric"] for row in content["differences"]}
    assert {"nll", "brevity"} <= compared
    for form in ("table", "markdown", "latex"):
        table = hope_eval("compare", alone.runs, "--format", form).stdout
        assert "halved" in table
        assert "brevity" in table
        assert "halves" in table


@pytest.mark.parametrize(
    ("kind", "more", "words"),
    [
        ("curve", (), ["halved"]),
        ("curve", ("--metric", "half_gain"), ["halved", "half gain"]),
        ("accuracy", (), ["halved", "brevity"]),
        ("accuracy", ("--metric", "brevity"), ["halved", "brevity"]),
        ("difference", (), ["halved"]),
    ],
)
def test_all_three_are_drawn_without_their_files(kind, more, words, alone):
    figure = alone.folder / f"{kind}-{len(more)}.svg"
    hope_eval("plot", alone.runs, "--kind", kind, *more, "--out", figure)
    text = figure.read_text().lower()
    for word in words:
        assert word in text
    # Its own colour, as its file says.
    assert "#117733" in text


def test_all_three_are_sketched_without_their_files(alone):
    sketch = hope_eval("plot", alone.runs).stdout
    for word in ("halved", "brevity", "halves"):
        assert word in sketch


def test_all_three_are_reported_without_their_files(alone):
    page = alone.folder / "report.html"
    hope_eval("report", alone.runs, "--out", page)
    text = page.read_text()
    for word in ("halved", "brevity", "half gain", "Perplexity of last parts", "#117733", "answer with few words"):
        assert word.lower() in text.lower(), word


def test_runs_of_all_three_are_listed_and_verified_without_their_files(alone):
    assert "brief" in hope_eval("runs", "--out", alone.runs).stdout
    hope_eval("runs", "verify", "--out", alone.runs)
