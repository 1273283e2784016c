"""What a training says while it runs: a bar on a terminal, a line per interval in a log; and what its logs hold."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from time import monotonic
from typing import Any, Final

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from r2gen_export.training.validation_scores import NAMES

NATS: Final = "nats per token"

METRICS: Final = {
    "loss": f"training loss of one batch, cross-entropy in {NATS}",
    "val_loss": f"mean validation loss of an epoch, cross-entropy in {NATS}",
    "val_score": "score of generated validation reports that chooses the checkpoint, higher is better (with --select)",
    **{
        name: f"{metric} of generated validation reports, higher is better (with --metrics or --select)"
        for name, metric in NAMES.items()
    },
    "lr-AdamW": "learning rate of the step",
    "step": "optimiser steps, counted from 0",
    "epoch": "passes over the training studies, counted from 0",
}
"""Columns of metrics.csv, and what TensorBoard shows."""


LOG_SECONDS: Final = 30.0
"""Between two lines of a log."""


@contextmanager
def counted(*, shown: bool = True, seconds: float = LOG_SECONDS) -> Iterator[Callable[[str, int, int], None]]:
    """A function that is told what is being done, how much of it is done, and of how much.

    On a terminal it moves a bar, which vanishes; elsewhere it writes a line on stderr at most every `seconds`. Not
    `shown`: neither.
    """
    console = Console(stderr=True, quiet=not shown)
    told = monotonic()

    def line(what: str, done: int, of: int) -> None:
        nonlocal told
        if monotonic() - told >= seconds:
            told = monotonic()
            console.print(f"{what}: {done:,} of {of:,}", highlight=False, soft_wrap=True)

    if not console.is_terminal:
        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("")
        yield lambda what, done, of: bar.update(task, description=what, completed=done, total=of)


class Bar(RichProgressBar):
    """Lightning's bar; epochs count from 1, as they do in checkpoints."""

    def __init__(self) -> None:
        super().__init__(console_kwargs={"stderr": True}, leave=False)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> Any:
        """Without the number of the log folder, which takes the room of a metric."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch + 1} of {self.trainer.max_epochs}".ljust(len(self.validation_description))


class LogLines(pl.Callback):
    """A line after the first step, and one every `seconds` after that.

    Args:
        tell: writes a line.
        steps: gives the optimiser steps of the whole run, once it has started.
        seconds: between two lines within an epoch.
    """

    def __init__(self, tell: Callable[[str], None], steps: Callable[[], int], seconds: float) -> None:
        self._tell, self._steps, self._seconds = tell, steps, seconds
        self._losses: torch.Tensor | None = None
        self._batches = 0
        self._told: float | None = None
        self._started, self._first_step, self._rate = 0.0, 0, 0.0

    def __getstate__(self) -> dict[str, Any]:
        """Processes that Lightning spawns get a copy of it; lines are the first one's business."""
        return {**self.__dict__, "_tell": lambda line: None}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Start the clock."""
        self._started, self._first_step = monotonic(), trainer.global_step

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Remember the learning rate, which is the next step's when a batch ends."""
        self._rate = trainer.optimizers[0].param_groups[0]["lr"]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Add a batch's loss to the mean, where it was computed: only a line waits for the device."""
        loss = pl_module.batch_loss
        self._losses = loss if self._losses is None else self._losses + loss
        self._batches += 1
        now = monotonic()
        if self._told is not None and now - self._told < self._seconds:
            return
        self._told = now
        if trainer.is_global_zero:
            self._tell(self._line(trainer, float(self._losses) / self._batches, now - self._started))
        self._losses, self._batches = None, 0

    def _line(self, trainer: pl.Trainer, loss: float, seconds: float) -> str:
        step, steps = trainer.global_step, self._steps()
        mean = f"mean of {self._batches} batches" if self._batches > 1 else "1 batch"
        parts = [f"loss {loss:.4g} {NATS} ({mean})", f"learning rate {self._rate:.3g}"]
        done = step - self._first_step
        if done > 1 and seconds > 0:
            left = timedelta(seconds=round((steps - step) * seconds / done))
            parts += [f"{done / seconds:.3g} steps/s", f"about {left} left"]
        place = f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, step {step:,} of {steps:,}"
        return f"{place}: {', '.join(parts)}"


class EpochLines(pl.Callback):
    """A line at the end of each epoch: validation loss, and scores of generated reports where there are any.

    Args:
        tell: writes a line.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell

    def __getstate__(self) -> dict[str, Any]:
        """As of `LogLines`."""
        return {"_tell": lambda line: None}

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """The epoch's validation."""
        if not trainer.is_global_zero:
            return
        metrics, settings = trainer.callback_metrics, pl_module.settings
        parts = [f"validation loss {float(metrics['val_loss']):.4f} {NATS}"]
        if settings.generates() and pl_module.generates():
            parts += [f"{metric} {float(metrics[name]):.4f}" for name, metric in NAMES.items()]
            if pl_module.score is not None:
                parts.append(f"chosen by {settings.score_name()} {float(metrics['val_score']):.4f}")
        self._tell(f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs} done: {', '.join(parts)}")
