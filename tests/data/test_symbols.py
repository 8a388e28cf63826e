import random
import re
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_qrnn.data.symbols import (
    add_symbols,
    alphabet,
    encode_sources,
    encode_targets,
    languages,
    sides_of,
    train_symbol_tokenizer,
    with_alphabets,
)
from hf_qrnn.data.tokenization import (
    check_tokenizer,
    decode_batch,
    encode_batch,
    is_nfc,
    is_nfd,
    load_tokenizer,
    make_byte_tokenizer,
    tokenizer_kind,
    train_character_tokenizer,
)

WORDS = ["hello", "chair", "\u00e9t\u00e9", "a\u2581b", " two words ", "<unk>", "a"]
PHONES = [
    "HH AH0 L OW1",
    "t\u0361\u0283 \u025b\u0259",
    "e t e",
    "\u2581 a\u2581",
    "a",
    "<unk> </s>",
]


def made(folder: Path, **options: object) -> PreTrainedTokenizerBase:
    """Train, save and load: every test is of what another program finds."""
    given = {"sources": WORDS, "targets": PHONES, **options}
    train_symbol_tokenizer(**given).save_pretrained(folder)  # type: ignore[arg-type]
    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    return loaded


def tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[str]:
    found = tokenizer.convert_ids_to_tokens(ids)
    assert isinstance(found, list)
    return found


def test_symbol_of_a_blank_side_is_one_token_and_a_character_of_the_other_another(
    tmp_path: Path,
) -> None:
    tokenizer = made(tmp_path)
    assert tokens(tokenizer, encode_targets(tokenizer, ["HH AH0 a"])[0]) == [
        "\u2581HH", "\u2581AH0", "\u2581a", "</s>",
    ]  # fmt: skip
    assert tokens(tokenizer, encode_sources(tokenizer, ["a h"])[0]) == ["a", " ", "h", "</s>"]
    # Four special tokens, the characters, the symbols; each once.
    characters = {x for word in WORDS for x in word}
    symbols = {x for text in PHONES for x in text.split(" ")}
    assert len(tokenizer) == 4 + len(characters) + len(symbols)
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id] == [0, 1]
    assert [tokenizer.unk_token_id, tokenizer.bos_token_id] == [2, 3]


def test_both_sides_come_back_as_they_were(tmp_path: Path) -> None:
    tokenizer = made(tmp_path)
    assert decode_batch(tokenizer, encode_targets(tokenizer, PHONES)) == PHONES
    assert decode_batch(tokenizer, encode_sources(tokenizer, WORDS)) == WORDS
    # By transformers alone, as a stranger's program does it.
    ids = encode_targets(tokenizer, ["HH AH0 L OW1"])[0]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "HH AH0 L OW1"
    assert tokenizer.batch_decode([[3, *ids, 0, 0]], skip_special_tokens=True) == ["HH AH0 L OW1"]


@pytest.mark.parametrize("source", ["char", "blank"])
@pytest.mark.parametrize("target", ["char", "blank"])
@pytest.mark.parametrize("tags", [(), ("fre", "pt-BR")], ids=["plain", "tagged"])
def test_random_texts_come_back_whatever_the_sides(
    tmp_path: Path, source: str, target: str, tags: tuple[str, ...]
) -> None:
    draw = random.Random(0)
    pool = ["\u2581", "<", "fre", ">", "<fre>", "</s>", "t\u0361\u0283", "\n", "\t", "\u00a0", "x"]

    def text(side: str) -> str:
        symbols = ["".join(draw.choices(pool, k=draw.randint(1, 3))) for _ in range(5)]
        joined = " ".join(symbols[: draw.randint(0, 5)])
        return joined + " " * draw.randint(0, 2) if side == "char" else joined

    left, right = ([text(side) for _ in range(60)] for side in (source, target))
    tokenizer = made(
        tmp_path, sources=left, targets=right, source_tokens=source, target_tokens=target,
        languages=tags,
    )  # fmt: skip
    assert sides_of(tokenizer) == (source, target)
    language = tags[0] if tags else None
    rows = encode_sources(tokenizer, left, language)
    assert decode_batch(tokenizer, rows) == left
    assert decode_batch(tokenizer, encode_targets(tokenizer, right)) == right
    unknown = tokenizer.unk_token_id
    assert not any(unknown in row for row in rows)
    # What a stranger's program calls gives the same.
    tag = f"<{language}>" if tags else ""
    assert tokenizer([tag + x for x in left])["input_ids"] == rows


def test_two_blank_sides_share_their_symbols(tmp_path: Path) -> None:
    tokenizer = made(tmp_path, sources=["a b"], targets=["b c"], source_tokens="blank")
    assert encode_sources(tokenizer, ["b"]) == encode_targets(tokenizer, ["b"])
    assert len(tokenizer) == 4 + 3
    assert tokenizer("a b")["input_ids"] == encode_sources(tokenizer, ["a b"])[0]


def test_unknown_symbol_or_character_is_one_unk(tmp_path: Path) -> None:
    tokenizer = made(tmp_path, sources=["ab"], targets=["HH AH0"])
    assert encode_targets(tokenizer, ["HH QQ QQ"])[0][1:3] == [2, 2]
    assert encode_sources(tokenizer, ["axy"])[0][1:3] == [2, 2]
    both = made(tmp_path / "both", sources=["ab"], targets=["HH"], source_tokens="blank")
    assert encode_sources(both, ["ab QQ HH ab"])[0][1] == 2


def test_blanks_together_or_at_the_ends_of_a_blank_side_are_one_or_none(tmp_path: Path) -> None:
    tokenizer = made(tmp_path, source_tokens="blank", sources=["a b"], targets=["a b"])
    (plain,) = encode_targets(tokenizer, ["a b"])
    assert encode_targets(tokenizer, ["  a   b "])[0] == plain
    assert encode_sources(tokenizer, ["  a   b "])[0] == plain
    assert encode_sources(tokenizer, ["", "  "]) == encode_targets(tokenizer, ["", "  "])
    assert encode_sources(tokenizer, [""]) == [[1]]


def test_code_point_that_unicode_reserves_is_unknown(tmp_path: Path) -> None:
    # The decoder uses it; as a token it would be read back as a blank.
    tokenizer = made(tmp_path, sources=["a\U0010ffff"], targets=["b b\U0010ffff"])
    assert encode_sources(tokenizer, ["a\U0010ffff"])[0][1] == 2
    assert encode_targets(tokenizer, ["b b\U0010ffff"])[0][1] == 2


# ------------------------------------------------------------------ languages


def test_tag_is_one_token_at_the_beginning_and_text_elsewhere(tmp_path: Path) -> None:
    tokenizer = made(tmp_path, sources=["<fre>a b"], languages=["fre", "eng", "fre"])
    assert languages(tokenizer) == ("eng", "fre")
    (ids,) = encode_sources(tokenizer, ["ab"], "fre")
    assert tokens(tokenizer, ids) == ["<fre>", "a", "b", "</s>"]
    assert tokenizer("<fre>ab")["input_ids"] == ids
    assert tokenizer(["<fre>ab"], padding=True)["input_ids"] == [ids]
    text = "<fre>a<fre>"
    (ids,) = encode_sources(tokenizer, [text], ["eng"])
    assert tokens(tokenizer, ids)[:3] == ["<eng>", "<", "f"]
    assert decode_batch(tokenizer, [ids]) == [text]
    assert tokenizer.convert_tokens_to_ids("<fre>") in tokenizer.all_special_ids


def test_each_text_may_have_a_language_of_its_own(tmp_path: Path) -> None:
    tokenizer = made(tmp_path, languages=["fre", "eng"])
    rows = encode_sources(tokenizer, ["a", "a"], ["eng", "fre"])
    assert [tokens(tokenizer, row)[0] for row in rows] == ["<eng>", "<fre>"]
    assert encode_sources(tokenizer, [], []) == []


@pytest.mark.parametrize(
    ("language", "fault"),
    [(None, "is not given"), ("ger", "is 'ger'"), (["fre", ""], "is not given")],
)
def test_missing_or_unknown_language_names_the_choices(
    tmp_path: Path, language: object, fault: str
) -> None:
    tokenizer = made(tmp_path, languages=["fre", "eng"])
    with pytest.raises(ValueError, match=f"`language` must be one of 'eng', 'fre', but {fault}"):
        encode_sources(tokenizer, ["a", "b"], language)  # type: ignore[arg-type]


def test_language_is_refused_where_there_are_no_tags(tmp_path: Path) -> None:
    for tokenizer in (made(tmp_path), train_character_tokenizer(["ab"]), make_byte_tokenizer()):
        with pytest.raises(ValueError, match=r"`language` must be left out .* but is 'fre'"):
            encode_sources(tokenizer, ["a"], "fre")
    tagged = made(tmp_path, languages=["fre"])
    with pytest.raises(ValueError, match="one for each text, but there are 1 for 2 texts"):
        encode_sources(tagged, ["a", "b"], ["fre"])


@pytest.mark.parametrize("language", ["", "two words", "<fre>", "fran\u00e7ais", "unk", "s", "/s"])
def test_language_that_cannot_be_a_tag_is_refused(language: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"but is {language!r}.")):
        train_symbol_tokenizer(["a"], ["b"], languages=[language])


def test_composing_accent_at_the_beginning_does_not_take_the_tag_away(tmp_path: Path) -> None:
    text = "\u0338a"  # composes with ">"
    tokenizer = made(tmp_path, sources=[text, "e\u0301"], languages=["fre"], nfc=True)
    (ids,) = encode_sources(tokenizer, [text], "fre")
    assert tokens(tokenizer, ids) == ["<fre>", "\u0338", "a", "</s>"]


# ------------------------------------------------------------------ others


def test_nfc_composes_both_sides(tmp_path: Path) -> None:
    for source in ("char", "blank"):
        tokenizer = made(
            tmp_path, sources=["e\u0301"], targets=["e\u0301 x"], source_tokens=source, nfc=True
        )
        assert is_nfc(tokenizer)
        assert decode_batch(tokenizer, encode_sources(tokenizer, ["e\u0301"])) == ["\u00e9"]
        assert decode_batch(tokenizer, encode_targets(tokenizer, ["e\u0301 x"])) == ["\u00e9 x"]
    assert not is_nfc(made(tmp_path, source_tokens="blank"))


HANGUL = ["\ud55c", "\u1112", "\u1161", "\u11ab"]  # a syllable and its letters


@pytest.mark.parametrize("nfc", [False, True])
@pytest.mark.parametrize("tags", [(), ("kor",)], ids=["plain", "tagged"])
def test_sources_are_decomposed_and_targets_are_not(
    tmp_path: Path, nfc: bool, tags: tuple[str, ...]
) -> None:
    tokenizer = made(
        tmp_path, sources=["\u00e9e\u0301", HANGUL[0]], targets=["\u00e9 e\u0301"], source_nfd=True,
        nfc=nfc, languages=tags,
    )  # fmt: skip
    assert is_nfd(tokenizer)
    assert is_nfc(tokenizer) == nfc
    language = tags[0] if tags else None
    tag = [f"<{language}>"] if tags else []
    for text in ("\u00e9" + HANGUL[0], "e\u0301" + "".join(HANGUL[1:])):
        (ids,) = encode_sources(tokenizer, [text], language)
        assert tokens(tokenizer, ids) == [*tag, "e", "\u0301", *HANGUL[1:], "</s>"]
        assert tokenizer("".join(tag) + text)["input_ids"] == ids
    (ids,) = encode_targets(tokenizer, ["\u00e9 e\u0301"])
    composed = ["\u2581\u00e9", "\u2581\u00e9" if nfc else "\u2581e\u0301", "</s>"]
    assert tokens(tokenizer, ids) == composed
    assert not {"\u00e9", HANGUL[0]} & set(tokenizer.get_vocab())
    assert not is_nfd(made(tmp_path / "other", nfc=nfc))
    # An accent at the beginning stays one, behind the tag.
    (ids,) = encode_sources(tokenizer, ["\u0301e"], language)
    assert tokens(tokenizer, ids) == [*tag, "\u0301", "e", "</s>"]


@pytest.mark.parametrize("nfc", [False, True])
def test_what_is_added_to_a_decomposing_tokenizer_is_decomposed(tmp_path: Path, nfc: bool) -> None:
    old = made(
        tmp_path, sources=["e\u00e1"], targets=["E"], languages=["fre"], source_nfd=True, nfc=nfc
    )
    old = with_alphabets(old, [("fre", "e\u00e1")])
    assert alphabet(old, "fre") == frozenset("ea\u0301")
    assert add_symbols(old, ["\u00e9"], ["E"], languages=["fre"]) is old
    new = add_symbols(old, ["\u00fc", HANGUL[0]], ["\u00fc"], languages=["kor", "fre"])
    new = with_alphabets(new, [("kor", HANGUL[0]), ("fre", "\u00fc")])
    new.save_pretrained(tmp_path / "new")
    loaded = load_tokenizer(str(tmp_path / "new"))
    added = loaded.convert_ids_to_tokens(list(range(len(old), len(loaded))))
    assert added == ["<kor>", "u", "\u0308", *HANGUL[1:], "\u2581\u00fc"]
    assert (is_nfd(loaded), is_nfc(loaded)) == (True, nfc)
    assert alphabet(loaded, "kor") == frozenset(HANGUL[1:])
    assert alphabet(loaded, "fre") == frozenset("eau\u0301\u0308")
    (ids,) = encode_sources(loaded, [HANGUL[0]], "kor")
    assert tokens(loaded, ids) == ["<kor>", *HANGUL[1:], "</s>"]


@pytest.mark.parametrize("sides", [("char", "char"), ("blank", "blank"), ("blank", "char")])
def test_only_characters_that_targets_do_not_share_are_decomposed(sides: tuple[str, str]) -> None:
    named = re.escape(f"but is True with {sides[0]!r} and {sides[1]!r}.")
    with pytest.raises(ValueError, match=f"`source_nfd` must be left out, or be False, .*{named}"):
        train_symbol_tokenizer(
            ["a"], ["b"], source_tokens=sides[0], target_tokens=sides[1], source_nfd=True
        )


def test_other_tokenizers_encode_both_sides_as_before() -> None:
    for tokenizer in (train_character_tokenizer(["ab "]), make_byte_tokenizer()):
        assert encode_sources(tokenizer, ["a b"]) == encode_batch(tokenizer, ["a b"])
        assert encode_targets(tokenizer, ["a b"]) == encode_batch(tokenizer, ["a b"])
        assert sides_of(tokenizer) is None
        assert languages(tokenizer) == ()


def test_what_was_saved_is_what_was_made(tmp_path: Path) -> None:
    first = train_symbol_tokenizer(WORDS, PHONES, languages=["fre"])
    # Twice: what is loaded must save as much as what was made.
    first.save_pretrained(tmp_path / "a")
    second = load_tokenizer(str(tmp_path / "a"))
    second.save_pretrained(tmp_path / "b")
    third = load_tokenizer(str(tmp_path / "b"))
    for tokenizer in (first, second, third, check_tokenizer(third)):
        assert tokenizer_kind(tokenizer) == "symbol"
        assert sides_of(tokenizer) == ("char", "blank")
        assert languages(tokenizer) == ("fre",)
        assert encode_sources(tokenizer, WORDS, "fre") == encode_sources(first, WORDS, "fre")
        assert encode_targets(tokenizer, PHONES) == encode_targets(first, PHONES)


def test_order_of_texts_does_not_matter_and_rare_tokens_are_left_out() -> None:
    kinds = {"languages": ["b", "a"], "min_count": 2}
    first = train_symbol_tokenizer(["abb", "a"], ["X Y X"], **kinds)  # type: ignore[arg-type]
    again = train_symbol_tokenizer(["a", "bba"], ["X X Y"], **kinds)  # type: ignore[arg-type]
    assert first.get_vocab() == again.get_vocab()
    expected = ["<pad>", "</s>", "<unk>", "<s>", "<a>", "<b>", "a", "b", "\u2581X"]
    assert sorted(first.get_vocab(), key=first.get_vocab().__getitem__) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source_tokens": "word"}, "`source_tokens` must be one of 'char', 'blank'"),
        ({"target_tokens": ""}, "`target_tokens` must be one of 'char', 'blank', but is ''"),
        ({"min_count": 0}, "`min_count` must be at least 1, but is 0"),
        ({"min_count": 9}, "`min_count` must be at most 3, the count of the most frequent"),
        ({"targets": ["", " "]}, "texts of a 'blank' side must hold a symbol, but are empty"),
        ({"targets": ["\ud800"]}, "`texts` must be valid Unicode"),
    ],
)
def test_wrong_arguments_are_refused(change: dict[str, object], words: str) -> None:
    given = {"sources": ["aaa"], "targets": ["X"], **change}
    with pytest.raises(ValueError, match=re.escape(words)):
        train_symbol_tokenizer(**given)  # type: ignore[arg-type]


def test_one_string_is_refused() -> None:
    tokenizer = train_symbol_tokenizer(["a"], ["b"], languages=["fre"])
    for call in (
        lambda: train_symbol_tokenizer("a", ["b"]),
        lambda: train_symbol_tokenizer(["a"], ["b"], languages="fre"),
        lambda: encode_sources(tokenizer, "a", "fre"),
        lambda: encode_targets(tokenizer, "b"),
    ):
        with pytest.raises(TypeError, match="is one string"):
            call()
    with pytest.raises(TypeError, match="must hold strings, but holds None"):
        encode_sources(tokenizer, [None], "fre")  # type: ignore[list-item]


# ------------------------------------------------------------------ more of it


def test_new_symbols_characters_and_languages_get_the_ids_after_the_last(tmp_path: Path) -> None:
    old = made(tmp_path, sources=["ab"], targets=["X Y"], languages=["fre"])
    assert add_symbols(old, ["ba"], ["Y"], languages=["fre"]) is old
    new = add_symbols(old, ["cab"], ["X Z Z", "Q"], languages=["eng", "fre"], min_count=1)
    size = len(old)
    assert new.convert_ids_to_tokens(list(range(size, len(new)))) == [
        "<eng>", "c", "\u2581Q", "\u2581Z",
    ]  # fmt: skip
    assert all(new.get_vocab()[token] == index for token, index in old.get_vocab().items())
    assert languages(new) == ("eng", "fre")
    assert languages(old) == ("fre",)
    new.save_pretrained(tmp_path / "new")
    loaded = load_tokenizer(str(tmp_path / "new"))
    (ids,) = encode_sources(loaded, ["cab"], "eng")
    assert tokens(loaded, ids) == ["<eng>", "c", "a", "b", "</s>"]
    assert loaded("<eng>cab")["input_ids"] == ids
    assert decode_batch(loaded, encode_targets(loaded, ["Z Q X"])) == ["Z Q X"]
    rare = add_symbols(old, ["ccd"], ["Z Z Q"], languages=["fre"], min_count=2)
    assert rare.convert_ids_to_tokens(list(range(size, len(rare)))) == ["c", "\u2581Z"]


def test_languages_are_added_only_where_there_are_some(tmp_path: Path) -> None:
    plain = made(tmp_path)
    with pytest.raises(ValueError, match=r"`language_tag` must be left out .* but is given"):
        add_symbols(plain, ["a"], ["b"], languages=["fre"])
    tagged = made(tmp_path, languages=["fre"])
    with pytest.raises(ValueError, match=r"`language_tag` must be given .*'fre'.* but is not"):
        add_symbols(tagged, ["a"], ["b"])


def test_characters_are_added_to_other_tokenizers_as_before() -> None:
    tokenizer = train_character_tokenizer(["ab"])
    longer = add_symbols(tokenizer, ["c"], ["d"])
    assert len(longer) == len(tokenizer) + 2
    assert add_symbols(make_byte_tokenizer(), ["c"], ["d"]) is not None
    with pytest.raises(ValueError, match=r"`language_tag` must be left out"):
        add_symbols(tokenizer, ["c"], ["d"], languages=["fre"])
