"""Scores as figures for a paper: curves over length, depth by length, context gain, errors of copying, differences.

    curve       perplexity, nll, bits per byte (or any other number) against length
    accuracy    share of right answers against length, with chance
    heatmap     depth by length, a panel a line
    gain        gain of the same tokens from a longer context
    errors      kinds of errors in copying, and the place of the first
    difference  every line minus the baseline; distinguishable differences are filled

Each is a function from a frame of a comparison to a matplotlib figure; `draw` writes one to a file. A length
without a number is a hole: the reason stands above the panel, and no line crosses the hole.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hope_eval.errors import OptionError, did_you_mean
from hope_eval.show import comparison_tables
from hope_eval.show.figures.copying import errors
from hope_eval.show.figures.curves import accuracy, curve, gain
from hope_eval.show.figures.forest import difference
from hope_eval.show.figures.heatmap import heatmap
from hope_eval.show.figures.sheet import in_print

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame

KINDS: dict[str, Callable[..., "Figure"]] = {
    "curve": curve,
    "accuracy": accuracy,
    "heatmap": heatmap,
    "gain": gain,
    "errors": errors,
    "difference": difference,
}

SUFFIXES = ("pdf", "png", "svg")


def draw(kind: str, frame: "DataFrame", path: Path, **options: Any) -> None:
    """Write a figure of one of KINDS to a file, whole or not at all: .pdf, .png or .svg.

    frame:   `scores` of a comparison; `differences` for that kind.
    options: options of the function of that kind.

    Raises OptionError for an unknown kind or suffix, or if the frame has no numbers for it; StoreError if the file
    cannot be written.
    """
    if kind not in KINDS:
        raise OptionError(f"no figure is called `{kind}`", did_you_mean(kind, KINDS, f"there are {', '.join(KINDS)}"))
    suffix = path.suffix.lower().removeprefix(".")
    if suffix not in SUFFIXES:
        asked = f"a figure is a {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, got `{path.name}`"
        raise OptionError(asked, f"{path.with_suffix('.pdf')} for a paper, .svg for a page, .png for anything")
    comparison_tables.write(path, _as_bytes(KINDS[kind](frame, **options), suffix))


@in_print
def _as_bytes(figure: "Figure", suffix: str) -> bytes:
    """A figure as the content of a file; without a date, so that the same figure gives the same bytes."""
    stream = io.BytesIO()
    dates: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
    figure.savefig(stream, format=suffix, metadata=dates[suffix])
    return stream.getvalue()
