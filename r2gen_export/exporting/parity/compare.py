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
from r2gen_export.bundle import ParityCheck, Prompt
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
from r2gen_export.exporting.parity.probe import ExportedBundle, GatePlan, Probe

if TYPE_CHECKING:
    from torch import Tensor

    from r2gen_export.interfaces import Decoder, DecoderState, Embeddings
    from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
    from r2gen_export.training.model import R2GenGPT

Floats = NDArray[np.float32]

EXACT_STEPS: Final = 12
"""Steps whose logits are compared, after the first, where everything is float32."""

REDUCED_STEPS: Final = 59
"""The same below float32: quality is measured on 4 x 60 positions."""

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


def reference(
    model: R2GenGPT, probe: Probe, *, steps: int = EXACT_STEPS, advance: Callable[[], None] = lambda: None
) -> Reference:
    """Run the probe studies through PyTorch, LoRA unmerged, all studies in one batch.

    Tokens come from transformers' own `generate` under `hf-current`. transformers 4.30 is not here: under `hf-4.30`
    they come from r2gen's loop, which gives 4.30.2's tokens, on PyTorch's logits.

    Args:
        model: the source model, float32, eval mode, on the CPU.
        probe: the studies, the deterministic decodings, and which release's decoding.
        steps: how many steps' logits.
        advance: called after each decoding.
    """
    import torch

    with torch.no_grad():
        embeds = torch.from_numpy(reference_embeds(model, probe.studies))
        step_ids, logits = _torch_steps(model, embeds, steps)
        token_ids = {}
        for name, decoding in probe.decodings.items():
            token_ids[name] = torch_tokens(model, embeds, decoding, probe.semantics)
            advance()
    return Reference(embeds.numpy(), step_ids, logits, token_ids)


def reference_embeds(model: R2GenGPT, studies: Sequence[Floats]) -> Floats:
    """Image embeddings [N, T, d] of the probe studies from PyTorch."""
    import torch

    with torch.no_grad():
        embeds: Floats = torch.cat([model.encode_images(torch.from_numpy(study)) for study in studies]).numpy()
    return embeds


def with_rounded(model: R2GenGPT, expected: Reference, plan: GatePlan) -> Reference:
    """`expected` with the logits of rounded weights. LoRA must be merged; `model` keeps the rounded weights."""
    import torch

    from r2gen_export.exporting.parity.rounded_weights import round_embeddings, round_weights

    if plan.precision == plan.embeddings == plan.head_precision == "fp32":
        return expected
    # First, and a tensor of its own: it may be tied to the output layer, which is rounded in another way.
    table = round_embeddings(model.embed_tokens.weight, plan.embeddings).clone()
    round_weights(model.llama_model, plan.precision, plan.head_precision)
    model.llama_model.set_input_embeddings(torch.nn.Embedding.from_pretrained(table))
    with torch.no_grad():
        embeds = torch.from_numpy(expected.image_embeds)
        _, rounded = _torch_steps(model, embeds, expected.step_ids.shape[1], torch.from_numpy(expected.step_ids))
    return dataclasses.replace(expected, rounded=rounded)


def compare(
    candidate: ExportedBundle,
    probe: Probe,
    expected: Reference,
    plan: GatePlan,
    advance: Callable[[], None] = lambda: None,
) -> tuple[ParityCheck, ...]:
    """Run the probe studies through a bundle's graphs in ONNX Runtime on the CPU and compare.

    Args:
        candidate: the bundle.
        probe: the studies, decodings and semantics `expected` was computed with.
        expected: PyTorch's results.
        plan: the bundle's precisions. With a decoder below fp32, logits must be those of the rounded weights, within
            what rounded activations explain; the distance from fp32 and the tokens are recorded. With a vision encoder
            below fp32, the decoder is checked on PyTorch's image embeddings, and the distance from fp32 is that of the
            whole bundle.
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

    folder, prompt = candidate.folder, candidate.prompt
    checks, prompts = compare_vision(folder, prompt, probe.studies, expected.image_embeds, plan.vision_precision)
    decoder = DecoderSession(folder / layout.DECODER, candidate.dims, **SESSION)
    table = EmbeddingTable(folder / layout.EMBED_TOKENS)
    given_prompts = prompts
    if plan.vision_precision != "fp32":
        given_prompts = prompts_around(table, prompt, list(expected.image_embeds[:, None]))
    run = partial(_run_steps, decoder, table, expected.step_ids)
    logits = run(given_prompts)
    checks += _logits_checks(candidate, given_prompts, logits, expected, plan)
    if not plan.exact:
        checks.append(quality_check(run(prompts) if given_prompts is not prompts else logits, expected.logits))
    for name, decoding in probe.decodings.items():
        sequences = _unless_nonfinite(
            partial(
                generate,
                decoder,
                table,
                prompts,
                decoding,
                eos_token_id=prompt.eos_token_id,
                semantics=probe.semantics,
                bos_token_id=prompt.bos_token_id,
            )
        )
        ids = [sequence.token_ids for sequence in sequences] if sequences is not None else None
        checks.append(token_check(name, decoding, ids, expected.token_ids[name], gate=plan.exact))
        advance()
    return tuple(checks)


def _run_steps(decoder: Decoder, table: EmbeddingTable, step_ids: NDArray[np.int64], prompts: Floats) -> Floats | None:
    """Logits [N, K + 1, vocab] of the bundle's decoder behind the tokens of `step_ids` [N, K]; None when not finite."""
    logits: Floats | None = _unless_nonfinite(
        lambda: step_logits(decoder.prefill(prompts, step_ids.shape[1]), table, step_ids)
    )
    return logits


def _logits_checks(
    candidate: ExportedBundle, prompts: Floats, logits: Floats | None, expected: Reference, plan: GatePlan
) -> list[ParityCheck]:
    """Prefill and decode steps, against what the stored weights give in PyTorch."""
    reachable = expected.logits if expected.rounded is None else expected.rounded
    stored = (
        f"{plan.precision} weights",
        f"{plan.head_precision} output layer",
        f"{plan.embeddings} embeddings",
    )
    reduced = (part for part in stored if expected.rounded is not None and not part.startswith("fp32"))
    weights = next((f", {part}" for part in reduced), "")
    checks = []
    for name, stage, part in (
        (f"logits, first step{weights}", "prefill", slice(0, 1)),
        (f"logits, next {expected.step_ids.shape[1]} steps{weights}", "decode", slice(1, None)),
    ):
        given = None if logits is None else logits[:, part]
        check = logits_check(name, stage, given, reachable[:, part], (plan.precision, plan.head_precision))
        if given is None:
            graph = candidate.folder / layout.DECODER
            check = _naming_the_node(check, graph, prefill_feeds(graph, candidate.dims, prompts))
        checks.append(check)
    return checks


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


def torch_tokens(model: R2GenGPT, embeds: Tensor, decoding: Decoding, semantics: Semantics) -> list[tuple[int, ...]]:
    """Token ids of PyTorch's reports from image embeddings [N, T, d], each cut behind EOS; see `reference`."""
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
