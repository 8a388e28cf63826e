"""hf_qrnn.data.tokenization: nothing is lost, nothing in a text becomes a special token."""

import json
import pickle
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoTokenizer,
    ByT5Tokenizer,
    GPT2Tokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from hf_qrnn.data.tokenization import (
    SPECIAL_TOKENS,
    appends_eos,
    check_tokenizer,
    decode_batch,
    encode_batch,
    load_tokenizer,
    make_byte_tokenizer,
    train_character_tokenizer,
)

# Blanks of all kinds, combining marks, emoji with joiners, line ends that are text, the letters of
# the special tokens, control characters.
ALPHABET = (
    "abnst 't.</>|_\t\n\r\x0b\x0c\x00\x1c\x85\u2028\u2029\u00a0\u200d\ufeff"
    "\u00e9e\u0301\u0308\u1e69\u0323\U0001f600\U0001f468\U0001f469\U0001f3fd\u00df\u4f60\uffff"
    "\u2581\u0120\u010a"
)
HAND_CASES = {
    "empty": "",
    "double_spaces": "a  b   t",
    "blank_ends": "  a b  ",
    "only_blanks": "   ",
    "tabs_newlines": "\ta\nb\r\ns\n",
    "contraction": "don 't",
    "space_before_stop": "a . b",
    "combining": "e\u0301a\u0308",
    "emoji_zwj": "\U0001f468\u200d\U0001f469\U0001f3fd",
    "line_separator": "a\u2028b\x85t",
    "special_tokens": "</s><s> <pad></s>",
    "sentencepiece_blank": "\u2581a\u0120b",
}
UNICODE = st.text(st.characters(exclude_categories=["Cs"]))


def reloaded(tokenizer: PreTrainedTokenizerBase, folder: Path) -> Any:
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module", params=["char", "byte", "char_reloaded", "byte_reloaded"])
def tokenizer(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedTokenizerFast:
    kind, _, again = request.param.partition("_")
    made = train_character_tokenizer([ALPHABET + "don<pad>"])
    if kind == "byte":
        made = make_byte_tokenizer()
    return reloaded(made, tmp_path_factory.mktemp(request.param)) if again else made


def reference_ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """The ids by a plain loop over characters or bytes."""
    if len(tokenizer) == 260:
        return [4 + byte for byte in text.encode("utf-8")] + [1]
    characters = sorted(set(ALPHABET + "don<pad>"))
    return [4 + characters.index(c) if c in characters else 2 for c in text] + [1]


def test_special_tokens_have_fixed_ids(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.convert_ids_to_tokens([0, 1, 2, 3]) == ["<pad>", "</s>", "<unk>", "<s>"]
    ids = (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert (*ids, tokenizer.bos_token_id) == (0, 1, 2, 3)
    assert not tokenizer.clean_up_tokenization_spaces
    assert isinstance(tokenizer, PreTrainedTokenizerFast)


@pytest.mark.parametrize("text", HAND_CASES.values(), ids=HAND_CASES.keys())
def test_round_trip_of_hand_cases(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids == reference_ids(tokenizer, text)
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert encode_batch(tokenizer, [text]) == [ids]
    assert decode_batch(tokenizer, [ids]) == [text]


@settings(max_examples=100, deadline=None)
@given(texts=st.lists(st.text(ALPHABET), max_size=5))
def test_round_trip_of_texts_in_vocabulary(
    tokenizer: PreTrainedTokenizerFast, texts: list[str]
) -> None:
    rows = encode_batch(tokenizer, texts)
    assert rows == [reference_ids(tokenizer, text) for text in texts]
    assert decode_batch(tokenizer, rows) == texts
    for row, text in zip(rows, texts, strict=True):
        assert tokenizer.decode(tokenizer.encode(text), skip_special_tokens=True) == text
        assert tokenizer.encode(text) == row


@settings(max_examples=100, deadline=None)
@given(text=UNICODE)
def test_byte_tokenizer_loses_nothing(text: str) -> None:
    tokenizer = make_byte_tokenizer()
    ids = tokenizer(text)["input_ids"]
    assert ids == [4 + byte for byte in text.encode("utf-8")] + [1]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@settings(max_examples=60, deadline=None)
@given(known=UNICODE.filter(bool), other=UNICODE)
def test_character_tokenizer_learns_any_text(known: str, other: str) -> None:
    tokenizer = train_character_tokenizer([known])
    characters = sorted(set(known))
    assert len(tokenizer) == 4 + len(characters)
    assert decode_batch(tokenizer, encode_batch(tokenizer, [known])) == [known]
    expected = [4 + characters.index(c) if c in characters else 2 for c in other] + [1]
    assert encode_batch(tokenizer, [other]) == [expected]


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.sampled_from([*SPECIAL_TOKENS, "a", " ", "<", "/s>"]), max_size=8))
def test_special_tokens_in_text_stay_text(
    tokenizer: PreTrainedTokenizerFast, parts: list[str]
) -> None:
    text = "".join(parts)
    known = encode_batch(tokenizer, [text])[0][:-1]
    assert not {0, 1, 3} & set(known)
    in_vocabulary = "".join(part for part in parts if part != "<unk>")
    rows = encode_batch(tokenizer, [in_vocabulary])
    assert decode_batch(tokenizer, rows) == [in_vocabulary]


def test_special_tokens_in_text_stay_text_by_every_door(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "a</s>b<pad>"
    expected = reference_ids(tokenizer, text)
    assert tokenizer(text)["input_ids"] == expected
    assert tokenizer([text, "a"])["input_ids"][0] == expected
    assert tokenizer([text, "a" * 30], padding=True)["input_ids"][0][: len(expected)] == expected
    assert tokenizer("a", text_target=text)["labels"] == expected
    assert tokenizer(text_target=[text])["input_ids"] == [expected]
    assert tokenizer.encode(text) == expected
    assert len(tokenizer.tokenize(text)) == len(expected) - 1
    assert pickle.loads(pickle.dumps(tokenizer))(text)["input_ids"] == expected
    assert encode_batch(tokenizer, [text]) == [expected]


def test_special_token_characters_outside_the_vocabulary_are_unknown() -> None:
    tokenizer = train_character_tokenizer(["as"])
    assert tokenizer("a</s>")["input_ids"] == [4, 2, 2, 5, 2, 1]


def test_unknown_characters_are_one_unk_each() -> None:
    tokenizer = train_character_tokenizer(["ab"])
    assert tokenizer("xaxyz\U0001f600b")["input_ids"] == [2, 4, 2, 2, 2, 2, 5, 1]


def test_character_vocabulary_is_ordered_and_counted() -> None:
    tokenizer = train_character_tokenizer(iter(["cab", "ab z"]), min_count=2)
    assert tokenizer.convert_ids_to_tokens([4, 5]) == ["a", "b"]
    assert len(tokenizer) == tokenizer.vocab_size == 6
    swapped = train_character_tokenizer(["z ba", "bac"], min_count=2)
    assert swapped.get_vocab() == tokenizer.get_vocab()


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_nfc_composes_before_encoding(kind: str, tmp_path: Path) -> None:
    decomposed, composed = "cafe\u0301", "caf\u00e9"
    made = train_character_tokenizer([decomposed], nfc=True)
    if kind == "byte":
        made = make_byte_tokenizer(nfc=True)
    for tokenizer in (made, reloaded(made, tmp_path)):
        assert tokenizer(decomposed)["input_ids"] == tokenizer(composed)["input_ids"]
        assert decode_batch(tokenizer, encode_batch(tokenizer, [decomposed])) == [composed]
        assert unicodedata.is_normalized("NFC", composed)


def test_truncation_keeps_the_end_token(tokenizer: PreTrainedTokenizerFast) -> None:
    for side in ("right", "left"):
        tokenizer.truncation_side = side
        ids = tokenizer("abst" * 10, truncation=True, max_length=7)["input_ids"]
        assert len(ids) == 7
        assert ids.index(1) == 6
    tokenizer.truncation_side = "right"
    assert len(tokenizer("abst" * 10)["input_ids"]) == 41


def test_model_max_length_is_saved(tmp_path: Path) -> None:
    tokenizer = reloaded(train_character_tokenizer(["ab"], model_max_length=5), tmp_path)
    assert tokenizer("abababab", truncation=True)["input_ids"] == [4, 5, 4, 5, 1]
    assert tokenizer(["abababab"], text_target=["babababa"], truncation=True)["labels"] == [
        [5, 4, 5, 4, 1]
    ]


def test_padding_on_both_sides(tokenizer: PreTrainedTokenizerFast) -> None:
    a, b = reference_ids(tokenizer, "ab")[:2]
    right = tokenizer(["ab", ""], padding=True, return_tensors="pt")
    assert right["input_ids"].tolist() == [[a, b, 1], [1, 0, 0]]
    assert right["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    left = tokenizer(["ab", ""], padding=True, padding_side="left")
    assert left["input_ids"] == [[a, b, 1], [0, 0, 1]]
    assert left["attention_mask"] == [[1, 1, 1], [0, 0, 1]]
    assert set(right) == {"input_ids", "attention_mask"}


def test_decode_batch_takes_tensors_and_ignored_labels(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = encode_batch(tokenizer, ["ab", ""])
    padded = torch.tensor([rows[0], rows[1] + [-100, 0]])
    assert decode_batch(tokenizer, padded) == ["ab", ""]
    assert decode_batch(tokenizer, list(padded)) == ["ab", ""]
    assert decode_batch(tokenizer, []) == []
    assert encode_batch(tokenizer, []) == []


def test_encode_batch_is_the_same_in_chunks(tokenizer: PreTrainedTokenizerFast) -> None:
    texts = ["ab" * (index % 7) for index in range(1100)]
    assert encode_batch(tokenizer, texts) == [reference_ids(tokenizer, text) for text in texts]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda t: encode_batch(t, "ab"), TypeError, "`texts` must be a list"),
        (lambda t: encode_batch(t, ["a", None]), TypeError, "`texts` must hold strings"),
        (lambda t: encode_batch(t, ["a\ud800"]), ValueError, "half a surrogate"),
        (lambda t: train_character_tokenizer("ab"), TypeError, "`texts` must be an iterable"),
        (lambda t: train_character_tokenizer(["a\udfff"]), ValueError, "half a surrogate"),
        (lambda t: train_character_tokenizer([""]), ValueError, "but are empty"),
        (
            lambda t: train_character_tokenizer(["ab"], min_count=2),
            ValueError,
            "at most 1, the count",
        ),
        (lambda t: train_character_tokenizer(["a"], min_count=0), ValueError, "`min_count`"),
        (lambda t: train_character_tokenizer(["a"], model_max_length=1), ValueError, "least 2"),
    ],
)
def test_wrong_arguments_are_one_sentence(
    call: Callable[[Any], object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        call(make_byte_tokenizer())
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def gpt2(**options: Any) -> GPT2Tokenizer:
    vocabulary = {"<|endoftext|>": 0, "a": 1, "b": 2, "\u0120": 3, "<": 4, "|": 5}
    return GPT2Tokenizer(vocab=vocabulary, merges=[], **options)


def word_level(template: str, **options: Any) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3}, "[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", **options)


@pytest.mark.parametrize(
    ("foreign", "expected"),
    [
        (lambda: gpt2(), [1, 3, 2, 0]),
        (lambda: gpt2(add_bos_token=True), [0, 1, 3, 2, 0]),
        (lambda: word_level("[CLS] $A", bos_token="[CLS]", eos_token="[SEP]"), [1, 3, 0, 2]),
        (lambda: word_level("[CLS] $A [SEP]", eos_token="[SEP]"), [1, 3, 0, 2]),
        (lambda: ByT5Tokenizer(), [100, 35, 101, 1]),
    ],
    ids=["gpt2", "gpt2_bos", "bos_only", "complete_but_pad", "byt5"],
)
def test_check_tokenizer_completes_a_foreign_one(
    foreign: Callable[[], PreTrainedTokenizerBase], expected: list[int], tmp_path: Path
) -> None:
    original = foreign()
    before = (len(original), original.pad_token_id, original("a b")["input_ids"])
    checked = check_tokenizer(original)
    assert before == (len(original), original.pad_token_id, original("a b")["input_ids"])
    for tokenizer in (checked, reloaded(checked, tmp_path)):
        assert appends_eos(tokenizer)
        assert tokenizer("a b")["input_ids"] == expected
        assert encode_batch(tokenizer, ["a b"]) == [expected]
        assert tokenizer.pad_token_id is not None
        assert check_tokenizer(tokenizer) is tokenizer
    if before[1] is None:
        assert checked.pad_token == "<pad>"
        assert checked.pad_token_id == before[0]


def test_encode_batch_ends_with_one_end_token_whatever_the_tokenizer_does() -> None:
    assert encode_batch(gpt2(), ["ab", ""]) == [[1, 2, 0], [0]]
    assert encode_batch(gpt2(), ["<|endoftext|>"])[0].count(0) == 1
    other_end = word_level("$A [CLS]", eos_token="[SEP]", pad_token="[UNK]")
    assert encode_batch(check_tokenizer(other_end), ["a"]) == [[3, 1, 2]]


def test_check_tokenizer_needs_an_end_token() -> None:
    with pytest.raises(ValueError, match=r"^`tokenizer` must have an end token .* has none\.$"):
        check_tokenizer(word_level("$A"))


def test_load_tokenizer_loads_a_folder(tmp_path: Path) -> None:
    train_character_tokenizer(["ab"]).save_pretrained(tmp_path)
    assert load_tokenizer(str(tmp_path))("ba")["input_ids"] == [5, 4, 1]


@pytest.mark.parametrize("broken", [None, "{", '{"version": "1.0"}'], ids=["none", "json", "key"])
def test_load_tokenizer_says_one_sentence(broken: str | None, tmp_path: Path) -> None:
    if broken is not None:
        make_byte_tokenizer().save_pretrained(tmp_path)
        (tmp_path / "tokenizer.json").write_text(broken)
    with pytest.raises(ValueError, match=r"^`tokenizer` must be 'char', 'byte', a folder"):
        load_tokenizer(str(tmp_path))


LOAD_WITHOUT_US = """
import sys
from transformers import AutoTokenizer, PreTrainedTokenizerFast
plain, model = sys.argv[1:]
for tokenizer in (
    AutoTokenizer.from_pretrained(plain),
    PreTrainedTokenizerFast.from_pretrained(model),
    AutoTokenizer.from_pretrained(model, trust_remote_code=True),
    AutoTokenizer.from_pretrained(model, trust_remote_code=False),
):
    print(tokenizer("</s>")["input_ids"], tokenizer.decode([64, 1], skip_special_tokens=True))
assert not any(name.split(".")[0] == "hf_qrnn" for name in sys.modules)
"""


def test_a_saved_folder_needs_no_code_of_ours_and_asks_nothing(tmp_path: Path) -> None:
    """Also beside a model whose own code travels with it (`auto_map`), with stdin closed."""
    plain, model = tmp_path / "plain", tmp_path / "model"
    for folder in (plain, model):
        make_byte_tokenizer().save_pretrained(folder)
    assert sorted(path.name for path in plain.iterdir()) == [
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = {"model_type": "qrnn", "auto_map": {"AutoConfig": "configuration_stub.StubConfig"}}
    (model / "config.json").write_text(json.dumps(config))
    (model / "configuration_stub.py").write_text(
        "from transformers import PretrainedConfig\n\n\n"
        "class StubConfig(PretrainedConfig):\n    model_type = 'qrnn'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", LOAD_WITHOUT_US, str(plain), str(model)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "PATH": "/usr/bin"},
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n") == ["[64, 51, 119, 66, 1] <"] * 4 + [""]
    assert Path(model / "config.json").exists()


def test_a_tokenizer_without_an_unknown_token_is_refused(tmp_path: Path) -> None:
    train_character_tokenizer(["ab"]).save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    del content["model"]["vocab"]["<unk>"]
    content["added_tokens"] = [x for x in content["added_tokens"] if x["content"] != "<unk>"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="must have a token for unknown characters") as caught:
        load_tokenizer(str(tmp_path))
    assert repr(str(tmp_path)) in str(caught.value)
    assert "\n" not in str(caught.value)
