"""The engine's tokenizer: the ids and texts of the package's, by `tokenizers` alone."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from hf_qrnn import make_byte_tokenizer, train_character_tokenizer
from hf_qrnn.data.symbols import alphabet, encode_sources, train_symbol_tokenizer, with_alphabets
from hf_qrnn.data.tokenization import check_tokenizer, decode_batch, encode_batch
from hf_qrnn.engine.tokens import Tokens

TEXTS = [
    "",
    " ",
    "Der Hund schläft.",
    "</s> is <pad> no <unk> token <s>",
    "e\u0301 decomposed, é composed",
    "unknown: \U0001f600\u4e2d",
    " two  blanks . and a full stop .",
    "line\nend\ttab",
]
TOKENIZERS = {
    "char": lambda: train_character_tokenizer(TEXTS[:5]),
    "char nfc": lambda: train_character_tokenizer(TEXTS[:5], nfc=True),
    "char, limited": lambda: train_character_tokenizer(TEXTS[:5], model_max_length=4),
    "byte": make_byte_tokenizer,
    "byte nfc": lambda: make_byte_tokenizer(nfc=True),
}


@pytest.fixture(params=TOKENIZERS.values(), ids=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> PreTrainedTokenizerBase:
    made: PreTrainedTokenizerBase = request.param()
    made.save_pretrained(tmp_path)
    return check_tokenizer(AutoTokenizer.from_pretrained(tmp_path))


def test_encodes_as_the_package_does(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    assert Tokens(tmp_path, 300).encode(TEXTS) == encode_batch(tokenizer, TEXTS)


def test_decodes_as_the_package_does(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    draw = random.Random(0)
    rows = [draw.choices(range(len(tokenizer)), k=12) for _ in range(40)]
    rows += encode_batch(tokenizer, TEXTS)
    assert Tokens(tmp_path, 300).decode(rows) == decode_batch(tokenizer, rows)


def test_many_texts_are_encoded_in_order(tmp_path: Path) -> None:
    tokenizer = train_character_tokenizer(["abc"])
    tokenizer.save_pretrained(tmp_path)
    texts = ["abc"[: 1 + index % 3] for index in range(1100)]
    assert Tokens(tmp_path, 300).encode(texts) == encode_batch(tokenizer, texts)


def test_token_that_only_the_config_names_is_special(tmp_path: Path) -> None:
    train_character_tokenizer(["abc"]).save_pretrained(tmp_path)
    change(tmp_path, mask_token="a")
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    rows = encode_batch(loaded, ["abc"])
    tokens = Tokens(tmp_path, 300)
    assert tokens.encode(["abc"]) == rows
    assert tokens.decode(rows) == decode_batch(loaded, rows) == ["bc"]


def change(folder: Path, **fields: Any) -> None:
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, **fields}), encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"tokenizer_class": "T5Tokenizer"},
            "`tokenizer_class` must be one of 'TokenizersBackend'",
        ),
        ({"add_prefix_space": True}, "`add_prefix_space` must be absent for the engine"),
        ({"eos_token": None}, "`eos_token` must be a token of the tokenizer, but is None"),
        (
            {"added_tokens_decoder": {"7": {"content": "<new>", "special": True}}},
            "`added_tokens_decoder` must hold tokens of tokenizer.json, but holds '<new>'",
        ),
    ],
)
def test_tokenizer_that_is_more_than_its_json_is_refused(
    fields: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    train_character_tokenizer(["abc"]).save_pretrained(tmp_path)
    change(tmp_path, **fields)
    with pytest.raises(ValueError, match=sentence):
        Tokens(tmp_path, 300)


def test_tokenizer_of_another_model_is_refused(tmp_path: Path) -> None:
    train_character_tokenizer(["abc"]).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`vocab_size` must be at least 7, the tokenizer's"):
        Tokens(tmp_path, 6)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": "1.0"}', "\0"])
def test_damaged_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    train_character_tokenizer(["abc"]).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"`tokenizer\.json` must be a saved tokenizer"):
        Tokens(tmp_path, 300)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_missing_tokenizer_is_refused(name: str, tmp_path: Path) -> None:
    train_character_tokenizer(["abc"]).save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(ValueError, match=f"there is no `{name}`"):
        Tokens(tmp_path, 300)


def test_texts_must_be_texts(tmp_path: Path) -> None:
    train_character_tokenizer(["abc"]).save_pretrained(tmp_path)
    tokens = Tokens(tmp_path, 300)
    with pytest.raises(TypeError, match="but is one string"):
        tokens.encode("abc")
    with pytest.raises(TypeError, match="but holds 3"):
        tokens.encode(["a", 3])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="half a surrogate pair"):
        tokens.encode(["a\ud800"])


# ------------------------------------------------------------------ tags of languages

LANGUAGES = ("fre", "ice", "pt-BR")
MANY = [
    *TEXTS,
    "<fre>bonjour",
    "<fre>",
    "<ice> x",
    "\u0301accent that begins",
    "\u0338not greater",  # ">" and it are one character in NFC
    "\u1112\u1161\u11ab",
    "HH AH0  L",
    " a\u2581b",
    "\u2581",
    "fre>",
    "\n",
]


def tagged(folder: Path, **options: Any) -> PreTrainedTokenizerBase:
    """Save a tokenizer with tags, and alphabets of two of its languages."""
    made = train_symbol_tokenizer(MANY, ["HH AH0 L", *MANY], languages=LANGUAGES, **options)
    pairs = [("fre", "bonjour\u0301e"), ("ice", "\u00f0\u00e9"), ("fre", "salut")]
    with_alphabets(made, pairs).save_pretrained(folder)
    return check_tokenizer(AutoTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("nfc", [False, True])
@pytest.mark.parametrize("side", ["char", "blank"])
def test_sources_with_tags_are_encoded_as_by_the_package(
    side: str, nfc: bool, tmp_path: Path
) -> None:
    tokenizer = tagged(tmp_path, source_tokens=side, nfc=nfc)
    tokens = Tokens(tmp_path, 300)
    assert tokens.languages == LANGUAGES
    assert tokens.sides == (side, "blank")
    draw = random.Random(0)
    pieces = ["a", " ", "<fre>", "<ice>", "\u0301", "\u0338", ">", "\u2581", "</s>", "e", "\n"]
    texts = MANY + ["".join(draw.choices(pieces, k=draw.randint(0, 6))) for _ in range(600)]
    for language in LANGUAGES:
        rows = tokens.encode(texts, language)
        assert rows == encode_sources(tokenizer, texts, language)
        assert all(row[0] == tokenizer.convert_tokens_to_ids(f"<{language}>") for row in rows)
        assert tokens.alphabet(language) == alphabet(tokenizer, language)
    each = draw.choices(LANGUAGES, k=len(texts))
    rows = tokens.encode(texts, each)
    assert rows == encode_sources(tokenizer, texts, each)
    assert tokens.decode(rows) == decode_batch(tokenizer, rows)
    assert tokens.encode([], "fre") == tokens.encode([], []) == []


@pytest.mark.parametrize("language", [None, "deu", "", ["fre"], ["fre", None], ["fre", "deu"]])
def test_languages_are_refused_with_the_packages_words(language: Any, tmp_path: Path) -> None:
    tokenizer = tagged(tmp_path)
    with pytest.raises(ValueError, match="`language` must be one") as expected:
        encode_sources(tokenizer, ["a", "b"], language)
    with pytest.raises(ValueError, match="`language` must be one") as found:
        Tokens(tmp_path, 300).encode(["a", "b"], language)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize("language", ["fre", "", ["fre"], []])
def test_language_is_refused_where_there_are_no_tags(language: Any, tmp_path: Path) -> None:
    tokenizer = train_character_tokenizer(["abc"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`language` must be left out with a model") as expected:
        encode_sources(tokenizer, ["a"], language)
    with pytest.raises(ValueError, match="`language` must be left out with a model") as found:
        Tokens(tmp_path, 300).encode(["a"], language)
    assert str(found.value) == str(expected.value)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        (
            {"extra_special_tokens": ["<fre>", "<new>"]},
            "`extra_special_tokens` must be special tokens of tokenizer.json for the engine, but "
            "is '<new>'.",
        ),
        ({"extra_special_tokens": {"tag": "a"}}, "`extra_special_tokens` must be special tokens"),
        ({"extra_special_tokens": 3}, "`extra_special_tokens` must be a list"),
        ({"languages": "fre"}, "`languages` must be a list of codes, but is 'fre'."),
        ({"languages": ["fre", "deu"]}, "`languages` must be codes that have tags"),
        ({"languages": [["fre"]]}, "`languages` must be codes that have tags"),
        ({"source_tokens": "word"}, "`source_tokens` must be one of 'char', 'blank', but is"),
        ({"source_tokens": ["char"]}, "`source_tokens` must be one of 'char', 'blank', but is"),
    ],
)
def test_config_whose_tags_are_not_there_is_refused(
    fields: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    tagged(tmp_path)
    change(tmp_path, **fields)
    with pytest.raises(ValueError, match=sentence):
        Tokens(tmp_path, 300)


def test_ids_that_the_model_does_not_have_are_refused(tmp_path: Path) -> None:
    train_character_tokenizer(["abc"]).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    size = len(whole["model"]["vocab"])
    Tokens(tmp_path, size)
    # As many tokens, one of them far behind the others.
    vocab = {**whole["model"]["vocab"], "c": 9999}
    path.write_text(json.dumps({**whole, "model": {**whole["model"], "vocab": vocab}}))
    with pytest.raises(ValueError, match="`vocab_size` must be at least 10000, the tokenizer's"):
        Tokens(tmp_path, size)
    processor = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "x", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"x": {"id": "x", "ids": [9999], "tokens": ["x"]}},
    }
    path.write_text(json.dumps({**whole, "post_processor": processor}))
    tokens = Tokens(tmp_path, size)
    with pytest.raises(
        ValueError, match=f"`tokenizer.json` must be one that gives ids below {size}"
    ):
        tokens.encode(["abc"])
