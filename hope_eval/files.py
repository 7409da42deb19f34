"""Files that are there whole or not at all, and errors of the disk in plain words."""

import contextlib
import errno
import re
from collections.abc import Iterator
from pathlib import Path

from hope_eval.errors import HopeEvalError, StoreError

# Errors of a disk without room, and what libraries (safetensors, tokenizers, numpy, torch) say in their place.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SAID = re.compile(
    rf"os error ({'|'.join(map(str, _FULL))})\b|\d+ requested and \d+ written|inline_container.*unexpected pos"
    "|PytorchStreamWriter failed writing"
)


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


def is_full(error: BaseException) -> bool:
    """Whether an error means that a disk has no room left."""
    return (isinstance(error, OSError) and error.errno in _FULL) or bool(_SAID.search(str(error)))


@contextlib.contextmanager
def explained(path: Path, verb: str = "write") -> Iterator[None]:
    """Turn an error of the operating system into a StoreError with a remedy."""
    try:
        yield
    except HopeEvalError:
        raise
    except Exception as error:
        if is_full(error):
            raise StoreError(
                f"no space left to write {path}; the results so far are kept",
                "free some space, then rerun the command to resume; or give another --out",
            ) from error
        if not isinstance(error, OSError):
            raise
        raise StoreError(
            f"cannot {verb} {path}: {error.strerror}", f"give a folder you may {verb}" + ": --out" * (verb == "write")
        ) from error
