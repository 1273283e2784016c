"""`manifest.json` and the names of a bundle's files: what a bundle says of itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Final, Literal

from r2gen_export.decoding import Decoding, Semantics

FORMAT: Final = "r2gen-bundle"
FORMAT_VERSION: Final = 2
"""2 adds `target`, `reference` and, in the `ort` dialect, the input `total_sequence_length`."""

READABLE: Final = (1, 2)
"""Format versions this release reads."""

MANIFEST: Final = "manifest.json"
VISION: Final = "vision.onnx"
EMBED_TOKENS: Final = "embed_tokens.npy"
DECODER: Final = "decoder/model.onnx"
TOKENIZER: Final = "tokenizer.json"
ENGINES: Final = "engines"
"""Folder of the TensorRT engines, which are no files of the manifest."""

REQUIRED_FILES: Final = (VISION, EMBED_TOKENS, DECODER, TOKENIZER)


NOTICE: Final = (
    "Research use only. AI-generated draft, unverified, not for diagnosis. "
    "A qualified radiologist must read the images."
)
"""Carried by every artefact r2gen writes (design, section 7). No flag removes it."""

DEMO_NOTICE: Final = "Demo bundle: trained on synthetic phantoms only; its text says nothing about a real radiograph."
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

    def length(self, image_tokens: int) -> int:
        """Positions it takes: BOS, text before, image tokens, text after."""
        return 1 + len(self.before_ids) + image_tokens + len(self.after_ids)


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

    `observed` is the smallest tolerance that would pass (max abs difference), for tokens the number of studies that
    differ. `stage`: where in the flow (encode, prefill, decode, tokens, report). `metrics`: further figures by name.
    `gate` is false for what is recorded only: how far a reduced precision is from fp32, how well findings are named.
    """

    name: str
    passed: bool
    observed: float
    tolerance: float
    detail: str = ""
    stage: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    gate: bool = True


@dataclass(frozen=True)
class ReferenceLogits:
    """Logits of two positions, computed on the CPU at export, for `runtime.backends.trial_pass`.

    `token_id`: the token behind the prompt, whose position is the second. `vocab_ids`: the token ids whose logits are
    kept. `logits`: theirs at the last position of the prompt, and at `token_id`'s. `scale`: the largest magnitude of
    any logit at each of the two.
    """

    token_id: int
    vocab_ids: tuple[int, ...]
    logits: tuple[tuple[float, ...], tuple[float, ...]]
    scale: tuple[float, float]


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and SHA-256 (hex) of one file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """`manifest.json`. `presets` holds at least `paper` and `fast`; `default_preset` names the one `infer` takes.

    `precision` maps `vision`, `decoder`, `embed_tokens` to their precision; `opset` maps `vision`, `decoder`.
    `synthetic` is true for bundles trained on phantoms. `target`: what the export chose its defaults for. `reference`:
    None in bundles of format version 1. `files` maps POSIX paths to entries, manifest.json excepted.
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
    target: Literal["gpu", "cpu"] | None = None
    reference: ReferenceLogits | None = None
    files: dict[str, FileEntry] = field(default_factory=dict)
    format: str = FORMAT
    format_version: int = FORMAT_VERSION

    @property
    def notice(self) -> str:
        """The notice every output of this bundle carries."""
        return f"{NOTICE} {DEMO_NOTICE}" if self.synthetic else NOTICE

    def to_json(self) -> str:
        """The manifest as indented JSON text."""
        fields = dataclasses.asdict(self)
        for name in ("target", "reference"):  # unknown to releases that read version 1 alone
            if fields[name] is None:
                del fields[name]
        return json.dumps(fields, indent=1, ensure_ascii=False) + "\n"


def bundle_sha256(manifest: Manifest) -> str:
    """64 hex digits that name a bundle's content: SHA-256 over the paths and hashes of its files, sorted by path.

    `drafts/` does not count: it changes how fast a report comes, not a word of it.
    """
    files = ((name, entry) for name, entry in sorted(manifest.files.items()) if not name.startswith("drafts/"))
    lines = (f"{name} {entry.sha256}\n" for name, entry in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def bundle_id(manifest: Manifest) -> str:
    """The first 12 hex digits of `bundle_sha256`: what reports and messages call a bundle."""
    return bundle_sha256(manifest)[:12]
