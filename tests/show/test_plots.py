"""Figures and sparklines: what they show is what the rows say, and nobody has to guess what is missing."""

import io
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from rich.console import Console

import hope_eval
from hope_eval.errors import OptionError, StoreError
from hope_eval.show import palette, plots
from hope_eval.show.figures.sheet import spread, text_width, wrapped
from hope_eval.show.sparklines import sparklines

ZOO = ROOT / "results" / "zoo"
ENCODINGS = sorted(
    path.stem for path in (Path(hope_eval.__file__).parent / "encodings").glob("*.py") if path.stem != "__init__"
)
MAIN = ["rope", "hope", "nope", "prope", "xpos", "alibi", "kerple", "fire", "t5", "sinusoidal", "learned", "clipped"]


def row(line="rope", length=1024, value=10.0, **changes):
    """Return a row of `scores`: the perplexity of a line at a length."""
    status = changes.get("status", "ok")
    value = value if status == "ok" else math.nan
    return {
        "line": line, "model": line, "encoding": line, "family": "ppl", "task": "ppl",
        "protocol": f"ppl@prefix:L={length}", "section": "ppl@prefix", "length": length, "label": "",
        "train_length": 1024, "n": 12, "n_seeds": 1, "corpus": "books.jsonl", "metric": "perplexity", "value": value,
        "low": value * 0.9, "high": value * 1.1, "status": status, "slice": "", "headline": True, "chance": None,
        **changes,
    }  # fmt: skip


def answer(line="rope", length=1024, value=0.5, **changes):
    """Return a row of `scores`: the accuracy of a line at a length."""
    task = changes.pop("task", "passkey")
    about = {"family": "retrieve", "section": "retrieve", "task": task, "protocol": f"{task}@v1", "metric": "accuracy"}
    return row(line, length, value, **{**about, **changes})


def frame(*rows):
    return pd.DataFrame(list(rows))


def from_zoo(section):
    """Return the published scores of the zoo."""
    name = "perplexity" if section.startswith("ppl") else "tasks"
    content = json.loads((ZOO / f"{name}.json").read_text("utf-8"))["scores"]
    scores = pd.DataFrame(content["data"], columns=content["columns"])
    return scores[scores.section == section].assign(corpus="generated")


def gap(line="hope", length=512, value=-0.2, verdict="better", **changes):
    """Return a row of `differences`."""
    return {
        "section": "ppl@prefix", "family": "ppl", "task": "ppl", "protocol": "", "metric": "nll", "length": length,
        "label": "", "line": line, "baseline": "rope", "value": value, "low": value - 0.1, "high": value + 0.1,
        "p": 0.01, "p_holm": 0.01, "verdict": verdict, "n": 12, **changes,
    }  # fmt: skip


def gaps_of_zoo():
    lines = itertools.product(MAIN[1:], enumerate((256, 512, 1024)))
    return frame(*(gap(line, length, 0.1 * n - 0.2) for line, (n, length) in lines))


def depths(line="rope", value=0.5):
    parts = [f"depth {low / 5:.1f}-{low / 5 + 0.2:.1f}" for low in range(5)]
    return [
        answer(line, length, value, slice=part, status="oom" if length == 4096 else "ok")
        for part, length in itertools.product(parts, (512, 1024, 4096))
    ]


def line_of(axes, name):
    return next(line for line in axes.lines if line.get_label() == name)


def words(figure):
    """Return all words on a figure."""
    import matplotlib.text

    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


# Styles


def test_no_two_encodings_of_the_house_look_the_same():
    chosen = {name: palette.style_of(name) for name in ENCODINGS}
    assert set(chosen) == set(palette.house_styles())
    assert len({style.colour for style in chosen.values()}) == len(chosen)
    assert len({(style.dash, style.marker) for style in chosen.values()}) == len(chosen)


def test_parameters_and_swaps_keep_the_style_of_an_encoding():
    for name in ("hope:multiplier=2", "hope(swap)", "hope:multiplier=2(swap)"):
        assert palette.style_of(name) == palette.style_of("hope")


def test_an_unknown_encoding_has_a_style_that_no_known_one_has_and_keeps_it():
    style = palette.style_of("my/file.py")
    # In another process too: Python's own hash of a string is another one each time.
    assert style == palette.style_of("my/file.py:fraction=0.5") == palette.Style("#df5516", (4.5, 1.5, 1.0, 1.5), "8")
    assert style.marker not in {palette.style_of(name).marker for name in ENCODINGS}


def test_main_encodings_differ_in_a_grey_copy():
    grey = sorted(palette.lightness(palette.style_of(name).colour) for name in MAIN)
    assert min(after - before for before, after in itertools.pairwise(grey)) > 3
    of = {name: palette.lightness(palette.style_of(name).colour) for name in ("rope", "hope", "alibi", "kerple")}
    assert min(abs(of[a] - of[b]) for a, b in itertools.combinations(of, 2)) > 6


def test_encodings_stand_out_from_white_and_from_black():
    for name in ENCODINGS:
        colour = palette.style_of(name).colour
        assert palette.contrast(colour, "#ffffff") > 2.1
        assert palette.contrast(colour, "#16181d") > 2.3
        for paper in ("#ffffff", "#16181d"):
            assert palette.contrast(palette.as_text(colour, paper), paper) >= 4.5


# Machado, Oliveira & Fernandes, 2009, severity 1.
BLINDNESS = {
    "none": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_main_encodings_differ_for_the_colour_blind(kind):
    def seen(colour):
        channels = np.array(palette._channels(colour)) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        linear = np.clip(np.array(BLINDNESS[kind]) @ linear, 0, 1)
        to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
        x, y, z = np.cbrt(np.array(to_xyz) @ linear / [0.95047, 1, 1.08883])
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    found = [seen(palette.style_of(name).colour) for name in MAIN]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(found, 2)) > 13


def test_lines_of_one_encoding_differ_and_the_plain_one_keeps_its_style():
    lines = [(f"line {number}", "rope(swap)") for number in range(60)] + [("plain", "rope"), ("other", "hope")]
    found = palette.styles(lines)
    assert list(found) == [line for line, _ in lines]
    assert len(set(found.values())) == len(lines)
    assert found["plain"] == palette.style_of("rope")
    assert found["other"] == palette.style_of("hope")
    assert found["line 0"].colour != found["plain"].colour != found["line 1"].colour


# Curves


def test_a_curve_goes_through_the_rows():
    rows = [row("rope", 4096, 90.0), row("rope", 256, 20.0), row("rope", 1024, 10.0), row("hope", 1024, 11.0)]
    (axes,) = plots.curve(frame(*rows)).axes
    assert line_of(axes, "rope").get_xdata().tolist() == [256, 1024, 4096]
    assert line_of(axes, "rope").get_ydata().tolist() == [20, 10, 90]
    assert line_of(axes, "hope").get_ydata().tolist() == [11]
    assert line_of(axes, "rope").get_color() == palette.style_of("rope").colour
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["256", "1k", "4k"]


def test_a_band_is_the_interval():
    (axes,) = plots.curve(frame(row(length=512, value=10.0), row(length=1024, value=20.0))).axes
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == pytest.approx((9, 22))
    assert axes.get_ylim()[0] < 9
    assert axes.get_ylim()[1] > 22


def test_no_line_and_no_band_is_drawn_across_a_hole_and_its_reason_is_told():
    lengths = {256: "ok", 512: "ok", 1024: "oom", 2048: "ok", 4096: "ok"}
    figure = plots.curve(frame(*(row(length=length, status=status) for length, status in lengths.items())))
    (axes,) = figure.axes
    assert np.isnan(line_of(axes, "rope").get_ydata()).tolist() == [False, False, True, False, False]
    (band,) = axes.collections
    spans = [(path.vertices[:, 0].min(), path.vertices[:, 0].max()) for path in band.get_paths()]
    assert spans == [(256, 512), (2048, 4096)]
    assert line_of(axes, "_hole").get_xdata().tolist() == [1024]
    assert "rope: out of memory" in words(figure)


def test_a_number_between_holes_keeps_its_interval():
    rows = [row(length=512, status="nan"), row(length=1024, value=20.0), row(length=2048, status="-")]
    (axes,) = plots.curve(frame(*rows)).axes
    (bar,) = [one.get_segments()[0] for one in axes.collections if hasattr(one, "get_segments")]
    assert bar[:, 1] == pytest.approx([18, 22])


@pytest.mark.parametrize(
    ("status", "told"),
    [("infeasible (needs 138)", "needs 138 tokens"), ("-", "past its table"), ("nan", "not a number"), ("odd", "odd")],
)
def test_each_hole_has_its_reason(status, told):
    figure = plots.accuracy(frame(answer(length=512), answer(length=1024, status=status)))
    assert f"rope: {told}" in words(figure)


def test_holes_of_a_task_are_those_of_all_its_metrics():
    rows = [answer(), answer(metric="surprisal", value=3.0), answer(length=2048, status="oom")]
    assert "rope: out of memory" in words(plots.curve(frame(*rows), metric="surprisal"))


def test_the_training_length_is_drawn_and_what_is_beyond_is_shaded():
    figure = plots.curve(frame(row(length=512), row(length=4096)))
    (axes,) = figure.axes
    assert line_of(axes, "training length").get_xdata() == [1024, 1024]
    (shade,) = axes.patches
    assert (shade.get_x(), shade.get_x() + shade.get_width()) == pytest.approx((1024, axes.get_xlim()[1]))
    assert "trained at 1k" in words(figure)


def test_of_several_training_lengths_each_line_has_its_own():
    rows = [row(line, length, train_length=trained) for line, trained in (("rope", 1024), ("hope", 2048))
            for length in (512, 4096)]  # fmt: skip
    figure = plots.curve(frame(*rows))
    (axes,) = figure.axes
    assert [one.get_xdata()[0] for one in axes.lines if one.get_label() == "training length"] == [1024, 2048]
    assert line_of(axes, "_hope training length").get_xdata().tolist() == [2048]
    assert {"trained at 1k", "2k"} <= set(words(figure))


def test_relative_lengths_are_multiples_and_lines_without_a_training_length_are_named():
    rows = [row(length=512), row(length=4096), row("hope", 2048, train_length=2048), row("t5", train_length=None)]
    figure = plots.curve(frame(*rows), relative=True)
    (axes,) = figure.axes
    assert line_of(axes, "rope").get_xdata().tolist() == [0.5, 4]
    assert line_of(axes, "hope").get_xdata().tolist() == [1]
    assert "4x" in [label.get_text() for label in axes.get_xticklabels()]
    assert any("without a training length: t5" in one for one in words(figure))


def test_each_protocol_has_a_panel_that_tells_it_and_n():
    other = {"protocol": "ppl@sliding:L=1024,S=256", "section": "ppl@sliding", "n": 1200}
    figure = plots.curve(frame(row(), row(length=2048), row(**other)))
    assert len(figure.axes) == 2
    assert {"ppl@prefix · n = 12 documents", "ppl@sliding:L=1024,S=256 · n = 1,200 documents"} <= set(words(figure))


def test_accuracy_runs_from_0_to_1_with_chance_dashed():
    rows = [answer(length=512, value=1.0, chance=0.25), answer(length=1024, value=0.6, chance=0.25)]
    figure = plots.accuracy(frame(*rows))
    (axes,) = figure.axes
    assert axes.get_yticks()[[0, -1]].tolist() == [0, 1]
    assert axes.get_ylim() == pytest.approx((0, 1), abs=0.03)
    assert set(line_of(axes, "chance").get_ydata()) == {0.25}
    assert "passkey@v1 · n = 12 contexts · chance 0.25" in words(figure)


def test_accuracy_shows_the_metric_of_tables_and_controls_only_if_asked():
    rows = [answer(metric="permuted", value=0.3), answer(metric="choice_accuracy", value=0.8), answer(metric="floor")]
    (axes,) = plots.accuracy(frame(*rows)).axes
    assert line_of(axes, "rope").get_ydata().tolist() == [0.8]
    assert not any("permuted" in line.get_label() for line in axes.lines)
    (axes,) = plots.accuracy(frame(*rows), controls=True).axes
    assert line_of(axes, "rope permuted").get_ydata() == (0.3,)


def test_parts_of_the_answers_are_not_drawn_as_lengths():
    (axes,) = plots.accuracy(frame(answer(value=0.5), *depths(value=0.9))).axes
    assert line_of(axes, "rope").get_ydata().tolist() == [0.5]


def test_context_gain_is_drawn_over_context_with_zero():
    about = {"section": "ppl@paired", "metric": "context_gain", "axis": "context"}
    rows = [row(length=length, value=length / 1024, **about) for length in (128, 256, 512)]
    (axes,) = plots.gain(frame(*rows)).axes
    assert line_of(axes, "rope").get_xdata().tolist() == [128, 256, 512]
    assert set(line_of(axes, "zero").get_ydata()) == {0}
    assert axes.get_ylim()[0] < 0


# Heat maps, bars, forests


def test_a_heat_map_has_a_panel_a_line_on_one_scale_and_tells_its_holes():
    figure = plots.heatmap(frame(*depths("rope", 0.25), *depths("hope", 0.75)))
    rope, hope, bar = figure.axes
    assert bar.get_ylim() == (0, 1)
    assert next(label.get_text() for label in rope.get_yticklabels()) == "0.0–0.2"  # noqa: RUF001
    assert rope.get_ylim()[0] > rope.get_ylim()[1]
    assert [text.get_text() for text in rope.texts].count(".25") == 10
    assert [text.get_text() for text in hope.texts].count(".75") == 10
    assert [text.get_text() for text in hope.texts].count("oom") == 5
    assert palette.lightness(to_hex(rope.patches[0])) > palette.lightness(to_hex(hope.patches[0])) + 20


def to_hex(patch):
    import matplotlib.colors

    return matplotlib.colors.to_hex(patch.get_facecolor())


def test_the_scale_of_a_heat_map_gets_darker_only():
    from matplotlib.colors import to_hex

    from hope_eval.show.figures.heatmap import _heat

    shades = [palette.lightness(to_hex(_heat()(step / 20))) for step in range(21)]
    assert shades == sorted(shades, reverse=True)


def test_bars_of_copying_are_the_shares_of_errors_one_after_the_other():
    about = {"family": "copy", "section": "copy", "task": "copy"}
    shares = {
        "accuracy": 0.5,
        "error_skip": 0.2,
        "error_repeat": 0.1,
        "error_swap": 0,
        "error_stop": 0,
        "error_other": 0.2,
    }
    rows = [answer(metric=metric, value=share, **about) for metric, share in shares.items()]
    rows += [answer(metric="first_error", value=37.25, **about), answer("learned", status="-", **about)]
    figure = plots.errors(frame(*rows))
    (axes,) = figure.axes
    assert [bar.get_x() for bar in axes.patches] == pytest.approx([0, 0.5, 0.7, 0.8, 0.8, 0.8])
    assert [bar.get_width() for bar in axes.patches] == pytest.approx(list(shares.values()))
    assert {"37.2", "past its table"} <= set(words(figure))
    hatches = [(bar.get_hatch(), to_hex(bar)) for bar in axes.patches]
    assert len(set(hatches)) == len(hatches)


def test_kinds_of_errors_side_by_side_differ_in_a_grey_copy():
    from hope_eval.show.figures.copying import _KINDS

    shades = [palette.lightness(area["facecolor"]) for _, area in _KINDS.values()]
    assert all(abs(a - b) > 15 for a, b in itertools.pairwise(shades))


def test_only_what_is_distinguishable_is_filled():
    rows = [gap("hope", verdict="better"), gap("nope", value=0.1, verdict="not distinguishable")]
    (axes,) = plots.difference(frame(*rows)).axes
    hope, nope = line_of(axes, "hope"), line_of(axes, "nope")
    assert (hope.get_xdata().tolist(), nope.get_xdata().tolist()) == ([-0.2], [0.1])
    assert hope.get_markerfacecolor() == palette.style_of("hope").colour
    assert nope.get_markerfacecolor() == "#ffffff"
    assert line_of(axes, "zero").get_xdata() == [0, 0]


@pytest.mark.parametrize(("metric", "better"), [("nll", "left"), ("accuracy", "right")])
def test_the_better_side_is_shaded(metric, better):
    family = "ppl" if metric == "nll" else "copy"
    (axes,) = plots.difference(frame(gap(metric=metric, family=family))).axes
    (shade,) = axes.patches
    assert (shade.get_x() < 0) == (better == "left")
    assert (shade.get_x() + shade.get_width() > 0) == (better == "right")


def test_lines_of_a_forest_have_the_colour_of_their_encoding():
    (axes,) = plots.difference(frame(gap("my model")), encodings={"my model": "alibi(swap)"}).axes
    assert line_of(axes, "my model").get_color() == palette.style_of("alibi").colour


# Pages

PAGES = {
    "curve": lambda: plots.curve(from_zoo("ppl@bucket")),
    "accuracy": lambda: plots.accuracy(from_zoo("retrieve")),
    "narrow": lambda: plots.accuracy(from_zoo("retrieve").query("task == 'passkey'"), width="single"),
    "errors": lambda: plots.errors(from_zoo("copy").query("task == 'copy'")),
    "heatmap": lambda: plots.heatmap(frame(*depths("rope"), *depths("hope"), *depths("t5"))),
    "difference": lambda: plots.difference(gaps_of_zoo(), width="single"),
    "long names": lambda: plots.curve(frame(*(row(f"org/{'long' * 25}-{n}", 512 << n, 9.0) for n in range(4)))),
}


def drawn(figure):
    """Return a figure, with everything in its place in points, and what has measured it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    figure.set_dpi(72)
    canvas = FigureCanvasAgg(figure)
    figure.draw_without_rendering()
    return figure, canvas.get_renderer()


@pytest.mark.parametrize("page", PAGES)
def test_words_neither_overlap_nor_leave_the_page(page):
    import matplotlib.text

    figure, renderer = drawn(PAGES[page]())
    boxes = {}
    for text in figure.findobj(matplotlib.text.Text):
        if text.get_text().strip() and text.get_visible():
            boxes[text] = matplotlib.text.Text.get_window_extent(text, renderer)
    width, height = figure.get_size_inches() * 72
    for text, box in boxes.items():
        assert box.x0 > 0, text
        assert box.y0 > 0, text
        assert box.x1 < width, text
        assert box.y1 < height, text
    for (one, a), (other, b) in itertools.combinations(boxes.items(), 2):
        across = min(a.x1, b.x1) - max(a.x0, b.x0)
        down = min(a.y1, b.y1) - max(a.y0, b.y0)
        # Boxes of lines of text touch; letters do not.
        assert across < 0.5 or down < 2.5, (one, other)


def test_names_of_lines_and_legends_stand_outside_of_the_panels():
    import matplotlib.text

    for scores in (from_zoo("ppl@bucket"), from_zoo("retrieve")):
        figure, _ = drawn(plots.curve(scores) if "ppl" in set(scores.family) else plots.accuracy(scores))
        panels = [axes.get_window_extent() for axes in figure.axes]
        names = [text for text in figure.findobj(matplotlib.text.Text) if text.get_text() in MAIN]
        assert len(names) == scores.line.nunique()
        assert not any(text.get_window_extent().overlaps(panel) for text in names for panel in panels)


def test_names_that_have_to_move_stay_in_order_and_as_close_as_can_be():
    assert spread([10, 50, 90], 9, 100) == [10, 50, 90]
    assert spread([50, 50, 50], 10, 100) == [40, 50, 60]
    assert spread([0, 0, 100], 10, 100) == [0, 10, 100]
    assert spread([98, 99, 100], 10, 100) == [80, 90, 100]


def test_a_caption_is_broken_between_words():
    lines = wrapped("one two three four five six seven eight nine ten", 60, 7)
    assert " ".join(lines) == "one two three four five six seven eight nine ten"
    assert len(lines) > 2
    assert all(text_width(line, 7) <= 60 for line in lines)


# Files


@pytest.mark.parametrize("suffix", plots.SUFFIXES)
def test_the_same_rows_give_the_same_bytes_whatever_the_reader_has_set(suffix, tmp_path):
    import matplotlib

    scores = frame(row(length=512), row(length=2048), row("hope", length=2048, status="oom"))
    plots.draw("curve", scores, tmp_path / f"a.{suffix}")
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "lines.linewidth": 9, "figure.dpi": 40}):
        plots.draw("curve", scores, tmp_path / f"b.{suffix}")
        assert matplotlib.rcParams["font.size"] == 30
    assert (tmp_path / f"a.{suffix}").read_bytes() == (tmp_path / f"b.{suffix}").read_bytes()


def test_letters_stay_letters_in_pdf_and_svg(tmp_path):
    for suffix in ("pdf", "svg"):
        plots.draw("curve", frame(row(), row(length=2048)), tmp_path / "new" / f"a.{suffix}")
    assert ">Perplexity against length<" in (tmp_path / "new" / "a.svg").read_text()
    content = (tmp_path / "new" / "a.pdf").read_bytes()
    assert b"/Subtype /Type0" in content
    assert b"/Subtype /Type3" not in content
    assert b"CreationDate" not in content


def test_a_file_that_cannot_be_written_is_told_and_leaves_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot write"):
        plots.draw("curve", frame(row()), tmp_path / "file" / "a.png")
    (tmp_path / "a.png").mkdir()
    with pytest.raises(StoreError, match="cannot write"):
        plots.draw("curve", frame(row()), tmp_path / "a.png")


@pytest.mark.parametrize(
    ("kind", "name", "options", "message"),
    [
        ("curve", "a.jpeg", {}, "a figure is a pdf, png or svg, got `a.jpeg`"),
        ("curve", "a", {}, "a figure is a pdf, png or svg, got `a`"),
        ("curv", "a.png", {}, "no figure is called `curv`\nhint: did you mean `curve`"),
        ("curve", "a.png", {"width": "triple"}, "single or double columns wide, got `triple`"),
        ("curve", "a.png", {"metric": "surprisal"}, "nothing to draw: no run has a number of `surprisal`"),
        ("accuracy", "a.png", {}, "nothing to draw"),
        ("heatmap", "a.png", {}, "nothing to draw: no answers are divided by depth"),
        ("gain", "a.png", {}, "nothing to draw: no run has a number of `context_gain`"),
        ("errors", "a.png", {}, "nothing to draw: no run has kinds of errors"),
    ],
)
def test_mistakes_are_told_with_a_hint(kind, name, options, message, tmp_path):
    with pytest.raises(OptionError) as caught:
        plots.draw(kind, frame(row()), tmp_path / name, **options)
    assert message in str(caught.value)
    assert caught.value.hint
    assert not list(tmp_path.iterdir())


# Sparklines


def printed(scores, **options):
    console = Console(file=io.StringIO(), width=120, highlight=False, **options)
    sparklines(scores, console)
    return console.file.getvalue()


def test_sparklines_show_the_scale_the_training_length_and_holes():
    rows = [answer(length=length, value=value) for length, value in ((512, 0.8), (1024, 0.5), (2048, 0.0))]
    rows += [answer("hope", length, 1.0) for length in (512, 1024)] + [answer("hope", 2048, status="oom")]
    rope, hope = [line for line in printed(frame(*rows)).splitlines() if "│" in line and "at" in line]
    assert "▇▅│▁ " in rope
    assert "0.800 at 512" in rope
    assert "0.000 at 2k" in rope
    assert "██│  " in hope
    assert "1.000 at 1k" in hope


def test_a_line_of_holes_only_is_told_as_such():
    assert "oom" in printed(frame(row(length=512, status="oom")))


def test_sparklines_have_no_colours_where_none_are_wanted(monkeypatch):
    scores = frame(row(length=512), row(length=1024, value=20.0))
    assert "\x1b[38" in printed(scores, force_terminal=True, color_system="truecolor")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[38" not in printed(scores, force_terminal=True, color_system="truecolor")
