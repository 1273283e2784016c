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
from r2gen_export.bundle import Dims, ImageSpec, ParityCheck, Prompt
from r2gen_export.decoding import Decoding, Semantics
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.parity.first_nonfinite import first_nonfinite, prefill_feeds
from r2gen_export.exporting.parity.metrics import (
    IMAGE_EMBEDS_TOLERANCE,
    first_divergence,
    logits_check,
    quality_check,
    tensor_check,
    token_check,
)

if TYPE_CHECKING:
    from torch import Tensor

    from r2gen_export.interfaces import DecoderState, Embeddings
    from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
    from r2gen_export.training.model import R2GenGPT

Floats = NDArray[np.float32]

EXACT_STEPS: Final = 12
"""Steps whose logits are compared, after the first, where everything is float32."""

REDUCED_STEPS: Final = 59
"""The same below float32: quality is measured on 4 x 60 positions."""

VIEWS: Final = (1, 2, 3, 1)
"""Views of the probe studies."""

SEED: Final = 20_230_918

SESSION: Final[dict[str, Any]] = {"providers": ["CPUExecutionProvider"], "threads": None}


@dataclass(frozen=True)
class Reference:
    """What PyTorch computes for the probe studies.

    `image_embeds` [N, T, d]; `step_ids` [N, K], the likeliest token of each step; `logits` [N, K + 1, vocab] at the
    last prompt position and behind each of them, through the KV cache; `token_ids` per decoding, cut behind EOS.
    `rounded` are the logits behind the same tokens of the model with rounded weights, None where nothing is rounded.
    """

    image_embeds: Floats
    step_ids: NDArray[np.int64]
    logits: Floats
    token_ids: dict[str, list[tuple[int, ...]]]
    rounded: Floats | None = None


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
    *,
    steps: int = EXACT_STEPS,
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
        steps: how many steps' logits.
        advance: called after each decoding.
    """
    import torch

    with torch.no_grad():
        embeds = torch.from_numpy(reference_embeds(model, studies))
        step_ids, logits = _torch_steps(model, embeds, steps)
        token_ids = {}
        for name, decoding in decodings.items():
            token_ids[name] = _torch_tokens(model, embeds, decoding, semantics)
            advance()
    return Reference(embeds.numpy(), step_ids, logits, token_ids)


def reference_embeds(model: R2GenGPT, studies: Sequence[Floats]) -> Floats:
    """Image embeddings [N, T, d] of the probe studies from PyTorch."""
    import torch

    with torch.no_grad():
        embeds: Floats = torch.cat([model.encode_images(torch.from_numpy(study)) for study in studies]).numpy()
    return embeds


def with_rounded(
    model: R2GenGPT, wanted: Reference, precision: str, head_precision: str | None = None, embeddings: str = "fp32"
) -> Reference:
    """`wanted` with the logits of rounded weights. LoRA must be merged; `model` keeps the rounded weights."""
    import torch

    from r2gen_export.exporting.parity.rounded_weights import round_embeddings, round_weights

    if precision == embeddings == "fp32" and head_precision in (None, "fp32"):
        return wanted
    # First, and a tensor of its own: it may be tied to the output layer, which is rounded in another way.
    table = round_embeddings(model.embed_tokens.weight, embeddings).clone()
    round_weights(model.llama_model, precision, head_precision)
    model.llama_model.set_input_embeddings(torch.nn.Embedding.from_pretrained(table))
    with torch.no_grad():
        embeds = torch.from_numpy(wanted.image_embeds)
        _, rounded = _torch_steps(model, embeds, wanted.step_ids.shape[1], torch.from_numpy(wanted.step_ids))
    return dataclasses.replace(wanted, rounded=rounded)


def compare(
    folder: Path,
    dims: Dims,
    prompt: Prompt,
    *,
    studies: Sequence[Floats],
    decodings: Mapping[str, Decoding],
    wanted: Reference,
    semantics: Semantics,
    precision: str = "fp32",
    head_precision: str | None = None,
    vision_precision: str = "fp32",
    embeddings: str = "fp32",
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
        precision: of the decoder's layers. Below fp32, logits must be those of the rounded weights, within what rounded
            activations explain; the distance from fp32 and the tokens are recorded.
        head_precision: of the output layer, None: the same.
        vision_precision: of the vision encoder. Below fp32, the decoder is checked on PyTorch's image embeddings, and
            the distance from fp32 is that of the whole bundle.
        embeddings: precision of the embedding table.
        advance: called after each decoding.

    Returns:
        One check per number of views, two of logits (three below fp32), one per decoding. Token checks count the
        studies that differ.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when a graph cannot be loaded.
    """
    from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
    from r2gen_export.runtime.backends.ort_decoder import DecoderSession
    from r2gen_export.runtime.decoding.generate import generate

    checks, prompts = compare_vision(folder, prompt, studies, wanted.image_embeds, vision_precision)
    decoder = DecoderSession(folder / layout.DECODER, dims, **SESSION)
    table = EmbeddingTable(folder / layout.EMBED_TOKENS)
    steps = wanted.step_ids.shape[1]
    given_prompts = prompts
    if vision_precision != "fp32":
        given_prompts = prompts_around(table, prompt, list(wanted.image_embeds[:, None]))
    head_precision = head_precision or precision
    exact = {precision, head_precision, vision_precision, embeddings} == {"fp32"}
    logits = _unless_nonfinite(lambda: step_logits(decoder.prefill(given_prompts, steps), table, wanted.step_ids))
    reachable = wanted.logits if wanted.rounded is None else wanted.rounded
    stored = (f"{precision} weights", f"{head_precision} output layer", f"{embeddings} embeddings")
    weights = next((f", {one}" for one in stored if wanted.rounded is not None and not one.startswith("fp32")), "")
    for name, stage, part in (
        (f"logits, first step{weights}", "prefill", slice(0, 1)),
        (f"logits, next {steps} steps{weights}", "decode", slice(1, None)),
    ):
        given = None if logits is None else logits[:, part]
        check = logits_check(name, stage, given, reachable[:, part], (precision, head_precision))
        if given is None:
            graph = folder / layout.DECODER
            check = _naming_the_node(check, graph, prefill_feeds(graph, dims, given_prompts))
        checks.append(check)

    if not exact:
        if given_prompts is not prompts:
            logits = _unless_nonfinite(lambda: step_logits(decoder.prefill(prompts, steps), table, wanted.step_ids))
        checks.append(quality_check(logits, wanted.logits))
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
        ids = [sequence.token_ids for sequence in sequences] if sequences is not None else None
        checks.append(token_check(name, decoding, ids, wanted.token_ids[name], gate=exact))
        advance()
    return tuple(checks)


def compare_vision(
    folder: Path, prompt: Prompt, studies: Sequence[Floats], wanted: Floats, precision: str = "fp32"
) -> tuple[list[ParityCheck], Floats]:
    """Compare a bundle's image embeddings with PyTorch's [N, T, d].

    Returns:
        One check per number of views, and the prompts [N, S, d] around the bundle's embeddings.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when the graph cannot be loaded.
    """
    from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
    from r2gen_export.runtime.backends.ort_vision import VisionSession

    vision = VisionSession(folder / layout.VISION, **SESSION)
    table = EmbeddingTable(folder / layout.EMBED_TOKENS)
    checks = []
    embeds = [_unless_nonfinite(partial(vision.encode, study)) for study in studies]
    for views in sorted({len(study) for study in studies}):
        rows = [row for row, study in enumerate(studies) if len(study) == views]
        mine = [embeds[row] for row in rows]
        found = None if any(one is None for one in mine) else np.concatenate(mine)
        name = f"image_embeds, {views} view{'s' if views > 1 else ''}"
        check = tensor_check(name, "encode", found, wanted[rows], IMAGE_EMBEDS_TOLERANCE[precision])
        if found is None:
            culprit = next(studies[row] for row in rows if embeds[row] is None)
            check = _naming_the_node(check, folder / layout.VISION, {"pixel_values": culprit})
        checks.append(check)

    # NaN image tokens would only repeat the finding above.
    usable = [mine if mine is not None else wanted[row : row + 1] for row, mine in enumerate(embeds)]
    return checks, prompts_around(table, prompt, usable)


def prompts_around(table: Embeddings, prompt: Prompt, images: Sequence[Floats]) -> Floats:
    """Prompts [N, S, d] around the image tokens [1, T, d] of each study."""
    head = table.lookup(np.array([[prompt.bos_token_id, *prompt.before_ids]]))
    tail = table.lookup(np.array([prompt.after_ids], dtype=np.int64))
    return np.concatenate([np.concatenate([head, one, tail], axis=1) for one in images])


def _naming_the_node(check: ParityCheck, graph: Path, feeds: Mapping[str, NDArray[Any]]) -> ParityCheck:
    """The check of a stage that gave NaN or infinity, with the node it began in."""
    found = first_nonfinite(graph, feeds)
    detail = f"NaN or infinity, first in node {found}" if found else "NaN or infinity"
    return dataclasses.replace(check, detail=detail)


def require(checks: Sequence[ParityCheck]) -> None:
    """Raise `R2G-PARITY-FAILED` (exit status 3), listing the failed checks, unless all passed."""
    failed = [check for check in checks if not check.passed]
    if failed:
        listed = "; ".join(
            f"{check.name}: {check.observed:.3g}, allowed {check.tolerance:.3g} ({check.detail})" for check in failed
        )
        first = first_divergence(checks)
        message = f"{len(failed)} of {len(checks)} checks against PyTorch failed, first in {first}; {listed}"
        raise R2GenError("R2G-PARITY-FAILED", message, "report it with the output of `r2gen doctor`; nothing was kept")


def _torch_steps(
    model: R2GenGPT, embeds: Tensor, steps: int, given: Tensor | None = None
) -> tuple[NDArray[np.int64], Floats]:
    """The likeliest token of each step [N, steps], or those given, and the logits [N, steps + 1, vocab] around them."""
    import torch

    output = model.llama_model(inputs_embeds=model.wrap_prompt(embeds), use_cache=True, logits_to_keep=1)
    ids: list[Tensor] = []
    logits = [output.logits[:, -1]]
    for step in range(steps):
        ids.append(logits[-1].argmax(-1) if given is None else given[:, step])
        output = model.llama_model(
            inputs_embeds=model.embed_tokens(ids[-1][:, None]), past_key_values=output.past_key_values, use_cache=True
        )
        logits.append(output.logits[:, -1])
    return torch.stack(ids, dim=1).numpy(), torch.stack(logits, dim=1).numpy()


def step_logits(state: DecoderState, table: EmbeddingTable, ids: NDArray[np.int64]) -> Floats:
    """Logits [N, K + 1, vocab] of the last prompt position and behind each of ids [N, K]."""
    logits = [state.logits.copy()]
    for step in range(ids.shape[1]):
        state.decode(table.lookup(ids[:, step, None]))
        logits.append(state.logits.copy())
    return np.stack(logits, axis=1)


def _torch_tokens(model: R2GenGPT, embeds: Tensor, decoding: Decoding, semantics: Semantics) -> list[tuple[int, ...]]:
    from r2gen_export.exporting.parity.torch_decoder import TorchDecoder, TorchEmbeddings
    from r2gen_export.runtime.decoding.generate import generate

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
