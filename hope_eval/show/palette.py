"""Colours, dashes and markers of the lines of a figure: an encoding looks the same in every one.

    rope    blue, solid, circle        hope   vermilion, solid, square        alibi   green, dashed, triangle

All differ in three ways, so that any one may be missing: colour (distinct with each kind of colour blindness),
lightness (in steps of 3 of 100, so that a grey copy can be read), dash and marker. They have contrast with
white and with black.

Extensions of RoPE (pi, ntk, yarn…) share one dash. Parameters and `(swap)` change nothing; `styles` gives lines of one
encoding in one figure different looks. This module does not depend on what draws.
"""

import functools
import hashlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hope_eval.plugins import literals_of

# Lengths of strokes and gaps in line widths, by the word in the style of an encoding.
_DASHES: dict[str, tuple[float, ...]] = {
    "solid": (),
    "long": (8.0, 2.0),
    "dashed": (4.5, 1.6),
    "short": (2.2, 1.2),
    "dotted": (1.0, 1.2),
    "dash-dot": (4.5, 1.5, 1.0, 1.5),
    "dash-dot-dot": (6.0, 1.5, 1.0, 1.5, 1.0, 1.5),
}


@dataclass(frozen=True)
class Style:
    """How one line is drawn.

    colour: `#rrggbb`.
    dash:   lengths of strokes and gaps in line widths; () is a solid line.
    marker: a letter of matplotlib; SHAPES has the path of each.
    filled: whether the marker is filled; the second line of an encoding is drawn with hollow ones.
    """

    colour: str
    dash: tuple[float, ...]
    marker: str
    filled: bool = True


# For files of users: no known encoding has one of these markers.
_OTHER_MARKERS = "hd8H"

# In a box from -1 to 1, as Vega's symbols are: y points down.
SHAPES = {
    "o": "M1,0A1,1,0,1,1,-1,0A1,1,0,1,1,1,0Z",
    "s": "M-.85,-.85H.85V.85H-.85Z",
    "D": "M0,-1.1L1.1,0L0,1.1L-1.1,0Z",
    "d": "M0,-1.2L.72,0L0,1.2L-.72,0Z",
    "^": "M0,-1L1,.9H-1Z",
    "v": "M0,1L-1,-.9H1Z",
    "<": "M-1,0L.9,-1V1Z",
    ">": "M1,0L-.9,1V-1Z",
    "P": "M-.36,-1H.36V-.36H1V.36H.36V1H-.36V.36H-1V-.36H-.36Z",
    "X": "M-.5,-1L0,-.5L.5,-1L1,-.5L.5,0L1,.5L.5,1L0,.5L-.5,1L-1,.5L-.5,0L-1,-.5Z",
    "p": "M0,-1L.95,-.31L.59,.81H-.59L-.95,-.31Z",
    "*": "M0,-1.2L.28,-.39L1.14,-.37L.45,.15L.71,.97L0,.48L-.71,.97L-.45,.15L-1.14,-.37L-.28,-.39Z",
    "h": "M0,-1L.87,-.5V.5L0,1L-.87,.5V-.5Z",
    "H": "M-.5,-.87H.5L1,0L.5,.87H-.5L-1,0Z",
    "8": "M-.38,-.92H.38L.92,-.38V.38L.38,.92H-.38L-.92,.38V-.38Z",
}


@functools.cache
def house_styles() -> dict[str, Style]:
    """The style of each encoding of this package, from its file, which is read and not run, without torch."""
    files = sorted((Path(__file__).parent.parent / "encodings").glob("[a-z]*.py"))
    style_words = {path.stem: literals_of(path)["style"] for path in files}
    return {name: Style(colour, _DASHES[dash], marker) for name, (colour, dash, marker) in style_words.items()}


def base_name(encoding: str) -> str:
    """An encoding without its parameters and without `(swap)`: `hope:multiplier=2(swap)` is `hope`."""
    return encoding.removesuffix("(swap)").split(":")[0].strip()


def style_of(encoding: str, noted: str = "") -> Style:
    """Style of the lines of an encoding of this package, or of a user's file.

    noted: the style that runs of a user's file note, `#117733 dashed s`; without one, the letters of its name choose.
    """
    name = base_name(encoding)
    ours = house_styles()
    if name in ours:
        return ours[name]
    colour_dash_marker = noted.split(" ")
    if len(colour_dash_marker) == 3:
        colour_word, dash_word, marker = colour_dash_marker
        if re.fullmatch("#[0-9a-fA-F]{6}", colour_word) and dash_word in _DASHES and marker in SHAPES:
            return Style(colour_word, _DASHES[dash_word], marker)
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    colours = [style.colour for style in ours.values()]
    dashes = [_DASHES[word] for word in ("solid", "long", "dashed", "short", "dash-dot")]
    number, colour = divmod(number, len(colours))
    number, dash = divmod(number, len(dashes))
    return Style(colours[colour], dashes[dash], _OTHER_MARKERS[number % len(_OTHER_MARKERS)])


def styles(lines: Iterable[tuple[str, str]], noted: Mapping[str, str] | None = None) -> dict[str, Style]:
    """A style for each line of (its name, its encoding); no two are the same.

    The first line of an encoding has its style; one with the encoding's own parameters and no swap comes first. The
    next have a lighter or darker tone of its colour, hollow markers and another dash.

    noted: from lines to the styles that their runs note, see `style_of`.
    """
    lines = list(dict(lines).items())
    chosen: dict[str, Style] = {}
    # Stable: lines of equal standing keep the order that they are given in.
    for line, encoding in sorted(lines, key=lambda pair: base_name(pair[1]) != pair[1]):
        base = style_of(encoding, (noted or {}).get(line, ""))
        chosen[line] = next(style for style in _variants(base) if style not in chosen.values())
    return {line: chosen[line] for line, _ in lines}


def noted_styles(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """From lines to the styles that their runs note, for encodings of users' files."""
    return {row["line"]: row["style"] for row in rows if row.get("style")}


def mixed(colour: str, other: str, share: float) -> str:
    """A colour with a share of another in it, from 0 to 1."""
    pairs = zip(_channels(colour), _channels(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def luminance(colour: str) -> float:
    """The relative luminance of a colour, 0 of black to 1 of white, as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in _channels(colour))]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def lightness(colour: str) -> float:
    """Lightness of a colour, L* of CIELAB: 0 of black to 100 of white. A grey copy keeps only this."""
    y = luminance(colour)
    return 116 * y ** (1 / 3) - 16 if y > (6 / 29) ** 3 else y * (29 / 3) ** 3


def contrast(colour: str, other: str) -> float:
    """The contrast of two colours, 1 of equal ones to 21 of black on white, as WCAG 2 defines it."""
    dark, light = sorted((luminance(colour), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def as_text(colour: str, background: str = "#ffffff") -> str:
    """The colour, darker or lighter until words in it can be read on that background (contrast 4.5)."""
    towards = "#000000" if luminance(background) > 0.18 else "#ffffff"
    shades = (mixed(colour, towards, step / 20) for step in range(21))
    return next(shade for shade in shades if contrast(shade, background) >= 4.5)


def _channels(colour: str) -> list[int]:
    return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]


def _variants(base: Style) -> Iterable[Style]:
    """The style and then others of that colour, the most different first."""
    yield base
    darker, lighter = mixed(base.colour, "#000000", 0.35), mixed(base.colour, "#ffffff", 0.4)
    # Away from its own lightness, and never so far that it sinks into the paper.
    tones = (lighter, darker) if lightness(base.colour) < 50 else (darker, lighter)
    words = ("short", "dashed", "dotted", "long", "dash-dot", "solid")
    dashes = [_DASHES[word] for word in words if _DASHES[word] != base.dash]
    for number, dash in enumerate(dashes):
        yield replace(base, colour=tones[number % 2], dash=dash, filled=False)
    markers = [marker for marker in SHAPES if marker != base.marker]
    for marker in markers:
        for dash in dashes:
            for colour in (base.colour, *tones):
                for filled in (True, False):
                    yield Style(colour, dash, marker, filled)
