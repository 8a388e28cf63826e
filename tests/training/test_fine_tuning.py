"""Training that begins with a trained model: `--init_from`."""

import errno
import json
import os
import random
import shutil
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hub_fixtures import CLIENT_WARNING
from hub_stand_in import HubStandIn
from training_script import load_script
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from hf_qrnn import QRNNConfig, QRNNForCausalLM, QRNNForConditionalGeneration
from hf_qrnn.data.reading import TextPair
from hf_qrnn.data.tokenization import (
    add_characters,
    decode_batch,
    encode_batch,
    make_byte_tokenizer,
    tokenizer_kind,
    train_character_tokenizer,
)
from hf_qrnn.hub.push import push
from hf_qrnn.training.checkpoint import RunError
from hf_qrnn.training.fine_tuning import Base, begin
from hf_qrnn.training.options import ModelOptions, TokenizerOptions
from hf_qrnn.translation.translator import load_translator

NEW_PAIRS = [TextPair("yyb", "zxzb"), TextPair("b", "b")]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load_script()


def write_task(folder: Path, name: str, alphabet: str, count: int, *, seed: int) -> list[str]:
    """Files of strings and the same strings in upper case, as flags of a split."""
    draw = random.Random(seed)
    lines = ["".join(draw.choices(alphabet, k=draw.randint(3, 7))) for _ in range(count)]
    for side, texts in (("source", lines), ("target", [line.upper() for line in lines])):
        (folder / f"{name}.{side}").write_text("".join(text + "\n" for text in texts))
    return [str(folder / f"{name}.{side}") for side in ("source", "target")]


def data_flags(folder: Path, name: str, alphabet: str, count: int) -> list[str]:
    train = write_task(folder, name, alphabet, count, seed=1)
    valid = write_task(folder, f"{name}.valid", alphabet, 40, seed=2)
    flags = ["--train_source", train[0], "--train_target", train[1]]
    flags += ["--valid_source", valid[0], "--valid_target", valid[1]]
    return [*flags, "--test_source", valid[0], "--test_target", valid[1], "--num_beams", "1"]


SIZES = ["--hidden_size", "48", "--embedding_size", "24", "--encoder_layers", "1"]
SIZES += ["--decoder_layers", "1", "--dropout", "0.1"]
STEPS = ["--cpu", "--learning_rate", "0.01", "--max_tokens", "256", "--eval_every", "1000"]


def exact(folder: Path) -> float:
    return float(json.loads((folder / "test.json").read_text())["exact_match"])


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def trained(
    request: pytest.FixtureRequest, script: ModuleType, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A small model that writes a to h in upper case."""
    folder = tmp_path_factory.mktemp("trained")
    flags = [*data_flags(folder, "old", "abcdefgh", 400), *SIZES, *STEPS, "--max_steps", "300"]
    flags += ["--tie_word_embeddings", str(request.param)]
    assert script.main([*flags, "--output_dir", str(folder / "out")]) == 0
    assert exact(folder / "out") >= 85
    return folder / "out"


def test_two_hundred_new_lines_with_new_characters(
    trained: Path, script: ModuleType, tmp_path: Path
) -> None:
    flags = [*data_flags(tmp_path, "new", "abcdefghij", 200), *STEPS]
    out = tmp_path / "out"
    base = ["--init_from", str(trained), "--output_dir", str(out), "--seed", "3"]
    assert script.main([*flags, *base, "--max_steps", "120"]) == 0
    assert exact(out) >= 50
    # The same updates from random weights do not get there: the base is what does it.
    afresh = ["--output_dir", str(tmp_path / "afresh"), "--max_steps", "120", *SIZES]
    assert script.main([*flags, *afresh]) == 0
    assert exact(tmp_path / "afresh") < exact(out) - 20
    old, new = (AutoTokenizer.from_pretrained(path).get_vocab() for path in (trained, out))
    assert old.items() <= new.items()
    assert {token: i for token, i in new.items() if token not in old} == {
        "I": len(old), "J": len(old) + 1, "i": len(old) + 2, "j": len(old) + 3,
    }  # fmt: skip
    described = json.loads((out / "run.json").read_text())
    assert described["base"] == {
        "init_from": str(trained), "is_on_hub": False, "new_characters": 4,
    }  # fmt: skip
    assert described["options"]["hidden_size"] == 48
    assert described["options"]["dropout"] == 0.1
    card = (out / "README.md").read_text()
    assert "began with the weights of `out`, whose vocabulary got 4 new characters" in card
    assert "base_model" not in card
    assert load_translator(str(out)).model.config.dropout == 0.1


def test_a_resume_needs_the_base_no_more(trained: Path, script: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "base")
    flags = [*data_flags(tmp_path, "new", "abcxyz", 60), *STEPS, "--schedule", "constant"]
    flags += ["--init_from", str(tmp_path / "base"), "--dropout", "0.2", "--save_every", "2"]
    hashes = []
    for name, steps in (("whole", 6), ("cut", 4), ("cut", 6)):
        out = ["--output_dir", str(tmp_path / name), "--max_steps", str(steps)]
        assert script.main([*flags, *out, "--resume", "auto"]) == 0
        ended = json.loads((tmp_path / name / "training.json").read_text())
        hashes.append(ended["weights_sha256"])
        if (name, steps) == ("cut", 4):
            shutil.rmtree(tmp_path / "base")
    assert hashes[0] == hashes[2] != hashes[1]
    described = [json.loads((tmp_path / x / "run.json").read_text()) for x in ("whole", "cut")]
    assert described[0]["base"] == described[1]["base"]
    assert load_translator(str(tmp_path / "cut")).model.config.dropout == 0.2
    # Another folder may go on from there too, and be resumed itself.
    other = ["--output_dir", str(tmp_path / "other"), "--max_steps", "8"]
    assert script.main([*flags, *other, "--resume", str(tmp_path / "cut")]) == 0
    assert script.main([*flags, *other[:3], "10", "--resume", "auto"]) == 0
    # Without a checkpoint the base is needed.
    fresh = ["--output_dir", str(tmp_path / "fresh"), "--max_steps", "4"]
    assert script.main([*flags, *fresh, "--resume", "auto"]) == 2


def save(folder: Path, tokenizer: object, **changes: object) -> str:
    fields = {"vocab_size": len(tokenizer), "embedding_size": 8, "hidden_size": 8}  # type: ignore[arg-type]
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    config = QRNNConfig(**{**fields, **layers, **changes})  # type: ignore[arg-type]
    QRNNForConditionalGeneration(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)  # type: ignore[attr-defined]
    return str(folder)


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--hidden_size", "16"], "`--hidden_size` must be left out with `--init_from`, or be 8"),
        (["--residual"], "`--residual` must be left out with `--init_from`, or be False as in"),
        (["--encoder_kernel_sizes", "3"], "`--encoder_kernel_sizes` must be left out with"),
        (["--dropout", "1"], "`--dropout` must be in [0, 1), but is 1.0."),
        (["--tokenizer", "byte"], "`--tokenizer` must be left out with `--init_from`, or be the"),
        (["--nfc"], "`--nfc` must be left out with `--init_from`, or be False as in"),
        (
            ["--source_nfd"],
            "`--source_nfd` must be left out, or be False, unless",
        ),
        (["--init_from", "LM"], "is a QRNNForCausalLM, which lacks "),
        (["--init_from", "none/such/model"], "`--init_from` must be a folder with a saved"),
        (["--init_from", "none/such"], "`--init_from` must be a folder with a saved"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_contradicts_the_base_is_one_sentence(
    flags: list[str],
    sentence: str,
    script: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    tokenizer = train_character_tokenizer(["abcABC"])
    given = ["--init_from", save(Path("base"), tokenizer)]
    QRNNForCausalLM(
        QRNNConfig(vocab_size=len(tokenizer), embedding_size=8, hidden_size=8)
    ).save_pretrained("LM")
    tokenizer.save_pretrained("LM")
    data = data_flags(tmp_path, "new", "abc", 20)
    assert script.main(["--cpu", *data, "--output_dir", "out", *given, *flags]) == 2
    error = capsys.readouterr().err.strip().split("\n")[-1]
    assert error.startswith("error: ")
    assert sentence in error
    assert not Path("out").exists()


def test_what_agrees_with_the_base_may_be_given(script: ModuleType, tmp_path: Path) -> None:
    tokenizer = train_character_tokenizer(["abcABC"])
    base = save(tmp_path / "base", tokenizer)
    flags = ["--hidden_size", "8", "--encoder_kernel_sizes", "6", "--tokenizer", "char"]
    flags += ["--dropout", "0.25", "--eval_sentences", "0", "--max_steps", "1", "--cpu"]
    data = data_flags(tmp_path, "new", "abc", 20)
    out = ["--output_dir", str(tmp_path / "out"), "--init_from", base]
    assert script.main([*data, *flags, *out]) == 0
    assert script.main([*data, *flags, *out, "--tokenizer", base, "--overwrite_output_dir"]) == 0
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["dropout"], config["vocab_size"]) == (0.25, len(tokenizer))


@pytest.mark.filterwarnings(CLIENT_WARNING)
def test_a_model_on_the_hub_is_the_cards_base_model(
    script: ModuleType, tmp_path: Path, hub: HubStandIn
) -> None:
    save(tmp_path / "base", train_character_tokenizer(["abcABC"]))
    push(tmp_path / "base", "someone/base", card="---\nlicense: mit\n---\n# Base\n", tag="v1")
    data = data_flags(tmp_path, "new", "abcd", 20)
    flags = ["--cpu", "--max_steps", "1", "--eval_sentences", "0", "--init_from"]
    out = tmp_path / "out"
    assert script.main([*data, *flags, "someone/base@v1", "--output_dir", str(out)]) == 0
    card = (out / "README.md").read_text()
    assert "\nbase_model: someone/base\n" in card
    assert "began with the weights of `someone/base@v1`, whose vocabulary got 2 new" in card


@pytest.mark.parametrize("tied", [False, True])
def test_new_rows_are_near_the_mean_and_old_rows_stay(tied: bool) -> None:
    tokenizer = train_character_tokenizer(["abcdefgh"])
    torch.manual_seed(0)
    config = QRNNConfig(
        vocab_size=len(tokenizer) + 1, embedding_size=6, hidden_size=8, encoder_layers=1,
        decoder_layers=1, tie_word_embeddings=tied,
    )  # fmt: skip
    model = QRNNForConditionalGeneration(config)
    with torch.no_grad():
        model.lm_head.bias.copy_(torch.arange(13.0))
    model.generation_config.no_repeat_ngram_size = 3
    base = Base(model.eval(), tokenizer, "base", is_on_hub=False)
    options = base.options()
    assert (options["no_repeat_ngram_size"], options["tokenizer"]) == (3, "char")
    given = ModelOptions(**{name: options[name] for name in vars(ModelOptions())})
    begun = begin(base, given, TokenizerOptions(min_count=2), NEW_PAIRS, seed=5)
    assert begun.num_new == 2  # x comes once only
    assert begun.tokenizer.convert_tokens_to_ids(["a", "y", "z"]) == [4, 12, 13]
    assert begun.model.config.vocab_size == 14
    assert (begun.model.lm_head.weight is begun.model.model.shared.weight) == tied
    before, after = model.state_dict(), begun.model.state_dict()
    for name, old in before.items():
        new = after[name]
        if old.shape == new.shape:
            assert torch.equal(old, new)
            continue
        known = old[4:12]  # of the characters; row 12 belonged to none
        assert torch.equal(old[:12], new[:12])
        distance = (new[12:] - known.mean(0)) / known.std(0, correction=0)
        assert 0 < distance.abs().max() < 0.6, name
        assert len(new) == 14
    assert not torch.equal(after["model.shared.weight"][12], after["model.shared.weight"][13])
    again = begin(base, given, TokenizerOptions(min_count=2), NEW_PAIRS[:1], seed=5)
    assert all(torch.equal(x, after[name]) for name, x in again.model.state_dict().items())
    # What the old model said of old characters it still says.
    ids = torch.tensor([[4, 5, 6, 1]])
    labels = torch.tensor([[7, 8, 1]])
    logits = [m.eval()(input_ids=ids, labels=labels).logits[..., :12] for m in (model, begun.model)]
    torch.testing.assert_close(*logits)


def test_added_characters_survive_saving(tmp_path: Path) -> None:
    old = train_character_tokenizer(["ab c\n"], nfc=True)
    assert add_characters(old, ["abc"]) is old
    new = add_characters(old, ["x\u0308\u4e2d\u00fcu\u0308", "a\U0001f600"])
    new.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["\u4e2d\u00fc b", "\U0001f600</s>a", "?\u4e2d"]
    assert decode_batch(loaded, encode_batch(loaded, texts)) == [
        "\u4e2d\u00fc b", "\U0001f600a", "\u4e2d",
    ]  # fmt: skip
    assert loaded("\u4e2d?")["input_ids"][1:] == [2, 1]
    assert encode_batch(loaded, ["ab c\n"]) == encode_batch(old, ["ab c\n"])
    assert tokenizer_kind(loaded) == "char"
    assert len(old) < len(loaded) == len(new)


def test_a_byte_tokenizer_needs_no_new_characters() -> None:
    tokenizer = make_byte_tokenizer()
    assert tokenizer_kind(tokenizer) == "byte"
    assert add_characters(tokenizer, ["\u4e2d"]) is tokenizer


def test_a_bfloat16_model_is_trained_in_float32(script: ModuleType, tmp_path: Path) -> None:
    base = save(tmp_path / "base", make_byte_tokenizer())
    model = AutoModelForSeq2SeqLM.from_pretrained(base).bfloat16()
    model.save_pretrained(base)
    data = data_flags(tmp_path, "new", "abc", 20)
    flags = ["--cpu", "--max_steps", "1", "--eval_sentences", "0", "--init_from", base]
    assert script.main([*data, *flags, "--output_dir", str(tmp_path / "out")]) == 0
    assert load_translator(str(tmp_path / "out")).model.dtype == torch.float32
    described = json.loads((tmp_path / "out/run.json").read_text())
    assert (described["options"]["tokenizer"], described["base"]["new_characters"]) == ("byte", 0)


def began(folder: Path) -> object:
    return json.loads((folder / "run.json").read_text()).get("base")


@pytest.mark.parametrize("options", [[], ["--resume", "auto"], ["--overwrite_output_dir"]])
def test_a_folder_of_the_users_named_base_is_not_deleted(
    options: list[str], script: ModuleType, tmp_path: Path
) -> None:
    base = Path(save(tmp_path / "runs" / "base", train_character_tokenizer(["abcABC"])))
    weights = (base / "model.safetensors").read_bytes()
    flags = [*data_flags(tmp_path, "old", "abc", 20), "--cpu", "--max_steps", "1"]
    flags += ["--output_dir", str(tmp_path / "runs"), "--init_from", str(base)]
    assert script.main([*flags, *options]) == (0 if options else 2)
    there = base if not options else tmp_path / "runs.replaced" / "base"
    assert (there / "model.safetensors").read_bytes() == weights


def test_a_resume_goes_on_with_what_its_run_began_with(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save(tmp_path / "first", train_character_tokenizer(["abcABC"]))
    other = save(tmp_path / "other", train_character_tokenizer(["abcABC"]))
    out = tmp_path / "out"
    flags = [*data_flags(tmp_path, "new", "abcx", 20), "--cpu", "--save_every", "1"]
    flags += ["--output_dir", str(out), "--max_steps"]
    assert script.main([*flags, "1", "--init_from", base]) == 0
    first = began(out)
    assert first == {"init_from": base, "is_on_hub": False, "new_characters": 2}
    # Neither the flag nor those of the model need be given again.
    assert script.main([*flags, "2", "--resume", "auto"]) == 0
    assert began(out) == first
    # Another beginning is another run.
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    capsys.readouterr()
    assert script.main([*flags, "3", "--resume", "auto", "--init_from", other]) == 2
    sentence = f"`--init_from` must be left out or be '{base}', as in '{out}', to resume from it"
    assert sentence in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    # The run that takes the place of its own past keeps it too.
    again = ["--overwrite_output_dir", "--resume", str(out / "checkpoints" / "step-00000001")]
    assert script.main([*flags, "3", *again]) == 0
    assert (began(out), (out / "base" / "base.json").is_file()) == (first, True)


def test_a_run_that_began_with_random_weights_is_not_resumed_as_another(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = [*data_flags(tmp_path, "old", "abc", 20), "--cpu", *SIZES, "--output_dir", str(out)]
    assert script.main([*flags, "--max_steps", "1"]) == 0
    resume = ["--max_steps", "2", "--resume", "auto", "--init_from", str(out)]
    assert script.main([*flags, *resume]) == 2
    assert "`--init_from` must be left out to resume from" in capsys.readouterr().err


def test_a_start_that_was_killed_leaves_no_base_to_the_next(
    script: ModuleType, tmp_path: Path
) -> None:
    base = save(tmp_path / "first", train_character_tokenizer(["abcABC"]))
    out = tmp_path / "out"
    flags = [*data_flags(tmp_path, "old", "abc", 20), "--cpu", "--output_dir", str(out)]
    assert script.main([*flags, "--max_steps", "1", "--init_from", base]) == 0
    for path in out.iterdir():  # as at a kill before the first checkpoint
        if path.name not in ("run.json", "metrics.jsonl", "base"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert script.main([*flags, *SIZES, "--max_steps", "1", "--resume", "auto"]) == 0
    assert not (out / "base").exists()
    assert not (tmp_path / "out.replaced").exists()


def test_a_full_disk_under_the_base_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tokenizer = train_character_tokenizer(["abcABC"])
    folder = save(tmp_path / "model", tokenizer)
    model = AutoModelForSeq2SeqLM.from_pretrained(folder)
    base = Base(model, tokenizer, folder, is_on_hub=False)
    base.save(tmp_path)
    monkeypatch.setattr(type(tokenizer), "save_pretrained", failing)
    with pytest.raises(RunError, match="base' must be written, but is not: No space left"):
        base.save(tmp_path)
    assert (tmp_path / "base" / "tokenizer.json").is_file()
    assert not (tmp_path / "base.saving").exists()


@pytest.mark.parametrize(
    "name", ["base.json", "config.json", "generation_config.json", "tokenizer.json"]
)
@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_base_is_one_sentence(
    name: str,
    content: str,
    script: ModuleType,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = save(tmp_path / "first", train_character_tokenizer(["abcABC"]))
    out = tmp_path / "out"
    flags = [*data_flags(tmp_path, "old", "abc", 20), "--cpu", "--output_dir", str(out)]
    assert script.main([*flags, "--max_steps", "1", "--init_from", base]) == 0
    (out / "base" / name).write_text(content)
    capsys.readouterr()
    assert script.main([*flags, "--max_steps", "2", "--resume", "auto"]) == 2
    (error,) = [x for x in capsys.readouterr().err.splitlines() if x.startswith("error")]
    wanted = f"error: `--resume` must find in '{out / 'base'}' what its run began with, but it is"
    assert error.startswith(wanted)
