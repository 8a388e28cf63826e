"""hf_qrnn.model.limits_qrnn: how long a target may become, on every road the same."""

import io
import json
import string
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from training_script import load_script
from transformers import AutoModelForSeq2SeqLM, GenerationConfig, pipeline

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.cli.main import main
from hf_qrnn.data.batching import EncodedPair
from hf_qrnn.data.tokenization import train_character_tokenizer
from hf_qrnn.model.limits_qrnn import set_length_rule, target_lengths, target_limits
from hf_qrnn.translation.lengths import measure_lengths, usual_length
from hf_qrnn.translation.search import generate_hypotheses
from hf_qrnn.translation.translator import Translator, load_translator

TOKENIZER = train_character_tokenizer(["ab"])
A, B = TOKENIZER.convert_tokens_to_ids(["a", "b"])


def endless(**rule: Any) -> QRNNForConditionalGeneration:
    """A model that writes "b" and never ends."""
    config = QRNNConfig(
        vocab_size=len(TOKENIZER), embedding_size=4, hidden_size=4, encoder_layers=1,
        decoder_layers=1,
    )  # fmt: skip
    model = QRNNForConditionalGeneration(config).eval()
    with torch.no_grad():
        model.lm_head.bias[B] = 100.0
    if "max_length_ratio" in rule:
        given = (rule.pop("max_length_ratio"), rule.pop("max_length_offset"))
        set_length_rule(model.generation_config, *given)
    for name, value in rule.items():
        setattr(model.generation_config, name, value)
    return model


def save(folder: Path, **rule: Any) -> str:
    endless(**rule).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    return str(folder)


RULE = {"max_length_ratio": 3.5, "max_length_offset": 7}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ({}, [54, 70]),
        (RULE, [14, 42]),
        ({**RULE, "max_length": 13}, [12, 12]),
        ({**RULE, "max_length": 512}, [14, 42]),
        ({**RULE, "max_new_tokens": 5}, [5, 5]),
    ],
    ids=["none", "saved", "chosen max_length", "default max_length", "chosen max_new_tokens"],
)
def test_every_road_has_the_same_limit(
    rule: dict[str, Any], expected: list[int], tmp_path: Path
) -> None:
    folder = save(tmp_path, **rule)
    texts = ["a", "a" * 9]
    translator = load_translator(folder, device="cpu")
    for num_beams in (1, 2):
        found = translator.translate(texts, num_beams=num_beams)
        assert [len(best.text) for [best] in found] == expected
        assert all(best.is_cut for [best] in found)
        piped = pipeline("qrnn-translation", model=folder)(texts, batch_size=2, num_beams=num_beams)
        assert [len(item["translation_text"]) for item in piped] == expected
    ids = [[A, 1], [A] * 9 + [1]]
    hypotheses = generate_hypotheses(translator.model, ids, batch_size=2)
    assert [len(best.ids) for [best] in hypotheses] == expected


def test_a_length_that_is_asked_for_goes_first(tmp_path: Path) -> None:
    translate = pipeline("qrnn-translation", model=save(tmp_path, **RULE))
    assert len(translate("aaa", max_new_tokens=3)[0]["translation_text"]) == 3
    assert len(translate("aaa", max_length=90)[0]["translation_text"]) == 89
    translator = Translator(endless(**RULE), TOKENIZER)
    [[found]] = translator.translate(["aaa"], max_new_tokens=60)
    assert (len(found.text), found.is_cut) == (60, True)
    with pytest.raises(ValueError, match="`max_new_tokens` must be at least 1, but is 0"):
        translator.translate(["aaa"], max_new_tokens=0)


def test_generate_keeps_512_unless_the_rule_says_more(tmp_path: Path) -> None:
    source = torch.tensor([[A] * 9 + [1]])
    for rule, expected in (({}, 512), (RULE, 512), ({**RULE, "max_length_ratio": 70.0}, 708)):
        folder = tmp_path / str(len(rule)) / str(expected)
        model = AutoModelForSeq2SeqLM.from_pretrained(save(folder, **rule))
        assert model.generation_config.max_length == 512
        for options in ({}, {"num_beams": 2}, {"generation_config": GenerationConfig()}):
            assert model.generate(source, **options).shape == (1, expected)
        assert model.generate(source, max_length=512).shape == (1, 512)
        assert model.generate(source, max_length=9).shape == (1, 9)
        assert model.generate(source, max_new_tokens=600).shape == (1, 601)
        model.generation_config.max_length = 20 + 1
        assert model.generate(source).shape == (1, 21)


def test_the_rule_survives_saving(tmp_path: Path) -> None:
    first = AutoModelForSeq2SeqLM.from_pretrained(save(tmp_path / "a", **RULE))
    first.save_pretrained(tmp_path / "b")
    saved = json.loads((tmp_path / "b/generation_config.json").read_text())
    assert {name: saved[name] for name in RULE} == RULE
    again = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "b")
    limits = target_limits(again.generation_config, torch.tensor([1, 2, 100]))
    assert limits.tolist() == [11, 14, 357]


@pytest.mark.parametrize("value", ["3", -1, None, True, float("nan")])
def test_a_rule_that_is_no_number_is_refused(value: Any) -> None:
    model = endless(max_length_ratio=value, max_length_offset=1)
    with pytest.raises(ValueError, match="`max_length_ratio` and `max_length_offset` of a gen"):
        generate_hypotheses(model, [[A, 1]])


def test_lengths_end_at_the_first_end_or_the_limit() -> None:
    generated = torch.tensor([[5, 1, 5, 5], [5, 5, 1, 0], [5, 5, 5, 1], [5, 5, 5, 5]])
    lengths, is_cut = target_lengths(generated, torch.tensor([3, 4]), [1])
    assert lengths.tolist() == [2, 3, 4, 4]
    assert is_cut.tolist() == [False, False, False, True]
    lengths, is_cut = target_lengths(generated, torch.tensor([2, 2]), [1, 0])
    assert lengths.tolist() == [2, 2, 2, 2]
    assert is_cut.tolist() == [False, True, True, True]


def pair(source: int, target: int) -> EncodedPair:
    return EncodedPair([5] * source, [5] * target)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([(10, 8), (100, 90)], (2.0, 50)),
        ([(20, 100), (40, 200), (80, 400)], (6.25, 50)),
        ([(2, 100), (50, 60), (100, 110)], (2.0, 121)),
        ([(30, 200)], (8.34, 50)),
    ],
    ids=["short", "five for one", "a long one of a short one", "one pair"],
)
def test_the_rule_has_room_for_every_pair(
    lengths: list[tuple[int, int]], expected: tuple[float, int]
) -> None:
    found = measure_lengths([pair(*sizes) for sizes in lengths])
    assert found == expected
    config = GenerationConfig(max_length_ratio=found[0], max_length_offset=found[1])
    for source, target in lengths:
        assert 1.25 * target <= int(target_limits(config, torch.tensor([source])))
    least = measure_lengths([pair(*sizes) for sizes in lengths], least=(7.0, 200))
    assert least == (max(7.0, expected[0]), 200)


def test_the_command_counts_what_was_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(tmp_path / "m", **RULE)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"a\n\nab\n")))
    assert main(["translate", folder, "--device", "cpu"]) == 0
    output = capsys.readouterr()
    assert output.out == "b" * 14 + "\n\n" + "b" * 18 + "\n"
    sentence = "translations reached the length limit and may be cut; --max_new_tokens raises it"
    assert output.err.splitlines()[-1] == f"2 of 3 {sentence}"
    (tmp_path / "text").write_text("a\nab\n")
    flags = ["--references", str(tmp_path / "text"), "--source", str(tmp_path / "text")]
    assert main(["score", "--model", folder, *flags, "--max_new_tokens", "9"]) == 0
    assert capsys.readouterr().err.splitlines()[-1] == f"2 of 2 {sentence}"
    assert main(["translate", folder, "--max_new_tokens", "0"]) == 2
    assert "`--max_new_tokens` must be at least 1, but is 0." in capsys.readouterr().err


def test_whole_translations_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = endless()
    with torch.no_grad():
        model.lm_head.bias[1] = 200.0
    model.save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\n")))
    assert main(["translate", str(tmp_path), "--device", "cpu", "--max_new_tokens", "1"]) == 0
    assert "cut" not in capsys.readouterr().err


def test_the_script_learns_targets_that_are_much_longer_than_their_sources(tmp_path: Path) -> None:
    sources = [letter * 12 for letter in "abcdefgh"]
    tail = " ".join(string.ascii_uppercase + string.ascii_lowercase + string.digits)
    targets = [f"{letter}: {tail}" for letter in "abcdefgh"]
    for name, lines in (("s", sources), ("t", targets)):
        (tmp_path / name).write_text("".join(line + "\n" for line in lines))
    flags = []
    for split in ("train", "valid", "test"):
        flags += [
            f"--{split}_source",
            str(tmp_path / "s"),
            f"--{split}_target",
            str(tmp_path / "t"),
        ]
    sizes = ["--hidden_size", "32", "--embedding_size", "16", "--encoder_layers", "2"]
    sizes += ["--decoder_layers", "2", "--max_steps", "240", "--learning_rate", "0.01"]
    out = ["--output_dir", str(tmp_path / "out"), "--eval_every", "120", "--num_beams", "1"]
    assert load_script().main(["--cpu", *flags, *sizes, *out]) == 0
    config = json.loads((tmp_path / "out/generation_config.json").read_text())
    # 127 tokens for 13 of the source, of which 2 x source + 50 would cut 51.
    assert (config["max_length_ratio"], config["max_length_offset"]) == (12.22, 50)
    test = json.loads((tmp_path / "out/test.json").read_text())
    records = [json.loads(x) for x in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    valid = [record for record in records if record["kind"] == "valid"]
    assert ["cut_translations" in record for record in valid] == [True, True]
    translator = load_translator(str(tmp_path / "out"), device="cpu")
    found = [best for [best] in translator.translate(sources)]
    assert test["cut_translations"] == sum(best.is_cut for best in found)
    assert (test["exact_match"], test["cut_translations"]) == (100.0, 0)
    assert [best.text for best in found] == targets


def test_usual_length_leaves_out_one_in_a_thousand() -> None:
    assert usual_length([3, 1, 2]) == 3
    assert usual_length([*range(1, 1000), 5000]) == 999
    assert usual_length([*[7] * 1998, 90, 80]) == 7
