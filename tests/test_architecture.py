"""The rules of the house that a machine can check."""

import ast
import sys
from pathlib import Path

import hope_eval
from hope_eval.task import FOLDER

ROOT = Path(hope_eval.__file__).parent

# Each may import those before it. What is not named here may not exist.
LAYERS = [
    {"errors"},
    {"plugins", "lengths", "zoo", "vocabulary"},
    {"task", "results"},
    {"protocols", "corpora", "examples", "token_store"},
    {"perplexity", "answers", "lines", "suites", "tokenizer"},
    {"comparison"},
    {"encoding", "encodings", "provenance", "sharding"},
    {"model"},
    {"evaluate", "train"},
    {"ask", "samples"},
    {"measure"},
    {"plan"},
    {"cli"},
    {"__init__", "__main__"},
]
WITHOUT_TORCH = {name for layer in LAYERS[:6] for name in layer}
# It is a transformers tokenizer that the file makes, and nothing else of transformers that it uses.
MAY_IMPORT_TRANSFORMERS = {"tokenizer"}


def layer_of(part: str) -> int:
    return next(number for number, names in enumerate(LAYERS) if part in names)


def imports(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module
            if node.module == "hope_eval":
                yield from (f"hope_eval.{alias.name}" for alias in node.names)


def test_imports_point_downwards_only():
    for path in ROOT.rglob("[a-z_]*.py"):
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in imports(ast.parse(path.read_text())):
            if part in WITHOUT_TORCH - MAY_IMPORT_TRANSFORMERS:
                assert name.split(".")[0] not in ("torch", "transformers"), f"{path} imports {name}"
            words = name.split(".")
            if words[0] == "hope_eval" and len(words) > 1 and words[1] != part and part not in LAYERS[-1]:
                assert layer_of(words[1]) <= layer_of(part), f"{path} imports {name}"


def test_optional_packages_are_imported_where_they_are_used_only():
    for path in ROOT.rglob("[a-z_]*.py"):
        tree = ast.parse(path.read_text())
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                for name in imports(ast.Module([node], [])):
                    assert name.split(".")[0] not in (
                        "altair",
                        "datasets",
                        "gguf",
                        "itables",
                        "matplotlib",
                        "pyarrow",
                        "vl_convert",
                    ), path


def test_nothing_shadows_the_standard_library():
    # `encodings` is the subject of the house, and is only ever imported as hope_eval.encodings.
    allowed = {"__main__", "encodings"}
    for path in ROOT.rglob("[a-z_]*.py"):
        assert path.stem not in sys.stdlib_module_names - allowed, path


def test_tasks_import_nothing_of_this_project_but_the_task_module():
    for path in FOLDER.glob("[a-z]*.py"):
        for name in imports(ast.parse(path.read_text())):
            assert name.split(".")[0] != "hope_eval" or name.startswith("hope_eval.task"), f"{path} imports {name}"
