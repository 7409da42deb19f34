"""Files that are there whole or not at all."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def whole_file(path: Path, part: Path | None = None) -> Iterator[Path]:
    """Write a file whole or not at all: the block writes the path that it is given, which then becomes `path`.

        with whole_file(folder / "run.json") as part:
            part.write_text(content)

    A kill leaves the old file, or none, and perhaps the temporary one; an error removes that too.

    part: the temporary file, in the same file system; by default `.NAME.part` beside `path`.
    """
    part = part or path.with_name(f".{path.name}.part")
    try:
        yield part
        part.replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
