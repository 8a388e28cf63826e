"""transformers' own common tests on the two kinds of tokenizers; see docs/ for the changes."""

import shutil
import tempfile
import unittest
from collections.abc import Callable
from typing import Any, ClassVar
from unittest import mock

import pytest
import upstream
import upstream_table
from transformers import PreTrainedTokenizerFast
from upstream_table import TOKENIZERS

from hf_qrnn.data.tokenization import make_byte_tokenizer, train_character_tokenizer

tokenization = upstream.load("test_tokenization_common")
backend = upstream.load("test_tokenizers_backend_mixin")

TEXTS = [
    tokenization.TokenizerTesterMixin.integration_test_input_string,
    "".join(map(chr, range(32, 127))),
]
BUILDERS = {
    "CharacterTokenizerTest": lambda: train_character_tokenizer(TEXTS, model_max_length=512),
    "ByteTokenizerTest": make_byte_tokenizer,
}
RECORD = upstream.Record()
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


class CommonTests(tokenization.TokenizerTesterMixin, backend.TokenizersBackendTesterMixin):  # type: ignore[name-defined,misc]
    """The settings and overrides of upstream_table."""

    tokenizer_class = rust_tokenizer_class = PreTrainedTokenizerFast
    test_tokenizer_from_extractor = False
    build: ClassVar[Callable[[], PreTrainedTokenizerFast]]
    folder: ClassVar[str]

    @classmethod
    def setUpClass(cls) -> None:
        cls.folder = tempfile.mkdtemp()
        cls.build().save_pretrained(cls.folder)
        cls.from_pretrained_id = [cls.folder]
        super().setUpClass()

    @classmethod
    def tearDownClass(cls) -> None:
        super().tearDownClass()
        shutil.rmtree(cls.folder)

    def test_tokenize_special_tokens(self) -> None:
        def reading(**kwargs: Any) -> PreTrainedTokenizerFast:
            kind: Any = type(self)
            return kind.get_tokenizer(split_special_tokens=False, **kwargs)

        self.get_tokenizer = reading
        super().test_tokenize_special_tokens()


def _tests(name: str, build: Callable[[], PreTrainedTokenizerFast]) -> type:
    contents = {"build": staticmethod(build), "__module__": __name__}
    return RECORD.watch(type(name, (CommonTests, unittest.TestCase), contents), TOKENIZERS)


globals().update({name: _tests(name, build) for name, build in BUILDERS.items()})


# ------------------------------------------------------------------ the table


def test_overrides_and_settings_are_in_the_table() -> None:
    written = {name for name in vars(CommonTests) if name.startswith("test_")}
    listed = {
        change.name.split(" = ")[0]
        for change in upstream_table.TABLE
        if change.classes == TOKENIZERS and change.name.startswith("test_")
        if change.kind != "skip"
    }
    assert written == listed


@pytest.mark.parametrize("name", BUILDERS)
def test_number_passed(name: str, request: pytest.FixtureRequest) -> None:
    RECORD.check(name, request.session)


def test_a_number_that_is_missing_or_another_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    class SomeTests(unittest.TestCase):
        def test_a(self) -> None:
            pass

        def test_b(self) -> None:
            self.skipTest("on purpose")

    record = upstream.Record()
    record.watch(SomeTests, "no group")
    unittest.defaultTestLoader.loadTestsFromTestCase(SomeTests).run(unittest.TestResult())
    items = [mock.Mock(nodeid=f"f.py::SomeTests::{name}") for name in ("test_a", "test_b")]
    for item, name in zip(items, ("test_a", "test_b"), strict=True):
        item.name = name
    session: Any = mock.Mock(items=items)
    release = ".".join(upstream.VERSION.split(".")[:2])
    monkeypatch.setattr(upstream_table, "PASSED", {release: {"SomeTests": 1}})
    record.check("SomeTests", session)
    monkeypatch.setattr(upstream_table, "PASSED", {release: {"SomeTests": 2}})
    with pytest.raises(AssertionError, match="1 tests of SomeTests passed, but the table says 2"):
        record.check("SomeTests", session)
    for numbers in ({}, {release: {"OtherTests": 1, "some group": 1}}):
        monkeypatch.setattr(upstream_table, "PASSED", numbers)
        with pytest.raises(pytest.fail.Exception, match="no number of SomeTests is on record"):
            record.check("SomeTests", session)
    record.counted["SomeTests"] = "some group"
    record.check("SomeTests", session)
    monkeypatch.setattr(upstream_table, "PASSED", {release: {"SomeTests": 2, "some group": 1}})
    with pytest.raises(AssertionError, match="1 tests of SomeTests passed, but the table says 2"):
        record.check("SomeTests", session)


def test_page_is_written_from_the_table() -> None:
    written = upstream_table.PAGE.read_text(encoding="utf-8")
    assert written == upstream_table.page(), "run python tests/support/upstream_table.py"
