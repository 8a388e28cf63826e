"""The walls of the house: who imports whom, how long things are, how they are described."""

import ast
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sources import MODULES, PACKAGE, ROOT, TRAVELLERS, imports, imports_of_ours, relative, tree

import hf_qrnn

PYTHON_FILES = sorted(
    path
    for folder in ("hf_qrnn", "demo", "scripts", "benchmarks", "tests")
    for path in (ROOT / folder).rglob("*.py")
    if "saved_by_0_1_0" not in path.parts
)
# The docstrings of the tests themselves are read by nobody who calls them.
DESCRIBED = [
    path
    for path in PYTHON_FILES
    if not path.is_relative_to(ROOT / "tests") or path.is_relative_to(ROOT / "tests/support")
]
MAX_FILE_LINES, MAX_FUNCTION_LINES = 600, 60

ARROW = re.compile(r"([a-z_, ]+?) *-> *([a-z_, ]+)")


def arrows_of(heading: str) -> dict[str, set[str]]:
    """Read the imports docs/design.md allows under `heading`: `name, name -> name, name`."""
    page = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    drawing = "\n".join(line for line in section.splitlines() if line.startswith("    "))
    arrows = {}
    # A line that begins further in goes on with the line above.
    for line in re.sub(r"\n {6,}", " ", drawing).splitlines():
        found = ARROW.fullmatch(line.strip())
        assert found, f"no arrow of docs/design.md: {line}"
        targets = set() if found[2] == "nothing of ours" else set(found[2].split(", "))
        for name in found[1].split(", "):
            arrows[name] = targets
    return arrows


# A program of its own, which `verify` starts where the package may be absent.
PROGRAMS = {"hub.load_check"}
WINGS = arrows_of("The house")
INSIDE_MODEL = arrows_of("What travels")


def wing(name: str) -> str:
    return name.split(".")[0]


# ------------------------------------------------------------------ arrows


@pytest.mark.parametrize("name", MODULES)
def test_module_imports_only_where_its_wings_arrows_point(name: str) -> None:
    own = wing(name)
    assert own in WINGS, f"{name} has no arrows in docs/design.md"
    others = {wing(other) for other in imports_of_ours(name)} - {own}
    if name in PROGRAMS:
        others.discard("__init__")
    if WINGS[own] != {"anything"}:
        assert others <= WINGS[own]


def test_no_arrow_of_the_wings_is_drawn_that_nothing_needs() -> None:
    for own, targets in WINGS.items():
        names = [name for name in MODULES if wing(name) == own and name not in PROGRAMS]
        assert names, own
        if targets != {"anything"}:
            needed = {wing(other) for name in names for other in imports_of_ours(name)} - {own}
            assert needed == targets, own


def test_arrows_inside_the_model_are_those_drawn() -> None:
    found = {}
    for name in TRAVELLERS:
        inside = {other for other in imports_of_ours(name) if wing(other) == "model"}
        found[short(name)] = {short(other) for other in inside}
        if "kernels" in imports_of_ours(name):
            found[short(name)].add("kernels")
    assert found == INSIDE_MODEL


def short(name: str) -> str:
    return name.removeprefix("model.").removesuffix("_qrnn")


def test_arrows_make_no_circle() -> None:
    for arrows in (WINGS, INSIDE_MODEL):
        left = {name: targets & arrows.keys() for name, targets in arrows.items()}
        while left:
            ground = {name for name, targets in left.items() if not targets & left.keys()}
            assert ground, f"a circle among {sorted(left)}"
            left = {name: targets for name, targets in left.items() if name not in ground}


def test_root_of_the_package_is_four_modules() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {
        "__init__.py",
        "__main__.py",
        "layer.py",
        "registration.py",
    }


def test_files_that_travel_are_the_model() -> None:
    inside = {name for name in MODULES if wing(name) == "model"}
    assert inside == {*TRAVELLERS, "model.__init__", "model.warm_start"}


def test_arrows_are_seen() -> None:
    # The reader of imports above must not be blind to any way of writing one.
    assert imports_of_ours("model.backends_qrnn") == {
        "kernels",
        "model.pool_equations_qrnn",
        "model.pool_kinds_qrnn",
        "model.triton_connect_qrnn",
        "model.triton_qrnn",
    }
    assert "data.symbols" in imports_of_ours("data.batching")
    assert "model.layers_qrnn" in imports_of_ours("layer")
    assert "metrics.table" in imports_of_ours("training.evaluation")
    assert imports_of_ours("__main__") == {"cli.main"}


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
            assert f"model.{first}" in TRAVELLERS, target
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


@pytest.mark.parametrize(
    "path", [p for p in PYTHON_FILES if not p.is_relative_to(ROOT / "tests")], ids=relative
)
def test_function_is_not_longer_than_60_lines(path: Path) -> None:
    long = [
        f"{node.name}: {node.end_lineno - node.lineno + 1} lines"
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.end_lineno is not None
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert not long


# ------------------------------------------------------------------ types


def untyped(path: Path) -> list[str]:
    """List the functions of a file with an argument or a result that is not annotated."""
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            own = node.args
            given = [*own.posonlyargs, *own.args, *own.kwonlyargs, own.vararg, own.kwarg]
            is_open = {x.arg for x in given if x and x.annotation is None} - {"self", "cls"}
            if is_open or node.returns is None:
                found.append(f"line {node.lineno}: {node.name}")
    return found


@pytest.mark.parametrize(
    "path", [p for p in PYTHON_FILES if p.is_relative_to(ROOT / "tests")], ids=relative
)
def test_every_function_of_the_tests_is_annotated(path: Path) -> None:
    assert untyped(path) == []


def test_an_untyped_function_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        "def a(x: int) -> int: ...\n"
        "def b(x: int): ...\n"
        "def c(x) -> int: ...\n"
        "def d(*x, y: int) -> int: ...\n"
        "class E:\n    def e(self) -> None:\n        def f(*, y, **z: int) -> None: ...\n"
    )
    assert [line.split(": ")[1] for line in untyped(path)] == ["b", "c", "d", "f"]


# ------------------------------------------------------------------ words

QUESTIONS = {"What", "Where", "Which", "Why", "How", "Whether", "When", "Who"}
# A function's docstring begins with a verb; that of a property with the noun it is.
NOUNS_FIRST = {"The", "A", "An", "All", "Every", "No", "Its"}


def is_property(node: ast.AST) -> bool:
    decorators = getattr(node, "decorator_list", [])
    return any("property" in ast.unparse(decorator) for decorator in decorators)


def badly_begun(path: Path) -> list[str]:
    """List the docstrings of a file that begin with a question, or a function's with a noun."""
    found = []
    for node in ast.walk(tree(path)):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        # A property is a thing, as a class is.
        acts = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not is_property(node)
        forbidden = QUESTIONS | (NOUNS_FIRST if acts else set())
        first = (ast.get_docstring(node) or "-").split()[0].rstrip(",.:;")
        if first in forbidden or (acts and first.startswith(("`", "("))):
            found.append(f"{getattr(node, 'name', 'module')}: {ast.get_docstring(node)}")
    return found


@pytest.mark.parametrize("path", DESCRIBED, ids=relative)
def test_docstrings_begin_with_a_verb_or_the_noun(path: Path) -> None:
    assert not badly_begun(path)


def test_a_docstring_that_asks_is_seen(tmp_path: Path) -> None:
    # The test above must be able to fail.
    path = tmp_path / "some.py"
    path.write_text(
        '"""What it is."""\n'
        'class A:\n    """Why so."""\n'
        '    @property\n    def noun(self):\n        """The noun."""\n'
        'def f():\n    """The result."""\n'
        'def g():\n    """`x` itself."""\n'
        'def h():\n    """Return the result."""\n'
    )
    assert [line.split(":")[0] for line in badly_begun(path)] == ["module", "A", "f", "g"]


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


def test_what_users_type_is_in_the_package_itself() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    found: dict[bool, set[str]] = {True: set(), False: set()}
    for inner, names in re.findall(r"^\s*from hf_qrnn(\.[\w.]+)? import (.+)", text, flags=re.M):
        found[inner == ""] |= {name.split(" as ")[0].strip() for name in names.split(",")}
    assert found[True] <= set(hf_qrnn.__all__)
    assert found[False].isdisjoint(hf_qrnn.__all__)
    assert {"QRNN", "train_character_tokenizer"} <= found[True]


def test_names_have_the_homes_that_type_checkers_are_told() -> None:
    branch = next(node for node in tree(MODULES["__init__"]).body if isinstance(node, ast.If))
    assert ast.unparse(branch.test) == "TYPE_CHECKING"
    told = {
        alias.name: node.module
        for node in branch.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert told == hf_qrnn._HOMES
    assert sorted(told) == sorted(hf_qrnn.__all__)
    assert all(getattr(hf_qrnn, name) is vars(hf_qrnn)[name] for name in told)


def test_names_that_were_not_used_yet_are_there() -> None:
    script = (
        "import hf_qrnn\n"
        "assert set(hf_qrnn.__all__) | {'__version__', 'model', 'data'} <= set(dir(hf_qrnn))\n"
        "assert not hasattr(hf_qrnn, 'no_such_name')\n"
        "assert not hasattr(hf_qrnn.data, 'no_such_name')\n"
        "import hf_qrnn.data.flags\n"
        "hf_qrnn.data.tokenization.load_tokenizer, hf_qrnn.translation.translator.Translator\n"
        "hf_qrnn.layer.QRNN, hf_qrnn.model.modeling_qrnn.HEADS, hf_qrnn.model.warm_start\n"
        "names = {}\n"
        "exec('from hf_qrnn import *', names)\n"
        "assert set(hf_qrnn.__all__) <= set(names)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True)


def test_a_missing_package_is_not_taken_for_a_missing_name() -> None:
    script = (
        "import sys, hf_qrnn\n"
        "sys.modules['huggingface_hub'] = None\n"
        "try:\n    hf_qrnn.data.hub_replies\n"
        "except ModuleNotFoundError as error:\n    assert error.name == 'huggingface_hub'\n"
        "else:\n    raise AssertionError\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_import_registers_the_operations_it_says() -> None:
    assert hf_qrnn.__doc__ is not None
    names = re.findall(r"`hf_qrnn::(\w+)`", hf_qrnn.__doc__)
    assert len(names) == 2
    script = (
        f"import torch\nassert not any(hasattr(torch.ops.hf_qrnn, name) for name in {names})\n"
        f"import hf_qrnn\nassert all(hasattr(torch.ops.hf_qrnn, name) for name in {names})\n"
        "from transformers.pipelines import PIPELINE_REGISTRY\n"
        "assert 'qrnn-translation' in PIPELINE_REGISTRY.get_supported_tasks()\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_import_prints_nothing_and_loads_nothing_heavy() -> None:
    script = (
        "import sys, hf_qrnn\n"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'huggingface_hub', 'yaml'}\n"
        "found = sorted(heavy & set(sys.modules))\n"
        "import torch\n"
        "hf_qrnn.load_translator, hf_qrnn.QRNNTranslationPipeline\n"
        "heavy = {'datasets', 'evaluate', 'matplotlib', 'sacrebleu'}\n"
        "found += sorted(heavy & set(sys.modules))\n"
        "found += ['cuda'] * torch.cuda.is_initialized()\n"
        "sys.exit(', '.join(found) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_config_is_made_by_its_fields_alone() -> None:
    # transformers makes the constructor from the annotations; one by hand would bypass checks.
    classes = [
        n for n in tree(MODULES["model.configuration_qrnn"]).body if isinstance(n, ast.ClassDef)
    ]
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
