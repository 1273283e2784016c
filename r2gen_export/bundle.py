"""The bundle: the contract between exporting and runtime (a folder, written whole or not at all).

Layout: `manifest.json`, `vision.onnx`, `embed_tokens.npy`, `decoder/model.onnx` (+ external data, `config.json`,
`generation_config.json`), `tokenizer.json`. Names of graph inputs and outputs follow optimum.
"""

from __future__ import annotations

import dataclasses
import json
import os
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final, Literal

from r2gen_export.errors import R2GenError

FORMAT: Final = "r2gen-bundle"
FORMAT_VERSION: Final = 1
MANIFEST: Final = "manifest.json"
VISION: Final = "vision.onnx"
EMBED_TOKENS: Final = "embed_tokens.npy"
DECODER: Final = "decoder/model.onnx"
TOKENIZER: Final = "tokenizer.json"
REQUIRED_FILES: Final = (VISION, EMBED_TOKENS, DECODER, TOKENIZER)

Semantics = Literal["hf-current", "hf-4.30"]
Precision = Literal["fp32", "fp16", "int8", "int4"]

NOTICE: Final = (
    "Research use only. AI-generated draft, unverified, not for diagnosis. "
    "A qualified radiologist must read the images."
)
"""Carried by every artefact r2gen writes (design, section 7). No flag removes it."""

DEMO_NOTICE: Final = (
    "Demo bundle: trained on synthetic phantoms only; its text says nothing about a real radiograph."
)
"""Added to `NOTICE` for bundles whose manifest says `synthetic`."""


@dataclass(frozen=True)
class Dims:
    """Sizes that fix the graphs' shapes. `d_llm`: width of the LLM; `image_tokens`: T of image_embeds [1, T, d_llm]."""

    image_tokens: int
    d_llm: int
    vocab_size: int
    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_positions: int


@dataclass(frozen=True)
class Prompt:
    """The prompt around the image tokens: `bos | before | image | after` (R2GenGPT `prompt_wrap`).

    `before_ids` and `after_ids` come from the source tokenizer at export, the halves tokenised separately without
    special tokens, so that the runtime cannot tokenise them differently.
    """

    before: str
    after: str
    before_ids: tuple[int, ...]
    after_ids: tuple[int, ...]
    bos_token_id: int
    eos_token_id: int
    pad_token_id: int
    unk_token_id: int


@dataclass(frozen=True)
class Decoding:
    """Decoding settings, named as in transformers' `GenerationConfig`; the defaults are the paper's for MIMIC-CXR.

    `do_sample` switches to sampling (then `num_beams` must be 1). `top_k=0` and `top_p=1.0` switch those filters off.
    """

    num_beams: int = 3
    min_new_tokens: int = 80
    max_new_tokens: int = 120
    repetition_penalty: float = 2.0
    length_penalty: float = 2.0
    no_repeat_ngram_size: int = 0
    early_stopping: bool = False
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


@dataclass(frozen=True)
class ImageSpec:
    """Preprocessing of the vision encoder, as its Hugging Face processor's config gives it.

    `resample` is Pillow's filter number (2 bilinear, 3 bicubic). Pixel value = (grey * rescale_factor - mean) / std.
    """

    height: int
    width: int
    resample: int
    rescale_factor: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class Source:
    """Where the weights came from: names without folders, and SHA-256 of the checkpoint's tensor file."""

    checkpoint: str
    checkpoint_sha256: str
    vision: str
    llm: str
    alignment: Literal["shallow", "delta", "deep"]
    global_only: bool
    llm_lora: bool


@dataclass(frozen=True)
class ParityCheck:
    """One comparison of the exported graphs with PyTorch.

    `observed` is the smallest tolerance that would pass (max abs difference), or 0/1 mismatching sequences for tokens.
    """

    name: str
    passed: bool
    observed: float
    tolerance: float
    detail: str = ""


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`. `presets` holds at least `paper` and `fast`; `default_preset` names the one `infer` takes.

    `precision` maps `vision`, `decoder`, `embed_tokens` to their precision; `opset` maps `vision`, `decoder`.
    `synthetic` is true for bundles trained on phantoms. `files` maps POSIX paths to entries, manifest.json excepted.
    """

    model_id: str
    created: str
    source: Source
    semantics: Semantics
    dialect: Literal["standard", "ort", "trt"]
    dims: Dims
    prompt: Prompt
    presets: dict[str, Decoding]
    default_preset: str
    image: ImageSpec
    precision: dict[str, str]
    opset: dict[str, int]
    tools: dict[str, str]
    parity: tuple[ParityCheck, ...]
    synthetic: bool = False
    files: dict[str, FileEntry] = field(default_factory=dict)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def notice(self) -> str:
        """The notice every output of this bundle carries."""
        return f"{NOTICE} {DEMO_NOTICE}" if self.synthetic else NOTICE

    def to_json(self) -> str:
        """The manifest as indented JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=1, ensure_ascii=False) + "\n"


def demo_bundle() -> Path:
    """Path of the embedded demo bundle, trained on synthetic phantoms."""
    return Path(__file__).parent / "demo" / "bundle"
