"""A phrase that stands in a row too often is a loop, and what is said twice is none."""

import pytest

from hf_qrnn.translation.loops import count_loops, cut_loops

# Text, loops, text without them.
LOOPS = [
    ("the dog the dog the dog", 1, "the dog"),
    ("He went to the house to the house to the house.", 1, "He went to the house."),
    ("as far as I can see, as far as I can see.", 1, "as far as I can see."),
    ("one one one one two", 1, "one two"),
    ("A dog. a DOG, a dog!", 1, "A dog!"),
    ("la la la la and no no no no", 2, "la and no"),
    ("abcabcabcabc", 1, "abc"),
    ("abcdeabcdeabcde end", 1, "abcde end"),
    ("noooooooooo", 1, "no"),
    ("der der der der das das das das", 2, "der das"),
    ("我们去我们去我们去我们去", 1, "我们去"),
]
NONE = [
    "",
    "no, no, no",
    "very good, very good",
    "the more the merrier",
    "hahaha, a long sooooo",
    "10000000000000 and 121212121212",
    "**** ---- ......",
    "He said that he said that she did.",
    "\u0130\u0130\u0130\u0130\u0130\u0130\u0130",
]


@pytest.mark.parametrize(("text", "count", "cut"), LOOPS)
def test_loops_are_counted_and_cut(text: str, count: int, cut: str) -> None:
    assert count_loops(text) == count
    assert cut_loops(text) == cut
    assert count_loops(cut) == 0


@pytest.mark.parametrize("text", NONE)
def test_what_is_no_loop_stays(text: str) -> None:
    assert count_loops(text) == 0
    assert cut_loops(text) == text


def test_words_of_more_letters_in_small_ones_keep_their_places() -> None:
    # The small form of this letter is two characters.
    assert cut_loops("\u0130 a a a a \u0130") == "\u0130 a \u0130"
