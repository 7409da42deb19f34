"""How each line of a comparison looks, on a light and on a dark page."""

from collections.abc import Mapping
from dataclasses import dataclass

from hope_eval.show.palette import SHAPES, contrast, mixed, styles

# As in page.css.
LIGHT, DARK = "#ffffff", "#14171b"

# Least contrast of thin lines, by WCAG 2.
_LEAST_CONTRAST = 3.0

# Pixels of a line width, the unit of dashes.
_WIDTH = 2.0


@dataclass(frozen=True)
class Look:
    """How a line is drawn.

    number:      number of the line; `colour` names its colour, which the page sets.
    light, dark: its colour on either page.
    dash:        lengths of strokes and gaps, in pixels.
    marker:      an SVG path in a box from -1 to 1; filled or hollow.
    """

    line: str
    number: int
    light: str
    dark: str
    dash: list[float]
    marker: str
    filled: bool

    @property
    def colour(self) -> str:
        """Name of its colour in style sheets."""
        return f"var(--line-{self.number})"


def all_looks(lines: Mapping[str, str], noted: Mapping[str, str]) -> list[Look]:
    """Looks of lines with these encodings, and with the styles that their runs note."""
    return [
        Look(
            line,
            number,
            _seen(style.colour, LIGHT, "#000000"),
            _seen(style.colour, DARK, "#ffffff"),
            [round(_WIDTH * length, 1) for length in style.dash],
            SHAPES[style.marker],
            style.filled,
        )
        for number, (line, style) in enumerate(styles(lines.items(), noted).items())
    ]


def _seen(colour: str, page: str, towards: str) -> str:
    """The colour, moved away from that of the page until it has enough contrast."""
    shades = (mixed(colour, towards, step / 20) for step in range(21))
    return next(shade for shade in shades if contrast(shade, page) >= _LEAST_CONTRAST)
