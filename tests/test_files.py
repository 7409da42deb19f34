"""A file is written whole or not at all."""

import pytest

from hope_eval.files import whole_file


def test_a_file_is_there_when_the_block_has_ended(tmp_path):
    path = tmp_path / "a.json"
    with whole_file(path) as part:
        part.write_text("new")
        assert not path.exists()
        assert part.parent == tmp_path
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", [None, "run.part"])
def test_an_error_leaves_the_old_file_and_nothing_else(name, tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def write():
        with whole_file(path, name and tmp_path / name) as part:
            part.write_text("half")
            assert part.name == (name or ".a.json.part")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
