import bz2
import gzip
import json
import lzma

import numpy as np
import pytest

from hope_eval.data import corpora
from hope_eval.data.corpora import load_corpus
from hope_eval.errors import CorpusError, MissingPackageError

TEXTS = ["first text", "zweiter Text …", "third"]


def lines(field: str = "text") -> bytes:
    return "".join(json.dumps({field: text, "id": 3}) + "\n" for text in TEXTS).encode()


@pytest.mark.parametrize(
    ("name", "packed"),
    [("a.jsonl", bytes), ("a.jsonl.bz2", bz2.compress), ("a.jsonl.gz", gzip.compress), ("a.jsonl.xz", lzma.compress)],
)
def test_json_lines_plain_and_compressed(name, packed, tmp_path):
    (tmp_path / name).write_bytes(packed(lines()))
    assert [document.text for document in load_corpus(str(tmp_path / name)).documents] == TEXTS


def test_parquet(tmp_path):
    import pandas

    pandas.DataFrame({"body": TEXTS}).to_parquet(tmp_path / "a.parquet")
    assert [document.text for document in load_corpus(str(tmp_path / "a.parquet"), "body").documents] == TEXTS
    with pytest.raises(CorpusError, match=r"no text in the field `text` \(it has: body\)"):
        load_corpus(str(tmp_path / "a.parquet"))


def test_a_folder_is_read_in_order_of_path(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "z.txt").write_text("last")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "b" / "a.jsonl").write_bytes(lines())
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    documents = load_corpus(str(tmp_path)).documents
    assert [document.text for document in documents] == ["first", *TEXTS, "last"]
    assert documents[1].id == "b/a.jsonl:1"


def test_the_order_is_not_that_of_the_disk(tmp_path):
    names = [f"{number:02}.txt" for number in range(40)]
    for name in np.random.default_rng(0).permutation(names):
        (tmp_path / name).write_text(name)
    assert [document.id for document in load_corpus(str(tmp_path)).documents] == names


def folder_of(path, files):
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return load_corpus(str(path))


def test_the_fingerprint_is_that_of_the_texts(tmp_path):
    texts = {"a.txt": "one", "b.txt": "two"}
    first = folder_of(tmp_path / "first", texts).fingerprint
    assert folder_of(tmp_path / "first", {}).fingerprint == first
    assert folder_of(tmp_path / "named", {"x.txt": "one", "y.md": "two"}).fingerprint == first
    assert folder_of(tmp_path / "swapped", {"a.txt": "two", "b.txt": "one"}).fingerprint == first
    for number, files in enumerate((
        {"a.txt": "one"}, {"a.txt": "one", "b.txt": "Two"}, {"a.txt": "onet", "b.txt": "wo"},
        {**texts, "c.txt": "one"}, {"a.txt": "one", "b.txt": "one"},
    )):  # fmt: skip
        assert folder_of(tmp_path / str(number), files).fingerprint != first, files


def test_samples_follow_from_the_texts_and_not_from_the_names_of_their_files(tmp_path):
    texts = [f"text {number}" for number in range(6)]
    corpora = []
    for name in ("a.jsonl", "another name.jsonl"):
        (tmp_path / name).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        corpora.append(load_corpus(str(tmp_path / name)))
    corpora.append(folder_of(tmp_path / "files", {f"{6 - number}.txt": text for number, text in enumerate(texts)}))
    for seed in range(5):
        orders = [[(key, document.text) for key, document in corpus.keyed(seed)] for corpus in corpora]
        assert orders[0] == orders[1] == orders[2]
    assert len({tuple(document.text for document in corpora[0].in_order(seed)) for seed in range(5)}) > 1
    # A new text does not move the others.
    more = folder_of(tmp_path / "files", {"0.txt": "more"}).in_order(0)
    assert [d.text for d in more if d.text != "more"] == [d.text for d in corpora[0].in_order(0)]


def test_equal_texts_are_documents_of_their_own(tmp_path):
    corpus = folder_of(tmp_path, {"a.txt": "same", "b.txt": "other", "c.txt": "same"})
    assert len(set(corpus.keys)) == 3
    assert corpus.keys[2] == f"{corpus.keys[0]}-2"
    assert sorted(document.id for document in corpus.in_order(0)) == ["a.txt", "b.txt", "c.txt"]


def test_line_ends_are_part_of_a_text(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo")
    assert load_corpus(str(tmp_path / "a.txt")).documents[0].text == "one\r\ntwo"


def test_the_standard_library_makes_long_documents_in_a_fixed_order():
    corpus = load_corpus("python")
    assert corpus.fingerprint == load_corpus("python").fingerprint
    assert len(corpus.documents) > 20
    assert sum(len(document.text) >= 200_000 for document in corpus.documents) > 0.9 * len(corpus.documents)
    ids = [document.id for document in corpus.documents]
    assert len(set(ids)) == len(ids)
    text = "".join(document.text for document in corpus.documents)
    assert "# json/decoder.py\n" in text
    assert "# test/" not in text
    assert "site-packages" not in {part for name in ids for part in name.split("/")}


def test_installed_packages():
    corpus = load_corpus("python:click,rich")
    assert {document.id.split("/")[0] for document in corpus.documents} == {"click", "rich"}
    assert any("# click/core.py" in d.text or "# core.py" in d.text for d in corpus.documents)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", "is not UTF-8: byte 3 is 0xe9"),
        ("a.jsonl", b'{"text": "fine"}\n{"text": oops}\n', "line 2, is not JSON"),
        ("a.jsonl", b'{"text": "fine"}\n{"txt": "no"}\n', r"line 2, has no text in the field `text` \(it has: txt\)"),
        ("a.jsonl", b'{"text": 5}\n', "has no text in the field `text`"),
        ("a.jsonl", b'{"text": "\xff"}\n', "line 1 is not UTF-8"),
        ("a.jsonl", b"[1]\n", "has no text"),
        ("a.jsonl.bz2", b"not bz2", "cannot read"),
        ("a.jsonl.gz", b"not gz", "cannot read"),
        ("a.jsonl.xz", b"not xz", "cannot read"),
        ("a.jsonl.xz", lzma.compress(lines())[:-20], "cannot read"),
        ("a.parquet", b"not parquet", "cannot read"),
        ("a.pdf", b"%PDF", "has an ending that is not supported"),
        ("a.txt", b"", "contains no text"),
    ],
)
def test_what_cannot_be_read_is_an_error(name, content, message, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus(str(tmp_path / name))
    assert caught.value.hint


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.txt", "no text at `nowhere.txt`"),
        ("pyhton", "no text at `pyhton`"),
        ("python:no_such_package", "the package `no_such_package` is not installed"),
        ("hf:org/data", "has no revision"),
    ],
)
def test_what_is_not_there_is_an_error(name, message):
    with pytest.raises(CorpusError, match=message):
        load_corpus(name)


def test_an_absent_optional_package_is_an_error_with_its_command(monkeypatch):
    def absent(name):
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr("hope_eval.errors.importlib.import_module", absent)
    with pytest.raises(MissingPackageError, match="needs the package `datasets`") as caught:
        load_corpus("hf:org/data@main")
    assert caught.value.hint == "pip install datasets"


def test_a_dataset_is_read_through_datasets(monkeypatch):
    class Fake:
        @staticmethod
        def load_dataset(name, config, revision):
            assert (name, config, revision) == ("org/data", "en", "abc")
            return {"train": [{"text": "no"}], "test": [{"text": text} for text in TEXTS]}

    monkeypatch.setattr(corpora, "require", lambda *names: Fake)
    assert [document.text for document in load_corpus("hf:org/data:en@abc").documents] == TEXTS


def test_a_folder_without_text_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="contains no text"):
        load_corpus(str(tmp_path))
