"""What the documents name is there: files, modules, and the functions of the walks."""

import ast
import importlib
import re
from pathlib import Path

import pytest
from sources import PACKAGE, ROOT, tree

PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "benchmarks" / "misses.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = "hf_qrnn|demo|scripts|docs|tests|benchmarks|model_cards"
INNER_FOLDERS = "|".join(sorted(path.name for path in PACKAGE.iterdir() if path.is_dir()))
# Names of other programs, of tensors and of columns, which walks may say too.
NOT_OURS = {"attention_mask", "datasets", "input_ids", "labels"}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


MAP = text_of(ROOT / "docs" / "where_things_are.md")
WALKS = {
    heading: text
    for heading, text in re.findall(r"^## (.+)\n((?:(?!## ).*\n)*)", MAP, flags=re.M)
    if heading != "The map"
}
WINGS = dict(re.findall(r"^### ([\w/]+)/\n((?:(?!###? ).*\n?)*)", MAP, flags=re.M))


def rows_of(wing: str) -> list[list[str]]:
    """The files and the tests of each row of a wing's table."""
    cells = [line.split("|") for line in WINGS[wing].splitlines() if line.startswith("| `")]
    return [re.findall(r"`([^`]+)`", row[1]) + re.findall(r"`([^`]+)`", row[3]) for row in cells]


# ------------------------------------------------------------------ the map


@pytest.mark.parametrize("wing", WINGS)
def test_table_of_a_wing_has_its_files_each_once(wing: str) -> None:
    listed = [row[0] for row in rows_of(wing)]
    found = {
        str(path.relative_to(ROOT / wing))
        for path in (ROOT / wing).rglob("*.py")
        # A docstring alone has no place of its own.
        if path.name != "__init__.py" or len(tree(path).body) > 1
    }
    if wing == "hf_qrnn":
        found = {name for name in found if "/" not in name}
    assert len(listed) == len(set(listed))
    assert found <= set(listed), "docs/where_things_are.md does not say where they belong"
    assert [name for name in listed if not (ROOT / wing / name).exists()] == []


@pytest.mark.parametrize("wing", WINGS)
def test_tests_that_the_map_names_are_there(wing: str) -> None:
    missing = [name for row in rows_of(wing) for name in row[1:] if not (ROOT / name).is_file()]
    assert missing == []


def test_every_folder_with_code_is_in_the_map() -> None:
    wings = {f"hf_qrnn/{p.name}" for p in PACKAGE.iterdir() if any(p.glob("*.py"))}
    assert WINGS.keys() == wings | {"hf_qrnn", "demo", "scripts", "benchmarks"}


# ------------------------------------------------------------------ the walks


def names_in(path: Path) -> set[str]:
    """Functions, classes and methods (`Class.method`) of a Python file; words of a C++ file."""
    if path.suffix != ".py":
        return set(re.findall(r"\b(\w+)(?=[(<])", text_of(path)))
    found = set()
    for node in tree(path).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = (inner for inner in node.body if isinstance(inner, ast.FunctionDef))
            found |= {f"{node.name}.{method.name}" for method in methods}
    return found


def test_there_are_three_walks_of_numbered_steps() -> None:
    assert len(WALKS) == 3
    for walk in WALKS.values():
        numbers = [int(n) for n in re.findall(r"^(\d+)\. ", walk, flags=re.M)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert len(numbers) >= 5


@pytest.mark.parametrize("heading", WALKS)
def test_every_function_of_a_walk_is_in_the_file_it_names(heading: str) -> None:
    pairs = re.findall(r"`([\w/]+\.\w+)`:\s+`([\w.]+)`", WALKS[heading])
    assert len(pairs) >= 8
    wrong = [(path, name) for path, name in pairs if name not in names_in(ROOT / path)]
    assert wrong == []


@pytest.mark.parametrize("heading", WALKS)
def test_every_other_name_of_a_step_is_in_one_of_its_files(heading: str) -> None:
    for step in re.split(r"\n(?=\d+\. |\n)", WALKS[heading]):
        quoted = re.findall(r"`([^`]+)`", step)
        files = [ROOT / name for name in quoted if "/" in name and (ROOT / name).is_file()]
        known = NOT_OURS.union(*(names_in(path) for path in files))
        names = {name for name in quoted if re.fullmatch(r"\w+(\.\w+)?", name)}
        assert names <= known, step


# ------------------------------------------------------------------ paths and dotted names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_path_exists(page: Path) -> None:
    # As a reader sees it: from the root, or inside the package.
    start = r"(?<![\w/.-])"
    named = re.findall(rf"{start}(?:{FOLDERS})/[\w./-]*\w", text_of(page))
    assert [name for name in named if not (ROOT / name).exists()] == []
    inner = re.findall(rf"`((?:{INNER_FOLDERS})/[\w./-]*\w)", text_of(page))
    assert [name for name in inner if not (PACKAGE / name).exists()] == []
    travelling = re.findall(r"(?<![\w/*])\w+_qrnn\.py", text_of(page))
    assert [name for name in travelling if not (PACKAGE / "model" / name).exists()] == []


# Flags of argparse, pytest, accelerate, torchrun and transformers' example scripts.
FLAGS_OF_OTHERS = {
    *("config_file", "help", "multi_gpu", "nproc_per_node", "num_processes", "slow", "standalone"),
    *("config_overrides", "eval_strategy", "label_smoothing_factor", "load_best_model_at_end"),
    *("metric_for_best_model", "model_type", "predict_with_generate", "save_strategy"),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flag_is_one(page: Path) -> None:
    code = [path for f in ("hf_qrnn", "scripts", "benchmarks") for path in (ROOT / f).rglob("*.py")]
    text = "\n".join(map(text_of, code))
    # Of argparse, or fields of the scripts' dataclasses.
    ours = {
        *re.findall(r'"--(\w+)"', text),
        *re.findall(r"^    (\w+): [^=\n]+ = ", text, flags=re.M),
    }
    assert {"metric", "overwrite_output_dir", "references"} <= ours
    named = set(re.findall(r"(?<!\w)--([a-z]\w*)", text_of(page)))
    assert named - ours - FLAGS_OF_OTHERS == set()


def resolves(name: str) -> bool:
    """Whether a dotted name is a module or an attribute of one."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for attribute in parts[end:]:
            found = getattr(found, attribute, None)
        return found is not None
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_dotted_name_imports(page: Path) -> None:
    named = set(re.findall(r"(?<![\w./])hf_qrnn(?:\.\w+)+", text_of(page)))
    assert [name for name in sorted(named) if not resolves(name)] == []


def test_a_name_that_is_not_there_does_not_resolve() -> None:
    assert resolves("hf_qrnn.QRNN")
    assert not resolves("hf_qrnn.tokenization.load_tokenizer")


def test_new_paths_of_the_changelog_import() -> None:
    section = text_of(ROOT / "CHANGELOG.md").split("### Breaking: old import paths end")[1]
    rows = re.findall(r"^\| `(.+?) \| `(.+?) \|$", section.split("###")[0], flags=re.M)
    assert len(rows) >= 20
    for old, new in rows:
        first, *others = re.findall(r"[\w.*]+\w", new)
        names = [first, *(first.rsplit(".", 1)[0] + other for other in others)]
        assert [name for name in names if "*" not in name and not resolves(name)] == [], old
