"""The rules of the house that a machine can check."""

import ast
import graphlib
import sys
from pathlib import Path

import hope_eval
from hope_eval.task import FOLDER

ROOT = Path(hope_eval.__file__).parent
SOURCES = sorted(ROOT.rglob("[a-z_]*.py"))

# Each may import those of the lines before it; folders of one line do not import each other. What is not named here may
# not exist.
LAYERS = [
    {"errors", "files", "lengths", "metrics", "plugins", "zoo"},
    {"data"},
    {"task"},
    {"protocols"},
    {"runs"},
    {"encodings"},
    {"analysis", "model"},
    {"evaluation"},
    {"inspection", "train"},
    {"show"},
    {"api"},
    {"cli"},
    {"__init__", "__main__"},
]
GROUND, TOP = LAYERS[0], LAYERS[-1]
WITH_TORCH = {"encodings", "evaluation", "inspection", "model", "train"}


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
    wrong = []
    for path in SOURCES:
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        for name in imports(ast.parse(path.read_text())):
            words = name.split(".")
            if words[0] != "hope_eval" or len(words) == 1 or words[1] == part or part in TOP:
                continue
            if layer_of(words[1]) >= layer_of(part) and not {part, words[1]} <= GROUND:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


def test_torch_is_imported_where_it_computes_only():
    wrong = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        part = path.relative_to(ROOT).parts[0].removesuffix(".py")
        # In `runs`, within functions only: a run is opened without torch.
        nodes = tree.body if part in ("cli", "runs") else [tree]
        names = [name.split(".")[0] for node in nodes if part not in WITH_TORCH for name in _imported(node)]
        wrong += [f"{path.relative_to(ROOT)} imports {name}" for name in names if name in ("torch", "transformers")]
    assert not wrong


def _imported(node: ast.AST):
    return imports(ast.Module([node], [])) if isinstance(node, ast.Import | ast.ImportFrom | ast.Module) else ()


def test_optional_packages_are_imported_where_they_are_used_only():
    for path in SOURCES:
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
    for path in SOURCES:
        assert path.stem not in sys.stdlib_module_names - allowed, path


def test_tasks_import_nothing_of_this_project_but_the_task_module():
    for path in FOLDER.glob("[a-z]*.py"):
        for name in imports(ast.parse(path.read_text())):
            assert name.split(".")[0] != "hope_eval" or name.startswith("hope_eval.task"), f"{path} imports {name}"


MOST_LINES = 500
MOST_LINES_OF_A_BODY = 50
MOST_MODULES_AT_THE_ROOT = 10


def test_files_are_short():
    n_lines = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for path in SOURCES}
    assert not {path: n for path, n in n_lines.items() if n > MOST_LINES}


def lines_of_body(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, without its signature and its docstring."""
    body = function.body[1:] if ast.get_docstring(function) and len(function.body) > 1 else function.body
    return function.end_lineno - body[0].lineno + 1


def test_bodies_of_functions_are_short():
    n_lines = {
        f"{path.relative_to(ROOT)}: {node.name}": lines_of_body(node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert not {name: n for name, n in n_lines.items() if n > MOST_LINES_OF_A_BODY}


def test_few_modules_stand_at_the_root():
    assert len([path for path in SOURCES if path.parent == ROOT]) <= MOST_MODULES_AT_THE_ROOT


def module_name(path: Path) -> str:
    parts = ["hope_eval", *path.relative_to(ROOT).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def test_no_modules_import_each_other_in_a_circle():
    modules = {module_name(path): path for path in SOURCES}
    graph = {}
    for name, path in modules.items():
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & modules.keys()
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    imported = f"{node.module}.{alias.name}"
                    graph[name] |= {imported if imported in modules else node.module} & modules.keys()
        graph[name].discard(name)
    # It raises CycleError, which names the modules of a circle.
    assert len(list(graphlib.TopologicalSorter(graph).static_order())) == len(modules)


def test_no_test_file_imports_another():
    wrong = []
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            wrong += [f"{path.name} imports {name}" for name in names if name.startswith("test_")]
    assert not wrong


def test_names_of_test_files_are_unique():
    # They are imported by their names alone.
    names = [path.name for path in Path(__file__).parent.rglob("*.py")]
    assert sorted(set(names)) == sorted(names)


def test_the_kind_of_a_run_is_asked_in_one_place():
    """`runs/kinds.py` tells the kind of a run from its task; nothing else compares with the name of that task."""
    places = set()
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for operand in [node.left, *node.comparators] if isinstance(node, ast.Compare) else []:
                if ast.unparse(operand) in ("'ppl'", "PPL"):
                    places.add(str(path.relative_to(ROOT)))
    # Elsewhere `ppl` is a word of a suite, a command, and a definition of effective length.
    others = {"evaluation/suites.py", "cli/plan.py", "show/comparison_tables.py"}
    assert places - others == {"runs/kinds.py"}
