"""`--distilled_file`: a run that trains on a teacher's translations too, and resumes exactly."""

import json
from pathlib import Path
from typing import Any

import pytest
from training_script import flags, load_script
from transformers import GenerationConfig

from hf_qrnn.training.cards import model_card

# Three lines of every source, of which the likeliest is long.
LINES = "".join(
    f"{source}\t{target}\t{score}\n"
    for source in ("aab", "bba", "abc", "ccc", "d")
    for target, score in (("abab" * 10, -0.7), ("ba", -1.2), ("c", -2.5))
)


def run(folder: Path, name: str, **changes: Any) -> dict[str, Any]:
    """Run the script into `folder/name`; return training.json, metrics and run.json."""
    out = folder / name
    argv = flags(folder, output_dir=out, dropout=0.2, save_every=3, **changes)
    assert load_script().main(argv) == 0
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": json.loads((out / "training.json").read_text())["weights_sha256"],
        "losses": [record["loss"] for record in records if record["kind"] == "train"],
        "data": json.loads((out / "run.json").read_text())["data"],
    }


@pytest.fixture
def distilled(tmp_path: Path) -> Path:
    path = tmp_path / "taught.tsv"
    path.write_text(LINES)
    return path


def test_a_resumed_run_draws_what_the_whole_one_drew(tmp_path: Path, distilled: Path) -> None:
    given = {"distilled_file": distilled, "max_steps": 36, "keep_last": 12}
    whole = run(tmp_path, "whole", **given)
    for step in (3, 21):  # in the first epoch, and in another that draws other lines
        path = tmp_path / f"whole/checkpoints/step-{step:08d}"
        resumed = run(tmp_path, f"from{step}", **given, resume=path)
        assert resumed["weights"] == whole["weights"]
        assert resumed["losses"] == whole["losses"][step:]
    assert json.loads((tmp_path / "whole/training.json").read_text())["epoch"] > 1
    assert whole["data"]["train"] == 60 + 15
    assert (whole["data"]["distilled_lines"], whole["data"]["distilled_sources"]) == (15, 5)
    plain = run(tmp_path, "plain", max_steps=36)
    assert plain["weights"] != whole["weights"]
    assert "distilled_lines" not in plain["data"]
    card = model_card(tmp_path / "whole")
    assert "Of the training pairs 15 are not data but what other models wrote" in card
    assert "other models wrote" not in model_card(tmp_path / "plain")


def test_a_run_with_another_teacher_is_not_resumed(
    tmp_path: Path, distilled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "out", distilled_file=distilled, max_steps=3)
    other = tmp_path / "other.tsv"
    other.write_text(LINES.replace("-2.5", "-2.6"))  # the texts are the same
    for given in ({"distilled_file": other}, {}):
        argv = flags(tmp_path, output_dir=tmp_path / "out", dropout=0.2, resume="auto", **given)
        assert load_script().main(argv) == 2
        told = capsys.readouterr().err
        assert "`--distilled_file` must be '15 lines, SHA-256 " in told
        assert "to resume from it, but is" in told


def test_what_a_teacher_wrote_changes_no_length_limit(tmp_path: Path, distilled: Path) -> None:
    run(tmp_path, "plain", max_steps=2)
    run(tmp_path, "taught", distilled_file=distilled, max_steps=2)
    # Forty tokens of "d" with room would be a ratio of ten or an offset beyond 50.
    limits = [GenerationConfig.from_pretrained(tmp_path / name) for name in ("plain", "taught")]
    assert limits[0].max_length_ratio == limits[1].max_length_ratio == 2
    assert limits[0].max_length_offset == limits[1].max_length_offset == 50


def test_ids_on_the_disk_train_alike(
    tmp_path: Path, distilled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    found = [
        run(tmp_path, f"out{number}", distilled_file=distilled, max_steps=4, num_proc=number)
        for number in (0, 1)
    ]
    assert found[0]["losses"] == found[1]["losses"]
    assert found[0]["weights"] == found[1]["weights"]


def test_a_damaged_line_is_refused_before_anything_is_written(
    tmp_path: Path, distilled: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distilled.write_text(LINES + "no tab\n")
    argv = flags(tmp_path, output_dir=tmp_path / "out", distilled_file=distilled)
    assert load_script().main(argv) == 2
    assert f"line 16 of '{distilled}' must have 3 columns" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
