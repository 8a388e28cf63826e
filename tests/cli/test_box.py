"""Names of models in the box: listed, and taken wherever a command takes MODEL."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from engine_models import saved

from hf_qrnn import load_translator
from hf_qrnn.cli.main import main
from hf_qrnn.data import box
from hf_qrnn.engine import Translator

pytestmark = pytest.mark.usefixtures("engine_library")
Capture = pytest.CaptureFixture[str]
CARD = "---\nlanguage: [de, en]\nlicense: cc-by-2.0\npipeline_tag: translation\n---\n# Some\n"


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "hf_qrnn"
    saved(folder / "models" / "de-en", 7)
    (folder / "models/de-en/README.md").write_text(CARD)
    sample = {"lines": 5, "bleu": 44.44, "chrf": 60.0}
    (folder / "models/de-en/sample.json").write_text(json.dumps(sample))
    return folder


@pytest.fixture
def in_box(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The translator of a box, seen from an empty working directory."""
    monkeypatch.setattr(box, "_PACKAGE", package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ein hund\n")))
    return package / "models" / "de-en"


def output(capture: Capture, *arguments: str) -> str:
    assert main(list(arguments)) == 0
    return capture.readouterr().out


def error(capture: Capture, *arguments: str) -> str:
    assert main(list(arguments)) == 2
    return capture.readouterr().err.removeprefix("error: ").rstrip("\n")


def test_models_are_listed(in_box: Path, capsys: Capture) -> None:
    head, line = output(capsys, "models").splitlines()
    assert head.split() == ["name", "task", "size", "licence", "scores"]
    size = sum(path.stat().st_size for path in in_box.iterdir()) / 1e6
    assert line.split("  ") == [
        "de-en", "translation de-en", f"{size:.1f} MB", "cc-by-2.0",
        "BLEU 44.4, chrF 60.0 (5 lines of its sample)",
    ]  # fmt: skip
    (fields,) = json.loads(output(capsys, "models", "--json"))
    assert fields["folder"] == str(in_box)
    assert fields["scores"] == {"bleu": 44.44, "chrf": 60.0}
    assert (fields["name"], fields["languages"]) == ("de-en", ["de", "en"])


def test_a_link_in_the_box_has_its_own_name(
    in_box: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(box, "_PACKAGE", tmp_path)
    (tmp_path / "models").mkdir()
    os.symlink(in_box, tmp_path / "models" / "german")
    assert output(capsys, "models").splitlines()[1].split()[0] == "german"
    assert output(capsys, "info", "german") != ""
    # All that there is, not the pronouncers alone.
    assert "(there is: german)." in error(capsys, "pronounce", "bax")


def test_an_empty_box_is_an_empty_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(box, "_PACKAGE", tmp_path)
    assert main(["models"]) == 0
    assert capsys.readouterr() == ("", "there is no model in the box\n")
    assert json.loads(output(capsys, "models", "--json")) == []
    expected = "`MODEL` must be given where 'de-en' is not in the box of models (there is: none)."
    assert error(capsys, "translate") == expected


def test_list_needs_nothing_heavy() -> None:
    program = (
        "import sys\nfrom hf_qrnn.cli.main import main\nstatus = main(['models'])\n"
        "heavy = {'torch', 'transformers', 'numpy', 'tokenizers', 'huggingface_hub'}\n"
        "sys.exit(', '.join(heavy & set(sys.modules)) or status)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\npronounce-en " in done.stdout


def test_translator_of_the_box_is_the_default(
    in_box: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = load_translator(str(in_box), device="cpu").translate(["ein hund"])[0][0].text
    assert output(capsys, "translate", "--device", "cpu") == expected + "\n"
    for arguments in (["de-en"], ["de-en", "--engine", "torch"], [str(in_box)]):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ein hund\n")))
        assert output(capsys, "translate", *arguments, "--device", "cpu") == expected + "\n"
    assert load_translator("de-en", device="cpu").translate(["ein hund"])[0][0].text == expected


def test_flags_may_come_before_the_model(in_box: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "in").write_text("ein hund\n")
    output(capsys, "translate", "-i", "in", "-o", "out", "de-en", "--device", "cpu")
    output(capsys, "translate", "-i", "in", "-o", "other", "--device", "cpu")
    assert (tmp_path / "out").read_text() == (tmp_path / "other").read_text() != ""


def test_a_folder_of_the_working_directory_goes_first(
    in_box: Path, tmp_path: Path, capsys: Capture
) -> None:
    saved(tmp_path / "de-en", 8)
    assert main(["translate", "de-en", "--device", "cpu"]) == 0
    found = capsys.readouterr()
    expected = load_translator(str(tmp_path / "de-en"), device="cpu").translate(["ein hund"])
    assert found.out == expected[0][0].text + "\n"
    assert "'de-en' is what lies in the working directory, not the model of that" in found.err
    shutil.rmtree(tmp_path / "de-en")
    os.symlink(in_box, tmp_path / "de-en")  # the same folder: nothing to say
    assert main(["info", "de-en"]) == 0
    assert capsys.readouterr().err == ""


def test_other_commands_take_the_name(in_box: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "lines").write_text("ein hund\n")
    flags = ["--device", "cpu", "--num_beams", "2"]
    scored = ["--source", "lines", "--references", "lines", *flags]
    assert "BLEU" in output(capsys, "score", "--model", "de-en", *scored)
    output(capsys, "distill", "de-en", "--source", "lines", "-o", "out.tsv", *flags)
    assert (tmp_path / "out.tsv").read_text().startswith("ein hund\t")
    lines = output(capsys, "info", "de-en").splitlines()
    assert f"folder        {in_box}" in lines
    assert "licence       cc-by-2.0" in lines
    assert "class         QRNNForConditionalGeneration" in lines
    # The folder is found; the name on the Hub is what is refused.
    assert "no/such/name" in error(capsys, "push", "de-en", "no/such/name")


def test_what_is_not_in_the_box_is_refused_as_before(in_box: Path, capsys: Capture) -> None:
    assert error(capsys, "info", "fr-en") == (
        "`MODEL` must be a folder with a saved model, but is 'fr-en'."
    )
    # No name on the Hub lacks its owner: nobody waits for a network.
    assert error(capsys, "translate", "fr-en", "--device", "cpu") == (
        "`MODEL` must be a folder with a saved translation model or the name of one on the Hub, "
        "but 'fr-en' is not there (in the box are de-en)."
    )


def test_the_engine_takes_names_too(in_box: Path) -> None:
    assert Translator("de-en").translate(["ein hund"]) == Translator(in_box).translate(["ein hund"])
    with pytest.raises(ValueError, match=r"`path` must be a folder .* but is 'fr-en'"):
        Translator("fr-en")


def test_a_damaged_model_is_named_and_hides_no_other(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    shutil.copytree(package / "models", tmp_path / "models")
    monkeypatch.setattr(box, "_PACKAGE", tmp_path)
    names = box.box_names()
    shutil.copytree(tmp_path / "models" / names[0], tmp_path / "models" / "aaa")
    (tmp_path / "models" / "aaa" / "README.md").write_text("---\n- [\n---\n")
    assert main(["models"]) == 2
    found = capsys.readouterr()
    assert [line.split()[0] for line in found.out.splitlines()] == ["name", *names]
    assert "must be whole, but 'aaa' is damaged: The head of '" in found.err
    assert main(["models", "--json"]) == 2
    assert [one["name"] for one in json.loads(capsys.readouterr().out)] == names
