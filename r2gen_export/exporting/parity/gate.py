"""The parity gate in its two ways: the whole models side by side, or the decoder layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from r2gen_export import bundle as layout
from r2gen_export.bundle import Dims, ImageSpec, ParityCheck, Prompt, ReferenceLogits
from r2gen_export.exporting.parity import compare as parity
from r2gen_export.exporting.parity.compare import require
from r2gen_export.exporting.parity.probe import ExportedBundle, GatePlan, Probe
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.ort_vision import VisionSession
from r2gen_export.runtime.backends.trial_pass import reference_of, trial_logits, trial_prompt, trial_token

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM

    from r2gen_export.exporting.parity.layer_by_layer import Layered
    from r2gen_export.interfaces import Embeddings
    from r2gen_export.training.model import R2GenGPT

Floats = NDArray[np.float32]

__all__ = [
    "Compared",
    "ExportedBundle",
    "GatePlan",
    "Probe",
    "compare",
    "llm_dtype",
    "reference",
    "require",
    "round_reference",
    "steps",
]


@dataclass(frozen=True)
class Compared:
    """What `compare` saw. `reference`: None where it was not asked for, or a check did not pass."""

    checks: tuple[ParityCheck, ...]
    reference: ReferenceLogits | None = None


def llm_dtype(plan: GatePlan, llm: str | Path) -> torch.dtype | str:
    """What to load the LLM in: float32, or what its files hold, which leaves it there."""
    import torch

    from r2gen_export.training.hub import stored_dtype

    return torch.float32 if plan.gate == "whole" else stored_dtype(llm)


def steps(plan: GatePlan, probe: Probe, dims: Dims) -> int:
    """How often `compare` calls `advance`."""
    return dims.num_layers if plan.gate == "layers" else len(probe.decodings)


def reference(
    model: R2GenGPT, probe: Probe, plan: GatePlan, *, dims: Dims, prompt: Prompt, advance: Callable[[], None]
) -> parity.Reference:
    """PyTorch's side, as far as it is computed before the export."""
    if plan.gate == "layers":
        none = np.zeros((0, 0), np.int64)
        return parity.Reference(parity.reference_embeds(model, probe.studies), none, none.astype(np.float32), {})
    room = dims.max_positions - prompt.length(dims.image_tokens)
    return parity.reference(
        model,
        probe,
        steps=min(parity.EXACT_STEPS if plan.exact else parity.REDUCED_STEPS, room),
        advance=advance,
    )


def round_reference(model: R2GenGPT, wanted: parity.Reference, plan: GatePlan) -> parity.Reference:
    """The same with what rounded weights give; LoRA must be merged, the export done: it changes the model."""
    if plan.gate == "layers":
        return wanted
    return parity.with_rounded(model, wanted, plan)


def compare(
    candidate: ExportedBundle,
    probe: Probe,
    wanted: parity.Reference,
    plan: GatePlan,
    *,
    llama: LlamaForCausalLM | None = None,
    advance: Callable[[], None],
) -> Compared:
    """Compare a bundle, complete but for its manifest, with PyTorch.

    Args:
        candidate: the bundle. With its image preprocessing, the reference logits of its manifest are computed too.
        probe: what `wanted` was computed on.
        wanted: from `reference`, then `round_reference`.
        plan: the same.
        llama: the LLM, for the way layer by layer.
        advance: called behind each decoding, or each layer.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when a graph cannot be loaded.
    """
    if plan.gate == "whole":
        checks = parity.compare(candidate, probe, wanted, plan, advance)
        if candidate.image is None or not all(check.passed for check in checks):
            return Compared(checks)
        return Compared(checks, _whole_reference(candidate, candidate.image))
    assert llama is not None
    before, layered = _compare_layers(candidate, probe, wanted, plan, llama=llama, advance=advance)
    checks = (*before, *layered.checks)
    if layered.trial is None or not all(check.passed for check in checks):
        return Compared(checks)
    return Compared(checks, reference_of(layered.trial, trial_token(candidate.prompt)))


def _compare_layers(
    candidate: ExportedBundle,
    probe: Probe,
    wanted: parity.Reference,
    plan: GatePlan,
    *,
    llama: LlamaForCausalLM,
    advance: Callable[[], None],
) -> tuple[list[ParityCheck], Layered]:
    """Vision encoder and embeddings, then the decoder layer by layer."""
    from r2gen_export.exporting.parity.layer_by_layer import compare_layers
    from r2gen_export.exporting.parity.torch_decoder import TorchEmbeddings

    folder, prompt = candidate.folder, candidate.prompt
    checks, prompts = parity.compare_vision(folder, prompt, probe.studies, wanted.image_embeds, plan.vision_precision)
    table = TorchEmbeddings(llama)
    checks.append(_compare_rows(folder, prompt, table, plan.embeddings))
    reduced = plan.vision_precision != "fp32" or plan.embeddings != "fp32"
    layered = compare_layers(
        llama,
        folder / layout.DECODER,
        parity.prompts_around(table, prompt, list(wanted.image_embeds[:, None])) if reduced else prompts,
        onnx_prompts=prompts if reduced else None,
        trial=None if candidate.image is None else _trial_embeds(folder, prompt, candidate.image),
        precision=plan.precision,
        head_precision=plan.head_precision,
        advance=advance,
    )
    return checks, layered


def _whole_reference(candidate: ExportedBundle, image: ImageSpec) -> ReferenceLogits:
    """Reference logits from the bundle's decoder, opened as `infer` opens it on the CPU."""
    from r2gen_export.runtime.backends.ort_decoder import DecoderSession

    folder, prompt = candidate.folder, candidate.prompt
    embeds, token_id = _trial_embeds(folder, prompt, image), trial_token(prompt)
    decoder = DecoderSession(folder / layout.DECODER, candidate.dims, **parity.SESSION)
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
