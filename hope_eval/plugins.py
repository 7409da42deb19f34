"""Python files of one class each: encodings and tasks of this package, and those of users."""

import ast
import importlib.util
import inspect
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from hope_eval.errors import HopeEvalError, OptionError, first_line

T = TypeVar("T")

# First parts of the names of modules that are files of users; those of this package are loaded in the same way.
_PACKAGES = ("hope_eval_tasks_of_ones_own.", "hope_eval_encodings.", "hope_eval_protocols.", "hope_eval_loaders.")


def module_name(path: Path) -> str:
    """Name of the module of a file: `my/halved.py` is `halved`, `my/halved.v2.py` is `halved_v2`."""
    return path.expanduser().resolve().stem.replace(".", "_")


def module_from_file(path: Path, package: str) -> ModuleType:
    """Run a Python file as a module, once in a process.

    package: the first part of the module's name; the name of the file is the second.

    Raises OptionError if the file cannot be run, and if another file of that name was run before: Python, transformers
    and the folders of runs would take one for the other.
    """
    path = path.expanduser().resolve()
    name = f"{package}.{module_name(path)}"
    loaded = sys.modules.get(name)
    if loaded is not None:
        if loaded.__file__ == str(path):
            return loaded
        raise OptionError(
            f"`{path}` cannot be used beside `{loaded.__file__}`: both are called `{module_name(path)}`",
            "rename one of the files, or use them in two commands",
        )
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except HopeEvalError:
        del sys.modules[name]
        raise
    except Exception as error:
        fault = fault_of_file(error)
        del sys.modules[name]
        raise fault or OptionError(
            f"`{path}` cannot be run: {type(error).__name__}: {error}", "mend the file"
        ) from error
    return module


def fault_of_file(error: BaseException) -> OptionError | None:
    """The fault of a user's file that an error comes from, with its line; None if it comes from none."""
    if isinstance(error, HopeEvalError):
        # What a file says itself with one of our errors is as it should be.
        cause = error.__cause__
        return fault_of_file(cause) if cause and not isinstance(cause, HopeEvalError) else None
    files = {
        str(module.__file__): Path(str(module.__file__)).name
        for name, module in list(sys.modules.items())
        if name.startswith(_PACKAGES) and getattr(module, "__file__", None)
    }
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    where = (frames[-1].filename, frames[-1].lineno) if frames else None
    if isinstance(error, SyntaxError) and error.filename in files:
        where = str(error.filename), error.lineno
    if where is None:
        return None
    said = first_line(error.msg) if isinstance(error, SyntaxError) else first_line(error)
    return OptionError(f"`{files[where[0]]}`, line {where[1]}: {type(error).__name__}: {said}", "mend the file")


def classes_in(module: ModuleType, base: type[T]) -> list[type[T]]:
    """Public classes that a module defines and that derive from `base`, in their order."""
    return [
        member
        for name, member in vars(module).items()
        if inspect.isclass(member)
        and issubclass(member, base)
        and member.__module__ == module.__name__
        and not name.startswith("_")
    ]


def only_class(module: ModuleType, base: type[T]) -> type[T]:
    """One class of a module that derives from `base`.

    Raises OptionError if there is no such class, or several.
    """
    classes = classes_in(module, base)
    if len(classes) != 1:
        name = Path(module.__file__ or module.__name__).name
        raise OptionError(f"`{name}` defines {len(classes)} classes of {base.__name__}", "one file defines one")
    return classes[0]


def literals_of(path: Path) -> dict[str, Any]:
    """Class variables of a file that are plain data, read without running it: the style of an encoding, say.

    Running an encoding imports torch, which takes seconds; figures and lists need only what its file says.
    """
    literals: dict[str, Any] = {}
    for cls in ast.parse(path.read_text("utf-8")).body:
        for node in cls.body if isinstance(cls, ast.ClassDef) else ():
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                try:
                    literals[node.targets[0].id] = ast.literal_eval(node.value)
                except ValueError:
                    continue
    return literals
