"""Classes that live one to a file: encodings and tasks of this package, and those that users bring along."""

import importlib.util
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from hope_eval.errors import OptionError

T = TypeVar("T")


def module_from_file(path: Path, package: str = "hope_eval_plugins") -> ModuleType:
    """Run a Python file as a module, once.

    package: what the name of the module begins with; the file's own name follows.

    """
    path = path.expanduser().resolve()
    name = f"{package}.{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path):
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up there.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def classes_in(module: ModuleType, base: type[T]) -> list[type[T]]:
    """Return the public classes that a module defines and that derive from `base`, in their order."""
    return [
        member
        for name, member in vars(module).items()
        if inspect.isclass(member)
        and issubclass(member, base)
        and member.__module__ == module.__name__
        and not name.startswith("_")
    ]


def only_class(module: ModuleType, base: type[T]) -> type[T]:
    """Return the one class of a module that derives from `base`.

    Raises OptionError if there are none, or several.
    """
    classes = classes_in(module, base)
    if len(classes) != 1:
        name = Path(module.__file__ or module.__name__).name
        raise OptionError(f"`{name}` defines {len(classes)} classes of {base.__name__}", "one file defines one")
    return classes[0]
