"""What the documents say is so: their commands run, their examples work, their lists are complete."""

import json
import re
import shlex
from pathlib import Path

import pytest
from commands import hope_eval
from conftest import committed, story, tiny_module
from transformers import AutoTokenizer

import hope_eval as package
from hope_eval import zoo
from hope_eval.encodings import encoding_names
from hope_eval.protocols import protocol_names

ROOT = Path(package.__file__).parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()

COMMANDS = re.findall(r"^\$ (hope-eval .*?)(?:  +#.*)?$", README, re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the README's `ckpt`, `other-ckpt`, `books.jsonl` and `labelled.csv` are."""
    folder = tmp_path_factory.mktemp("readme")
    # A vocabulary with words, as tasks need it.
    tokenizer = AutoTokenizer.from_pretrained(zoo.folder("zoo:hope"))
    for name in ("ckpt", "other-ckpt"):
        tiny_module(vocab_size=len(tokenizer), max_position_embeddings=128).save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    (folder / "books.jsonl").write_text(json.dumps({"text": story(400)}) + "\n")
    rows = [f"{word} please number {n},{label}" for label, word in (("a", "open"), ("b", "close")) for n in range(8)]
    (folder / "labelled.csv").write_text("\n".join(["text,intent", *rows]) + "\n")
    # Something to compare, whichever of the commands this process runs.
    hope_eval("ppl", "--model", folder / "ckpt", "--data", folder / "books.jsonl", "--out", folder / "results/runs")
    return folder


def test_the_readme_has_commands():
    assert len(COMMANDS) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_readme_runs(command, folder, monkeypatch):
    monkeypatch.chdir(folder)
    words = shlex.split(command)[1:]
    if "--from" in words:
        place = words.index("--from") + 1
        # The hash in its name is that of the run in the README.
        words[place] = str(next(Path().glob(words[place][:-10] + "*")))
    if words[0] == "train":
        # One model; several side by side are tested with the trainer.
        words.remove("rope")
        small = {"--size": "64x2x2", "--tokens": "20k", "--seed": "0", "--jobs": "1"}
        words = [small.get(before, word) for before, word in zip(["", *words], words, strict=False)]
        words += ["--batch-tokens", "4096", "--data", "python:click,rich", "--device", "cpu"]
    if words[0] in ("compare", "plot", "report"):
        # The commands before have left runs on other texts beside those on the default ones.
        words.append("--force")
    if words[0] == "doctor":
        # The checkpoint is untrained, which is found.
        assert "a uniform guess has" in hope_eval(*words, "--seconds", "1", "--device", "cpu", code=1).stdout
        return
    if "--model" in words:
        # What it costs is not what is tested.
        words += ["--samples", "1", "--device", "cpu"]
        words = [word.replace("2k,8k,32k", "128,256,512") for word in words]
    hope_eval(*words)


def test_the_readme_lists_exactly_the_encodings_there_are():
    table = README.split("## Position encodings")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `(\w+)`", table, re.MULTILINE)) == encoding_names()


def test_the_readme_names_every_protocol():
    for name in protocol_names():
        assert f"`{name}`" in README


def test_the_readme_names_every_module():
    tree = README.split("## Where everything is")[1]
    for path in committed("hope_eval"):
        name = path.relative_to(ROOT / "hope_eval").parts[0]
        if name not in ("__init__.py", "__main__.py", "py.typed"):
            assert name in tree, path


PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    "tasks/README.md",
    *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES)
def test_links_and_paths_of_a_page_lead_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    links = [link.split("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if not link.startswith(("http", "#"))]
    missing = [link for link in links if link and not (ROOT / page).parent.joinpath(link).exists()]
    # In code: `hope_eval/runs/store.py`, `model/kernels/`. Files of users are `my/…`.
    names = re.findall(r"`((?:\w+/)+(?:\w+\.\w+)?)`", text)
    roots = (ROOT, ROOT / "hope_eval", ROOT / "results")
    missing += [name for name in names if not any((root / name).exists() for root in roots)]
    assert not [name for name in missing if not name.startswith("my/")]


def test_the_readme_is_short_enough_to_be_read():
    assert len(README.splitlines()) <= 150


def test_contributing_is_short_enough_to_be_read():
    assert len(CONTRIBUTING.splitlines()) <= 120
