"""hf_qrnn.metrics.edits: the textbook's table, hand-worked lines, several references."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_qrnn.data.symbols import encode_targets, train_symbol_tokenizer
from hf_qrnn.data.texts import split_symbols
from hf_qrnn.data.tokenization import decode_batch
from hf_qrnn.metrics.edits import (
    char_error_rate,
    edit_distance,
    exact_match,
    split_tokens,
    token_error_rate,
    word_error_rate,
)


def by_table(first: Sequence[object], second: Sequence[object]) -> int:
    """Wagner and Fischer's table, cell by cell."""
    rows, columns = len(first) + 1, len(second) + 1
    cells = [[i + j if i == 0 or j == 0 else 0 for j in range(columns)] for i in range(rows)]
    for i in range(1, rows):
        for j in range(1, columns):
            replaced = cells[i - 1][j - 1] + (first[i - 1] != second[j - 1])
            cells[i][j] = min(replaced, cells[i - 1][j] + 1, cells[i][j - 1] + 1)
    return cells[-1][-1]


@given(st.text("ab\u00fc", max_size=90), st.text("ab\u00fc", max_size=90))
def test_edit_distance_is_the_tables(first: str, second: str) -> None:
    assert edit_distance(first, second) == by_table(first, second)
    assert edit_distance(second, first) == by_table(first, second)


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("", "", 0), ("", "abc", 3), ("abc", "", 3), ("kitten", "sitting", 3),
        ("intention", "execution", 5), ("a" * 70, "a" * 64 + "b" * 5, 6),
    ],
)  # fmt: skip
def test_edit_distance_of_known_words(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == distance


def test_error_rates_weigh_the_whole_corpus() -> None:
    hypotheses = ["t a t", "b \u0254\u0303", ""]
    references = [["t a"], ["b \u0254\u0303 \u0292"], ["k"]]
    # Characters: 2 + 2 + 1 edits of 3 + 6 + 1; tokens: 1 + 1 + 1 of 2 + 3 + 1.
    assert char_error_rate(hypotheses, references) == pytest.approx(5 / 10)
    assert token_error_rate(hypotheses, references) == pytest.approx(3 / 6)
    assert exact_match(["a", "b", "c"], [["a"], ["x", "b"], ["C"]]) == pytest.approx(200 / 3)


def test_word_error_rate_counts_lines_that_equal_no_reference() -> None:
    hypotheses = ["HH AH0", "k a", "", "  k  a t "]
    references = [["HH AH1", "HH AH0"], ["k a t"], ["x"], ["k a t"]]
    # The second and the third; blanks are no difference, as they are none for the token error rate.
    assert word_error_rate(hypotheses, references) == pytest.approx(2 / 4)
    right = [0, 3]
    kept = [hypotheses[i] for i in right], [references[i] for i in right]
    assert word_error_rate(*kept) == token_error_rate(*kept) == 0.0
    assert word_error_rate(["a"], [["A"]]) == 1.0


@pytest.mark.parametrize("space", ["\u00a0", "\u3000", "\u2009", "\t"])
def test_a_blank_is_u0020_and_nothing_else(space: str) -> None:
    symbol = f"a{space}b"
    assert token_error_rate([f"{symbol} c"], [[f"{symbol} d"]]) == pytest.approx(1 / 2)
    assert word_error_rate(["a b"], [[symbol]]) == 1.0
    # So are the symbols of a tokenizer.
    tokenizer = train_symbol_tokenizer(["x"], [f"{symbol} c"])
    assert len(tokenizer) == 4 + 1 + 2
    assert decode_batch(tokenizer, encode_targets(tokenizer, [symbol])) == [symbol]
    assert split_symbols(f" {symbol}  c") == split_tokens(f" {symbol}  c") == [symbol, "c"]


def test_a_moved_token_costs_two_edits() -> None:
    # TER moves "c" to the front for one edit.
    assert token_error_rate(["a b c"], [["c a b"]]) == pytest.approx(2 / 3)


def test_of_several_references_the_nearest_counts() -> None:
    # Edits of the nearest: 1 of "abcd"; the mean length is 6.
    assert char_error_rate(["abcx"], [["abcdefgh", "abcd"]]) == pytest.approx(1 / 6)


def test_empty_references() -> None:
    assert char_error_rate([""], [[""]]) == 0.0
    assert char_error_rate(["abc"], [[""]]) == 1.0
    assert char_error_rate(["abc", ""], [["", ""], ["ab"]]) == pytest.approx(5 / 2)
