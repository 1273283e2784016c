"""`r2gen train`: align a vision encoder with an LLM on R2Gen studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from r2gen_export.commands.console import say
from r2gen_export.system.extras import needs
from r2gen_export.system.interrupts import Terminated


def run_train(**options: Any) -> None:
    """Train with the options of `TrainSettings` and name the best checkpoint on stderr.

    Raises:
        R2GenError: `R2G-DEPENDENCY-MISSING` without the extra `train`, and what `fit.train` raises.
        KeyboardInterrupt, Terminated: by a signal; the run can be continued with `--resume`.
    """
    with needs("train"):
        from r2gen_export.training.data import unread_parts
        from r2gen_export.training.fit import TrainSettings, train
    devices = str(options.pop("devices"))
    settings = TrainSettings(devices=int(devices) if devices.isdecimal() else devices, **options)
    for remark in unread_parts(settings.annotation):
        say(f"WARNING {remark}")
    try:
        best = train(settings)
    except (KeyboardInterrupt, Terminated):
        say(f"stopped; --resume goes on from what is in {Path(settings.out)}")
        raise
    say(f"checkpoint in {best}")
