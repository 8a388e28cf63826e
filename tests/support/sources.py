"""The package as text: its modules, and what each imports."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "hf_qrnn"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TRAVELLERS = [name for name in MODULES if name.endswith("_qrnn")]


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (level, dotted name) of every import in the file, `from a import b` as `a.b`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.level, f"{node.module}.{alias.name}" if node.module else alias.name


def imports_of_ours(name: str) -> set[str]:
    """Find the modules of the package that module `name` imports."""
    found = set()
    package = name.split(".")[:-1]
    for level, target in imports(MODULES[name]):
        parts = target.split(".")
        if level > 0:
            parts = [*package[: len(package) - (level - 1)], *parts]
        elif parts[0] == "hf_qrnn":
            parts = parts[1:]
        else:
            continue
        while parts and not {".".join(parts), ".".join([*parts, "__init__"])} & set(MODULES):
            parts.pop()
        found.add(".".join(parts) or "__init__")
    return found
