"""The parity gate: the exported graphs, run by the runtime's own loop, against the PyTorch model they came from.

`reference` runs PyTorch, `compare` runs the bundle, so the two models are never in memory together.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export import bundle as layout
from r2gen_export.bundle import Decoding, Dims, ImageSpec, ParityCheck, Prompt, Semantics
from r2gen_export.errors import R2GenError

if TYPE_CHECKING:
    from torch import Tensor

    from r2gen_export.runtime.sessions import DecoderState
    from r2gen_export.training.model import R2GenGPT

Floats = NDArray[np.float32]

IMAGE_EMBEDS_TOLERANCE: Final = 1e-4
"""Max abs difference per unit of the largest value. Swin-base in ONNX Runtime fp32 differs by 5e-6."""

LOGITS_TOLERANCE: Final = 5e-4
"""Max abs difference per unit of the largest logit; the logits see every layer's rounding."""

VIEWS: Final = (1, 2, 3, 1)
"""Views of the probe studies."""

SEED: Final = 20_230_918


@dataclass(frozen=True)
class Reference:
    """What PyTorch computes for the probe studies.

    `image_embeds` [N, T, d]; `logits` [N, vocab] at the last prompt position; `next_logits` [N, vocab] one step later,
    through the KV cache, after `next_ids` [N]; `token_ids` per decoding, cut behind the first EOS.
    """

    image_embeds: Floats
    logits: Floats
    next_ids: NDArray[np.int64]
    next_logits: Floats
    token_ids: dict[str, list[tuple[int, ...]]]


def probe_studies(spec: ImageSpec) -> list[Floats]:
    """Pixel values [V, 3, H, W] of studies with 1, 2, 3 and 1 views: smooth random shading under noise."""
    rng = np.random.default_rng(SEED)
    mean, std = (np.array(value, np.float32)[:, None, None] for value in (spec.mean, spec.std))
    studies = []
    for views in VIEWS:
        shading = rng.uniform(0, 255, (views, 1, 7, 7)).repeat(-(-spec.height // 7), 2).repeat(-(-spec.width // 7), 3)
        shading = shading[:, :, : spec.height, : spec.width]
        grey = np.clip(shading + rng.normal(0, 20, shading.shape), 0, 255).round().astype(np.float32)
        studies.append((grey * np.float32(spec.rescale_factor) - mean) / std)
    return studies


def gate_decodings(presets: Mapping[str, Decoding], max_new_tokens: int | None = None) -> dict[str, Decoding]:
    """The decodings the gate compares: the deterministic presets, and greedy and the paper's beams if those lack them.

    Args:
        presets: the bundle's presets.
        max_new_tokens: stop every one of them here, None: at their own limit.
    """
    chosen = {name: one for name, one in presets.items() if not one.do_sample}
    if all(one.num_beams > 1 for one in chosen.values()):
        chosen["greedy"] = Decoding(
            num_beams=1, min_new_tokens=0, max_new_tokens=60, repetition_penalty=1.0, length_penalty=1.0
        )
    if all(one.num_beams < 3 for one in chosen.values()):
        chosen["beam 3"] = Decoding(min_new_tokens=30, max_new_tokens=60)
    if max_new_tokens is None:
        return chosen
    return {
        name: dataclasses.replace(
            one,
            max_new_tokens=min(one.max_new_tokens, max_new_tokens),
            min_new_tokens=min(one.min_new_tokens, max_new_tokens),
        )
        for name, one in chosen.items()
    }


def reference(
    model: R2GenGPT,
    studies: Sequence[Floats],
    decodings: Mapping[str, Decoding],
    semantics: Semantics,
    advance: Callable[[], None] = lambda: None,
) -> Reference:
    """Run the probe studies through PyTorch, LoRA unmerged, all studies in one batch.

    Tokens come from transformers' own `generate` under `hf-current`. transformers 4.30 is not here: under `hf-4.30`
    they come from r2gen's loop, which gives 4.30.2's tokens, on PyTorch's logits.

    Args:
        model: the source model, float32, eval mode, on the CPU.
        studies: pixel values [V, 3, H, W] each.
        decodings: deterministic settings by name.
        semantics: which release's decoding.
        advance: called after each decoding.
    """
    import torch

    with torch.no_grad():
        embeds = torch.cat([model.encode_images(torch.from_numpy(study)) for study in studies])
        first = model.llama_model(inputs_embeds=model.wrap_prompt(embeds), use_cache=True, logits_to_keep=1)
        chosen = first.logits[:, -1].argmax(-1)
        following = model.llama_model(
            inputs_embeds=model.embed_tokens(chosen[:, None]), past_key_values=first.past_key_values, use_cache=True
        )
        token_ids = {}
        for name, decoding in decodings.items():
            token_ids[name] = _torch_tokens(model, embeds, decoding, semantics)
            advance()
    return Reference(
        embeds.numpy(), first.logits[:, -1].numpy(), chosen.numpy(), following.logits[:, -1].numpy(), token_ids
    )


def compare(
    folder: Path,
    dims: Dims,
    prompt: Prompt,
    *,
    studies: Sequence[Floats],
    decodings: Mapping[str, Decoding],
    wanted: Reference,
    semantics: Semantics,
    advance: Callable[[], None] = lambda: None,
) -> tuple[ParityCheck, ...]:
    """Run the probe studies through a bundle's graphs in ONNX Runtime on the CPU and compare.

    Args:
        folder: the bundle, complete but for its manifest.
        dims: its sizes.
        prompt: its prompt.
        studies: the studies `wanted` was computed on.
        decodings: the decodings `wanted` was computed with.
        wanted: PyTorch's results.
        semantics: the one `wanted` was computed under.
        advance: called after each decoding.

    Returns:
        One check per number of views, two of logits, one per decoding. Token checks count the studies that differ.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when a graph cannot be loaded.
    """
    from r2gen_export.runtime.generation import generate
    from r2gen_export.runtime.sessions import DecoderSession, EmbeddingTable, VisionSession

    options: dict[str, Any] = {"providers": ["CPUExecutionProvider"], "threads": None}
    vision = VisionSession(folder / layout.VISION, **options)
    decoder = DecoderSession(folder / layout.DECODER, dims, **options)
    table = EmbeddingTable(folder / layout.EMBED_TOKENS)
    checks = []

    embeds = [_unless_nonfinite(partial(vision.encode, study)) for study in studies]
    for views in sorted({len(study) for study in studies}):
        rows = [row for row, study in enumerate(studies) if len(study) == views]
        worst = max(_difference(embeds[row], wanted.image_embeds[row : row + 1]) for row in rows)
        limit = IMAGE_EMBEDS_TOLERANCE * max(1.0, float(np.abs(wanted.image_embeds).max()))
        name = f"image_embeds, {views} view{'s' if views > 1 else ''}"
        checks.append(ParityCheck(name, worst <= limit, worst, limit, "max abs difference"))

    # NaN image tokens would only repeat the finding above.
    usable = [mine if mine is not None else wanted.image_embeds[row : row + 1] for row, mine in enumerate(embeds)]
    head = table.lookup(np.array([[prompt.bos_token_id, *prompt.before_ids]]))
    tail = table.lookup(np.array([prompt.after_ids], dtype=np.int64))
    prompts = np.concatenate([np.concatenate([head, mine, tail], axis=1) for mine in usable])  # [N, S, d]

    first, second = _unless_nonfinite(
        lambda: _two_steps(decoder.prefill(prompts), table.lookup(wanted.next_ids[:, None]))
    ) or (None, None)
    checks.append(_logits_check("logits, first step", first, wanted.logits))
    checks.append(_logits_check("logits, second step", second, wanted.next_logits))

    for name, decoding in decodings.items():
        sequences = _unless_nonfinite(
            partial(
                generate,
                decoder,
                table,
                prompts,
                decoding,
                eos_token_id=prompt.eos_token_id,
                semantics=semantics,
                bos_token_id=prompt.bos_token_id,
            )
        )
        found = [tuple(sequence.token_ids) for sequence in sequences] if sequences is not None else None
        checks.append(_token_check(name, decoding, found, wanted.token_ids[name]))
        advance()
    return tuple(checks)


def require(checks: Sequence[ParityCheck]) -> None:
    """Raise `R2G-PARITY-FAILED` (exit status 3), listing the failed checks, unless all passed."""
    failed = [check for check in checks if not check.passed]
    if failed:
        listed = "; ".join(
            f"{check.name}: {check.observed:.3g}, allowed {check.tolerance:.3g} ({check.detail})" for check in failed
        )
        message = f"{len(failed)} of {len(checks)} checks against PyTorch failed: {listed}"
        raise R2GenError("R2G-PARITY-FAILED", message, "report it with the output of `r2gen doctor`; nothing was kept")


def _torch_tokens(model: R2GenGPT, embeds: Tensor, decoding: Decoding, semantics: Semantics) -> list[tuple[int, ...]]:
    from r2gen_export.exporting.torch_decoder import TorchDecoder, TorchEmbeddings
    from r2gen_export.runtime.generation import generate

    tokenizer = model.tokenizer
    assert tokenizer is not None
    eos = int(tokenizer.eos_token_id)
    if semantics == "hf-current":
        return [_until_eos(row, eos) for row in model.generate_from(embeds, decoding).tolist()]
    prompts = model.wrap_prompt(embeds).numpy()
    llm = model.llama_model
    found = generate(
        TorchDecoder(llm),
        TorchEmbeddings(llm),
        prompts,
        decoding,
        bos_token_id=int(tokenizer.bos_token_id),
        eos_token_id=eos,
        semantics=semantics,
    )
    return [one.token_ids for one in found]


def _until_eos(ids: Sequence[int], eos: int) -> tuple[int, ...]:
    """Rows of a batch are padded behind their first EOS, and with EOS where the pad id is 0."""
    return tuple(ids[: ids.index(eos) + 1] if eos in ids else ids)


def _unless_nonfinite(run: Callable[[], Any]) -> Any:
    """What `run` returns, None when the graph gave NaN or infinity: then its check fails, not the whole gate."""
    try:
        return run()
    except R2GenError as error:
        if error.code != "R2G-GENERATE-NONFINITE":
            raise
        return None


def _two_steps(state: DecoderState, embeds: Floats) -> tuple[Floats, Floats]:
    """Logits [N, vocab] of the last prompt position, and of `embeds` [N, 1, d] put behind it through the cache."""
    first = state.logits.copy()
    state.decode(embeds)
    return first, state.logits


def _difference(found: Floats | None, wanted: Floats) -> float:
    """Max abs difference; infinity when shapes differ or a value is not finite."""
    if found is None or found.shape != wanted.shape or not np.isfinite(found).all():
        return float("inf")
    return float(np.abs(found - wanted).max())


def _logits_check(name: str, found: Floats | None, wanted: Floats) -> ParityCheck:
    worst = _difference(found, wanted)
    scale = float(np.abs(wanted).max())
    limit = LOGITS_TOLERANCE * max(1.0, scale)
    return ParityCheck(name, worst <= limit, worst, limit, f"max abs difference, largest logit {scale:.3g}")


def _token_check(
    name: str, decoding: Decoding, found: list[tuple[int, ...]] | None, wanted: list[tuple[int, ...]]
) -> ParityCheck:
    way = "greedy" if decoding.num_beams == 1 else f"beam {decoding.num_beams}"
    title = f"tokens, {name}"
    detail = f"{way}, {len(wanted)} studies, {sum(map(len, wanted))} tokens"
    if found is None:
        return ParityCheck(title, False, float(len(wanted)), 0.0, f"{detail}, NaN or infinity in the logits")
    wrong = [row for row, ids in enumerate(wanted) if found[row] != ids]
    if wrong:
        one, two = found[wrong[0]], wanted[wrong[0]]
        step = next((at for at, pair in enumerate(zip(one, two, strict=False)) if pair[0] != pair[1]), None)
        detail += f", study {wrong[0] + 1} differs from token {min(len(one), len(two)) if step is None else step} on"
    return ParityCheck(title, not wrong, float(len(wrong)), 0.0, detail)
