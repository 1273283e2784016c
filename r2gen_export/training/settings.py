"""What a training is asked to do, checked before anything is loaded."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from r2gen_export.decoding import Decoding
from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.metrics.rouge import rouge_l
from r2gen_export.studies.report_cleaning import CLEANERS
from r2gen_export.training.model import Alignment, ModelConfig
from r2gen_export.training.validation_scores import bleu4_cider

Score = Callable[[Sequence[str], Sequence[str]], float]
"""(generated texts, references) -> score; the higher, the better."""

SCORES: Final[dict[str, Score | None]] = {"loss": None, "rouge_l": rouge_l, "bleu4+cider": bleu4_cider}
"""How the best checkpoint is chosen: by the lowest validation loss, or by generated text."""

SCORE_NAMES: Final[dict[Score, str]] = {rouge_l: "ROUGE-L", bleu4_cider: "0.5 BLEU-4 + 0.5 CIDEr"}

MAX_LENGTH: Final = {"mimic_cxr": 100, "iu_xray": 60, "none": 150}
"""Tokens a report is cut at, per data set, as in the published scripts."""

PRECISIONS: Final = {"fp32": "32-true", "bf16": "bf16-mixed"}

IDENTITY: Final = (
    *("dataset", "alignment", "global_only", "llm_lora", "vis_r", "vis_alpha", "llm_r", "llm_alpha", "lora_dropout"),
    *("max_length", "max_epochs", "batch_size", "accumulate", "learning_rate", "weight_decay", "gradient_clip"),
    *("seed", "limit", "val_limit", "select"),
)
"""Settings that a resumed run must share with the run it continues; `max_epochs` may be larger."""


@dataclass(frozen=True)
class TrainSettings:
    """One training.

    `vision` and `llm` are local folders or hub ids; `out` is the run's folder. Defaults are the published ones where
    there are any. `max_length` None: `MAX_LENGTH`. `limit` and `val_limit` take the first studies of a split only.

    `precision` bf16: the LLM is held in bfloat16, the rest is computed under autocast. `accelerator`, `devices`,
    `nodes` and `strategy` go to Lightning's trainer.

    The best checkpoint is chosen by `select`, or by `score_fn` when given. When it needs text, or the logs are to have
    `metrics` of it, reports are generated
    for the first `generate_limit` validation studies with `val_decoding` (None: greedy) every `generate_every` epochs
    and after the last one. `state_every`: steps between two saves of the state a killed run resumes from, beside
    those at the end of every epoch; 0: those only. `cache_dir` None: `out/features`. `log_seconds`: between two lines
    on a stderr that is no terminal, where there is no progress bar.

    With `resume` a larger `max_epochs` lengthens a run, finished or not: the learning rate goes on along the cosine of
    the new length.
    """

    annotation: Path
    base_dir: Path
    vision: str | Path
    llm: str | Path
    out: Path
    dataset: str = "mimic_cxr"
    alignment: Alignment = "shallow"
    global_only: bool = False
    llm_lora: bool = False
    vis_r: int = 16
    vis_alpha: int = 16
    llm_r: int = 16
    llm_alpha: int = 16
    lora_dropout: float = 0.1
    max_length: int | None = None
    max_epochs: int = 5
    batch_size: int = 8
    val_batch_size: int = 16
    accumulate: int = 1
    learning_rate: float = 1e-4
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    precision: str = "fp32"
    accelerator: str = "auto"
    devices: int | str = 1
    nodes: int = 1
    strategy: str = "auto"
    workers: int | None = None
    seed: int = 42
    resume: bool = False
    limit: int | None = None
    val_limit: int | None = None
    select: str = "loss"
    score_fn: Score | None = None
    metrics: bool = False
    val_decoding: Decoding | None = None
    generate_limit: int = 64
    generate_every: int = 1
    state_every: int = 500
    log_seconds: float = 30.0
    use_cache: bool = True
    cache_dir: Path | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        for name, choices in (("dataset", CLEANERS), ("select", SCORES), ("precision", PRECISIONS)):
            if getattr(self, name) not in choices:
                _refuse(f"{name} is {getattr(self, name)!r}", f"choose one of {', '.join(choices)}")
        positive = ("max_epochs", "batch_size", "val_batch_size", "accumulate", "nodes", "generate_limit")
        for name in (*positive, "generate_every", "limit", "val_limit"):
            value = getattr(self, name)
            if value is not None and value < 1:
                _refuse(f"{name} is {value}, expected at least 1")
        for name in ("seed", "state_every", "log_seconds", "weight_decay", "gradient_clip", "workers"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                _refuse(f"{name} is {value}, expected at least 0")
        if not 0 < self.learning_rate < math.inf:
            _refuse(f"learning_rate is {self.learning_rate}, expected a positive number")
        if any(word in self.strategy for word in ("fsdp", "deepspeed", "model_parallel")):
            _refuse(f"strategy {self.strategy!r} shards the weights, which checkpoints here do not gather", "use ddp")
        self.model_config()

    def model_config(self) -> ModelConfig:
        """The settings that shape the model."""
        names = {field.name for field in dataclasses.fields(ModelConfig)} & set(vars(self))
        values = {name: getattr(self, name) for name in names - {"vision", "llm", "max_length"}}
        length = MAX_LENGTH[self.dataset] if self.max_length is None else self.max_length
        return ModelConfig(vision=str(self.vision), llm=str(self.llm), max_length=length, **values)

    def score(self) -> Score | None:
        """What scores generated text; None: the validation loss decides."""
        return self.score_fn or SCORES[self.select]

    def score_name(self) -> str:
        """What that score is called."""
        score = self.score()
        return SCORE_NAMES.get(score, "score") if score is not None else "score"

    def generates(self) -> bool:
        """Whether validation writes reports: to choose the checkpoint, or for the logs."""
        return self.metrics or self.score() is not None

    def identity(self) -> dict[str, Any]:
        """What a resumed run must share, fit for JSON."""
        return {name: getattr(self, name) for name in IDENTITY}


def _refuse(message: str, fix: str = "") -> None:
    raise R2GenError("R2G-CONFIG-VALUE", message, fix)
