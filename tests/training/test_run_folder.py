"""hf_qrnn.training.run_folder: what is refused leaves no trace, what is replaced is not lost."""

import errno
import json
import os
import shutil
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from training_script import flags, load_script, tree
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedTokenizerBase

from hf_qrnn import QRNNConfig, QRNNForConditionalGeneration
from hf_qrnn.data.tokenization import train_character_tokenizer
from hf_qrnn.training.checkpoint import CheckpointFolder, RunError
from hf_qrnn.training.run_folder import RunFolder, write_lines


class Killed(BaseException):
    """As SIGKILL: no handler of the code under test may see it."""


def draw(records: list[dict[str, Any]], path: Path) -> None:
    path.write_bytes(b"picture")


def run_folder(path: Path, *, may_be_used: bool = False) -> RunFolder:
    return RunFolder(path, is_main_process=True, draw_curve=draw, may_be_used=may_be_used)


def model(value: float, **sizes: int) -> QRNNForConditionalGeneration:
    fields = {"vocab_size": 12, "embedding_size": 8, "hidden_size": 8}
    layers = {"encoder_layers": 1, "decoder_layers": 1}
    made = QRNNForConditionalGeneration(QRNNConfig(**{**fields, **layers, **sizes}))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.fill_(value)
    return made


def loaded(folder: Path) -> tuple[int, float] | None:
    """Width and value of the model in a folder, all of it checked; None where there is none."""
    if not (folder / "config.json").exists():
        return None
    found, told = AutoModelForSeq2SeqLM.from_pretrained(folder, output_loading_info=True)
    assert not any(told.values()), told
    AutoTokenizer.from_pretrained(folder)
    values = {x for p in found.parameters() for x in p.detach().flatten().tolist()}
    assert len(values) == 1, values
    return found.config.hidden_size, values.pop()


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_character_tokenizer(["abcdefgh"])


# ------------------------------------------------------------------ the best model


class Killer:
    """Raises at the n-th operation that changes files, and at all later ones: the dead do none."""

    def __init__(self, number: int) -> None:
        self.number, self.count = number, 0

    def __enter__(self) -> "Killer":
        self.stack = ExitStack()
        patch = self.stack.enter_context(pytest.MonkeyPatch.context())
        for owner, name in (
            *((os, name) for name in ("replace", "rename", "unlink", "rmdir", "mkdir")),
            (shutil, "rmtree"),
            *((kind, "save_pretrained") for kind in (QRNNForConditionalGeneration,)),
        ):
            patch.setattr(owner, name, self.counting(getattr(owner, name)))
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def counting(self, real: Any) -> Any:
        def operation(*arguments: Any, **keywords: Any) -> Any:
            self.count += 1
            if self.count >= self.number:
                raise Killed
            return real(*arguments, **keywords)

        return operation


def save_and_kill(
    path: Path, made: QRNNForConditionalGeneration, tokenizer: PreTrainedTokenizerBase, number: int
) -> bool:
    """Save a model, killed at an operation; whether the kill came."""
    with Killer(number) as killer, suppress(Killed):
        run_folder(path).save_model(made, tokenizer)
    return killer.count >= number


@pytest.mark.parametrize("case", ["first", "same-run", "another-version"])
def test_a_kill_while_the_best_model_is_written_leaves_it_as_before_or_after(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, case: str
) -> None:
    seen = []
    for number in range(1, 99):
        path = tmp_path / str(number)
        path.mkdir()
        if case != "first":
            run_folder(path).save_model(model(1.0), tokenizer)
        if case == "another-version":  # of the code, the tokenizer and the config
            for name in ("modeling_qrnn.py", "tokenizer.json", "generation_config.json"):
                (path / name).write_bytes((path / name).read_bytes() + b"\n")
            config = json.loads((path / "config.json").read_text())
            (path / "config.json").write_text(json.dumps({**config, "transformers_version": "5"}))
        before = loaded(path)
        came = save_and_kill(path, model(2.0), tokenizer, number)
        seen.append(loaded(path))
        assert seen[-1] in (before, (8, 2.0))
        # The next save, after a resume, is not in its way.
        run_folder(path).save_model(model(3.0), tokenizer)
        assert loaded(path) == (8, 3.0)
        assert not (path / ".saving").exists()
        if not came:
            break
    assert not came
    assert len(seen) > 4
    assert seen[0] == before
    assert seen[-1] == (8, 2.0)


def test_a_model_of_other_sizes_is_moved_aside_whole(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """As earlier versions left it where a second run was killed before its first save."""
    folder = tmp_path / "out"
    old = run_folder(folder)
    old.begin()
    old.save_model(model(1.0, hidden_size=16), tokenizer)
    (folder / "notes.txt").write_text("mine")
    old.save_model(model(2.0), tokenizer)
    assert loaded(folder) == (8, 2.0)
    assert loaded(tmp_path / "out.replaced") == (16, 1.0)
    assert (folder / "metrics.jsonl").exists()
    assert (folder / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("where", ["weights", "tokenizer", "replace"])
def test_a_full_disk_while_the_best_model_is_saved_is_one_sentence(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "No space left on device (os error 28)"
    error: Exception
    if where == "weights":
        owner, name, error = QRNNForConditionalGeneration, "save_pretrained", SafetensorError(text)
    elif where == "tokenizer":
        owner, name, error = type(tokenizer), "save_pretrained", Exception(text)  # type: ignore[assignment]
    else:
        owner, name, error = os, "replace", OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # type: ignore[assignment]

    def failing(*_: object, **__: object) -> None:
        raise error

    run_folder(tmp_path).save_model(model(1.0), tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, failing)
        with pytest.raises(RunError, match="must be written, but is not: No space left") as caught:
            run_folder(tmp_path).save_model(model(2.0), tokenizer)
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert loaded(tmp_path) == (8, 1.0)
    assert not (tmp_path / ".saving").exists()


def test_a_mistake_in_the_program_is_not_taken_for_a_full_disk(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(AttributeError):
        run_folder(tmp_path).save_model(None, tokenizer)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["metrics.jsonl", "learning_curve.png", "run.json"])
def test_a_full_disk_under_the_records_is_one_sentence(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run_folder(tmp_path)
    folder.begin()

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if name == "metrics.jsonl":
        monkeypatch.setattr(Path, "open", failing)
    elif name == "run.json":
        monkeypatch.setattr(os, "replace", failing)
    else:
        monkeypatch.setattr(folder, "draw_curve", failing)

    def write() -> None:
        if name == "run.json":
            folder.write_json(name, {})
        else:
            folder.log({"kind": "valid", "step": 1})

    with pytest.raises(RunError, match=f"{name}' must be written, but is not: No space left"):
        write()
    monkeypatch.undo()
    assert not list(tmp_path.glob("*.saving"))


# ------------------------------------------------------------------ a used folder


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "metrics.jsonl", "run.json", "checkpoints/a"]
)
def test_a_used_folder_is_refused_and_moved_only_when_asked(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("old")
    (folder / "mine.txt").write_text("mine")
    (folder / "LICENSE").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(ValueError, match=r"`output_dir` must be new or empty, but .*--overwrite_"):
        run_folder(folder).check()
    with pytest.raises(ValueError, match="`output_dir` must be new or empty"):
        run_folder(folder).begin()
    assert tree(tmp_path) == before
    for count in (1, 2):
        assert not run_folder(folder, may_be_used=True).begin(overwrite=True)
        aside = tmp_path / ("out.replaced" if count == 1 else "out.replaced-2")
        moved = {str(path.relative_to(aside)) for path in aside.rglob("*") if path.is_file()}
        assert moved == ({name} if count == 1 else {"metrics.jsonl"})
        assert {path.name for path in folder.iterdir()} == {
            "mine.txt", "LICENSE", ".lock", "metrics.jsonl"
        }  # fmt: skip
    assert (tmp_path / "out.replaced" / name).read_text() == "old"


def test_empty_new_and_unrelated_folders_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.de").write_text("a\n")
    for name in ("empty", "data", "new/deep"):
        folder = run_folder(tmp_path / name)
        folder.check()
        folder.begin()
        assert (tmp_path / name / "metrics.jsonl").read_text() == ""
    assert (tmp_path / "data/train.de").read_text() == "a\n"
    (tmp_path / "file").write_text("")
    for name in ("file", "file/deep"):
        with pytest.raises(
            NotADirectoryError, match=r"`output_dir` must be a folder, but '.*file'"
        ):
            run_folder(tmp_path / name).check()


@pytest.mark.parametrize("number", range(1, 6))
def test_a_kill_while_an_earlier_run_is_moved_loses_nothing(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    files = ("config.json", "model.safetensors", "run.json")
    for name in files:
        (folder / name).write_text("old")
    with Killer(number), pytest.raises(Killed):
        run_folder(folder, may_be_used=True).begin(overwrite=True)
    assert (folder / "config.json").exists() == (number <= 3)
    run_folder(folder, may_be_used=True).begin(overwrite=True)
    found = {path.name: path for path in tmp_path.glob("out.*/*") if path.read_text() == "old"}
    assert set(found) == set(files)
    assert len({path.parent for path in found.values()}) == 1


def test_the_log_of_a_start_without_checkpoints_is_no_run_to_keep(tmp_path: Path) -> None:
    """--resume auto after a kill before the first checkpoint; a finished model it would keep."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("{}\n")
    (folder / "checkpoints/.writing-step-00000001").mkdir(parents=True)
    checkpoints = CheckpointFolder(folder / "checkpoints")
    run_folder(folder, may_be_used=True).begin(checkpoints)
    assert (folder / "metrics.jsonl").read_text() == ""
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    (folder / "config.json").write_text("{}")
    run_folder(folder, may_be_used=True).begin(checkpoints)
    assert (tmp_path / "out.replaced/config.json").exists()


# ------------------------------------------------------------------ the script


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run `out`, another `wide`, and changed data."""
    folder = tmp_path_factory.mktemp("finished")
    script = load_script()
    keep = {"keep_last": 9, "keep_best": 0}
    assert script.main(flags(folder, **keep)) == 0
    assert script.main(flags(folder, **keep, output_dir=folder / "wide", hidden_size=16)) == 0
    (folder / "changed").write_text("".join("cab\n" for _ in range(60)))
    (folder / "short").write_text("a\n")
    damaged = folder / "damaged/step-00000002"
    shutil.copytree(folder / "out/checkpoints/step-00000002", damaged)
    (damaged / "model.safetensors").write_bytes(b"")
    (folder / "wrong.yaml").write_text("hiden_size: 3\n")
    return folder


REFUSALS: dict[str, tuple[dict[str, object], str]] = {
    "used": ({}, "`output_dir` must be new or empty"),
    "other-run": ({"resume": "wide"}, "`hidden_size` must be 16"),
    "own-size": ({"resume": "out/checkpoints/step-00000004", "hidden_size": 32}, "`hidden_size`"),
    "auto-size": ({"resume": "auto", "hidden_size": 32}, "`hidden_size` must be 8"),
    "auto-rate": ({"resume": "auto", "learning_rate": 1}, "`learning_rate` must be 0.001"),
    "auto-seed": ({"resume": "auto", "seed": 5}, "`seed` must be 0, as in"),
    "auto-data": ({"resume": "auto", "train_source": "changed"}, "`training data` must be those"),
    "auto-tokenizer": ({"resume": "auto", "tokenizer": "byte"}, "`training data` must be those"),
    "auto-lines": ({"resume": "auto", "train_source": "short"}, ""),
    "auto-no-data": ({"resume": "auto", "train_source": "nowhere"}, ""),
    "auto-processes": ({"resume": "auto", "expect_world_size": 2}, "`expect_world_size`"),
    "auto-tracker": ({"resume": "auto", "report_to": "paper"}, "`report_to`"),
    "auto-config": ({"resume": "auto", "config": "wrong.yaml"}, "hiden_size"),
    "auto-pooling": ({"resume": "auto", "pooling": "of"}, "of"),
    "auto-overwrite": ({"resume": "auto", "overwrite_output_dir": True}, "`overwrite_output_dir`"),
    "nowhere": ({"resume": "nowhere"}, "`resume` must be auto, never, a checkpoint"),
    "damaged": ({"resume": "damaged"}, "must be as it was written"),
    "overwrite-size": (
        {"overwrite_output_dir": True, "resume": "wide", "hidden_size": 8}, "`hidden_size`"
    ),
    "overwrite-no-data": ({"overwrite_output_dir": True, "train_source": "nowhere"}, ""),
    "new-no-data": ({"output_dir": "new", "train_source": "nowhere"}, ""),
    "new-size": ({"output_dir": "new", "resume": "wide"}, "`hidden_size` must be 16"),
    "file": ({"output_dir": "short"}, "`output_dir` must be a folder"),
    "number": ({"resume": "auto", "hidden_size": "x"}, "hidden_size"),
    "unknown": ({"resume": "auto", "hiden_size": 3}, "hiden_size"),
}  # fmt: skip


@pytest.fixture(scope="module")
def script() -> Any:
    return load_script()


@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_of_the_script_changes_nothing(
    finished: Path, script: Any, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    changes, sentence = REFUSALS[name]
    paths = {key: finished / str(value) for key, value in changes.items() if is_path(key, value)}
    argv = flags(finished, **{**changes, **paths})
    before = tree(finished)
    try:
        status = script.main(argv)
    except SystemExit as ended:  # argparse
        status = ended.code
    error = capsys.readouterr().err
    assert status == 2
    assert "Traceback" not in error
    last = error.strip().splitlines()[-1]
    assert "error: " in last
    assert sentence in last.replace("`--", "`")
    assert len(last) < 400
    assert tree(finished) == before


def is_path(key: str, value: object) -> bool:
    return key in {"output_dir", "train_source", "config", "resume"} and value != "auto"


def test_a_second_run_moves_the_first_aside_and_a_resume_of_another_too(
    tmp_path: Path, script: Any, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    assert script.main(flags(tmp_path)) == 0
    first = tree(out)
    assert script.main([*flags(tmp_path, hidden_size=16), "--overwrite_output_dir"]) == 0
    moved = tree(tmp_path / "out.replaced")
    assert {name: x for name, x in first.items() if name not in (".", ".lock")} == {
        name: x for name, x in moved.items() if name != "."
    }
    assert f"moved the earlier run in {out} to {tmp_path / 'out.replaced'}" in caplog.text
    assert AutoModelForSeq2SeqLM.from_pretrained(out).config.hidden_size == 16
    # Another run's checkpoint: this folder's run is not its past.
    argv = flags(tmp_path, resume=tmp_path / "out.replaced", max_steps=10)
    assert script.main(argv) == 0
    wide = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out.replaced-2")
    assert wide.config.hidden_size == 16
    assert AutoModelForSeq2SeqLM.from_pretrained(out).config.hidden_size == 8
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [9, 10, 10]
    # An own checkpoint: what is newer goes aside, the log is cut.
    argv = flags(tmp_path, resume=out / "checkpoints/step-00000010", max_steps=12)
    assert script.main(argv) == 0
    assert not (out / "checkpoints.replaced").exists()
    argv = flags(tmp_path, resume=out / "checkpoints/step-00000010", max_steps=11)
    assert script.main(argv) == 0
    assert [path.name for path in (out / "checkpoints.replaced").iterdir()] == ["step-00000012"]
    steps = [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert steps == [9, 10, 10, 11, 11]


def test_a_full_disk_under_any_file_of_lines_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_lines(tmp_path / "README.md", ["x"])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", failing)
        with pytest.raises(
            RunError, match=r"README\.md' must be written, but is not: No space left"
        ):
            write_lines(tmp_path / "README.md", ["y"])
        with pytest.raises(
            RunError, match=r"metrics\.jsonl' must be written, but is not: No space"
        ):
            run_folder(tmp_path / "out").begin()
    assert (tmp_path / "README.md").read_text() == "x\n"


def test_write_lines_replaces_at_once(tmp_path: Path) -> None:
    write_lines(tmp_path / "a", ["x"])
    with Killer(1), pytest.raises(Killed):
        write_lines(tmp_path / "a", ["y", "z"])
    assert (tmp_path / "a").read_text() == "x\n"


def test_a_clone_that_is_not_installed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import hf_qrnn
    from hf_qrnn.training import run_folder

    assert run_folder.own_version() == hf_qrnn.__version__

    def missing(name: str) -> str:
        raise run_folder.PackageNotFoundError(name)

    monkeypatch.setattr(run_folder, "version", missing)
    assert run_folder.own_version() == "not installed"
