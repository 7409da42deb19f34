"""Labelled texts from files: every format, what is shown and what is asked for, and errors that name what is wrong."""

import bz2
import csv
import gzip
import json
import lzma
import random
import re

import pytest

from hope_eval.data.labelled import load_labelled
from hope_eval.errors import CorpusError

LABELS = ("good", "bad", "so so")


def rows(n=8, word="text", labels=LABELS):
    return [
        {"text": f'{word} {number}, "{label}"\nand more', "label": label} for number in range(n) for label in labels
    ]


def pairs(n=8, word="text"):
    return [[row["text"], row["label"]] for row in rows(n, word)]


def written(path, found, delimiter=","):
    """Write rows as the ending of the path says."""
    openers = {".bz2": bz2.open, ".gz": gzip.open, ".xz": lzma.open}
    if ".json" in path.suffixes:
        path.write_text(json.dumps(found), "utf-8")
    elif ".jsonl" in path.suffixes:
        with openers.get(path.suffix, open)(path, "wt", encoding="utf-8") as stream:
            stream.write("\n".join(json.dumps(row, ensure_ascii=False) for row in found) + "\n\n")
    else:
        with openers.get(path.suffix, open)(path, "wt", encoding="utf-8", newline="") as stream:
            writer = csv.DictWriter(stream, found[0], delimiter=delimiter)
            writer.writeheader()
            writer.writerows(found)
    return str(path)


def all_of(examples):
    return {label: sorted([*examples.shown[label], *examples.asked[label]]) for label in examples.shown}


def texts_of(part):
    return {text for texts in part.values() for text in texts}


@pytest.mark.parametrize(
    "name",
    [
        "data.csv", "data.tsv", "DATA.CSV", "data.jsonl", "data.json", "data.jsonl.bz2", "data.jsonl.gz",
        "data.jsonl.xz", "data.csv.gz",
    ],
)  # fmt: skip
def test_every_kind_of_file_gives_the_same_texts(name, tmp_path):
    found = load_labelled(written(tmp_path / name, rows(), "\t" if "tsv" in name else ","))
    assert all_of(found) == {label: sorted(row["text"] for row in rows() if row["label"] == label) for label in LABELS}
    assert found.name == name


def test_every_kind_of_file_gives_the_same_split(tmp_path):
    names = ("data.csv", "data.jsonl", "data.json")
    first, *others = (load_labelled(written(tmp_path / name, rows())) for name in names)
    for other in others:
        assert other.fingerprint == first.fingerprint
        assert {label: list(texts) for label, texts in other.asked.items()} == first.asked


def test_columns_may_be_called_otherwise(tmp_path):
    path = written(
        tmp_path / "data.csv", [{"id": 1, "question": row["text"], "intent": row["label"]} for row in rows()]
    )
    assert set(load_labelled(path, "question", "intent").shown) == set(LABELS)


def test_a_byte_order_mark_and_blank_lines_are_no_part_of_the_texts(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text("text,label\n" + "".join(f"t{n},{'ab'[n % 2]}\n" for n in range(8)), "utf-8-sig")
    assert set(load_labelled(str(path)).shown) == {"a", "b"}
    path = tmp_path / "data.jsonl"
    path.write_text("\n\n".join(json.dumps(row) for row in rows()), "utf-8-sig")
    assert len(texts_of(load_labelled(str(path)).shown)) > 10


def test_labels_may_be_numbers(tmp_path):
    found = load_labelled(written(tmp_path / "data.json", [{"text": f"t {n}", "label": n % 2} for n in range(8)]))
    assert set(found.shown) == {"0", "1"}


@pytest.mark.parametrize("break_", ["\u2028", "\x85", "\x0c"])
def test_a_line_of_jsonl_ends_at_a_line_feed_only(break_, tmp_path):
    found = [{"text": f"one{break_}two {row['text']}", "label": row["label"]} for row in rows()]
    path = tmp_path / "data.jsonl"
    # As JSON allows them in strings, all but the form feed, which it wants escaped.
    path.write_text("\n".join(json.dumps(row, ensure_ascii=break_ == "\x0c") for row in found), "utf-8")
    assert texts_of(load_labelled(str(path)).shown) < {row["text"] for row in found}


# Splits


def test_json_with_splits_is_shown_and_asked_for_by_them(tmp_path):
    # As CLINC150 comes: lists of [text, label], and splits that are of no use here.
    data = {
        "oos_train": [["what is out of scope", "oos"]],
        "val": pairs(2, "val"),
        "train": pairs(5, "train"),
        "test": [*pairs(3, "test"), ["a text of a label that is never shown", "other"]],
        "about": "a note",
    }
    found = load_labelled(written(tmp_path / "data_full.json", data))
    assert {text.split()[0] for text in texts_of(found.shown)} == {"train"}
    assert {text.split()[0] for text in texts_of(found.asked)} == {"test"}
    assert set(found.shown) == set(found.asked) == set(LABELS)
    assert all(len(texts) == 5 for texts in found.shown.values())
    del data["test"]
    assert {text.split()[0] for text in texts_of(load_labelled(written(tmp_path / "d.json", data)).asked)} == {"val"}
    objects = {"train": rows(5, "train"), "dev": rows(2, "dev")}
    found = load_labelled(written(tmp_path / "o.json", objects))
    assert {text.split()[0] for text in texts_of(found.asked)} == {"dev"}


def test_a_folder_has_a_file_for_each_split(tmp_path):
    written(tmp_path / "train.csv", rows(5, "train"))
    written(tmp_path / "valid.jsonl.gz", rows(2, "valid"))
    (tmp_path / "README.md").write_text("about")
    (tmp_path / "categories.json").write_text("[]")
    found = load_labelled(str(tmp_path))
    assert {text.split()[0] for text in texts_of(found.shown)} == {"train"}
    assert {text.split()[0] for text in texts_of(found.asked)} == {"valid"}
    assert found.name == tmp_path.name
    written(tmp_path / "test.tsv", rows(2, "test"), "\t")
    assert {text.split()[0] for text in texts_of(load_labelled(str(tmp_path)).asked)} == {"test"}


def test_a_folder_with_one_file_is_that_file_and_one_with_train_alone_is_split(tmp_path):
    for name in ("data.csv", "train.csv"):
        folder = tmp_path / name.removesuffix(".csv")
        folder.mkdir()
        written(folder / name, rows())
        found = load_labelled(str(folder))
        assert all_of(found) == all_of(load_labelled(str(folder / name)))


def test_a_quarter_of_the_texts_of_each_label_is_asked_for_and_never_shown(tmp_path):
    found = load_labelled(written(tmp_path / "data.json", [*rows(40), *rows(3)]))
    assert not texts_of(found.shown) & texts_of(found.asked)
    for label in LABELS:
        assert len(found.asked[label]) == 10
        assert len(found.shown[label]) == 30
    # Which ones does not depend on the order, nor on whether there are other labels.
    again = load_labelled(written(tmp_path / "again.json", rows(40, labels=LABELS[:2])[::-1]))
    assert {label: sorted(texts) for label, texts in again.asked.items()} == {
        label: sorted(found.asked[label]) for label in LABELS[:2]
    }


def test_a_text_is_never_both_shown_and_asked_for(tmp_path):
    # Two labels for one text, in one file.
    twice = [{"text": f"text {n}", "label": label} for n in range(40) for label in ("good", "bad")]
    found = load_labelled(written(tmp_path / "twice.json", twice))
    assert not texts_of(found.shown) & texts_of(found.asked)
    # The same texts in two splits, as they are in some published ones.
    found = load_labelled(written(tmp_path / "both.json", {"train": rows(8), "test": [*rows(2), *rows(2, "test")]}))
    assert not texts_of(found.shown) & texts_of(found.asked)


def test_a_label_with_one_text_is_left_out_and_one_with_two_is_not(tmp_path):
    alone = [*rows(4), {"text": "alone", "label": "rare"}, *({"text": f"{n} of two", "label": "pair"} for n in "ab")]
    found = load_labelled(written(tmp_path / "data.json", alone))
    assert set(found.shown) == set(found.asked) == {*LABELS, "pair"}
    assert "alone" not in texts_of(found.shown) | texts_of(found.asked)
    assert len(found.shown["pair"]) == len(found.asked["pair"]) == 1


# Errors


def refused(path, match, hint, **columns):
    with pytest.raises(CorpusError, match=match) as caught:
        load_labelled(str(path), **columns)
    assert hint in caught.value.hint
    assert not caught.value.message.endswith(".")


def test_a_missing_column_is_named_with_row_and_option(tmp_path):
    path = written(tmp_path / "data.csv", rows())
    refused(path, r"row 1, has no `question` \(it has: text, label\)", "--field", text="question")
    refused(path, r"row 1, has no `intent` \(it has: text, label\)", "--label", label="intent")
    path = written(tmp_path / "data.jsonl", [*rows(2), {"text": "a", "label": None}])
    refused(path, "row 7, has no `label`", "--label")
    path = written(tmp_path / "short.json", [*pairs(2), ["one alone"]])
    refused(path, r"row 7, has no `text` \(it has: list\)", "--field")
    (tmp_path / "cells.csv").write_text("text,label\na,x\nb\n")
    refused(tmp_path / "cells.csv", "row 2, has no `label`", "--label")


def test_what_is_not_there_or_of_another_kind_is_an_error(tmp_path):
    refused(tmp_path / "none.csv", "no labelled texts at", "a folder or a file: .csv, .tsv, .jsonl, .json")
    for name in ("data.txt", "data.parquet", "data", "data.gz"):
        (tmp_path / name).write_text("text,label\n")
        refused(tmp_path / name, "has an ending that is not supported", ".csv, .tsv, .jsonl, .json")


def test_a_folder_without_a_split_to_show_is_an_error(tmp_path):
    refused(tmp_path, "no such file", "the file itself")
    written(tmp_path / "test.csv", rows())
    refused(tmp_path, r"has no file train.*it has: test.csv", "the file itself")
    for name in ("one.csv", "two.csv"):
        written(tmp_path / name, rows())
    refused(tmp_path, r"has no file train", "the file itself")


def test_json_without_a_split_to_show_is_an_error(tmp_path):
    refused(written(tmp_path / "data.json", {"test": pairs()}), r"no split `train` \(it has: test\)", "train")
    for content in ({}, [], 7, "text", {"train": []}, {"train": {"a": 1}}):
        refused(written(tmp_path / "data.json", content), "no split `train`", "train")


def test_one_label_is_too_few(tmp_path):
    refused(written(tmp_path / "data.json", rows(8, labels=["good"])), "has 1 labels", "two are needed")
    refused(written(tmp_path / "alone.json", rows(1)), "has 0 labels", "two are needed")


def test_what_cannot_be_read_is_an_error_and_not_a_traceback(tmp_path):
    (tmp_path / "bad.json").write_text('{"train": [')
    (tmp_path / "bad.jsonl").write_text('{"text": "a", "label": "b"}\n{oh}\n')
    (tmp_path / "latin.csv").write_bytes("text,label\ncafé,a\n".encode("latin-1"))
    (tmp_path / "bad.jsonl.bz2").write_bytes(b"no bz2 at all")
    (tmp_path / "bad.jsonl.gz").write_bytes(b"no gzip at all")
    (tmp_path / "bad.jsonl.xz").write_bytes(b"no xz at all")
    letters = random.Random(0).choices("abcdefghijklmnopqrstuvwxyz", k=20_000)
    content = json.dumps({"text": "".join(letters), "label": "a"}).encode()
    whole = {"bz2": bz2.compress(content), "gz": gzip.compress(content), "xz": lzma.compress(content)}
    for ending, data in whole.items():
        (tmp_path / f"cut.jsonl.{ending}").write_bytes(data[: len(data) // 2])
        for at in (20, len(data) // 2):
            (tmp_path / f"worn{at}.jsonl.{ending}").write_bytes(data[:at] + b"\xff" * 40 + data[at + 40 :])
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "wide.csv").write_text("text,label\n" + "a" * 200_000 + ",b\n")
    names = sorted(path.name for path in tmp_path.iterdir() if path.is_file())
    assert len(names) == 16
    for name in names:
        with pytest.raises(CorpusError, match=re.escape(name)):
            load_labelled(str(tmp_path / name))
