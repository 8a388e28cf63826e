"""Words to phones by the training script: symbols, tags, and what another program does with it."""

import json
import lzma
import random
import re
import runpy
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from training_script import ROOT, load_script
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    pipeline,
)

from hf_qrnn.data.batching import encode_pairs
from hf_qrnn.data.reading import TextPair
from hf_qrnn.data.symbols import alphabet, encode_targets, languages, sides_of, spelling
from hf_qrnn.data.tokenization import train_character_tokenizer
from hf_qrnn.training.options import TokenizerOptions
from hf_qrnn.training.task import make_pair_tokenizer
from hf_qrnn.translation.translator import load_translator

PHONES = {"a": "AA1", "b": "B", "c": "t\u0361\u0283", "d": "D", "e": "\u025b\u0303"}
SIZES = ["--hidden_size", "32", "--embedding_size", "16", "--encoder_layers", "1"]
SIZES += ["--decoder_layers", "1", "--max_tokens", "256", "--learning_rate", "0.01", "--cpu"]
TAGGED = ["--source_lang", "word", "--target_lang", "phones", "--language_tag", "lang"]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script()


def words(count: int, alphabet: str, seed: int) -> list[tuple[str, str, str]]:
    """Words, their phones and their languages; in the language "rev" they are said backwards."""
    draw, found = random.Random(seed), []
    for _ in range(count):
        word, language = "".join(draw.choices(alphabet, k=draw.randint(1, 5))), draw.choice("rk")
        phones = [PHONES[letter] for letter in word]
        tag = {"r": "rev", "k": "k-1"}[language]
        found.append((word, " ".join(phones[::-1] if tag == "rev" else phones), tag))
    return found


def write_plain(path: Path, count: int, seed: int) -> str:
    rows = [(word, " ".join(PHONES[x] for x in word)) for word, _, _ in words(count, "abcde", seed)]
    content = "".join(f"{word}\t{phones}\n" for word, phones in rows).encode()
    path.write_bytes(lzma.compress(content) if path.suffix == ".xz" else content)
    return str(path)


def write_tagged(path: Path, count: int, seed: int, alphabet: str = "abcd") -> str:
    rows = [("word", "phones", "lang"), *words(count, alphabet, seed)]
    path.write_text("".join("\t".join(row) + "\n" for row in rows))
    return str(path)


def read(folder: Path, name: str) -> Any:
    return json.loads((folder / name).read_text())


@pytest.fixture(scope="module")
def plain(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pronouncer of one command and two columns without names, packed or not."""
    folder = tmp_path_factory.mktemp("plain")
    train = write_plain(folder / "train.tsv.xz", 400, 1)
    dev = write_plain(folder / "dev.tsv", 40, 2)
    command = ["--train_file", train, "--valid_file", dev, "--test_file", dev]
    command += ["--target_tokens", "blank", *SIZES]
    assert script.main([*command, "--max_steps", "300", "--output_dir", str(folder / "out")]) == 0
    return folder / "out"


@pytest.fixture(scope="module")
def tagged(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two languages, the words of which are the same and the phones not."""
    folder = tmp_path_factory.mktemp("tagged")
    command = ["--train_file", write_tagged(folder / "train.tsv", 600, 1)]
    dev = write_tagged(folder / "dev.tsv", 40, 2)
    command += ["--valid_file", dev, "--test_file", dev, *TAGGED, "--target_tokens", "blank"]
    command += [*SIZES, "--max_steps", "600", "--output_dir", str(folder / "out")]
    assert script.main(command) == 0
    return folder / "out"


def test_two_columns_without_names_make_a_pronouncer(plain: Path) -> None:
    run, test = read(plain, "run.json"), read(plain, "test.json")
    assert run["data"]["source_tokens"] == "char"
    assert run["data"]["target_tokens"] == "blank"
    assert run["data"]["train"] == 400
    assert test["word_error_rate"] == pytest.approx(1 - test["exact_match"] / 100)
    assert test["word_error_rate"] < 0.3
    assert 0 <= test["token_error_rate"] <= test["word_error_rate"]
    training = read(plain, "training.json")
    assert training["best_by"].startswith("word_error_rate|")
    hypotheses = (plain / "test.hypotheses.txt").read_text().splitlines()
    assert {symbol for line in hypotheses for symbol in line.split(" ")} <= set(PHONES.values())


def test_limit_of_phones_is_that_of_the_training_pairs(plain: Path) -> None:
    # A phone for each letter, with a quarter of room; not the room of sentences.
    config = read(plain, "generation_config.json")
    assert (config["max_length_ratio"], config["max_length_offset"]) == (1.25, 0)
    # For documents: the letters of the longest word.
    assert config["usual_source_chars"] == max(len(x) for x, *_ in words(400, "abcde", 1)) == 5


def test_letters_of_each_language_are_remembered(tagged: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tagged)
    assert alphabet(tokenizer, "rev") == alphabet(tokenizer, "k-1") == frozenset("abcd")
    assert alphabet(tokenizer, "fre") is alphabet(tokenizer, None) is None
    rows = [spelling(tokenizer, language) for language in ("rev", "k-1")]
    assert all(known is not None and "abc" in known.rows for known in rows)


def test_tag_decides_the_phones(tagged: Path) -> None:
    assert read(tagged, "test.json")["word_error_rate"] < 0.3
    assert set(read(tagged, "run.json")["data"]["languages"]) == {"k-1", "rev"}
    translator = load_translator(str(tagged))
    assert translator.languages == ("k-1", "rev")
    forth, back = (translator.translate(["ab"], language=x)[0][0].text for x in ("k-1", "rev"))
    assert (forth, back) == ("AA1 B", "B AA1")
    assert (tagged / "attention.png").is_file()
    assert "<k-1>" in (tagged / "README.md").read_text()


def test_program_that_knows_transformers_alone_generates(tagged: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tagged)
    model = AutoModelForSeq2SeqLM.from_pretrained(tagged)
    inputs = tokenizer(["<rev>abd", "<k-1>ab"], return_tensors="pt", padding=True)
    found = tokenizer.batch_decode(model.generate(**inputs), skip_special_tokens=True)
    wanted = load_translator(str(tagged)).translate(["abd", "ab"], language=["rev", "k-1"])
    assert found == [best.text for [best] in wanted]
    assert tokenizer.decode(model.generate(**inputs)[1], skip_special_tokens=True) == found[1]
    say = pipeline("qrnn-translation", model=model, tokenizer=tokenizer)
    assert say("<rev>abd") == [{"translation_text": found[0]}]


def test_program_of_the_page_runs(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs/transduction.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/say").symlink_to(plain)
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    runpy.run_path("program.py")
    first, second = capsys.readouterr().out.splitlines()
    assert first == str([x.text for [x] in load_translator(str(plain)).translate(["bad", "cab"])])
    assert second == "B AA1 D"


def test_program_that_knows_transformers_alone_trains(plain: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(plain)
    model = AutoModelForSeq2SeqLM.from_pretrained(plain)

    def row(word: str, phones: str) -> dict[str, list[int]]:
        # As docs/transduction.md has it; `text_target` would read the phones as a source.
        symbols = ["\u2581" + symbol for symbol in phones.split(" ")]
        labels = tokenizer.convert_tokens_to_ids(symbols)
        assert isinstance(labels, list)
        return {**tokenizer(word), "labels": [*labels, tokenizer.eos_token_id]}

    data = [row("ab", "B B"), row("ba", "D D"), row("b", "AA1"), row("bb", "D")]
    assert data[0]["labels"] == encode_targets(tokenizer, ["B B"])[0]
    options = Seq2SeqTrainingArguments(
        str(tmp_path), num_train_epochs=40, per_device_train_batch_size=4, learning_rate=0.02,
        use_cpu=True, dataloader_pin_memory=False, report_to="none", save_strategy="no",
        predict_with_generate=True, disable_tqdm=True, warmup_steps=0,
    )  # fmt: skip
    trainer = Seq2SeqTrainer(
        model, options, train_dataset=data, data_collator=DataCollatorForSeq2Seq(tokenizer, model)
    )  # type: ignore[arg-type]
    trainer.train()
    predicted = trainer.predict(data).predictions  # type: ignore[arg-type]
    texts = tokenizer.batch_decode(predicted.clip(0), skip_special_tokens=True)
    assert texts == ["B B", "D D", "AA1", "D"]


@pytest.mark.parametrize("how", ["files", "streaming", "num_proc"])
def test_resumed_run_with_tags_is_the_run_that_was_never_cut(
    script: ModuleType, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "data").mkdir()
    for name, seed in (("train", 1), ("validation", 2)):
        rows = words(75, "abcde", seed)
        keys = ("word", "phones", "lang")
        lines = [json.dumps(dict(zip(keys, row, strict=True))) for row in rows]
        (tmp_path / "data" / f"{name}.jsonl").write_text("".join(line + "\n" for line in lines))
    where = {
        "files": ["--train_file", f"{tmp_path}/data/train.jsonl"],
        "streaming": ["--dataset_name", f"{tmp_path}/data", "--streaming"],
        "num_proc": ["--dataset_name", f"{tmp_path}/data", "--num_proc", "2"],
    }[how]
    if how == "files":
        where += ["--valid_file", f"{tmp_path}/data/validation.jsonl"]
    hashes = []
    for out, steps in (("whole", "6"), ("cut", "4"), ("cut", "6")):
        command = [*where, *TAGGED, "--target_tokens", "blank", "--cpu", "--max_steps", steps]
        command += ["--schedule", "constant", "--hidden_size", "8", "--embedding_size", "8"]
        command += ["--encoder_layers", "1", "--decoder_layers", "1", "--max_tokens", "60"]
        command += ["--eval_sentences", "0", "--output_dir", str(tmp_path / out)]
        assert script.main([*command, "--resume", "auto"]) == 0
        hashes.append(read(tmp_path / out, "training.json")["weights_sha256"])
    assert hashes[0] == hashes[2] != hashes[1]
    # The first pairs of a stream do not tell what the rest lacks.
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "cut")
    for remembered in (alphabet(tokenizer, "rev"), spelling(tokenizer, "rev")):
        assert (remembered is None) == (how == "streaming")


# ------------------------------------------------------------------ --init_from


def test_trained_model_learns_new_characters_symbols_and_languages(
    script: ModuleType, tagged: Path, tmp_path: Path
) -> None:
    rows = [("word", "phones", "lang"), ("ae", "AA1 \u025b\u0303", "new"), ("e", "B", "rev")]
    (tmp_path / "more.tsv").write_text("".join("\t".join(row) + "\n" for row in rows))
    more = str(tmp_path / "more.tsv")
    command = ["--init_from", str(tagged), "--train_file", more, "--valid_file", more, *TAGGED]
    command += ["--cpu", "--max_steps", "2", "--output_dir", str(tmp_path / "out")]
    assert script.main(command) == 0
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    old = AutoTokenizer.from_pretrained(tagged)
    assert languages(tokenizer) == ("k-1", "new", "rev")
    assert sides_of(tokenizer) == ("char", "blank")
    assert tokenizer.convert_ids_to_tokens([len(old), len(old) + 1, len(old) + 2]) == [
        "<new>", "e", "\u2581\u025b\u0303",
    ]  # fmt: skip
    options = read(tmp_path / "out", "run.json")["options"]
    assert (options["tokenizer"], options["target_tokens"]) == ("char", "blank")
    assert load_translator(str(tmp_path / "out")).languages == ("k-1", "new", "rev")
    # Where it was cut it goes on, by what lies in its own folder.
    assert script.main([*command, "--max_steps", "3", "--resume", "auto"]) == 0


def test_what_a_trained_model_cannot_become_is_one_sentence(
    script: ModuleType,
    plain: Path,
    tagged: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    two, three = write_plain(tmp_path / "a.tsv", 9, 1), write_tagged(tmp_path / "b.tsv", 9, 1)
    untagged = ["--train_file", two, "--valid_file", two]
    with_tags = ["--train_file", three, "--valid_file", three, *TAGGED]
    for base, data, sentence in (
        (plain, with_tags, "`--language_tag` must be left out with a model whose tokenizer has no"),
        (tagged, untagged, "`--language_tag` must be given with a model whose tokenizer has the"),
        (plain, [*untagged, "--target_tokens", "char"], "`--target_tokens` must be left out with"),
        (plain, [*untagged, "--source_tokens", "blank"], "`--source_tokens` must be left out with"),
    ):
        command = ["--init_from", str(base), *data, "--cpu", "--output_dir", str(tmp_path / "out")]
        assert script.main(command) == 2
        assert sentence in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------ --source_nfd


def test_decomposed_sources_are_learnt_limited_and_trained_further(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Two syllables of three letters each, and a symbol for each syllable.
    rows = "\ud55c\uad6d\tHAN GUK\n\ud55c\tHAN\n\uad6d\u00e9\tGUK \u00e9\n"
    (tmp_path / "words.tsv").write_text(rows * 4)
    flags = ["--cpu", "--max_steps", "2", *SIZES, "--eval_sentences", "2"]
    flags += [f"--{split}_file={tmp_path}/words.tsv" for split in ("train", "valid")]
    decomposing = ["--target_tokens", "blank", "--source_nfd"]
    out = tmp_path / "out"
    assert script.main([*flags, *decomposing, "--output_dir", str(out)]) == 0
    assert read(out, "run.json")["data"]["source_nfd"] is True
    translator = load_translator(str(out))
    known = set(translator.tokenizer.get_vocab())
    assert {"\u1112", "e", "\u0301", "\u2581\u00e9"} <= known
    assert not {"\ud55c", "\u00e9"} & known
    # "HAN" and the end of "\ud55c" with a quarter of room, and four ids of its letters.
    config = read(out, "generation_config.json")
    assert (config["max_length_ratio"], config["max_length_offset"]) == (1.0, 0)
    further = [*flags, "--init_from", str(out), "--output_dir", str(tmp_path / "more")]
    assert script.main(further) == 0
    assert script.main([*further, *decomposing, "--overwrite_output_dir"]) == 0
    assert read(tmp_path / "more", "run.json")["options"]["source_nfd"] is True
    assert script.main([*further, "--source_nfd", "false", "--overwrite_output_dir"]) == 2
    sentence = "`--source_nfd` must be left out with `--init_from`, or be True as in"
    assert sentence in capsys.readouterr().err


# ------------------------------------------------------------------ options and refusals


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--target_tokens", "word"], "`--target_tokens` must be one of 'char', 'blank'"),
        (
            ["--source_nfd"],
            "`--source_nfd` must be left out, or be False, unless",
        ),
        (["--tokenizer", "byte", "--source_tokens", "blank"], "`--source_tokens` must be 'char'"),
        ([*TAGGED, "--tokenizer", "byte"], "`--language_tag` must be left out with the tokenizer"),
        (["--language_tag", "lang"], "`--source_lang` must be a column that the first line names"),
    ],
)
def test_wrong_flags_change_nothing(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    flags: list[str], sentence: str,
) -> None:  # fmt: skip
    path = write_tagged(tmp_path / "a.tsv", 9, 1)
    command = ["--train_file", path, "--valid_file", path, "--cpu"]
    assert script.main([*command, "--output_dir", str(tmp_path / "out"), *flags]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_language_of_the_validation_alone_is_refused(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = write_tagged(tmp_path / "a.tsv", 9, 1)
    (tmp_path / "b.tsv").write_text("word\tphones\tlang\nab\tAA1 B\tger\n")
    command = ["--train_file", train, "--valid_file", str(tmp_path / "b.tsv"), *TAGGED, "--cpu"]
    assert script.main([*command, "--output_dir", str(tmp_path / "out")]) == 2
    assert "the validation pairs have 'ger'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_saved_tokenizer_of_symbols_is_taken_as_it_is(plain: Path) -> None:
    pairs = [TextPair("ab", "AA1 B")]
    for target in ("char", "blank"):
        found = make_pair_tokenizer(TokenizerOptions(str(plain), target_tokens=target), pairs)
        assert sides_of(found) == ("char", "blank")
    with pytest.raises(ValueError, match="`source_tokens` must be 'char' with the tokenizer"):
        make_pair_tokenizer(TokenizerOptions(str(plain), source_tokens="blank"), pairs)
    options = TokenizerOptions(str(plain), target_tokens="blank", source_nfd=True)
    with pytest.raises(ValueError, match="`source_nfd` must be left out with the tokenizer"):
        make_pair_tokenizer(options, pairs)


def test_two_sides_of_characters_are_the_character_tokenizer(tmp_path: Path) -> None:
    pairs = [TextPair("ab c", "x\u00fc"), TextPair("<s>", "\u2581")]
    made = make_pair_tokenizer(TokenizerOptions(), pairs)
    texts = [text for pair in pairs for text in (pair.source, pair.target)]
    made.save_pretrained(tmp_path / "a")
    train_character_tokenizer(texts).save_pretrained(tmp_path / "b")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    # With languages the characters are still one vocabulary for both sides.
    tagged = make_pair_tokenizer(TokenizerOptions(), [TextPair("ab", "bc", "x")])
    (encoded,) = encode_pairs(tagged, [TextPair("ab", "bc", "x")])
    assert tagged.convert_ids_to_tokens(encoded.source_ids) == ["<x>", "a", "b", "</s>"]
    assert tagged.convert_ids_to_tokens(encoded.target_ids) == ["b", "c", "</s>"]
    assert torch.tensor(encoded.source_ids)[2] == torch.tensor(encoded.target_ids)[0]


def test_a_tokenizer_that_is_given_learns_the_letters_of_its_languages(tmp_path: Path) -> None:
    first = [TextPair("ab", "A B", language="fre"), TextPair("xab", "X A B", language="eng")]
    options = TokenizerOptions(target_tokens="blank")
    make_pair_tokenizer(options, first).save_pretrained(tmp_path)
    given = TokenizerOptions(tokenizer=str(tmp_path), target_tokens="blank")
    tokenizer = make_pair_tokenizer(given, [TextPair("xab", "X A B", language="fre")])
    assert alphabet(tokenizer, "fre") == frozenset("abx")
