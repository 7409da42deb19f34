"""Make results/benchmarks/README.md from README.in.md and the figures beside it.

In README.in.md, a line `{{name}}` stands for the figures of name.json, with the command that they were made with, and
`{{targets}}` for the table of all targets and their figures.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

FOLDER = Path(__file__).parent.parent / "results" / "benchmarks"
SOURCE = "README.in.md"

_NOTICE = "<!-- Made by `python -m benchmarks table` from README.in.md: change that one. -->\n\n"

_HEADINGS = {
    "all_seconds": None, "scored": None, "tokens_per_second": "tokens/s", "tflops": "TFLOP/s",
    "tflops_of_each": "TFLOP/s of each", "weights_gib": "GiB of weights", "peak_gib": "GiB at most",
    "gib_planned": "GiB planned", "gib": "GiB", "peak_gib_above_weights": "GiB above weights",
    "seconds_are": None, "status": None, "nll": None,
}  # fmt: skip

# Packages that make some benchmarks faster.
_OPTIONAL = "flash-attn-4"

_PACKAGES = ("torch", "transformers", _OPTIONAL, "lm_eval")

_PROFILED = ("calls", "milliseconds", "share")


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=FOLDER, help="The folder of the figures.")
def table(out: Path) -> None:
    """Write README.md from the figures."""
    write(out)


def write(folder: Path) -> None:
    """Write the page of a folder."""
    (folder / "README.md").write_text(page(folder), "utf-8")


def page(folder: Path = FOLDER) -> str:
    """The page of a folder."""
    reports = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(folder.glob("*.json"))}

    def part(match: re.Match[str]) -> str:
        name = match[1]
        lines = _targets(reports) if name == "targets" else _figures(name, reports.get(name))
        return "".join(f"{line}\n" for line in lines)

    return _NOTICE + re.sub(r"^\{\{([\w.]+)\}\}\n", part, (folder / SOURCE).read_text("utf-8"), flags=re.MULTILINE)


def _targets(reports: dict[str, dict[str, Any]]) -> Iterator[str]:
    lines = [
        [
            line["what"] + _how(content), _text(line["value"]), line["target"], "yes" if line["met"] else "**no**",
            f"[{name}.json]({name}.json)",
        ]
        for name, content in reports.items() for line in content["targets"] if line["target"]
    ]  # fmt: skip
    if lines:
        yield from _markdown(["what", "measured", "target", "met", "figures"], lines)
    else:
        yield "No target has been measured yet on its machine."


def _how(content: dict[str, Any]) -> str:
    return f", {_OPTIONAL} installed" if _OPTIONAL in content["versions"] else ""


def _figures(name: str, content: dict[str, Any] | None) -> Iterator[str]:
    if content is None:
        yield "*Not measured yet.*"
        return
    figures: list[dict[str, Any]] = content["figures"]
    keys = [key for key in dict.fromkeys(key for figure in figures for key in figure) if _HEADINGS.get(key, key)]
    yield "```console"
    yield f"$ {content['command']}"
    yield "```"
    yield ""
    rows = [[_cell(figure, key) for key in keys] for figure in figures]
    yield from _markdown([str(_HEADINGS.get(key, key)).replace("_", " ") for key in keys], rows)
    yield ""
    if "profile" in content:
        yield "Of our read of the longest text, by kernel:"
        yield ""
        lines = [[f"`{line['kernel']}`", *(_text(line[key]) for key in _PROFILED)] for line in content["profile"]]
        yield from _markdown(["kernel", *_PROFILED], lines)
        yield ""
    yield f"[{name}.json]({name}.json): {', '.join(_provenance(content))}."
    others = [
        f"{line['what']}: **{_text(line['value'])}**"
        for line in content["targets"]
        if not line["target"] and line["value"] is not None
    ]
    if others:
        yield ""
        yield from (f"- {line}" for line in others)


def _provenance(content: dict[str, Any]) -> Iterator[str]:
    yield content["machine"]
    yield content["date"]
    versions = content["versions"]
    yield from (f"{name} {versions[name]}" for name in _PACKAGES if name in versions)
    if content.get("commit"):
        yield f"commit {content['commit']['id'][:7]}{' with changes' if content['commit']['dirty'] else ''}"
    if content.get("agreement_of_nll") is not None:
        yield f"nll of the same tokens differs by {100 * content['agreement_of_nll']:.1g} % at most"


def _cell(figure: dict[str, Any], key: str) -> str:
    if key == "seconds" and figure.get("status", "ok") != "ok":
        return str(figure["status"])
    text = _text(figure.get(key))
    return f"{text} *" if key == "seconds" and "seconds_are" in figure else text


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _markdown(headings: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield f"| {' | '.join(headings)} |"
    yield "|---" + "|---:" * (len(headings) - 1) + "|"
    yield from (f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows)
