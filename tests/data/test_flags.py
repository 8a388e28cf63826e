"""hf_qrnn.data.flags: errors name what the user typed, at every door."""

import json
from pathlib import Path
from types import ModuleType

import pytest
from training_script import load_script

from hf_qrnn.data.flags import typed


@pytest.mark.parametrize("kind", [ValueError, TypeError, FileNotFoundError, ImportError])
def test_names_become_what_was_typed(kind: type[Exception]) -> None:
    with pytest.raises(kind) as caught, typed({"source": "--source"}), typed(path="source"):
        raise kind("`path` must be like `other`, but is 'path'.")
    assert str(caught.value) == "`--source` must be like `other`, but is 'path'."


def test_other_errors_leave_as_they_came(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught, typed(path="--source"):
        (tmp_path / "none").read_bytes()
    assert caught.value.errno == 2
    assert caught.value.filename == str(tmp_path / "none")
    with pytest.raises(KeyError, match="`path`"), typed(path="--source"):
        raise KeyError("`path`")


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script()


FILES: dict[str, bytes] = {
    "good": b"abc\nbca\n",
    "one": b"abc\n",
    "empty": b"",
    "blank": b" \n \n",
    "latin": b"gr\xfc\xdfe\nb\n",
    "cut.gz": b"\x1f\x8b\x08",
    "open.csv": b'a,b\n"a,b\n',
    "wide.csv": b"a,b\na,b,c\n",
    "open.json": b'{"a": "b"}\n',
    "bad.yaml": b"seed: [1\nhidden_size: 3\n",
    "latin.yaml": b"card_title: gr\xfc\xdfe\n",
    "tab.yaml": b"seed: 1\n\thidden_size: 3\n",
    "items.yaml": b"encoder_kernel_sizes: [2, x]\n",
    "pairs.txt": b"a\tb\n",
}
GOOD = ["--train_source", "good", "--train_target", "good"]
VALID = ["--valid_source", "good", "--valid_target", "good"]
LANGUAGES = ["--source_lang", "de", "--target_lang", "en"]


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "`--train_source` and `--train_target`, `--train_file` or a `--dataset_name` with"),
        (["--train_source", "good"], "`--train_target` must be given together with"),
        (
            ["--train_source", "none", "--train_target", "good"],
            "`--train_source` must be an existing file, but is 'none'.",
        ),
        (
            ["--train_source", "good", "--train_target", "none"],
            "`--train_target` must be an existing file, but is 'none'.",
        ),
        (
            ["--train_source", "good", "--train_target", "one"],
            "`--train_source` and `--train_target` must have the same number of lines",
        ),
        ([*GOOD, "--valid_source", "latin", "--valid_target", "good"], "`--valid_source` must be"),
        (
            [*GOOD, "--valid_source", "good", "--valid_target", "cut.gz"],
            "`--valid_target` must be a complete .gz file, but 'cut.gz' is not",
        ),
        (
            [*GOOD, "--valid_source", "empty", "--valid_target", "empty"],
            "`--valid_source` and `--valid_target` must hold at least one pair, but is empty.",
        ),
        (
            [*GOOD, *VALID, "--test_source", "empty", "--test_target", "empty"],
            "`--test_source` and `--test_target` must hold at least one pair, but is empty.",
        ),
        (
            ["--train_source", "blank", "--train_target", "blank", *VALID],
            "of at most 300 characters (`--max_chars`), but 0 of the 2 pairs are such.",
        ),
        (
            ["--train_file", "pairs.txt", *LANGUAGES],
            "`--train_file` must end in .jsonl, .json, .tsv, .csv (each also with .gz or .xz)",
        ),
        (["--train_file", "none.csv", *LANGUAGES], "`--train_file` must be an existing file"),
        (["--train_file", "wide.csv"], "line 2 of 'wide.csv' must have 2 columns (separated by c"),
        (["--train_file", "open.json"], "`--source_lang` must be the key of a language like 'de'"),
        (["--train_file", "open.csv", *LANGUAGES], "the row in line 2 of 'open.csv' must be comma"),
        (
            ["--streaming", "--dataset_name", "wide.csv", *LANGUAGES, *VALID],
            "`--dataset_name` must be a folder or a data set on the Hub for `--streaming`, but is",
        ),
        (["--train_file", "wide.csv", *LANGUAGES], "line 2 of 'wide.csv' must have 2 columns"),
        ([*GOOD, *VALID, "--limit", "0"], "`--limit` must be at least 1, but is 0."),
        ([*GOOD, *VALID, "--max_chars", "0"], "`--max_chars` must be at least 1, but is 0."),
        ([*GOOD, *VALID, "--seed", "-1"], "`--seed` must be at least 0, but is -1."),
        ([*GOOD, *VALID, "--seed", str(2**32)], "`--seed` must be below 2**32, but is 4294967296."),
        ([*GOOD, *VALID, "--mixed_precision", "fp8"], "`--mixed_precision` must be one of no, bf"),
        ([*GOOD, *VALID, "--learning_rate", "nan"], "`--learning_rate` must be at least 0, but is"),
        ([*GOOD, *VALID, "--adam_beta1", "1"], "`--adam_beta1` must be in [0, 1), but is 1.0."),
        ([*GOOD, *VALID, "--hidden_size", "0"], "`--hidden_size` must be at least 1, but is 0."),
        ([*GOOD, *VALID, "--pooling", "of"], "`--pooling` must be one of 'f', 'fo', 'ifo', but"),
        (
            [*GOOD, *VALID, "--tokenizer", "none/x"],
            "`--tokenizer` must be 'char', 'byte', a folder",
        ),
        (
            [*GOOD, *VALID, "--min_count", "9"],
            "`--min_count` must be at most 4, the count of the most frequent character, but is 9.",
        ),
        ([*GOOD, *VALID, "--report_to", "x"], "`--report_to` must be none or some of"),
        ([*GOOD, *VALID, "--resume", "x"], "`--resume` must be auto, never, a checkpoint or"),
        ([*GOOD, *VALID, "--card_about", "x"], "`--card_about` must be an existing file, but is"),
        ([*GOOD, *VALID, "--push_to_hub"], "`--hub_model_id` must be given with `--push_to_hub`"),
        (["--config", "none"], "`--config` must be a YAML file, but is 'none'."),
        (["--config", "bad.yaml"], "`--config` must be a YAML file, but 'bad.yaml' is not: "),
        (["--config", "latin.yaml"], "`--config` must be a YAML file, but 'latin.yaml' is not: "),
        (["--config", "tab.yaml"], "in line 2, column 1."),
        (
            ["--config", "items.yaml"],
            "`--encoder_kernel_sizes` must be list[int] or null in the YAML file, but is [2, 'x'].",
        ),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_the_script_names_the_flag_and_leaves_nothing(
    flags: list[str],
    sentence: str,
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, content in FILES.items():
        Path(name).write_bytes(content)
    assert script.main(["--cpu", "--output_dir", "out", *flags]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("error: ")
    assert error.endswith(".")
    assert sentence in error
    assert not Path("out").exists()


def test_a_fault_of_the_command_line_is_one_sentence(
    script: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    for flags in (["--hiden_size", "3"], ["--max_steps", "x"], ["--train", "x"]):
        with pytest.raises(SystemExit) as caught:
            script.main(flags)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert flags[0] in error


def test_a_label_is_missing_in_json(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"de": "a", "fr": "b"}) + "\n")
    assert script.main(["--cpu", "--train_file", str(path), *LANGUAGES]) == 2
    assert f"line 1 of '{path}' must have the key 'en', but has 'de', 'fr'." in (
        capsys.readouterr().err
    )
