import base64
import hashlib
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas
import pytest
from comparisons import RUNS, VERDICTS, difference, everything, frames, reached, score
from conftest import ROOT

from hope_eval.analysis.rows import hole_name
from hope_eval.errors import MissingPackageError, StoreError
from hope_eval.metrics import ERRORS
from hope_eval.show import report
from hope_eval.show.palette import contrast
from hope_eval.show.report import findings, looks, words
from hope_eval.show.report.frames import Results, rows_of

# Elements that have no end.
_VOID = {"meta", "input", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """A page as its elements, in order: (tag, attributes, ancestors), and the text within each."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], {}
        self.feed(text)
        self.close()
        assert not self.open, f"never ended: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(tag for tag, _ in self.open)))
        if tag not in _VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs), tuple(tag for tag, _ in self.open)))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> without a start"
        assert self.open[-1][0] == tag, f"</{tag}> ends {self.open[-1][0]}"
        self.open.pop()

    def handle_data(self, data):
        for _, number in self.open:
            self.texts[number] = self.texts.get(number, "") + data

    def all(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]

    def text(self, tag):
        return [self.texts.get(number, "") for number, element in enumerate(self.elements) if element[0] == tag]


@pytest.fixture(scope="module")
def html():
    return report.render(report.Content(**everything()))


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


@pytest.fixture(scope="module")
def specs(html):
    return json.loads(re.search(r'<script type="application/json" id="charts">(.*?)</script>', html, re.S)[1])


def summary(scores, differences=(), reach=()):
    """Return the introduction, and the findings as {name: sentences}."""
    made = frames(scores, differences, reach)
    results = Results(*(rows_of(made[name]) for name in ("scores", "differences", "reach", "wins")))
    return findings.introduction(results), {one.name: " ".join(one.texts) for one in findings.findings(results)}


# What the page is


def test_nothing_is_loaded_from_anywhere(html, page):
    for tag, attributes, _ in page.elements:
        for name in ("src", "href", "data", "action", "poster", "srcset", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith("#"), f"<{tag} {name}={value}>"
    style = " ".join(page.text("style"))
    assert "url(" not in style
    assert "@import" not in style
    imported = json.loads(page.text("script")[[s.get("type") for s in page.all("script")].index("importmap")])
    assert all(address.startswith("data:") for address in imported["imports"].values())
    ours = page.text("script")[-1]
    assert re.findall(r"\b(?:import|from)\b\s*\(?[\"']([^\"']+)", ours) == ["datatables"]
    assert not re.search(r"fetch\(|XMLHttpRequest|https?:", ours)


def test_libraries_are_there_once(html):
    assert html.count("window.vegaEmbed=") == 1
    assert html.count("data:text/javascript;base64,") == 1
    bundle = re.search(r"data:text/javascript;base64,([A-Za-z0-9+/=]+)", html)[1]
    assert b"DataTables" in base64.b64decode(bundle)


def test_the_page_is_small(html):
    assert len(html.encode()) < 2_000_000


def test_headings_are_ordered_and_there_is_one_title(page):
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch(r"h\d", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    assert page.text("h1") == ["Three encodings"]
    assert page.all("html") == [{"lang": "en"}]
    assert page.text("title") == ["Three encodings"]


def test_landmarks_and_a_link_past_them_are_there(page):
    assert {tag for tag, _, _ in page.elements} >= {"header", "nav", "main", "footer"}
    skip = next(attributes for attributes in page.all("a"))
    assert (skip["class"], skip["href"]) == ("skip", "#main")


def test_every_reference_to_an_id_finds_it(page):
    ids = [attributes["id"] for _, attributes, _ in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes, _ in page.elements:
        for name in ("for", "aria-labelledby", "data-filters", "data-copies"):
            assert attributes.get(name, ids[0]) in ids, attributes
        if attributes.get("href", "").startswith("#"):
            assert attributes["href"][1:] in ids


def test_every_input_has_a_label(page):
    labelled = {attributes.get("for") for attributes in page.all("label")}
    inputs = [(attributes, parents) for tag, attributes, parents in page.elements if tag == "input"]
    assert len(inputs) > 3
    for attributes, parents in inputs:
        assert "label" in parents or attributes["id"] in labelled


def test_every_table_has_a_caption_and_scopes_and_is_reached_by_keyboard(page):
    boxes = [a for tag, a, _ in page.elements if tag == "div" and (a.get("class") or "").startswith("box")]
    assert len(boxes) == len(page.all("table")) == len(page.all("caption"))
    assert all(box["tabindex"] == "0" and box["role"] == "region" for box in boxes)
    assert all("scope" in attributes for attributes in page.all("th"))
    assert all(text.strip() for text in page.text("caption"))


def test_colours_of_text_can_be_read_in_the_light_and_in_the_dark():
    style = (Path(report.__file__).parent / "page.css").read_text()
    light, dark = (dict(re.findall(r"--([\w-]+): (#\w+)", part)) for part in style.split("@media")[:2])
    assert (light["page"], dark["page"]) == (looks.LIGHT, looks.DARK)
    for colours in (light, dark):
        for text in ("ink", "muted", "accent"):
            for back in ("page", "raised", "beyond"):
                assert contrast(colours[text], colours[back]) >= 4.5, (text, back)
        for verdict in ("better", "worse"):
            assert contrast(colours[verdict], colours[f"{verdict}-back"]) >= 4.5
        assert all(contrast(colours[f"error-{kind}"], colours["page"]) >= 3 for kind in ERRORS)


def test_lines_stand_out_from_both_pages():
    lines = {f"{encoding} {number}": encoding for encoding in ("rope", "hope", "kerple", "t5") for number in range(3)}
    for look in looks.all_looks(lines, {}):
        assert contrast(look.light, looks.LIGHT) >= 3
        assert contrast(look.dark, looks.DARK) >= 3


def test_the_same_frames_give_the_same_bytes(html):
    assert report.render(report.Content(**everything())) == html
    script = (
        "import hashlib, comparisons; from hope_eval.show import report; "
        "print(hashlib.sha256(report.render(report.Content(**comparisons.everything())).encode()).hexdigest())"
    )
    other = {"PYTHONHASHSEED": "7", "PATH": ""}
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT / "tests", env=other, capture_output=True, text=True)
    assert out.stdout.strip() == hashlib.sha256(html.encode()).hexdigest(), out.stderr


def test_importing_the_report_loads_nothing_heavy():
    heavy = ("altair", "itables", "vl_convert", "jinja2", "pandas", "torch")
    script = f"import sys, hope_eval.show.report; print([m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


# What it holds


def test_every_number_is_in_a_table(page):
    cells = [(a, page.texts.get(n, "")) for n, (tag, a, _) in enumerate(page.elements) if tag in ("td", "th")]
    texts = {text for _, text in cells}
    orders = {a["data-order"] for a, _ in cells if "data-order" in a}
    made = everything()
    for row in made["scores"].to_dict("records"):
        if row["status"] == "ok":
            assert str(row["value"]) in orders
            shown = f"{words.number(row['value'])}[{words.number(row['low'])}, {words.number(row['high'])}]"
            assert any(text.replace("★ best", "") == shown for text in texts), shown
    for name, key in (("differences", "value"), ("wins", "probability"), ("reach", "value")):
        assert {str(value) for value in made[name][key]} <= orders


def test_holes_are_told_with_their_reason():
    statuses = {
        "oom": "out of memory",
        "nan": "not a number",
        "-": "past its table",
        "missing": "not measured",
        "infeasible (needs 138)": "needs 138 tokens",
    }
    scores = [score("rope", 256 << n, None, status=status) for n, status in enumerate(statuses)]
    text = report.render(report.Content(**frames([score("rope", 128, 0.5), *scores]), runs=[], notes=[], title="x"))
    page = Page(text)
    holes = [
        page.texts[n] for n, (tag, a, _) in enumerate(page.elements) if tag == "td" and "hole" in (a.get("class") or "")
    ]
    assert holes == list(statuses.values())


def test_the_best_of_a_column_is_marked(page):
    marked = [
        page.texts[n] for n, (tag, a, _) in enumerate(page.elements) if tag == "td" and "best" in (a.get("class") or "")
    ]
    assert [text.split("★")[0] for text in marked] == ["19.02"]


def test_lengths_beyond_the_training_length_are_marked(page):
    columns = [
        (page.texts[n].split()[0], "beyond" in a["class"])
        for n, (tag, a, _) in enumerate(page.elements)
        if tag == "th" and a["scope"] == "col" and "\u00d7" in page.texts[n]
    ]
    assert set(columns) == {("256", False), ("512", True), ("1k", True), ("2k", True)}


def test_sections_come_in_order(page):
    assert page.text("h2") == [
        "Summary", "Perplexity", "Copying", "Differences", "Effective context length", "Line against line",
        "How copies fail",
        "By depth and other facts", "Provenance", "Notes and definitions",
    ]  # fmt: skip


def test_what_is_not_there_has_no_section():
    text = report.render(report.Content(**frames([score("rope", 256, 0.5)]), runs=[], notes=[], title="x"))
    assert Page(text).text("h2") == ["Summary", "Copying", "Provenance", "Notes and definitions"]


def test_runs_are_told_with_command_fingerprint_machine_versions_and_seconds(page):
    text = " ".join([*page.text("td"), *page.text("th"), *page.text("dd"), *page.text("code")])
    for run in RUNS:
        for fact in (run["id"], run["command"], run["fingerprint"], "x86_64", "hope_eval 0.1, torch 2.9", "1.500"):
            assert fact in text


def test_metrics_that_occur_are_defined_and_no_others(page):
    terms = page.text("dt")
    assert {"perplexity", "accuracy", "error: skip", "85 % of the score", "out of memory"} <= set(terms)
    assert not {"surprisal [nats]", "useful context", "past its table"} & set(terms)


def test_names_of_users_are_text_everywhere():
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    made = frames(
        [score(evil, 256, 0.5, encoding="rope"), score("rope", 256, 0.4), score(evil, 512, 0.5, slice=f"depth {evil}")],
        [difference(evil, 256, 0.1, "better")],
        [reached(evil, 256)],
        [{"section": "copy", "task": "copy", "metric": "accuracy", "line": evil, "other": "rope", "probability": 0.5}],
    )
    runs = [{"id": evil, "command": f"hope-eval {evil}", "model": evil, "versions": {evil: evil}}]
    text = report.render(report.Content(**made, runs=runs, notes=[f"[low, high] {evil}"], title=evil))
    assert evil not in text
    assert "<script>alert" not in text
    page = Page(text)
    assert not page.all("img")
    assert page.text("h1") == [evil]
    assert len(page.all("script")) == 4
    specs = json.loads(page.text("script")[0])
    assert any(row["line"] == evil for row in specs["chart-1"]["datasets"]["rows"])


# Charts


def test_charts_compile_know_what_is_hidden_and_say_what_they_are(specs):
    import vl_convert

    # Two of perplexity and copying, two of differences, reach, wins, errors, depths.
    assert len(specs) == 8
    for spec in specs.values():
        vega = vl_convert.vegalite_to_vega(spec)
        assert {"name": "hidden", "value": []} in vega["signals"]
        assert "indexof(hidden" in json.dumps(vega)
        assert len(spec["description"].split()) > 5
        assert "$schema" not in spec


def test_charts_hold_what_a_hover_tells(specs):
    rows = specs["chart-2"]["datasets"]["rows"]
    row = next(row for row in rows if (row["line"], row["at"]) == ("hope", 1024))
    assert (row["value"], row["text"], row["interval"]) == (0.3123, "0.312", "[0.281, 0.344]")
    assert (row["heading"], row["n"], row["protocol"]) == ("1k (4\u00a0\u00d7 the training length)", "40", "copy@v1")
    # Holes leave a gap.
    assert not any(row["at"] == 2048 for row in rows)


def test_colours_are_the_ones_of_the_page_and_ink_is_its_own(html, specs):
    text = json.dumps(specs)
    assert "currentColor" in text
    assert set(re.findall(r"var\(--(line-\d+)\)", text)) == {"line-0", "line-1", "line-2"}
    assert html.count("--line-0:") == 2


def test_columns_in_multiples_are_drawn_as_multiples():
    rows = [score("rope", 256 * n, 0.5, column=f"{n}x") for n in (1, 2, 4)]
    rows += [score("hope", 512 * n, 0.6, column=f"{n}x", train_length=512, extrapolation=n) for n in (1, 2, 4)]
    text = report.render(report.Content(**frames(rows), runs=[], notes=[], title="x"))
    page = Page(text)
    assert [t for t in page.text("th") if re.fullmatch(r"\dx", t)] == ["1x", "2x", "4x"]
    points = json.loads(page.text("script")[0])["chart-1"]["datasets"]["rows"]
    assert {point["at"] for point in points} == {1.0, 2.0, 4.0}


def test_a_value_that_is_no_finite_number_is_not_drawn():
    rows = [
        score("rope", 256, float("inf"), task="ppl", metric="perplexity"),
        score("rope", 512, 2.0, task="ppl", metric="perplexity"),
    ]
    page = Page(report.render(report.Content(**frames(rows), runs=[], notes=[], title="x")))
    assert [row["at"] for row in json.loads(page.text("script")[0])["chart-1"]["datasets"]["rows"]] == [512]
    assert any(text.startswith("inf") for text in page.text("td"))


# The summary


def test_the_introduction_counts_what_is_there():
    told, _ = summary([score("rope", 256, 0.5)])
    assert told == "1 line (rope) on 1 task (copy), at 256 tokens. Trained at 256 tokens."
    told, _ = summary(
        [score("rope", 256, 0.5), score("hope", 1024, 0.5), score("hope", 1024, 9.0, task="ppl", metric="perplexity")],
        [difference("hope", 1024, 0.5, "better")],
    )
    assert told.startswith(
        "2 lines (rope and hope) on 2 tasks (perplexity and copy), at 256 to 1k tokens, up to 4\u00a0\u00d7 the "
        "training length. Trained at 256 tokens. Compared with rope, paired by context"
    )


def lines_of(*names):
    return [score(name, length, 0.5) for name in names for length in (256, 512, 1024)]


def test_who_is_better_beyond_is_told_with_parity_within():
    _, told = summary(
        lines_of("rope", "hope", "alibi"),
        [
            difference(line, length, value, verdict)
            for line in VERDICTS
            for length, (verdict, value) in VERDICTS[line].items()
        ],
    )
    assert told["hope"] == (
        "Beyond the training length, better than rope in all 2 comparisons, the longest on copy at 1k (0.300 "
        "[0.250, 0.350] higher); worse in none. Within the training length, not distinguishable from rope in the only "
        "comparison."
    )
    assert told["alibi"] == (
        "Beyond the training length, better than rope in 1 of 2 comparisons, on copy at 512 (0.500 [0.450, 0.550] "
        "higher); worse in none. Within the training length, worse than rope in the only comparison, on copy at 256 "
        "(0.200 [0.150, 0.250] lower)."
    )
    assert next(iter(told)) == "hope"
    assert told["Where rope wins"] == (
        "In 1 of 6 comparisons: within the training length over alibi (1). Most clearly over alibi, on copy at 256 "
        "(0.200 [0.150, 0.250] lower)."
    )


def test_a_lower_perplexity_is_told_as_lower():
    scores = [score(line, 512, 9.0, task="ppl", metric="perplexity") for line in ("rope", "hope")]
    _, told = summary(scores, [difference("hope", 512, -0.5, "better", task="ppl")])
    assert "on perplexity at 512 (0.500 nats [0.450, 0.550] lower)" in told["hope"]


def test_where_nothing_was_compared_within_the_window_the_summary_says_so():
    _, told = summary(lines_of("rope", "hope"), [difference("hope", 512, 0.5, "better")])
    assert "the cost there is unknown" in told["hope"]


def test_where_nothing_is_distinguishable_the_summary_says_so():
    equal = [difference("hope", length, 0.0, "not distinguishable") for length in (256, 512)]
    _, told = summary(lines_of("rope", "hope"), equal)
    assert told == {"Nothing is distinguishable": "None of 2 comparisons distinguishes hope from rope."}
    _, told = summary(lines_of("rope", "hope"), equal[:1])
    assert told == {"Nothing is distinguishable": "The only comparison does not distinguish hope from rope."}


def test_a_line_that_only_loses_is_no_winner():
    _, told = summary(lines_of("rope", "nope"), [difference("nope", n, -0.5, "worse") for n in (256, 512, 1024)])
    assert told["Nowhere better than rope beyond the training length"] == (
        "nope (0 better, 2 worse of 2; within the training length 0 better, 1 worse of 1)."
    )
    assert told["Where rope wins"].startswith("In all 3 comparisons: beyond the training length over nope (2); within")


def test_a_baseline_that_never_wins_is_told():
    _, told = summary(lines_of("rope", "hope"), [difference("hope", 512, 0.5, "better")])
    assert told["Where rope wins"] == "In none of these comparisons."


def test_of_many_lines_the_best_are_told_in_full_and_the_others_counted():
    names = [f"e{number}" for number in range(7)]
    rows = [
        difference(name, 512 + n, 0.1, "better" if n < number else "not distinguishable")
        for number, name in enumerate(names)
        for n in range(6)
    ]
    _, told = summary(lines_of("rope", *names), rows)
    assert list(told)[:3] == ["e6", "e5", "e4"]
    others = told["Also better than rope somewhere beyond the training length"]
    assert re.findall(r"(e\d) \((\d) better", others) == [("e3", "3"), ("e2", "2"), ("e1", "1")]
    assert told["Nowhere better than rope beyond the training length"].startswith("e0 (0 better, 0 worse of 6;")


def test_a_line_that_was_not_compared_beyond_is_told():
    _, told = summary(
        lines_of("rope", "hope", "learned"),
        [difference("hope", 512, 0.5, "better"), difference("learned", 256, 0.5, "better")],
    )
    assert told["Not compared beyond the training length"] == (
        "learned (within the training length 1 better, 0 worse of 1)."
    )


def test_an_unknown_training_length_is_claimed_by_nobody():
    scores = [score(line, 512, 0.5, train_length=None, extrapolation=None) for line in ("rope", "hope")]
    introduction, told = summary(scores, [difference("hope", 512, 0.5, "better")])
    assert "The training length is unknown." in introduction
    assert told["hope"].startswith("At lengths of models with an unknown training length, better than rope")
    assert "eyond" not in " ".join([introduction, *told.values()])


def test_without_a_baseline_values_are_told():
    _, told = summary([score("hope", 256, 0.91), score("hope", 512, 0.5), score("hope", 1024, 0.2)])
    assert told == {
        "copy, accuracy": "0.910 [0.819, 1.001] at 256 (1\u00a0\u00d7 the training length) and 0.200 [0.180, "
        "0.220] at 1k (4\u00a0\u00d7 the training length)."
    }


def test_how_far_is_told_with_ends_that_were_not_seen_and_with_parity():
    rows = [
        reached("rope", 256),
        reached("hope", 1024, censored=">="),
        reached("alibi", 512, verdict="worse"),
        reached("nope", 128, censored="<"),
        reached("xpos", float("nan"), censored="at chance"),
    ]
    _, told = summary(lines_of("rope"), [difference("hope", 512, 0.5, "better")], rows)
    assert told["Effective context length"] == (
        "copy, accuracy (85 % of the score): at least 1k for hope; 512 for alibi; 256 for rope; less than 128 for "
        "nope; at chance for xpos. Within the training length worse than rope: alibi."
    )
    _, told = summary(lines_of("rope"), [difference("hope", 512, 0.5, "better")], rows[:2])
    assert told["Effective context length"].endswith("none of them is distinguishably worse than rope.")
    rows[4]["in_window_verdict"] = None
    _, told = summary(lines_of("rope"), [difference("hope", 512, 0.5, "better")], [rows[1], rows[4]])
    assert told["Effective context length"].endswith("none of those compared is distinguishably worse than rope.")


def test_holes_are_told_with_lines_lengths_and_reasons():
    scores = [score("rope", 256, 0.5), score("rope", 512, None), score("rope", 1024, None)]
    _, told = summary([*scores, score("learned", 512, None, status="-")])
    assert told["Missing"] == (
        "rope at 512 to 1k tokens (out of memory, 2 numbers) and learned at 512 tokens (past its table, 1 number)."
    )


def test_numbers_of_the_summary_are_numbers_of_the_frames(page):
    made = everything()
    text = " ".join(page.text("li"))
    better = made["differences"].query("line == 'hope' and verdict == 'better' and length > 256")
    assert f"better than rope in all {len(better)} comparisons" in text
    worse = made["differences"].query("verdict == 'worse'")
    assert f"In {len(worse)} of {len(made['differences'])} comparisons" in text


# Writing


def test_a_report_is_written(tmp_path, html, monkeypatch):
    monkeypatch.setattr(report, "render", lambda content: html)
    path = tmp_path / "new" / "report.html"
    report.write(path, report.Content(**everything()))
    assert path.read_text(encoding="utf-8") == html
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize("name", ["a_folder", "a_file/report.html"])
def test_a_place_that_cannot_be_written_is_told(tmp_path, name, monkeypatch):
    (tmp_path / "a_folder").mkdir()
    (tmp_path / "a_file").touch()
    monkeypatch.setattr(report, "render", lambda content: "page")
    with pytest.raises(StoreError, match="cannot write the report") as caught:
        report.write(tmp_path / name, report.Content(**everything()))
    assert caught.value.hint


def test_a_report_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "report.html"
    path.write_text("old")
    monkeypatch.setattr(report, "render", lambda content: "new")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StoreError, match="No space left"):
        report.write(path, report.Content(**everything()))
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("module", "package"),
    [("altair", "altair"), ("itables", "itables"), ("vl_convert", "vl-convert-python"), ("jinja2", "jinja2")],
)
def test_a_missing_package_is_named(monkeypatch, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingPackageError, match=f"`{package}`"):
        report.render(report.Content(**everything()))


def test_empty_frames_without_columns_are_fine():
    given = dict.fromkeys(("differences", "reach", "wins"), pandas.DataFrame())
    scores = frames([score("rope", 256, 0.5)])["scores"]
    text = report.render(report.Content(scores=scores, **given, runs=[], notes=[], title="x"))
    assert "0.500" in text


def test_numbers_in_words():
    assert words.number(-0.0001) == "0.000"
    assert words.signed(0.437) == "+0.437"
    assert words.signed(0.0001) == "0.000"
    assert words.signed(-2.5) == "\u22122.500"
    assert words.number(None) == "\u2013"
    assert words.plural(1, "number") == "1 number"
    assert words.plural(2000, "number") == "2,000 numbers"
    assert words.listed(["a"]) == "a"
    assert words.listed(["a", "b", "c"]) == "a, b and c"
    assert hole_name("infeasible (needs 138)") == "needs 138 tokens"
    assert words.span([256, 8192, 512]) == "256 to 8k"
