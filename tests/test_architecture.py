"""The walls of the house: who imports whom, how long things are, what an import does."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hf_qrnn

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_qrnn"
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
}
TRAVELLERS = [name for name in MODULES if name.endswith("_qrnn")]
PYTHON_FILES = sorted(
    path
    for folder in ("hf_qrnn", "scripts", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
)
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 60

# docs/design.md: what each module may import of ours, and nothing else; "training", "metrics" and
# "kernels" are all that is in them.
ARROWS: dict[str, set[str]] = {
    "configuration_qrnn": set(),
    "kernels": {"kernels"},
    "backends_qrnn": {"kernels", "triton_qrnn"},
    "internals_qrnn": set(),
    "pool_equations_qrnn": {"internals_qrnn"},
    "pooling_qrnn": {"backends_qrnn", "internals_qrnn", "pool_equations_qrnn"},
    "checks_qrnn": {"internals_qrnn"},
    "triton_qrnn": set(),
    "convolution_qrnn": {"internals_qrnn"},
    "attention_qrnn": set(),
    "keywords_qrnn": {"checks_qrnn"},
    "layers_qrnn": {"attention_qrnn", "convolution_qrnn", "pooling_qrnn"},
    "losses_qrnn": {"checks_qrnn"},
    "quantization_qrnn": set(),
    "cache_qrnn": {"attention_qrnn", "internals_qrnn", "layers_qrnn"},
    "stacks_qrnn": {
        "attention_qrnn",
        "configuration_qrnn",
        "layers_qrnn",
        "cache_qrnn",
        "checks_qrnn",
        "internals_qrnn",
    },
    "limits_qrnn": set(),
    "generation_qrnn": {"configuration_qrnn", "cache_qrnn", "limits_qrnn"},
    "modeling_qrnn": {
        "attention_qrnn",
        "configuration_qrnn",
        "keywords_qrnn",
        "layers_qrnn",
        "limits_qrnn",
        "losses_qrnn",
        "cache_qrnn",
        "checks_qrnn",
        "quantization_qrnn",
        "stacks_qrnn",
        "generation_qrnn",
    },
    "pipeline_qrnn": {"limits_qrnn"},
    "warm_start": {"configuration_qrnn", "modeling_qrnn"},
    "recurrent": {"internals_qrnn", "layers_qrnn", "pooling_qrnn"},
    "lengths": {"limits_qrnn", "training"},
    "timing": set(),
    "flags": set(),
    "bench": {"recurrent", "timing"},
    "tokenization": {"hub_replies"},
    "generation": {"limits_qrnn"},
    "translation": {"flags", "generation", "tokenization", "hub_replies"},
    "plots": set(),
    "training": {
        "plots",
        "flags",
        "limits_qrnn",
        "translation",
        "tokenization",
        "generation",
        "hub",
        "hub_client",
        "hub_files",
        "json_files",
        "metrics",
        "training",
    },
    "publishing": {"hub", "json_files", "plots", "training", "translation"},
    "metrics": {"metrics"},
    "json_files": set(),
    "hub_replies": set(),
    "hub_client": {"hub_replies"},
    "hub_files": {"configuration_qrnn", "json_files"},
    "verification": {"backends_qrnn", "hub_client", "hub_files", "hub_replies", "json_files"},
    "hub": {"hub_client", "hub_files", "json_files", "verification"},
    "load_check": {"__init__"},
}
# These may import anything in the package.
FREE = {"__init__", "__main__", "cli", "cli_bench", "cli_hub"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(level, dotted name) of every import anywhere in the file, `from a import b` as `a.b`."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield 0, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield node.level, f"{node.module}.{alias.name}" if node.module else alias.name


def imports_of_ours(name: str) -> set[str]:
    """Modules of the package that module `name` imports."""
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


def room(name: str) -> str:
    first = name.split(".")[0]
    return first if first in {"training", "metrics", "kernels"} else name


# ------------------------------------------------------------------ arrows


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_where_its_arrows_point(name: str) -> None:
    if name in FREE:
        return
    assert room(name) in ARROWS, f"{name} has no arrows: docs/design.md, then ARROWS"
    others = {room(other) for other in imports_of_ours(name)}
    assert others <= ARROWS[room(name)]


def test_nobody_imports_the_command_line() -> None:
    for name in MODULES:
        assert "cli" not in imports_of_ours(name) or name == "__main__"


def test_arrows_are_seen() -> None:
    # The reader of imports above must not be blind to any way of writing one.
    assert imports_of_ours("layers_qrnn") == ARROWS["layers_qrnn"]
    assert imports_of_ours("backends_qrnn") == {"kernels", "triton_qrnn"}
    assert imports_of_ours("stacks_qrnn") == ARROWS["stacks_qrnn"]
    assert "tokenization" in imports_of_ours("training.batching")
    assert "training.corpus_lexicon" in imports_of_ours("training.corpus")
    assert imports_of_ours("__main__") == {"cli"}


def catches_import_error(handler: ast.ExceptHandler) -> bool:
    return isinstance(handler.type, ast.Name) and handler.type.id == "ImportError"


@pytest.mark.parametrize("name", TRAVELLERS)
def test_traveller_needs_nothing_but_torch_and_transformers(name: str) -> None:
    # transformers collects the files of a model folder by following flat relative imports. What
    # makes it faster may be missing: Triton and the package's compiled kernels.
    optional = {
        target
        for node in ast.walk(tree(MODULES[name]))
        if isinstance(node, ast.Try) and any(catches_import_error(h) for h in node.handlers)
        for statement in node.body
        if isinstance(statement, ast.Import)
        for target in (alias.name for alias in statement.names)
        if target == "hf_qrnn.kernels" or target.split(".")[0] == "triton"
    }
    for level, target in imports(MODULES[name]):
        first = target.split(".")[0]
        if level > 0:
            assert level == 1, target
            assert first in TRAVELLERS, target
            assert "." in target, f"from . import {target}"
        elif first == "huggingface_hub":
            assert target == "huggingface_hub.dataclasses.strict"
        elif first in {"hf_qrnn", "triton"}:
            assert target in optional, target
        else:
            assert first in {"torch", "transformers"} or first in sys.stdlib_module_names, target


@pytest.mark.parametrize("name", TRAVELLERS)
def test_traveller_has_no_text_that_looks_like_a_relative_import(name: str) -> None:
    # That collector is a regular expression over lines, docstrings and comments included.
    source = MODULES[name].read_text(encoding="utf-8")
    statements = {
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.level
    }
    for number, line in enumerate(source.splitlines(), start=1):
        if line.strip().startswith(("from .", "import .")):
            assert number in statements, f"line {number}: {line}"


# ------------------------------------------------------------------ sizes


@pytest.mark.parametrize("path", PYTHON_FILES, ids=relative)
def test_file_is_not_longer_than_600_lines(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_FILE_LINES


@pytest.mark.parametrize("path", [p for p in PYTHON_FILES if p.parts[-2] != "tests"], ids=relative)
def test_function_is_not_longer_than_60_lines(path: Path) -> None:
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long


# ------------------------------------------------------------------ what the package does not do


@pytest.mark.parametrize("name", MODULES)
def test_module_neither_pickles_nor_executes_text(name: str) -> None:
    for _, target in imports(MODULES[name]):
        assert target.split(".")[0] not in {"pickle", "cPickle", "dill", "joblib", "marshal"}
        assert target not in {"torch.load", "torch.save"}
    for node in ast.walk(tree(MODULES[name])):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in {("torch", "load"), ("torch", "save")}
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"exec", "eval"}, node.lineno
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except in line {node.lineno}"


def test_version_is_the_installed_one() -> None:
    assert hf_qrnn.__version__ == importlib.metadata.version("hf_qrnn")


def test_every_public_name_is_there() -> None:
    for name in hf_qrnn.__all__:
        assert hasattr(hf_qrnn, name)


def test_import_prints_nothing_and_loads_nothing_heavy() -> None:
    script = (
        "import sys, hf_qrnn\n"
        "heavy = {'datasets', 'evaluate', 'matplotlib', 'sacrebleu'}\n"
        "found = sorted(heavy & set(sys.modules))\n"
        "import torch\n"
        "found += ['cuda'] * torch.cuda.is_initialized()\n"
        "sys.exit(', '.join(found) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_every_module_has_a_place_in_the_map() -> None:
    page = (ROOT / "docs" / "where_things_are.md").read_text(encoding="utf-8")
    lost = [p.name for p in MODULES.values() if p.name != "__init__.py" and p.name not in page]
    assert not lost, "docs/where_things_are.md does not say where they belong"
    for word in page.replace("`", " ").split():
        if word.startswith(("hf_qrnn/", "scripts/", "docs/")):
            assert (ROOT / word.rstrip(",|")).exists(), word


def test_config_is_made_by_its_fields_alone() -> None:
    # transformers makes the constructor from the annotations; one by hand would bypass checks.
    classes = [n for n in tree(MODULES["configuration_qrnn"]).body if isinstance(n, ast.ClassDef)]
    assert [node.name for node in classes] == ["QRNNConfig"]
    functions = {n.name for n in classes[0].body if isinstance(n, ast.FunctionDef)}
    assert "__init__" not in functions
    assert "__post_init__" in functions


@pytest.mark.parametrize("name", ["huggingface_hub", "kernels", "tokenizers"])
def test_no_release_is_demanded_of_what_transformers_pins_itself(name: str) -> None:
    # transformers 5.17 and 5.23 want different ones: any demand here would exclude one of them.
    lines = importlib.metadata.requires("hf_qrnn") or []
    assert not [
        line for line in lines if re.match(rf"{name.replace('_', '[-_]')}\b *[<>=~!]", line)
    ]
