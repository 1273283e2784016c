"""What `r2gen export` is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from r2gen_export.decoding import Decoding, Semantics
from r2gen_export.evaluation.phantom_findings import DEMO_SEED

Target = Literal["gpu", "cpu"]
Gate = Literal["whole", "layers"]


@dataclass(frozen=True)
class OwnStudies:
    """A user's studies that a bundle's reports are compared on with those of the unrounded PyTorch model.

    `base_dir` None: `images` beside the annotation, or its folder. `studies` of `split` are taken, evenly spaced.
    `margins`: by how much the bundle may be worse (`evaluation.gates.parse_margins`); without them nothing fails.
    `max_new_tokens` shortens the reports of both; None: as the default preset has it.
    """

    annotation: Path
    base_dir: Path | None = None
    split: str = "test"
    studies: int = 100
    margins: Mapping[str, float] = field(default_factory=dict)
    max_new_tokens: int | None = None


@dataclass(frozen=True)
class ExportSettings:
    """What to export, from where, to where.

    `vision` and `llm` are local folders or hub ids. `presets` replaces or adds to `paper` and `fast`. `model_id`
    defaults to the output folder's name. `overrides` are fields of `ModelConfig` that hold whatever the checkpoint
    says, `decoding` fields of `Decoding` that hold in `paper`; None counts as not given. `allow_unexpected` names
    tensors to leave aside, `*` allowed. `parity_max_new_tokens` shortens the gate's token comparison, which at 7B on
    a CPU takes most of the time; None compares whole reports. `head_precision` is that of the LLM's output layer;
    None: of the others (on the demo, int8 above int4 layers takes KL from 3.2e-3 to 1.9e-3 and micro-F1 from 0.976 to
    0.977, for bytes that every token reads). `target` None: a GPU where there is one. `dialect` and
    precisions None: by the target, see `target.choose`. `gate`: compare the whole
    models or layer by layer; by free memory when None. `embeddings` is the precision of the embedding table; None: fp32
    beside fp32, else fp16. The finished bundle reports on `phantom_studies` phantoms, none of those a demo build with
    `phantom_seed` trains on, and the manifest keeps how many findings it names. `evaluate` compares its reports on a
    user's own studies with PyTorch's.
    """

    checkpoint: Path
    vision: str | Path
    llm: str | Path
    out: Path
    target: Target | None = None
    dialect: str | None = None
    precision: str | None = None
    head_precision: str | None = None
    vision_precision: str | None = None
    embeddings: str | None = None
    gate: Gate | None = None
    semantics: Semantics = "hf-current"
    model_id: str | None = None
    synthetic: bool = False
    presets: Mapping[str, Decoding] = field(default_factory=dict)
    overrides: Mapping[str, Any] = field(default_factory=dict)
    decoding: Mapping[str, Any] = field(default_factory=dict)
    allow_unexpected: tuple[str, ...] = ()
    default_preset: str = "paper"
    parity_max_new_tokens: int | None = None
    phantom_studies: int = 0
    phantom_seed: int = DEMO_SEED
    evaluate: OwnStudies | None = None
