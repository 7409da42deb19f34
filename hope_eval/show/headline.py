"""The headline as one table of 80 columns, and two sentences that are made from its numbers.

                    perplexity             copying               recall
    encoding    inside    2x    4x   inside    2x    4x   inside    2x    4x

The table has no intervals. So the sentences say only what is distinguishable.
"""

import math
from collections.abc import Iterator, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from hope_eval.analysis.differences import BETTER, SAME, WORSE
from hope_eval.analysis.gate import ONE_LENGTH
from hope_eval.analysis.headline import PILLARS, TIMES, Headline, HeadlineCell, HeadlineLine
from hope_eval.analysis.holding import SHARE, SLACK
from hope_eval.analysis.rows import HOLES, hole_name
from hope_eval.show.report.words import listed
from hope_eval.show.tables import Grid, PrintedNumber, draw, number
from hope_eval.show.terminal import plain_console, printable

# Columns of a terminal that the table and the text below it take at most.
_WIDTH = 80

_HEADINGS = ["inside" if times == TIMES[0] else f"{times}x" for times in TIMES]

# The narrowest column of numbers, and of names; and spaces between two pillars at most.
_LEAST, _SHORTEST_NAME, _GAP = "0.000", 10, 3

# Stands in place of a number where its status is longer.
_NO_NUMBER = "n/a"


def render(headline: Headline, form: str) -> None:
    """Print the table and the sentences, as `table`, `markdown` or `latex`."""
    lines_are = "encoding" if all(line.name == line.encoding for line in headline.lines) else "model"
    notes, words = list(_notes(headline)), sentences(headline)
    if form != "table":
        draw(_grid(headline, lines_are), form, [*notes, *words])
        return
    console = Console(highlight=False, width=min(plain_console().width, _WIDTH))
    draw(_grid(headline, lines_are), form, console=console, wide=_table(headline, lines_are, console.width))
    console.print()
    for note in notes:
        console.print(Text(printable(note), style="dim"))
    for sentence in words:
        console.print()
        console.print(Text(printable(sentence)))


def sentences(headline: Headline) -> list[str]:
    """Two sentences: what is distinguishable at the greatest length beyond the window, and inside the window.

    With a baseline, other lines are compared with it; a line alone, with its own numbers inside the window.
    """
    if headline.baseline:
        places = {TIMES[-1]: f"At {TIMES[-1]}x the training length", TIMES[0]: "Inside the training window"}
        return [f"{place}, {_against_baseline(headline, times)}." for times, place in places.items()]
    return _against_inside(headline.lines[0])


def _against_baseline(headline: Headline, times: int) -> str:
    """Lines that are better and worse than the baseline at one multiple of the training length, by pillars."""
    baseline, others = headline.baseline, [line for line in headline.lines if line.name != headline.baseline]
    parts = []
    for wanted in (BETTER, WORSE):
        groups: dict[tuple[str, ...], list[str]] = {}
        for line in others:
            pillars = tuple(pillar.name for pillar in PILLARS if line.cells[pillar.name, times].baseline == wanted)
            groups.setdefault(pillars, []).append(line.name)
        groups.pop((), None)
        ordered = sorted(groups.items(), key=lambda group: -len(group[0]))
        texts = [f"in {_listed_pillars(pillars)}: {listed(names)}" for pillars, names in ordered]
        if texts:
            parts.append(f"{wanted} than {baseline} {'; '.join(texts)}")
    same = [
        line.name for line in others if {line.cells[pillar.name, times].baseline for pillar in PILLARS} - {""} == {SAME}
    ]
    if same:
        parts.append(f"not distinguishable from {baseline}: {listed(same)}")
    return "; ".join(parts) or f"no number can be compared with {baseline}"


def _listed_pillars(pillars: Sequence[str]) -> str:
    return "all pillars" if len(pillars) == len(PILLARS) else listed(pillars)


def _against_inside(line: HeadlineLine) -> list[str]:
    """Numbers beyond the window that are worse or better than inside it, and those that cannot be told apart."""
    places: dict[str, list[str]] = {}
    for pillar in PILLARS:
        multiples: dict[str, list[str]] = {}
        for times in TIMES[1:]:
            multiples.setdefault(line.cells[pillar.name, times].inside, []).append(f"{times}x")
        for verdict, at in multiples.items():
            places.setdefault(verdict, []).append(f"{pillar.name} at {listed(at)}")
    told = [f"{verdict}: {', '.join(places[verdict])}" for verdict in (WORSE, BETTER) if verdict in places]
    same = f"Not distinguishable from inside: {', '.join(places[SAME])}." if SAME in places else ""
    if told:
        first = f"Against its numbers inside the training window, {line.name} is {'; '.join(told)}."
        return [first, same] if same else [first]
    if same:
        return [f"No number of {line.name} beyond the training window is distinguishable from the one inside."]
    return [f"{line.name} has no number beyond the training window."]


def _notes(headline: Headline) -> Iterator[str]:
    """Yield how many texts were read, the order of the lines, and what stands in place of numbers."""
    yield "; ".join(f"{pillar.name}: {headline.n_contexts[pillar.name]} {pillar.about}" for pillar in PILLARS)
    yield (
        f"order: by how many of the {len(PILLARS) * (len(TIMES) - 1)} numbers beyond the window hold up (perplexity "
        f"within {SLACK:.0%} of inside, accuracy at least {SHARE:.0%} of inside), then by perplexity"
    )
    failed = [f"{line.name} ({listed(line.at_one_length)})" for line in headline.lines if line.at_one_length]
    if failed:
        yield f"{ONE_LENGTH}, so nothing beyond the window counts: {', '.join(failed)}"
    cells = [cell for line in headline.lines for cell in line.cells.values() if cell.status != "ok"]
    for status in dict.fromkeys(cell.status for cell in cells):
        yield f"{_mark(status)}: {HOLES[status][1].rstrip('.') if status in HOLES else hole_name(status)}"


def _printed(cell: HeadlineCell) -> PrintedNumber:
    return PrintedNumber(_mark(cell.status) if math.isnan(cell.value) else _short(cell.value))


def _short(value: float) -> str:
    """A number of five characters at most: 0.998, 24.13, 18.9k."""
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # 999.96 would be written with six characters.
        if value >= 0.99995 * size:
            return f"{value / size:.3g}{unit}" if value < 1e15 else f"{value:.0e}"
    return number(value)


def _mark(status: str) -> str:
    return status if len(status) <= len(_NO_NUMBER) else _NO_NUMBER


def _grid(headline: Headline, lines_are: str) -> Grid:
    """The headline as a grid, for papers and for terminals that are too narrow for the table."""
    columns = [f"{pillar.name} {heading}" for pillar in PILLARS for heading in _HEADINGS]
    rows: list[tuple[tuple[str, ...], list[PrintedNumber]]] = [
        ((line.name,), [_printed(cell) for cell in line.cells.values()]) for line in headline.lines
    ]
    return Grid((lines_are,), columns, rows, across="number")


def _table(headline: Headline, lines_are: str, width: int) -> Table:
    """The headline for a terminal of that width; numbers that hold up are bold, those that do not are dim."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=0, show_edge=False)
    columns: list[tuple[str, int]] = []
    for pillar in PILLARS:
        for times, heading in zip(TIMES, _HEADINGS, strict=True):
            words = [pillar.name if times == TIMES[0] else "", heading]
            texts = [_printed(line.cells[pillar.name, times]).value for line in headline.lines]
            columns.append(("\n".join(words), max(map(len, [*words, *texts, _LEAST]))))
    # Room for the names, after the numbers and a space before each: a long name is folded, a number never.
    room = width - sum(least + 1 for _, least in columns)
    longest = max(_SHORTEST_NAME, *(len(line.name) for line in headline.lines))
    # What is left sets the pillars apart.
    gap = max(0, min(_GAP, (room - longest) // len(PILLARS)))
    table.add_column(f"\n{lines_are}", overflow="fold", min_width=_SHORTEST_NAME)
    for at, (heading, least) in enumerate(columns):
        apart = gap if at % len(TIMES) == 0 else 0
        table.add_column(heading, justify="right", no_wrap=True, min_width=least + apart)
    for line in headline.lines:
        table.add_row(printable(line.name), *(text for pillar in PILLARS for text in _styled(line, pillar.name)))
    return table


def _styled(line: HeadlineLine, pillar: str) -> Iterator[Text]:
    for times in TIMES:
        cell = line.cells[pillar, times]
        yield Text(_printed(cell).value, style={None: "", True: "bold", False: "dim"}[cell.holds])
