"""`r2gen train`: from an annotation and two source models to a checkpoint."""

from __future__ import annotations

import errno
import logging
import os
import signal
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from rich.console import Console

from r2gen_export.errors import R2GenError
from r2gen_export.studies.report_cleaning import CLEANERS
from r2gen_export.system.files import OUT_FOLDER, write_error
from r2gen_export.system.interrupts import interrupt_later
from r2gen_export.training.checkpoint import source_hashes, train_facts
from r2gen_export.training.curves import Curves
from r2gen_export.training.data import Study, StudyDataset, image_spec, read_studies, tokenize_reports
from r2gen_export.training.features import FeatureCache, cache_key
from r2gen_export.training.hub import source_config
from r2gen_export.training.model import R2GenGPT
from r2gen_export.training.module import BEST, LAST, STATE, AtomicIO, R2GenModule, Saver, Stopper, StudyData
from r2gen_export.training.progress import METRICS, NATS, Bar, EpochLines, LogLines
from r2gen_export.training.run_record import claim
from r2gen_export.training.settings import PRECISIONS, TrainSettings
from r2gen_export.training.validation_scores import NAMES

__all__ = ["TrainSettings", "train"]

MAX_WORKERS: Final = 8
STOPPING: Final = "stopping behind this batch; Ctrl-C again stops at once"


def train(settings: TrainSettings) -> Path:
    """Train, and write checkpoints, logs and the state to resume from into `settings.out`.

    OUT/best and OUT/last are checkpoints; OUT/last.ckpt is the state; OUT/logs holds CSV and TensorBoard logs
    (`progress.METRICS` names what is in them, with units), and OUT/curves.svg shows them; OUT/features holds the
    encoder's output in the shallow alignment; OUT/run.json the settings.

    Returns:
        The checkpoint of the epoch with the best validation score.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`, `R2G-DATA-*`, `R2G-IMAGE-*`, `R2G-MODEL-*` (weights that are absent, of another
            kind or not finite; a loss that is not), `R2G-OUTPUT-EXISTS` when `out` holds something and `resume` is
            not set, `R2G-OUTPUT-WRITE`, `R2G-CHECKPOINT-*` when the state does not fit.
        KeyboardInterrupt: Ctrl-C. What was written stays whole, and the run can be resumed.
    """
    console = Console(stderr=True)
    studies = {
        split: read_studies(settings.annotation, settings.base_dir, split, CLEANERS[settings.dataset], limit)
        for split, limit in (("train", settings.limit), ("val", settings.val_limit))
    }
    # Other kinds of model are refused before their weights are read.
    source_config(settings.llm, "LLM", "llama")
    source_config(settings.vision, "vision encoder", "swin")
    spec = image_spec(settings.vision)
    with _quiet():
        pl.seed_everything(settings.seed, verbose=False)
        dtype = torch.float32 if settings.precision == "fp32" else torch.bfloat16
        model = R2GenGPT.from_sources(settings.vision, settings.llm, settings.model_config(), dtype)
        sources = source_hashes(model)
        if _rank() == 0:
            before = claim(settings, sources)
            _announce(console, model, studies)
            _announce_length(console, settings, before)
            _announce_logs(console, settings)
        cache = None
        if settings.alignment == "shallow" and settings.use_cache:
            key = cache_key(sources["vision_sha256"], spec, settings.global_only)
            cache = FeatureCache(settings.cache_dir or settings.out / "features", key, spec, _encoder(model))
            _fill(cache, model, [*studies["train"], *studies["val"]], settings)
        datasets = {
            split: StudyDataset(listed, _token_ids(model, listed), spec, cache.study if cache else None)
            for split, listed in studies.items()
        }
        workers = settings.workers
        if workers is None:
            workers = min(MAX_WORKERS, os.cpu_count() or 1)
        # Features are read faster than they are handed from one process to another; and computing one that is
        # damaged takes the encoder, which lives here.
        data = StudyData(datasets["train"], datasets["val"], settings, 0 if cache else workers)
        saver = Saver(
            settings.out, {"dataset": settings.dataset, "select": settings.select}, sources, settings.state_every
        )
        _fit(settings, R2GenModule(model, settings, len(studies["train"])), data, saver)
    if saver.best_score is not None and _rank() == 0:
        value = f"validation loss {-saver.best_score:.4f} {NATS}"
        if settings.score():
            value = f"{settings.score_name()} {saver.best_score:.4f} (higher is better)"
        console.print(f"best: epoch {saver.best_epoch} of {settings.max_epochs}, {value}", highlight=False)
    return settings.out / BEST


def _rank() -> int:
    # Lightning sets the attribute from the environment of torchrun, SLURM or its own launcher.
    return getattr(rank_zero_only, "rank", 0) or 0


def _token_ids(model: R2GenGPT, studies: list[Study]) -> list[torch.Tensor]:
    assert model.tokenizer is not None
    reports = [study.report for study in studies]
    return tokenize_reports(reports, model.tokenizer, model.config.end_sym, model.config.max_length)


def _announce(console: Console, model: R2GenGPT, studies: dict[str, list[Study]]) -> None:
    total = sum(parameter.numel() for parameter in model.parameters())
    counts = ", ".join(f"{len(listed):,} {split} studies" for split, listed in studies.items())
    console.print(
        f"{model.config.alignment}: {model.trainable_parameters():,} trained of {total:,} parameters; {counts}",
        highlight=False,
    )


def _announce_length(console: Console, settings: TrainSettings, before: int | None) -> None:
    """Say how a run of another length goes on, and that a finished one has nothing left to do."""
    last = settings.out / LAST
    finished = settings.resume and last.exists() and train_facts(last).get("epoch", 0) >= settings.max_epochs
    if finished:
        line = f"the run has finished its {settings.max_epochs} epochs; a larger --epochs lengthens it"
    elif before is not None:
        line = (
            f"lengthened from {before} to {settings.max_epochs} epochs: from the next step on the learning rate is "
            f"that of a cosine over {settings.max_epochs} epochs; a run planned so from the start ends with other "
            "weights"
        )
    else:
        return
    console.print(line, highlight=False, soft_wrap=True)


def _announce_logs(console: Console, settings: TrainSettings) -> None:
    lines = [
        "logs in the folder of --out: logs/csv/version_N/metrics.csv (a version for each start), and "
        "logs/tensorboard (tensorboard --logdir OUT/logs)",
        *(f"  {name}: {text}" for name, text in METRICS.items() if _is_logged(name, settings)),
        "  curves.svg in the folder of --out shows them as a picture after each epoch",
    ]
    console.print("\n".join(lines), highlight=False, soft_wrap=True)


def _is_logged(name: str, settings: TrainSettings) -> bool:
    if name == "val_score":
        return settings.score() is not None
    return name not in NAMES or settings.generates()


def _encoder(model: R2GenGPT) -> Any:
    """The frozen encoder as the cache calls it: in float32 on whatever device it is."""

    def encode(pixel_values: torch.Tensor) -> torch.Tensor:
        device = next(model.visual_encoder.parameters()).device
        with torch.autocast(device.type, enabled=False):
            return model.encode_views(pixel_values.to(device))

    return encode


def _fill(cache: FeatureCache, model: R2GenGPT, studies: list[Study], settings: TrainSettings) -> None:
    """Fill the cache on a GPU if the training uses one. Processes that start together share the work."""
    rank = _rank()
    world = int(os.environ.get("WORLD_SIZE", os.environ.get("SLURM_NTASKS", "1")))
    gpu = settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    if gpu:
        model.visual_encoder.to(f"cuda:{int(os.environ.get('LOCAL_RANK', '0'))}")
    try:
        # Processes launched later by Lightning find everything there; those of torchrun or SLURM start together.
        cache.fill(
            studies[rank % world :: world], progress=settings.progress and rank == 0, seconds=settings.log_seconds
        )
    finally:
        model.visual_encoder.to("cpu")


def _fit(settings: TrainSettings, module: R2GenModule, data: StudyData, saver: Saver) -> None:
    logs, state = settings.out / "logs", settings.out / STATE
    resumed = settings.resume and state.exists()
    stopper = Stopper()
    callbacks: list[pl.Callback] = [LearningRateMonitor("step"), stopper, saver, Curves(settings.out, logs / "csv")]
    if settings.progress:
        callbacks += _progress(settings, module)
    trainer = _trainer(
        settings,
        accelerator=settings.accelerator,
        devices=settings.devices,
        num_nodes=settings.nodes,
        strategy=settings.strategy,
        precision=PRECISIONS[settings.precision],
        max_epochs=settings.max_epochs,
        accumulate_grad_batches=settings.accumulate,
        gradient_clip_val=settings.gradient_clip or None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,  # the module logs more rarely after the first steps
        logger=[CSVLogger(logs, name="csv"), _tensorboard(logs, state if resumed else None)],
        callbacks=callbacks,
        plugins=[AtomicIO()],
        # EpochOrder shares the studies out itself.
        use_distributed_sampler=False,
        enable_checkpointing=True,
        enable_progress_bar=any(isinstance(callback, Bar) for callback in callbacks),
        enable_model_summary=False,
    )
    for logger in trainer.loggers:
        logger.log_hyperparams(settings.identity())
    # Lightning leaves the mode alone; R2GenGPT.train keeps the frozen parts in eval mode.
    module.train()
    try:
        with interrupt_later(STOPPING if _rank() == 0 else "") as stopper.raise_held:
            trainer.fit(module, datamodule=data, ckpt_path=str(state) if resumed else None)
    except SIGTERMException as error:
        raise SystemExit(128 + signal.SIGTERM) from error
    except SystemExit as error:
        if trainer.interrupted:  # Lightning turns Ctrl-C into exit status 1
            raise KeyboardInterrupt from error
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):  # the loggers' own files
            raise write_error(settings.out, error, OUT_FOLDER) from error
        raise


def _progress(settings: TrainSettings, module: R2GenModule) -> list[pl.Callback]:
    """A line an epoch; between them a bar where stderr is a terminal, and lines in a log."""
    console = Console(stderr=True)

    def tell(line: str) -> None:
        console.print(line, highlight=False, soft_wrap=True)

    steps = Bar() if console.is_terminal else LogLines(tell, module.steps, settings.log_seconds)
    return [steps, EpochLines(tell)]


def _tensorboard(logs: Path, state: Path | None) -> TensorBoardLogger:
    """One run in TensorBoard, however often it is resumed: what was logged after the saved `state` is taken back."""
    step = None if state is None else int(AtomicIO().load_checkpoint(state)["global_step"])
    return TensorBoardLogger(logs, name="", version="tensorboard", purge_step=step)


def _trainer(settings: TrainSettings, **options: Any) -> pl.Trainer:
    try:
        return pl.Trainer(**options)
    except (MisconfigurationException, ValueError, TypeError) as error:
        asked = f"accelerator {settings.accelerator!r}, devices {settings.devices!r}, strategy {settings.strategy!r}"
        reason = " ".join(str(error).split())
        raise R2GenError(
            "R2G-DEVICE-UNAVAILABLE", f"no trainer for {asked}: {reason}", "ask for what is here"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Lightning's notes on hardware, workers and products."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
