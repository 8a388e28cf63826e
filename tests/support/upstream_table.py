"""Changes to transformers' common tests, each with its reason.

The tests read this table, and so does `docs/transformers_common_tests.md`, which is written by
`python tests/support/upstream_table.py` and held to it by a test.
"""

from pathlib import Path
from typing import NamedTuple

PAGE = Path(__file__).parents[2] / "docs" / "transformers_common_tests.md"
MODELS = "every model"
GENERATORS = "every model that generates"
OTHERS = "every other model"
TOKENIZERS = "every tokenizer"


class Change(NamedTuple):
    """One change: a "setting" of the tester, a test that is an "override" of ours, or a "skip"."""

    classes: str
    name: str
    kind: str
    reason: str


TABLE = (
    Change(
        MODELS,
        "has_attentions = False",
        "setting",
        "There is no self-attention, which is what these tests look at; the attention over the"
        " source (`cross_attentions`) is tested in test_encoder_decoder.py and test_modeling.py.",
    ),
    Change(
        MODELS,
        "test_can_init_all_missing_weights_before_2023 = True",
        "setting",
        "Runs one test more: transformers would skip a model whose file has no copyright year.",
    ),
    Change(
        "QRNNForCausalLM, QRNNForSequenceClassification",
        "is_encoder_decoder = False in the tester's config",
        "setting",
        "The tests ask the config they hand in which outputs to expect; our heads correct a copy.",
    ),
    Change(
        "QRNNForSequenceClassification",
        "test_load_with_mismatched_shapes",
        "override",
        "The test as it comes, told that AutoModel gives an encoder-decoder: QRNNModel, unlike the"
        " classifier, wants `decoder_input_ids`.",
    ),
    Change(
        TOKENIZERS,
        "test_tokenizer_from_extractor = False",
        "setting",
        "The tokenizers are built from components, not by a class that takes a vocabulary.",
    ),
    Change(
        TOKENIZERS,
        "test_alignment_methods",
        "skip",
        "The test wants word numbers, but there are no words: the whole text is one.",
    ),
    Change(
        "ByteTokenizerTest",
        "test_rust_tokenizer_add_prefix_space_0",
        "skip",
        "No space is ever put before a text, not even when asked: what goes in comes out.",
    ),
    Change(
        TOKENIZERS,
        "filterwarnings = ignore unraisable exceptions",
        "setting",
        "The tests leave files open; elsewhere in this project that is an error.",
    ),
    Change(
        TOKENIZERS,
        "test_tokenize_special_tokens",
        "override",
        "The test as it comes, with `split_special_tokens=False`: ours never read a special token"
        " from text unless asked to.",
    ),
)


def skips(tests: str, group: str) -> dict[str, str]:
    """Return the tests that class `tests` of `group` skips, with the reasons."""
    return {c.name: c.reason for c in TABLE if c.kind == "skip" and c.classes in (tests, group)}


# Tests that pass in a class, by release of transformers, on a CPU and without peft. A class that is
# named has a number of its own, all others that of their group: so a new head is counted too.
PASSED: dict[str, dict[str, int]] = {
    "5.17": {
        GENERATORS: 70,
        OTHERS: 69,
        "CharacterTokenizerTest": 58,
        "ByteTokenizerTest": 57,
    },
    "5.23": {
        GENERATORS: 74,
        OTHERS: 73,
        "CharacterTokenizerTest": 59,
        "ByteTokenizerTest": 58,
    },
}


def number(tests: str, counted: str, release: str) -> int | None:
    """Return the number of tests of class `tests`, of the group `counted`, that must pass."""
    numbers = PASSED.get(release, {})
    return numbers.get(tests, numbers.get(counted))


def rows() -> list[str]:
    """Write the table of changes in Markdown."""
    lines = ["| class | what | kind | reason |", "|---|---|---|---|"]
    return lines + [f"| {c.classes} | `{c.name}` | {c.kind} | {c.reason} |" for c in TABLE]


def page() -> str:
    """Write the whole page."""
    releases = sorted(PASSED)
    names = list(PASSED[releases[-1]])
    numbers = [f"| class | {' | '.join(releases)} |", "|---" * (len(releases) + 1) + "|"]
    for name in names:
        counts = " | ".join(str(PASSED[release].get(name, "-")) for release in releases)
        numbers.append(f"| {name} | {counts} |")
    lines = [
        "# transformers' common tests",
        "",
        "`tests/model/test_transformers_models.py` and",
        "`tests/data/test_transformers_tokenizers.py` run the tests that transformers runs on its",
        "own models: `ModelTesterMixin`, `ConfigTester`,",
        "`TokenizerTesterMixin` and `TokenizersBackendTesterMixin`, from the source distribution",
        "of the installed release. `make test` runs them on the paper's stack, `make test-matrix`",
        "on a modern stack (residual, bidirectional, attention in every layer) too. The source",
        "distribution leaves out `GenerationTesterMixin` and `ExportTesterMixin`: generation and",
        "export have tests of their own.",
        "",
        "This page is written by `python tests/support/upstream_table.py`.",
        "",
        "## What is run otherwise",
        "",
        *rows(),
        "",
        "All other skips are transformers' own: the tests of hardware, libraries and features",
        "(flash attention, rotary positions, experts, images) that are not here.",
        "",
        "## Tests that pass, by release of transformers",
        "",
        "The number in a class is asserted by the last test of each file (on a CPU, without peft).",
        "",
        *numbers,
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
