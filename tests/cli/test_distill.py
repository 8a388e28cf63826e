"""hf_qrnn.cli.distill: a file of a teacher's translations, whole or not there."""

import gzip
import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.cli.main import main
from hf_qrnn.data.batching import EncodedPair, collate_pairs
from hf_qrnn.data.distilled import read_distilled
from hf_qrnn.data.symbols import (
    encode_sources,
    encode_targets,
    languages,
    train_symbol_tokenizer,
)
from hf_qrnn.data.tokenization import encode_batch, train_character_tokenizer
from hf_qrnn.data.translations import Translation
from hf_qrnn.translation.translator import Translator, load_translator

SOURCES = ["abc", "", "hgf", " ", "a", "edcba", "bb"]
Capture = pytest.CaptureFixture[str]


def save(folder: Path, tokenizer: PreTrainedTokenizerFast, pairs: dict[str, str], seed: int) -> str:
    """Save a small model that has seen `pairs` often enough to end its targets."""
    torch.manual_seed(seed)
    config = QRNNConfig(
        vocab_size=len(tokenizer),
        embedding_size=16,
        hidden_size=16,
        encoder_layers=1,
        decoder_layers=1,
    )
    model = QRNNForConditionalGeneration(config)
    sources = encode_sources(tokenizer, list(pairs), languages(tokenizer)[0:1] * len(pairs) or None)
    targets = encode_targets(tokenizer, list(pairs.values()))
    batch = collate_pairs(
        [EncodedPair(*ids) for ids in zip(sources, targets, strict=True)], pad_token_id=0
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03)
    for _ in range(40):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    tokenizer = train_character_tokenizer(["abcdefgh"])
    pairs = {text: text[::-1] for text in ("abc", "hgf", "a", "edcb", "bb", "fgh", "cd")}
    return [save(tmp_path_factory.mktemp(f"m{seed}"), tokenizer, pairs, seed) for seed in (0, 1)]


@pytest.fixture
def source(tmp_path: Path) -> str:
    path = tmp_path / "words.txt"
    path.write_text("".join(f"{line}\n" for line in SOURCES), encoding="utf-8")
    return str(path)


def rows(path: Path) -> list[tuple[str, str, float]]:
    return [(pair.source, pair.target, pair.score) for pair in read_distilled([str(path)])]


@pytest.mark.parametrize("search", [(1, 1), (4, 1), (4, 3)], ids=str)
def test_lines_are_the_ensembles_translations_with_their_log_probabilities(
    search: tuple[int, int], teachers: list[str], source: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.tsv"
    beams, best = search
    options = ["--num_beams", str(beams), "--n_best", str(best), "--batch_size", "2"]
    assert main(["distill", *teachers, "--source", source, "-o", str(out), *options]) == 0
    translator = load_translator(*teachers)
    expected = [
        (text, found)
        for text, several in zip(
            SOURCES,
            translator.translate(SOURCES, num_beams=beams, num_return_sequences=best),
            strict=True,
        )
        for found in several
        if text.strip()
    ]
    kept = [(t, f) for t, f in expected if not f.is_cut and f.text]
    found = rows(out)
    assert len(found) > 2
    assert [(text, target) for text, target, _ in found] == [(t, f.text) for t, f in kept]
    model: Any = translator.model
    for text, target, score in found:
        ids = encode_batch(translator.tokenizer, [text, target])
        start = model.generation_config.decoder_start_token_id
        with torch.no_grad():
            logs = model(
                input_ids=torch.tensor([ids[0]]),
                decoder_input_ids=torch.tensor([[start, *ids[1][:-1]]]),
            ).logits[0]
        total = float(logs.log_softmax(-1)[range(len(ids[1])), ids[1]].sum())
        assert score == pytest.approx(total, abs=1e-4)
    told = capsys.readouterr()
    assert told.out == ""
    assert f"{len(found)} lines written; left out: " in told.err
    assert "2 lines of --source without text" in told.err
    cut = sum(f.is_cut for _, f in expected)
    assert cut == 0 or f"{cut} translations that reached the length limit" in told.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tsv", "words.txt"]


def test_five_beams_are_the_default(teachers: list[str], source: str, tmp_path: Path) -> None:
    outs = [tmp_path / "a.tsv", tmp_path / "b.tsv"]
    for out, options in zip(outs, ([], ["--num_beams", "5"]), strict=True):
        assert main(["distill", teachers[0], "--source", source, "-o", str(out), *options]) == 0
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_unlikely_translations_are_left_out(
    teachers: list[str], source: str, tmp_path: Path, capsys: Capture
) -> None:
    given = ["distill", teachers[0], "--source", source, "--n_best", "4"]
    assert main([*given, "-o", str(tmp_path / "all.tsv")]) == 0
    scores = sorted(score for *_, score in rows(tmp_path / "all.tsv"))
    least = math.exp((scores[len(scores) // 2] + scores[len(scores) // 2 - 1]) / 2)
    some = [*given, "-o", str(tmp_path / "some.tsv"), "--min_probability", str(least)]
    capsys.readouterr()
    assert main(some) == 0
    kept = [row for row in rows(tmp_path / "all.tsv") if math.exp(row[2]) >= least]
    assert rows(tmp_path / "some.tsv") == kept
    assert 0 < len(kept) < len(scores)
    assert f"{len(scores) - len(kept)} below --min_probability" in capsys.readouterr().err


def test_a_translation_that_is_no_column_is_left_out(
    source: str, tmp_path: Path, capsys: Capture
) -> None:
    pairs = {"abc": "c\tb", "hgf": "fgh", "a": "a\na", "edcba": "abc", "bb": "bb"}
    tokenizer = train_character_tokenizer([*pairs, *pairs.values()])
    teacher, out = save(tmp_path / "m", tokenizer, pairs, 0), tmp_path / "out.tsv"
    assert main(["distill", teacher, "--source", source, "-o", str(out)]) == 0
    found = [f.text for [f] in load_translator(teacher).translate(list(pairs), num_beams=5)]
    broken = sum("\t" in text or "\n" in text for text in found)
    assert broken >= 2
    assert f"{broken} with a tab or a line end" in capsys.readouterr().err
    kept = [text for text in found if "\t" not in text and "\n" not in text]
    assert [target for _, target, _ in rows(out)] == kept


def test_a_translation_with_an_unknown_character_is_left_out(
    source: str, tmp_path: Path, capsys: Capture
) -> None:
    pairs = {"abc": "cxb", "hgf": "fgh", "a": "ax", "edcba": "abc", "bb": "bb"}
    tokenizer = train_character_tokenizer(["abcdefgh"])  # x is unknown
    teacher, out = save(tmp_path / "m", tokenizer, pairs, 0), tmp_path / "out.tsv"
    assert main(["distill", teacher, "--source", source, "-o", str(out)]) == 0
    found = [best for [best] in load_translator(teacher).translate(list(pairs), num_beams=5)]
    assert {"cb", "a"} & {best.text for best in found if best.has_unknown}
    kept = [best.text for best in found if not best.has_unknown]
    assert [target for _, target, _ in rows(out)] == kept
    told = f"{len(found) - len(kept)} with an unknown character"
    assert told in capsys.readouterr().err


def test_no_translation_at_all_leaves_no_file(
    teachers: list[str], source: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.tsv"
    given = ["distill", teachers[0], "--source", source, "-o", str(out)]
    assert main([*given, "--min_probability", "1"]) == 2
    assert "`--source` must have a line whose translation can be kept, but" in (
        capsys.readouterr().err
    )
    assert not out.exists()


def test_packed_files_and_a_language(tmp_path: Path) -> None:
    tokenizer = train_symbol_tokenizer(["abc"], ["A B C"], languages=["fre", "kor"])
    teacher = save(tmp_path / "m", tokenizer, {"abc": "A B C", "cba": "C B A", "b": "B"}, 0)
    with gzip.open(tmp_path / "in.gz", "wb") as file:
        file.write(b"abc\ncba\nb\n")
    out = tmp_path / "out.tsv.gz"
    given = ["distill", teacher, "--source", str(tmp_path / "in.gz"), "-o", str(out)]
    assert main([*given, "--language", "fre", "--n_best", "3"]) == 0
    found = read_distilled([str(out)])
    assert found
    assert {pair.language for pair in found} == {"fre"}
    assert main(given) == 2  # which language?


def test_a_file_that_is_there_stays_unless_the_user_says_so(
    teachers: list[str], source: str, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out.tsv"
    out.write_text("mine")
    given = ["distill", teachers[0], "--source", source, "-o", str(out)]
    assert main(given) == 2
    assert f"replaced by --overwrite, but '{out}' is there." in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main([*given, "--overwrite"]) == 0
    assert rows(out)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_interrupted_command_changes_nothing(
    error: type[BaseException],
    teachers: list[str],
    source: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from hf_qrnn.translation.translator import Translator

    out = tmp_path / "out.tsv"
    out.write_text("mine")
    translate, calls = Translator.translate, list[int]()

    def interrupt(self: Translator, *arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise error("stop")
        return translate(self, *arguments, **options)

    monkeypatch.setattr(Translator, "translate", interrupt)
    monkeypatch.setattr("hf_qrnn.cli.distill._WINDOW_BATCHES", 1)
    given = ["distill", teachers[0], "--source", source, "-o", str(out), "--overwrite"]
    given += ["--engine", "torch"]
    assert main([*given, "--batch_size", "3"]) == (130 if error is KeyboardInterrupt else 2)
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.tsv", "words.txt"]


def test_links_stay_links_and_what_is_no_file_stays(
    teachers: list[str], source: str, tmp_path: Path, capsys: Capture
) -> None:
    out, pipe, other = tmp_path / "out.tsv", tmp_path / "pipe", tmp_path / "out.tsv.saving"
    (tmp_path / "real.tsv").write_text("old")
    out.symlink_to("real.tsv")
    os.mkfifo(pipe)
    other.write_text("mine")
    given = ["distill", teachers[0], "--source", source, "--overwrite", "-o"]
    assert main([*given, str(out)]) == 0
    assert out.is_symlink()
    assert "\t" in (tmp_path / "real.tsv").read_text()
    assert other.read_text() == "mine"
    assert main([*given, str(pipe)]) == 2
    assert "`--output` must be a file, but" in capsys.readouterr().err
    assert pipe.is_fifo()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_is_told_with_its_file(
    teachers: list[str], source: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / f"out.tsv.{os.getpid()}.saving").symlink_to("/dev/full")
    out = str(tmp_path / "out.tsv")
    assert main(["distill", teachers[0], "--source", source, "-o", out]) == 2
    assert f"error: No space left on device: '{out}'." in capsys.readouterr().err
    assert not os.path.exists(out)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["distill", "M", "-o", "o"], "the following arguments are required: --source"),
        (["distill", "M", "--source", "s"], "the following arguments are required: -o/--output"),
        (["distill", "M", "--source", "s", "-o", "s"], "`--output` must not be the source, but is"),
        (["distill", "M", "--source", "s", "-o", "."], "but '.' is a folder."),
        (["distill", "M", "--source", "s", "-o", "no/o"], "that of 'no/o' does not."),
        (["distill", "M", "--source", "none", "-o", "o"], "`--source` must be an existing file"),
        (["distill", "M", "--source", "tab", "-o", "o"], "line 2 of 'tab' must be one column of"),
        (["distill", "M", "--source", "end", "-o", "o"], "but has a line end within."),
        (["distill", "no/no/M", "--source", "s", "-o", "o"], "`TEACHER` must be a folder with"),
        (["distill", "M", "--source", "s", "-o", "o", "--n_best", "6"], "= [1, 5], but is 6."),
        (
            ["distill", "M", "--source", "s", "-o", "o", "--min_probability", "1.5"],
            "`--min_probability` must be in [0, 1], but is 1.5.",
        ),
        (["distill", "M", "--source", "s", "-o", "o", "--num_beams", "0"], "must be at least 1"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_sentence_and_write_nothing(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in (("s", "a\n"), ("tab", "a\nb\tc\n"), ("end", "a\u2028b\n")):
        Path(name).write_text(content, encoding="utf-8")
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert sentence in told.err.splitlines()[-1]
    assert told.out == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["end", "s", "tab"]


def test_one_text_is_written_once(
    teachers: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "in").write_text("abc\n")

    def translate(self: Translator, texts: list[str], **_: Any) -> list[list[Translation]]:
        # Two rows of ids may be one text: that of the likelier is kept.
        return [
            [Translation(x, -1.0, False, p) for x, p in (("cb", -1.0), ("cb", -2.0), ("c", -3.0))]
        ]

    monkeypatch.setattr(Translator, "translate", translate)
    out = tmp_path / "out.tsv"
    flags = ["--source", str(tmp_path / "in"), "-o", str(out), "--n_best", "3"]
    assert main(["distill", teachers[0], *flags, "--engine", "torch"]) == 0
    assert rows(out) == [("abc", "cb", -1.0), ("abc", "c", -3.0)]
    assert "2 lines written; left out: 1 whose text is there already" in capsys.readouterr().err
