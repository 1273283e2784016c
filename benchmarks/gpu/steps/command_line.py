"""The command line as a user types it, on the demo bundle."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Final

import numpy as np

from benchmarks.gpu.steps import Answer, Context

R2GEN: Final = (sys.executable, "-c", "from cli import main; main()")


def _equal(ours: Answer, theirs: Answer) -> bool:
    """Whether both calls gave a report, and the same."""
    return ours["status"] == theirs["status"] == 0 and ours["token_ids"] == theirs["token_ids"]


def command_line(context: Context) -> Answer:
    """`r2gen infer` with one and three beams on the CPU and the device, and `r2gen doctor`."""
    from PIL import Image

    picture = context.scratch / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8)).save(picture)
    answer: Answer = {}
    for side, device in (("cpu", "cpu"), ("device", context.device)):
        for beams in ("1", "3"):
            command = [*R2GEN, "infer", str(picture), "--format", "json", "--device", device, "--num-beams", beams]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            report = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {}
            answer[f"{side}_beams_{beams}"] = {
                "status": done.returncode,
                "provider": report.get("execution_provider"),
                "token_ids": report.get("token_ids"),
                "timings_ms": report.get("timings_ms"),
                "error": done.stderr[-400:] if done.returncode else None,
            }
    answer["equal"] = [_equal(answer[f"cpu_beams_{beams}"], answer[f"device_beams_{beams}"]) for beams in "13"]
    if not all(answer["equal"]):
        errors = (entry["error"] for entry in list(answer.values()) if isinstance(entry, dict))
        answer["failed"] = f"reports differ, or there are none: {next(filter(None, errors), '')}"
    doctor = subprocess.run([*R2GEN, "doctor"], capture_output=True, text=True, check=False)
    answer["doctor"] = {"status": doctor.returncode, "output": (doctor.stdout + doctor.stderr)[-3000:]}
    return answer
