"""The common tests of the installed transformers release, as a package that tests can import.

`scripts/fetch_transformers_tests.py` puts them beside the environment. The source distribution
leaves three files out that they import; stand-ins of ours take their place where they are missing.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import sys
import unittest
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar
from unittest import mock

import pytest
import torch
import upstream_table

VERSION = importlib.metadata.version("transformers")
FOLDER = Path(sys.prefix) / "share" / f"transformers-{VERSION}" / "tests"
PACKAGE = "transformers_common_tests"

# Every field a config of transformers has, at a value that is not its default.
CONFIG_COMMON_KWARGS: dict[str, Any] = {
    "architectures": ["QRNNModel"],
    "output_hidden_states": True,
    "return_dict": False,
    "dtype": "float16",
    "chunk_size_feed_forward": 3,
    "id2label": {0: "no", 1: "yes"},
    "label2id": {"no": 0, "yes": 1},
    "problem_type": "multi_label_classification",
    "tie_word_embeddings": True,
    "is_decoder": True,
    "pad_token_id": 4,
    "bos_token_id": 5,
    "eos_token_id": 6,
    "decoder_start_token_id": 7,
}


class GenerationTesterMixin:
    """Stands in for a mixin the source distribution leaves out: tests/test_generation*.py."""


class ExportTesterMixin:
    """Stands in for a mixin the source distribution leaves out: tests/model/test_export.py."""


STAND_INS: dict[str, dict[str, Any]] = {
    "generation.test_utils": {"GenerationTesterMixin": GenerationTesterMixin},
    "exporters.test_export": {"ExportTesterMixin": ExportTesterMixin},
    "utils.test_configuration_utils": {"config_common_kwargs": CONFIG_COMMON_KWARGS},
}


def _module(name: str, path: list[str] | None = None, **contents: Any) -> None:
    module = ModuleType(name)
    if path is not None:
        module.__path__ = path
    vars(module).update(contents)
    sys.modules[name] = module


def load(name: str) -> ModuleType:
    """Import one file of transformers' tests, for example `load("test_modeling_common")`.

    Raises:
        FileNotFoundError: If they have not been fetched.
    """
    if not FOLDER.is_dir():
        raise FileNotFoundError(
            f"The common tests of transformers {VERSION} must be fetched once: "
            "python scripts/fetch_transformers_tests.py"
        )
    if PACKAGE not in sys.modules:
        _module(PACKAGE, [str(FOLDER)])
        for dotted, contents in STAND_INS.items():
            folder, file = dotted.split(".")
            if not (FOLDER / folder / f"{file}.py").exists():
                _module(f"{PACKAGE}.{folder}", [])
                _module(f"{PACKAGE}.{dotted}", **contents)
    return importlib.import_module(f"{PACKAGE}.{name}")


Tests = TypeVar("Tests", bound=type)


class Record:
    """A record of the watched classes' tests: begun, and passed."""

    def __init__(self) -> None:
        self.all: dict[str, set[str]] = {}
        self.counted: dict[str, str] = {}
        self.begun: dict[str, set[str]] = {}
        self.passed: dict[str, set[str]] = {}

    def watch(self, tests: Tests, group: str, counted: str = "") -> Tests:
        """Skip the table's tests of `tests`, a unittest class, and record all others.

        Args:
            tests: The class.
            group: The group it is of in the table of changes.
            counted: The group it is of in the table of numbers; "" if it has its own.
        """
        for name, reason in upstream_table.skips(tests.__name__, group).items():
            assert hasattr(tests, name), f"{name} is skipped, but is no test of {tests.__name__}"
            setattr(tests, name, unittest.skip(reason)(getattr(tests, name)))
        names = {
            name
            for name in dir(tests)
            if name.startswith("test_") and callable(getattr(tests, name))
        }
        self.all[tests.__name__], self.counted[tests.__name__] = names, counted
        self.begun[tests.__name__], self.passed[tests.__name__] = set(), set()
        for name in names:
            setattr(tests, name, self._recorded(tests.__name__, name, getattr(tests, name)))
        return tests

    def _recorded(self, tests: str, name: str, test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def recorded(case: unittest.TestCase, *arguments: Any) -> None:
            self.begun[tests].add(name)
            # A test that skips inside a subtest returns as if it had passed.
            with mock.patch.object(case, "skipTest", wraps=case.skipTest) as skip:
                test(case, *arguments)
            if not skip.called:
                self.passed[tests].add(name)

        return recorded

    def check(self, tests: str, session: pytest.Session) -> None:
        """Compare the number of tests of `tests` that passed with the one in the table."""
        selected = {item.name for item in session.items if f"::{tests}::" in item.nodeid}
        if not self.begun[tests] or selected != self.all[tests]:
            pytest.skip("not run, or only a part of it: --slow runs all of it")
        release = ".".join(VERSION.split(".")[:2])
        passed = len(self.passed[tests])
        # A new release may run fewer of these tests: green without a number would not tell.
        expected = upstream_table.number(tests, self.counted[tests], release)
        if expected is None:
            pytest.fail(
                f"no number of {tests} is on record for transformers {release}: look at what it "
                f"skips, then write {passed} into tests/support/upstream_table.py",
                pytrace=False,
            )
        usual = not torch.cuda.is_available() and importlib.util.find_spec("peft") is None
        fits = passed == expected if usual else passed >= expected
        assert fits, f"{passed} tests of {tests} passed, but the table says {expected}"
