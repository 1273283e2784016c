"""The Lightning side of a training: steps, optimiser, data order, and what is written while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor
from torch.utils.data import Sampler

from r2gen_export.decoding import FAST
from r2gen_export.errors import InternalError, R2GenError, library_reason
from r2gen_export.system.files import atomic_file
from r2gen_export.training.checkpoint import save_checkpoint
from r2gen_export.training.data import Batch, StudyDataset, StudyLoader, collate
from r2gen_export.training.hub import PAD_TOKEN_ID, check_finite
from r2gen_export.training.model import R2GenGPT, report_text
from r2gen_export.training.settings import TrainSettings
from r2gen_export.training.validation_scores import report_scores

ETA_MIN: Final = 1e-6
"""Learning rate at the end of the cosine, as published."""

LOG_EVERY: Final = 10
"""Steps between two lines of the logs, after the first `LOG_ALL`."""

LOG_ALL: Final = 100
"""Steps at the start of a run that are all in the logs: a short run has a curve, and a wrong rate shows at once."""

STATE: Final = "last.ckpt"
BEST: Final = "best"
LAST: Final = "last"


def batches_per_epoch(studies: int, batch_size: int, world_size: int) -> int:
    """Batches each process takes in an epoch; the last one may be short."""
    return math.ceil(math.ceil(studies / world_size) / batch_size)


class R2GenModule(pl.LightningModule):
    """Training and validation steps of an `R2GenGPT` (arXiv 2309.09812, section 3; published `training_step`).

    Args:
        model: what is trained.
        settings: how.
        studies: number of training studies, which fixes the length of the cosine.
    """

    def __init__(self, model: R2GenGPT, settings: TrainSettings, studies: int) -> None:
        super().__init__()
        self._studies = studies
        # The state file holds what is trained; the frozen rest comes from the sources again.
        self.strict_loading = False
        self.model = model
        self.settings = settings
        self.score = settings.score()
        self._random = model.config.alignment != "shallow" or model.config.llm_lora
        self.batch_loss = torch.tensor(math.nan)
        self._texts: list[str] = []
        self._references: list[str] = []

    def _image_embeds(self, batch: Batch) -> Tensor:
        if batch.features is not None:
            return self.model.project(batch.features)
        if batch.pixel_values is None:
            raise InternalError("a batch holds neither pixels nor features")
        return self.model.encode_flat(batch.pixel_values, batch.views)

    def on_train_start(self) -> None:
        """Put the learning rate onto this run's cosine: a saved state has that of the length the run had then."""
        for config in self.trainer.lr_scheduler_configs:
            schedule = config.scheduler
            if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
                for group, base, factor in zip(
                    schedule.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True
                ):
                    group["lr"] = base * factor(schedule.last_epoch)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Dropout depends on seed, step and process only, so that a resumed run draws what it would have drawn."""
        every = 1 if self.global_step < LOG_ALL else LOG_EVERY
        setattr(self.trainer, "log_every_n_steps", every)  # noqa: B010 - an attribute mypy does not know
        if self._random:
            step = self.trainer.fit_loop.epoch_loop.total_batch_idx
            torch.manual_seed((self.settings.seed * 1_000_003 + step) * 1_009 + self.global_rank)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Mean cross-entropy of the reports of a batch, in nats per token."""
        loss: Tensor = self.model(self._image_embeds(batch), batch.input_ids)
        self.batch_loss = loss.detach()
        self.log("loss", loss, prog_bar=True, batch_size=len(batch.reports))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Stop a diverged training. Looking at the loss waits for the device, so it is done where logging does too."""
        if batch_idx % LOG_EVERY == 0 and not torch.isfinite(outputs["loss"]):
            message = f"the training loss is {outputs['loss'].item()} at step {self.global_step}"
            raise R2GenError("R2G-MODEL-NONFINITE", message, "train again at a lower --learning-rate, or in fp32")

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss of a batch; reports of its studies when the checkpoint is chosen by text, or the logs have metrics."""
        embeds = self._image_embeds(batch)
        count = len(batch.reports)
        self.log("val_loss", self.model(embeds, batch.input_ids), prog_bar=True, batch_size=count, sync_dist=True)
        if not (self.settings.generates() and self.generates()):
            return
        wanted = math.ceil(self.settings.generate_limit / self.trainer.world_size) - len(self._texts)
        if wanted > 0:
            ids = self.model.generate_from(embeds[:wanted], self.settings.val_decoding or FAST)
            assert self.model.tokenizer is not None
            self._texts += [report_text(self.model.tokenizer, row.tolist()) for row in ids]
            # As published: the references are what is left of the reports behind the tokenizer and the cut.
            self._references += [
                report_text(self.model.tokenizer, row[row != PAD_TOKEN_ID].tolist()) for row in batch.input_ids[:wanted]
            ]

    def generates(self) -> bool:
        """Whether this epoch is one of those with generated reports, if the settings ask for any."""
        epoch = self.current_epoch + 1
        return epoch % self.settings.generate_every == 0 or epoch == self.settings.max_epochs

    def on_validation_epoch_end(self) -> None:
        """Score the generated reports of all processes together: BLEU and CIDEr are no means over studies."""
        if self.settings.generates() and self.generates():
            texts, references = self._gathered()
            for name, value in report_scores(texts, references).items():
                self.log(name, torch.tensor(value, device=self.device), sync_dist=True)
            if self.score is not None:
                score = float(self.score(texts, references))
                self.log("val_score", torch.tensor(score, device=self.device), prog_bar=True, sync_dist=True)
        self._texts, self._references = [], []

    def _gathered(self) -> tuple[list[str], list[str]]:
        if self.trainer.world_size == 1:
            return self._texts, self._references
        parts: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(parts, (self._texts, self._references))
        return [text for texts, _ in parts for text in texts], [text for _, texts in parts for text in texts]

    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        # Lightning's own estimate opens the training data before a resumed run knows where it is.
        batches = batches_per_epoch(self._studies, self.settings.batch_size, self.trainer.world_size)
        return self.settings.max_epochs * math.ceil(batches / self.settings.accumulate)

    def configure_optimizers(self) -> Any:
        """AdamW on what is trained; the learning rate falls along a cosine to `ETA_MIN`, step by step."""
        settings = self.settings
        parameters = [parameter for _, parameter in self.model.trainable()]
        optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        steps = self.steps()
        floor = min(1.0, ETA_MIN / settings.learning_rate)

        def factor(step: int) -> float:
            return floor + (1 - floor) * (1 + math.cos(math.pi * min(step, steps) / steps)) / 2

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the trained tensors only: a state file of a 7B LLM would be 27 GB of frozen weights."""
        kept = {f"model.{name}" for name, _ in self.model.trainable()}
        checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in kept}
        check_finite(checkpoint["state_dict"].items(), "the model in training")

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a state whose tensors are not the trained ones: loading is not strict."""
        wanted = {f"model.{name}" for name, _ in self.model.trainable()}
        differing = sorted(wanted ^ set(checkpoint["state_dict"]))
        if differing:
            message = f"{STATE} holds other tensors than this run trains: {', '.join(differing)}"
            raise R2GenError("R2G-CHECKPOINT-KEYS", message, "resume with the settings the run was started with")


class EpochOrder(Sampler[int]):
    """The studies in an order that depends on seed and epoch only, a share of them for each process.

    Args:
        studies: how many there are.
        seed: of the order.
        epoch: the first epoch drawn; Lightning's `set_epoch` moves it on.
        skip: items of that first epoch, in this process, which a resumed run has seen already.
        rank, world_size: this process and how many there are.
    """

    def __init__(self, studies: int, seed: int, epoch: int, skip: int, rank: int, world_size: int) -> None:  # noqa: PLR0917
        self._studies, self._seed = studies, seed
        self._epoch, self._first_epoch, self._skip = epoch, epoch, skip
        self._rank, self._world_size = rank, world_size

    def set_epoch(self, epoch: int) -> None:
        """Draw this epoch next."""
        self._epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self._studies / self._world_size)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        order = torch.randperm(self._studies, generator=generator).tolist()
        # Every process takes the same number of steps, or the last step would wait for ever.
        order += order[: len(self) * self._world_size - len(order)]
        mine = order[self._rank :: self._world_size]
        yield from mine[self._skip if self._epoch == self._first_epoch else 0 :]


class StudyData(pl.LightningDataModule):
    """Loaders of the training and validation studies.

    Args:
        train, val: the datasets.
        settings: batch sizes and seed.
        workers: processes that read images; 0 reads in this one.
    """

    def __init__(self, train: StudyDataset, val: StudyDataset, settings: TrainSettings, workers: int) -> None:
        super().__init__()
        self._train, self._val, self._settings, self._workers = train, val, settings, workers

    def _loader(self, dataset: StudyDataset, batch_size: int, sampler: Sampler[int]) -> StudyLoader:
        return StudyLoader(
            dataset,
            batch_size=batch_size,
            sampler=sampler,
            collate_fn=collate,
            num_workers=self._workers,
            persistent_workers=self._workers > 0,
            pin_memory=torch.cuda.is_available(),
            worker_init_fn=_ignore_interrupts if self._workers else None,
        )

    def train_dataloader(self) -> StudyLoader:
        """Training studies; a run resumed within an epoch goes on where it was."""
        trainer = self._trainer()
        size = self._settings.batch_size
        progress: Any = trainer.fit_loop.epoch_loop.batch_progress.current
        seen = progress.processed
        # At the end of an epoch all of its batches are seen, and the next epoch starts with its first.
        skip = size * (seen % batches_per_epoch(len(self._train), size, trainer.world_size))
        place = (trainer.current_epoch, skip, trainer.global_rank, trainer.world_size)
        return self._loader(self._train, size, EpochOrder(len(self._train), self._settings.seed, *place))

    def val_dataloader(self) -> StudyLoader:
        """Validation studies in their order."""
        trainer = self._trainer()
        order = range(trainer.global_rank, len(self._val), trainer.world_size)
        return self._loader(self._val, self._settings.val_batch_size, _Fixed(order))

    def _trainer(self) -> pl.Trainer:
        if self.trainer is None:
            raise InternalError("the data module is used without a trainer")
        return self.trainer


class _Fixed(Sampler[int]):
    def __init__(self, order: range) -> None:
        self._order = order

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return iter(self._order)


def _ignore_interrupts(_: int) -> None:
    import signal

    # Ctrl-C reaches the whole process group; the main process stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class AtomicIO(TorchCheckpointIO):
    """Lightning's state file, written beside and renamed, read without running code from it."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Raises `R2G-OUTPUT-WRITE`."""
        with atomic_file(Path(path)) as scratch:
            try:
                with scratch.open("wb") as file:
                    torch.save(checkpoint, file)
            except RuntimeError as error:
                # torch's writer trips over its own clean-up after a failed write.
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Raises `R2G-CHECKPOINT-FORMAT` when the file is damaged."""
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:
            message = f"{Path(path).name} cannot be read: {library_reason(error, path)}"
            raise R2GenError(
                "R2G-CHECKPOINT-FORMAT", message, "remove it; --resume then starts from the beginning"
            ) from error
        return state


class Stopper(pl.Callback):
    """Leaves the training between two batches when `raise_held` (of `interrupt_later`) raises."""

    raise_held: Callable[[], None] = staticmethod(lambda: None)

    def __getstate__(self) -> dict[str, Any]:
        """Processes that Lightning spawns get a copy of it; signals are the first one's business."""
        return {}

    def on_train_batch_start(self, *_: Any) -> None:
        """Not at a batch's end, where the state may still have to be saved."""
        self.raise_held()

    def on_validation_batch_start(self, *_: Any) -> None:
        self.raise_held()


class Saver(Checkpoint):
    """Writes `best` (when the score is the best yet), `last` and the state to resume from, each whole or not at all.

    Args:
        out: the run's folder.
        facts: what every checkpoint records under `train`.
        sources: `source_hashes(model)`.
        state_every: optimiser steps between two saves of the state; 0: only at the end of an epoch.
    """

    def __init__(self, out: Path, facts: dict[str, Any], sources: dict[str, str], state_every: int) -> None:
        self._out, self._facts, self._sources, self._every = out, facts, sources, state_every
        self._saved_step = 0
        self.best_score: float | None = None
        self.best_epoch = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_epoch = state_dict["best_score"], state_dict["best_epoch"]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # The batch after a resumed step may be in the middle of an accumulation.
        self._saved_step = trainer.global_step

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        step = trainer.global_step
        # At the last batch the epoch's own save follows, after validation.
        if self._every and step % self._every == 0 and step != self._saved_step and not trainer.is_last_batch:
            self._saved_step = step
            trainer.save_checkpoint(self._out / STATE)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        metrics = trainer.callback_metrics
        name = "val_loss" if pl_module.score is None else "val_score"
        epoch = trainer.current_epoch + 1
        facts = {**self._facts, "epoch": epoch, "step": trainer.global_step, "val_loss": float(metrics["val_loss"])}
        fresh = pl_module.score is None or pl_module.generates()
        if fresh:
            score = float(metrics[name]) * (-1 if pl_module.score is None else 1)
            facts["score"] = score
            if self.best_score is None or score > self.best_score:
                self.best_score, self.best_epoch = score, epoch
                self._write(trainer, pl_module, BEST, facts)
        self._write(trainer, pl_module, LAST, facts)
        trainer.save_checkpoint(self._out / STATE)

    def _write(self, trainer: pl.Trainer, module: R2GenModule, name: str, facts: dict[str, Any]) -> None:
        if trainer.is_global_zero:
            save_checkpoint(module.model, self._out / name, facts, sources=self._sources)
