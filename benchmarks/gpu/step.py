"""One step in this process: each record is a line of a file as soon as it is there."""

from __future__ import annotations

import json
import sys
import traceback
from pathlib import Path

from .plan import STEPS, WATCHED, Record, Setting, SkippedError, records_path

REASON = 2000  # characters of a reason


def run_step(name: str, setting: Setting, records: Path | None = None) -> int:
    """Run a step and write its records; the exit status is 1 where one of them failed."""
    path = records or records_path(setting.out, name)
    path.parent.mkdir(parents=True, exist_ok=True)
    failed, card = False, ""
    with path.open("a", encoding="utf-8") as file:

        def write(record: Record) -> None:
            line = {**record, "step": name, **({"gpu": card} if card else {})}
            file.write(json.dumps(line, default=str) + "\n")
            file.flush()
            print(json.dumps(line, default=str)[:400], flush=True)

        try:
            card = card_name(setting)
            for record in (STEPS | WATCHED)[name].function()(setting):
                failed |= record.get("status") == "failed"
                write(record)
        except SkippedError as skipped:
            write({"status": "skipped", "reason": str(skipped)})
        # Whatever it is: the reason has to come home.
        except Exception as error:
            traceback.print_exc(file=sys.stderr)
            text = f"{type(error).__name__}: {error}"
            write({"status": "failed", "reason": text[-REASON:]})
            failed = True
    return int(failed)


def card_name(setting: Setting) -> str:
    """Return the name that every record bears: of the card, or that there was none."""
    if setting.dry:
        return "none, a dry run on the CPU"
    import torch

    return str(torch.cuda.get_device_name())
