"""Hash every top-level definition of a checkout, with the roots of imports folded: what only moved stays the same.

    python tests/golden/definitions.py CHECKOUT > before.txt
    python tests/golden/definitions.py CHECKOUT > after.txt      # then: diff before.txt after.txt

One line a definition: its name and the first 12 digits of the SHA-256 of its syntax tree. Imports within a definition
count by the names that they bind and not by the modules that these come from. Lines are sorted; files do not matter.
"""

import ast
import hashlib
import sys
from pathlib import Path


class _Folded(ast.NodeTransformer):
    """Leaves out the imports of this package, and keeps the names that they bind."""

    def __init__(self) -> None:
        self.bound: set[str] = set()

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        if not (node.module or "").startswith("hope_eval"):
            return node
        self.bound |= {alias.asname or alias.name for alias in node.names}
        return None

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, str) and node.value.startswith("hope_eval."):
            return ast.Constant("hope_eval…" + node.value.rpartition(".")[2])
        return node


def definitions(checkout: Path) -> list[str]:
    """Return one line for each top-level definition of the package, the tasks and the benchmarks."""
    lines = []
    for folder in ("hope_eval", "tasks", "benchmarks", "results"):
        for path in sorted((checkout / folder).rglob("[a-z_]*.py")):
            for node in ast.parse(path.read_text("utf-8")).body:
                if isinstance(node, ast.Import | ast.ImportFrom | ast.If | ast.Expr):
                    continue
                name = getattr(node, "name", type(node).__name__)
                if isinstance(node, ast.Assign | ast.AnnAssign):
                    target = node.targets[0] if isinstance(node, ast.Assign) else node.target
                    name = ast.unparse(target)
                folded = _Folded()
                tree = ast.dump(folded.visit(node)) + str(sorted(folded.bound))
                lines.append(f"{name} {hashlib.sha256(tree.encode()).hexdigest()[:12]}")
    return sorted(lines)


if __name__ == "__main__":
    print("\n".join(definitions(Path(sys.argv[1]))))
