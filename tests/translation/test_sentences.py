"""Lines are split where sentences end, and nowhere else; the parts are the line."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_qrnn.translation.sentences import split_clauses, split_line, split_words

# Sentences of a line, "|" between them.
LINES = [
    "Er kam.|Sie ging!|Warum?|Ach ...|Na gut…|Wirklich?!|Ja.",
    "„Komm her!“, sagte er.|„Warum?“|Sie ging.",
    '"Komm her!" sagte er.|"Nein."|Er blieb.',
    "»Ja.«|Dann ging er.|(Das stimmt.)|Und weiter?",
    "Dr. Müller und Prof. h. c. K. A. Schmidt wohnen in der Hauptstr. 5.|Sie sind da.",
    "Das kostet z. B. 3,5 Mio. Euro, d.h. sehr viel, bzw. ca. 3.5 Mrd. Dollar.|Viel!",
    "Am 3. Mai 1990 kam der 2. Weltkrieg zur Sprache.|Im 21. Jahrhundert nicht.",
    "Er ist 30.|Sie ist 25.|Das war 1990.|Danach kam er.",
    "Es war am 3. 5. 2020 um 3.30 Uhr.|Gut.",
    "Ludwig XIV. König von Frankreich, lebte lange.|Ja.",
    "Er sah Nr. 5 und Abb. 3 auf S. 12.|Gut.",
    "Das ist diese Art.|Er mag sie.|Siehe Art. 5.",
    "Mr. Smith met Mrs. Jones at 5 p.m.|He left.|No.|He lives in the U.S. Army, i.e. far away.",
    "Das ist gut usw.|Wir gehen.",
    "- Ja.|- Nein.",
    "Er kommt um drei.|42 Leute waren da.",
    "我来了。|你呢？|好！",
    "er ging. und kam.",
    "www.example.org ist eine Seite.|Ja.",
]


def sentences(line: str) -> list[str]:
    return [part.text for part in split_line(line) if part.is_sentence]


@pytest.mark.parametrize("text", LINES)
def test_sentences_end_where_they_end(text: str) -> None:
    expected = text.split("|")
    is_spaced = "。" not in text
    line = (" " if is_spaced else "").join(expected)
    found = sentences(line)
    # A mark of a list before the first is no part of it.
    assert found == [expected[0].removeprefix("- "), *expected[1:]]
    assert "".join(part.text for part in split_line(line)) == line


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("\t  Ja.  Nein. \r\n", ["\t  ", "  ", " \r\n"]),
        ("1. Öffnen Sie.", ["1. "]),
        ("3. Mai ist heute.", []),
        ("  > - Ja.", ["  > - "]),
        ("## Titel", ["## "]),
        (">Ja. Nein.", [">", " "]),
        (">>Ja.", [">>"]),
        ("> >Ja.", ["> >"]),
        ("- [ ] Ja.", ["- [ ] "]),
        ("* [x] Ja.", ["* [x] "]),
        ("a) Ja.", ["a) "]),
        ("(b) Ja.", ["(b) "]),
        ("(12) Ja.", ["(12) "]),
        ("iv) Ja.", ["iv) "]),
        ("– Ja.", ["– "]),
        ("(Der) Hund.", []),
        ("A. Schmidt kommt.", []),
        ("Ja.\tNein. Gut.\t\tAch\t", ["\t", " ", "\t\t", "\t"]),
        ("1.\tJa.", ["1.\t"]),
        ("42", ["42"]),
        ("Ja. 3,5 (1990). Nein.", [" 3,5 (1990). "]),
        ("1000. Ja.", ["1000. "]),
        ("| Ja. Nein | gut |\n", ["| ", " ", " | ", " |\n"]),
        ("Ja | gut", []),
        ("> | Ja |", ["> | ", " |"]),
        ("|---|:-:|", ["|---|:-:|"]),
        ("<p class='x'>\n", ["<p class='x'>\n"]),
        ("&nbsp;<br/>", ["&nbsp;<br/>"]),
        ("https://example.org/a?b=c", ["https://example.org/a?b=c"]),
        ("<https://example.org>, www.example.org", ["<https://example.org>, www.example.org"]),
        ("hans@example.org", ["hans@example.org"]),
        ("```python", ["```python"]),
        ("~~~", ["~~~"]),
        ("Ein Hund <b>.", []),
        ("\ufeffJa.\u2028Nein.", ["\ufeff", "\u2028"]),
        ("***\n", ["***\n"]),
        ("\0\0 \0", ["\0\0 \0"]),
        (" \n", [" \n"]),
        ("", []),
        ("... --- ...", None),
    ],
)
def test_what_is_no_sentence_is_kept(line: str, expected: list[str] | None) -> None:
    parts = split_line(line)
    assert "".join(part.text for part in parts) == line
    kept = [part.text for part in parts if not part.is_sentence]
    if expected is None:
        assert "".join(kept) == line
    else:
        assert kept == expected


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from('aB3 .!?,;:–-"“„)(\t\n\0。，')), st.integers(1, 20))
def test_parts_are_the_whole(text: str, longest: int) -> None:
    parts = split_line(text)
    assert "".join(part.text for part in parts) == text
    for part in parts:
        if part.is_sentence:
            assert part.text == part.text.strip() != ""
            for split in (split_clauses, split_words):
                assert "".join(x.text for x in split(part.text, longest)) == part.text


LONG = (
    "Der Mann, der gestern kam, sagte, dass er heute nicht kommen könne; morgen wolle er wieder "
    "arbeiten – er werde anrufen und 3,5 Stunden bleiben"
)


def test_long_sentences_are_split_at_their_strongest_seams() -> None:
    first, gap, second = split_clauses(LONG, 100)
    assert (first.text[-1], gap, second.text[:6]) == (";", (" ", False), "morgen")
    assert [x.text for x in split_clauses(LONG, 60)] == [
        "Der Mann, der gestern kam, sagte,", " ", "dass er heute nicht kommen könne;", " ",
        "morgen wolle er wieder arbeiten", " – ", "er werde anrufen und 3,5 Stunden bleiben",
    ]  # fmt: skip
    assert split_clauses(LONG, 30)[-3:] == [
        ("er werde anrufen", True), (" ", False), ("und 3,5 Stunden bleiben", True),
    ]  # fmt: skip


def test_what_has_no_clause_stays_and_is_split_at_blanks() -> None:
    text = "ein langer Satz ohne ein Zeichen darin"
    assert split_clauses(text, 10) == [(text, True)]
    found = [part.text for part in split_words(text, 16) if part.is_sentence]
    assert " ".join(found) == text
    assert max(map(len, found)) <= 16
    assert split_words("x" * 50, 16) == [("x" * 50, True)]


@pytest.mark.parametrize(
    "line",
    [
        "x" * 300_000, "." * 100_000 + "x", "a" + " " * 100_000 + "b", "Ja. " * 20_000,
        "x" * 100_000 + ". Ja. " + "y" * 100_000, "- " * 50_000, "a, " * 30_000,
    ],
    ids=["word", "points", "blanks", "sentences", "words", "marks", "commas"],
)  # fmt: skip
def test_long_lines_take_no_long_time(line: str) -> None:
    start = time.process_time()
    parts = split_line(line)
    assert "".join(part.text for part in parts) == line
    for part in parts[:50]:
        assert "".join(x.text for x in split_clauses(part.text, 50)) == part.text
    assert time.process_time() - start < 5
