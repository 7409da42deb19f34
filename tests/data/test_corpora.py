import bz2
import gzip
import json
import lzma

import numpy as np
import pytest

from hope_eval.data import corpora, text_files
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


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"\xef\xbb\xbfabc", "abc"),
        ("\ufeffabc é".encode("utf-16-le"), "abc é"),
        ("\ufeffabc".encode("utf-32-be"), "abc"),
        (b"abc", "abc"),
    ],
)
def test_a_mark_at_the_beginning_is_no_text(data, text, tmp_path):
    for name in ("a.txt", "a.log"):
        (tmp_path / name).write_bytes(data)
        assert [document.text for document in load_corpus(str(tmp_path / name)).documents] == [text]
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "abc"}\n')
    assert load_corpus(str(tmp_path / "a.jsonl")).documents[0].text == "abc"


def test_a_folder_says_what_it_left_out(tmp_path):
    for name in (
        "a.txt",
        "b.log",
        "sub/c.md",
        ".hidden.txt",
        "__MACOSX/d.txt",
        "e.docx",
        "f.docx",
        "g.pdf",
        "Makefile",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.txt").touch()
    (tmp_path / "t.csv").write_text('id,text\n1,"first, with a comma"\n2,second\n')
    corpus = load_corpus(str(tmp_path))
    assert [document.id for document in corpus.documents] == ["a.txt", "b.log", "sub/c.md", "t.csv:1", "t.csv:2"]
    assert corpus.documents[3].text == "first, with a comma"
    assert corpus.note == "read 4 files; ignored 2 .docx, 1 .pdf, 1 empty, 1 without an ending"


def test_all_bad_files_are_told_at_once(tmp_path):
    for n in range(7):
        (tmp_path / f"{n}.txt").write_bytes(b"\x93\xfa\x96{\x8c\xea")
    with pytest.raises(CorpusError, match=r"7 files cannot be read: .*0.txt.*4.txt.*and 2 more") as caught:
        load_corpus(str(tmp_path))
    assert "iconv" not in caught.value.hint
    japanese = load_corpus(str(tmp_path / "0.txt"), encoding="shift_jis")
    assert japanese.documents[0].text == "日本語"
    with pytest.raises(CorpusError, match="`--text-encoding klingon` cannot be used"):
        load_corpus(str(tmp_path / "0.txt"), encoding="klingon")


@pytest.mark.parametrize("name", ["", "  ", "~nouser/x", "a" * 5000, "a\0b", "no/such/file"])
def test_a_name_that_is_no_path_is_an_error_with_a_remedy(name):
    with pytest.raises(CorpusError) as caught:
        load_corpus(name)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "\\ud800"}', "half a character"),
        ('{"text": "a", "n": ' + "9" * 5000 + "}", "is not JSON"),
        ("[" * 200_000, "is not JSON"),
        ('{"txt": "a"}', "has no text in the field `text`"),
        ("3", "has no text in the field `text`"),
    ],
)
def test_lines_that_are_no_texts_are_named(line, message, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(CorpusError, match=message) as caught:
        load_corpus(str(path))
    assert "line 2" in str(caught.value)


def test_other_columns_of_a_parquet_do_not_matter(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    # After the year 9999, where Python's dates end.
    far = pyarrow.array([2**53], pyarrow.timestamp("ms"))
    parquet.write_table(pyarrow.table({"text": ["abc"], "when": far}), tmp_path / "a.parquet")
    assert load_corpus(str(tmp_path / "a.parquet")).documents[0].text == "abc"
    with pytest.raises(CorpusError, match=r"has no text in the field `body` .it has: text, when"):
        load_corpus(str(tmp_path / "a.parquet"), "body")


def test_what_unfolds_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "MOST_BYTES", 1 << 16)
    for name, data in (("a.txt.gz", b"a" * (1 << 20)), ("a.jsonl.gz", b'{"text": "' + b"a" * (1 << 20) + b'"}')):
        (tmp_path / name).write_bytes(gzip.compress(data))
        with pytest.raises(CorpusError, match="has more than"):
            load_corpus(str(tmp_path / name))


def test_long_cells_of_a_table_are_read(tmp_path):
    (tmp_path / "a.tsv").write_text("text\tid\n" + "x" * 200_000 + "\t1\n")
    assert len(load_corpus(str(tmp_path / "a.tsv")).documents[0].text) == 200_000


def test_one_long_text_becomes_disjoint_pieces(tmp_path):
    text = " ".join(f"word{n}" for n in range(5000))
    (tmp_path / "log.txt").write_text(text)
    whole = load_corpus(str(tmp_path / "log.txt"))
    split = whole.split(100)
    assert "".join(document.text for document in split.documents) == text
    assert all(600 <= len(document.text) < 620 for document in split.documents[:-1])
    assert [document.id for document in split.documents[:2]] == ["log.txt#1", "log.txt#2"]
    assert split.name == "log.txt --split 100"
    assert split.note == f"1 texts in {len(split.documents)} pieces of 600 characters"
    assert split.fingerprint not in (whole.fingerprint, whole.split(200).fingerprint)
