"""The PyTorch model of the published path, measured beside the bundle by the same protocol (extra `export`).

Swin, mean over views, projector, LayerNorm, then LLaMA in transformers: under `hf-current` by transformers' own
`generate`, under `hf-4.30` by r2gen's loop with that release's arithmetic, on PyTorch's logits. Weights
are the checkpoint's own, in float32 or bfloat16, whatever precision the bundle has.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from benchmarks.latency.compare import by_study, was_busy
from benchmarks.latency.measure import Measured
from benchmarks.latency.statistics import compare
from r2gen_export.candidates import Candidate, Reason

if TYPE_CHECKING:
    import torch

    from r2gen_export.decoding import Decoding, Semantics
    from r2gen_export.training.model import R2GenGPT

Run = Callable[[list[list[str]]], list[dict[str, Any]]]


def open_reference(job: dict[str, Any]) -> tuple[Run, dict[str, Any]]:
    """Load the sources; what `worker_process.serve` runs for engine `torch`.

    Raises:
        R2GenError: `R2G-DEPENDENCY-MISSING` without the extra; `R2G-CHECKPOINT-*`, `R2G-MODEL-*`.
    """
    from r2gen_export.system.extras import needs

    with needs("export"):
        import torch

        from r2gen_export.bundle import load_manifest
        from r2gen_export.exporting.source_model import load_sources
        from r2gen_export.runtime.settings import resolve_settings
        from r2gen_export.studies.images import load_views

        checkpoint, vision, llm, dtype = job["sources"]
        torch.set_num_threads(job["threads"])
        sources = load_sources(
            Path(checkpoint), vision, llm, llm_dtype=torch.bfloat16 if dtype == "bf16" else torch.float32
        )
    manifest = load_manifest(Path(job["bundle"]))
    settings = resolve_settings(manifest, preset=job["preset"], semantics=job["semantics"], overrides=job["overrides"])

    def run(studies: list[list[str]]) -> list[dict[str, Any]]:
        started = perf_counter()
        pixels = load_views([Path(image) for image in studies[0]], sources.image)
        ready = perf_counter()
        with torch.inference_mode():
            embeds = sources.model.encode_images(torch.from_numpy(pixels))
            encoded = perf_counter()
            ids, marks = _generate(sources.model, embeds, settings.decoding, settings.semantics)
        generated = perf_counter()
        sources.model.tokenizer.decode(ids)  # type: ignore[union-attr]
        done = perf_counter()
        # The prompt's pass ends when the first token is chosen.
        steps = [(late - early) * 1000 for early, late in zip(marks, [*marks[1:], generated], strict=True)]
        timings = {
            "preprocess": ready - started,
            "encode": encoded - ready,
            "prefill": marks[0] - encoded,
            "decode": generated - marks[0],
            "detokenize": done - generated,
        }
        return [
            {
                "timings_ms": {name: value * 1000 for name, value in timings.items()},
                "steps_ms": steps[: len(ids) - 1],
                "token_ids": ids,
                "drafted": 0,
                "accepted": 0,
            }
        ]

    name = f"PyTorch {torch.__version__}, {dtype}"
    taken = Candidate("PyTorch", "all", True, Reason.requested, f"LLM in {dtype}, vision encoder in fp32")
    return run, {"provider": name, "backends": [asdict(taken)]}


def _generate(
    model: R2GenGPT, embeds: torch.Tensor, decoding: Decoding, semantics: Semantics
) -> tuple[list[int], list[float]]:
    """Token ids of one study up to their EOS, and the moments at which logits were there."""
    marks: list[float] = []

    def mark(*_: Any) -> None:
        marks.append(perf_counter())

    hook = model.llama_model.register_forward_hook(mark)
    try:
        tokenizer = model.tokenizer
        assert tokenizer is not None
        eos = int(tokenizer.eos_token_id)
        if semantics == "hf-current":
            ids = model.generate_from(embeds, decoding)[0].tolist()
        else:
            ids = _generate_430(model, embeds, decoding, eos)
    finally:
        hook.remove()
    return (ids[: ids.index(eos) + 1] if eos in ids else ids), marks


def _generate_430(model: R2GenGPT, embeds: torch.Tensor, decoding: Decoding, eos: int) -> list[int]:
    from r2gen_export.exporting.parity.torch_decoder import TorchDecoder, TorchEmbeddings
    from r2gen_export.runtime.decoding.generate import generate

    llm = model.llama_model
    found = generate(
        TorchDecoder(llm),
        TorchEmbeddings(llm),
        model.wrap_prompt(embeds).float().numpy(),
        decoding,
        bos_token_id=int(model.tokenizer.bos_token_id),  # type: ignore[union-attr]
        eos_token_id=eos,
        semantics="hf-4.30",
    )
    return list(found[0].token_ids)


def verdict(measured: Sequence[Measured], report: dict[str, Any]) -> dict[str, Any]:
    """Were PyTorch's words the bundle's, and how many times its time did PyTorch take?

    Returns:
        `rows`: one for each configuration of the bundle with the reference's preset that makes one report at a time,
        as PyTorch does: `studies`, `same` (token ids equal), `first_divergence` (least place, counted from 1, None
        when all are equal), `reports` timed of both, `tokens` of a report, `busy`, `times` of the medians, and `ci95`,
        the bootstrap interval of that of `total`.
    """
    references = {one.configuration.settings.preset: one for one in measured if one.configuration.engine == "torch"}
    found = {one["name"]: one for one in report["configurations"]}
    rows = []
    for one in measured:
        reference = references.get(one.configuration.settings.preset)
        alone = one.configuration.batch == one.configuration.concurrency == 1
        if one.configuration.engine == "torch" or reference is None or not alone:
            continue
        ours, theirs = found[one.configuration.name], found[reference.configuration.name]
        mine, wanted = _tokens(one), _tokens(reference)
        both = sorted(mine.keys() & wanted.keys())
        parted = [_first_difference(mine[key], wanted[key]) for key in both if mine[key] != wanted[key]]
        sides = (ours["samples"]["total"], theirs["samples"]["total"])
        difference = compare(*by_study(sides, (ours["sample_studies"], theirs["sample_studies"])), test=False)
        rows.append(
            {
                "ours": one.configuration.name,
                "reference": reference.configuration.name,
                "engine": theirs["provider"],
                "studies": len(both),
                "same": len(both) - len(parted),
                "first_divergence": min(parted, default=None),
                "reports": [side["metrics"]["total"]["n"] for side in (ours, theirs)],
                "tokens": min(side["metrics"]["tokens"]["p50"] for side in (ours, theirs)),
                "busy": any(was_busy(side, report["environment"]["cores"]) for side in (ours, theirs)),
                "ci95": [difference.low, difference.high],
                "times": {
                    name: theirs["metrics"][name]["p50"] / ours["metrics"][name]["p50"]
                    for name in ("total", "ttft", "tpot", "encode", "prefill", "peak_rss")
                    if name in theirs["metrics"] and name in ours["metrics"]
                },
            }
        )
    return {"rows": rows, "precision": report["bundle"]["precision"]}


def _tokens(measured: Measured) -> dict[int, list[int]]:
    """Token ids of every study that was reported on, from its first report."""
    found: dict[int, list[int]] = {}
    for start in measured.starts:
        for round_ in [*start["warm_up"], *start["rounds"]]:
            for answer in round_["answers"]:
                for report in answer["reports"]:
                    found.setdefault(report["study"], list(report["token_ids"]))
    return found


def _first_difference(a: Sequence[int], b: Sequence[int]) -> int:
    """Place of the first token that differs, counted from 1."""
    pairs = enumerate(zip(a, b, strict=False), start=1)
    return next((place for place, (left, right) in pairs if left != right), min(len(a), len(b)) + 1)
