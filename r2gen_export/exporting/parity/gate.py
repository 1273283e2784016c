"""The parity gate in its two ways: the whole models side by side, or the decoder layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from r2gen_export import bundle as layout
from r2gen_export.bundle import Dims, ImageSpec, ParityCheck, Prompt, ReferenceLogits
from r2gen_export.decoding import Decoding, Semantics
from r2gen_export.exporting.parity import compare as parity
from r2gen_export.exporting.parity.compare import require
from r2gen_export.exporting.settings import Gate
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.ort_vision import VisionSession
from r2gen_export.runtime.backends.trial_pass import reference_of, trial_logits, trial_prompt, trial_token

if TYPE_CHECKING:
    import torch

    from r2gen_export.exporting.parity.layer_by_layer import Layered
    from r2gen_export.interfaces import Embeddings
    from r2gen_export.training.model import R2GenGPT

Floats = NDArray[np.float32]

__all__ = ["Compared", "Plan", "Probe", "compare", "llm_dtype", "reference", "require", "round_reference", "steps"]


@dataclass(frozen=True)
class Plan:
    """How the gate goes about it, and what the decoder's weights are stored as."""

    gate: Gate
    precision: str
    head_precision: str
    vision_precision: str = "fp32"
    embeddings: str = "fp32"

    @property
    def exact(self) -> bool:
        """Whether everything is float32."""
        return {self.precision, self.head_precision, self.vision_precision, self.embeddings} == {"fp32"}


@dataclass(frozen=True)
class Compared:
    """What `compare` saw. `reference`: None where it was not asked for, or a check did not pass."""

    checks: tuple[ParityCheck, ...]
    reference: ReferenceLogits | None = None


@dataclass(frozen=True)
class Probe:
    """What both models are run on: pixel values [V, 3, H, W] of each study, and how to decode."""

    studies: Sequence[NDArray[np.float32]]
    decodings: Mapping[str, Decoding]
    semantics: Semantics

    @classmethod
    def make(
        cls, image: ImageSpec, presets: Mapping[str, Decoding], semantics: Semantics, max_new_tokens: int | None
    ) -> Probe:
        """Random shadings, and the deterministic presets."""
        return cls(parity.probe_studies(image), parity.gate_decodings(presets, max_new_tokens), semantics)


def llm_dtype(plan: Plan, llm: str | Path) -> torch.dtype | str:
    """What to load the LLM in: float32, or what its files hold, which leaves it there."""
    import torch

    from r2gen_export.training.hub import stored_dtype

    return torch.float32 if plan.gate == "whole" else stored_dtype(llm)


def steps(plan: Plan, probe: Probe, dims: Dims) -> int:
    """How often `compare` calls `advance`."""
    return dims.num_layers if plan.gate == "layers" else len(probe.decodings)


def reference(
    model: R2GenGPT, probe: Probe, plan: Plan, *, dims: Dims, prompt: Prompt, advance: Callable[[], None]
) -> parity.Reference:
    """PyTorch's side, as far as it is computed before the export."""
    if plan.gate == "layers":
        none = np.zeros((0, 0), np.int64)
        return parity.Reference(parity.reference_embeds(model, probe.studies), none, none.astype(np.float32), {})
    room = dims.max_positions - prompt.length(dims.image_tokens)
    return parity.reference(
        model,
        probe.studies,
        probe.decodings,
        probe.semantics,
        steps=min(parity.EXACT_STEPS if plan.exact else parity.REDUCED_STEPS, room),
        advance=advance,
    )


def round_reference(model: R2GenGPT, wanted: parity.Reference, plan: Plan) -> parity.Reference:
    """The same with what rounded weights give; LoRA must be merged, the export done: it changes the model."""
    if plan.gate == "layers":
        return wanted
    return parity.with_rounded(model, wanted, plan.precision, plan.head_precision, plan.embeddings)


def compare(
    folder: Path,
    dims: Dims,
    prompt: Prompt,
    *,
    probe: Probe,
    wanted: parity.Reference,
    plan: Plan,
    image: ImageSpec | None = None,
    llama: Any = None,
    advance: Callable[[], None],
) -> Compared:
    """Compare a bundle, complete but for its manifest, with PyTorch.

    Args:
        folder: the bundle.
        dims: its sizes.
        prompt: its prompt.
        probe: what `wanted` was computed on.
        wanted: from `reference`, then `round_reference`.
        plan: the same.
        image: the bundle's image preprocessing, to compute the reference logits of its manifest too.
        llama: the LLM, for the way layer by layer.
        advance: called behind each decoding, or each layer.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when a graph cannot be loaded.
    """
    if plan.gate == "whole":
        checks = parity.compare(
            folder,
            dims,
            prompt,
            studies=probe.studies,
            decodings=probe.decodings,
            wanted=wanted,
            semantics=probe.semantics,
            precision=plan.precision,
            head_precision=plan.head_precision,
            vision_precision=plan.vision_precision,
            embeddings=plan.embeddings,
            advance=advance,
        )
        if image is None or not all(check.passed for check in checks):
            return Compared(checks)
        return Compared(checks, _whole_reference(folder, dims, prompt, image))
    trial = None if image is None else _trial_embeds(folder, prompt, image)
    before, layered = _compare_layers(
        folder, prompt, probe, wanted=wanted, plan=plan, llama=llama, trial=trial, advance=advance
    )
    checks = (*before, *layered.checks)
    if layered.trial is None or not all(check.passed for check in checks):
        return Compared(checks)
    return Compared(checks, reference_of(layered.trial, trial_token(prompt)))


def _compare_layers(
    folder: Path,
    prompt: Prompt,
    probe: Probe,
    *,
    wanted: parity.Reference,
    plan: Plan,
    llama: Any,
    trial: Floats | None,
    advance: Callable[[], None],
) -> tuple[list[ParityCheck], Layered]:
    """Vision encoder and embeddings, then the decoder layer by layer."""
    from r2gen_export.exporting.parity.layer_by_layer import compare_layers
    from r2gen_export.exporting.parity.torch_decoder import TorchEmbeddings

    checks, prompts = parity.compare_vision(folder, prompt, probe.studies, wanted.image_embeds, plan.vision_precision)
    table = TorchEmbeddings(llama)
    checks.append(_compare_rows(folder, prompt, table, plan.embeddings))
    reduced = plan.vision_precision != "fp32" or plan.embeddings != "fp32"
    layered = compare_layers(
        llama,
        folder / layout.DECODER,
        parity.prompts_around(table, prompt, list(wanted.image_embeds[:, None])) if reduced else prompts,
        onnx_prompts=prompts if reduced else None,
        trial=trial,
        precision=plan.precision,
        head_precision=plan.head_precision,
        advance=advance,
    )
    return checks, layered


def _whole_reference(folder: Path, dims: Dims, prompt: Prompt, image: ImageSpec) -> ReferenceLogits:
    """Reference logits from the bundle's decoder, opened as `infer` opens it on the CPU."""
    from r2gen_export.runtime.backends.ort_decoder import DecoderSession

    embeds, token_id = _trial_embeds(folder, prompt, image), trial_token(prompt)
    decoder = DecoderSession(folder / layout.DECODER, dims, **parity.SESSION)
    table = EmbeddingTable(folder / layout.EMBED_TOKENS)
    return reference_of(trial_logits(decoder, table, embeds[:, :-1], token_id), token_id)


def _trial_embeds(folder: Path, prompt: Prompt, image: ImageSpec) -> Floats:
    """Embeddings [1, S + 1, d] of the trial prompt and the trial token."""
    table = EmbeddingTable(folder / layout.EMBED_TOKENS)
    vision = VisionSession(folder / layout.VISION, **parity.SESSION)
    embeds = trial_prompt(vision, table, prompt, image)
    return np.concatenate([embeds, table.lookup(np.array([[trial_token(prompt)]]))], axis=1)


def _compare_rows(folder: Path, prompt: Prompt, table: Embeddings, precision: str) -> ParityCheck:
    """The bundle's embeddings of the prompt's tokens: the layers start from them on both sides."""
    import torch

    from r2gen_export.exporting.parity.metrics import rows_check
    from r2gen_export.exporting.parity.rounded_weights import round_embeddings

    ids = np.unique([prompt.bos_token_id, prompt.eos_token_id, *prompt.before_ids, *prompt.after_ids])
    wanted = round_embeddings(torch.from_numpy(table.lookup(ids)), precision).numpy()
    return rows_check(EmbeddingTable(folder / layout.EMBED_TOKENS).lookup(ids), wanted)
