"""`r2gen verify`: is a bundle whole, and does it still compute what its sources compute."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import ImageSpec, Manifest, ParityCheck, open_bundle, sha256_file
from r2gen_export.decoding import Semantics
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.settings import OwnStudies
from r2gen_export.studies.collect import Study
from r2gen_export.studies.images import load_views


def verify_bundle(
    bundle: Path,
    checkpoint: Path | None = None,
    vision: str | Path | None = None,
    llm: str | Path | None = None,
    *,
    studies: Sequence[Study] | None = None,
    overrides: Mapping[str, Any] | None = None,
    allow_unexpected: Sequence[str] = (),
    semantics: Semantics | None = None,
    max_new_tokens: int | None = None,
    stage: Callable[[str], None] = lambda name: None,
) -> list[ParityCheck]:
    """Check a bundle's hashes and, given the sources, its parity with PyTorch.

    Args:
        bundle: the folder.
        checkpoint: what it was exported from; with `vision` and `llm`, or none of the three.
        vision: vision encoder, local folder or hub id.
        llm: LLM, local folder or hub id.
        studies: what to compare on; random shadings when None.
        overrides: what the export was told of the model, as `ExportSettings.overrides`.
        allow_unexpected: as in the export.
        semantics: which release's decoding to compare; the bundle's when None.
        max_new_tokens: stop the compared reports here; None: at their own limit.
        stage: called with the name of each part of the work.

    Returns:
        One check for the files, one for the checkpoint's identity, then those of the export's parity gate. Sources that
        are not the bundle's show as failed checks, they do not raise.

    Raises:
        R2GenError: `R2G-BUNDLE-*` when the bundle is damaged; `R2G-CONFIG-VALUE` when only some sources are given;
            `R2G-CHECKPOINT-*`, `R2G-MODEL-*` when a source cannot be loaded; `R2G-IMAGE-*` when an image cannot.
    """
    stage("checking hashes")
    manifest = open_bundle(bundle)
    checks = [ParityCheck("files", True, 0.0, 0.0, f"{len(manifest.files)} files have their SHA-256")]
    if checkpoint is None and vision is None and llm is None:
        return checks
    if checkpoint is None or vision is None or llm is None:
        given = {"--checkpoint": checkpoint, "--vision": vision, "--llm": llm}
        missing = ", ".join(name for name, value in given.items() if value is None)
        raise R2GenError("R2G-CONFIG-VALUE", f"parity needs all three sources, {missing} missing", f"add {missing}")
    chosen = semantics or manifest.semantics
    return checks + _against_sources(
        bundle,
        manifest,
        checkpoint,
        (vision, llm),
        studies=studies,
        overrides=overrides,
        allow_unexpected=allow_unexpected,
        semantics=chosen,
        limit=max_new_tokens,
        stage=stage,
    )


def _against_sources(
    bundle: Path,
    manifest: Manifest,
    checkpoint: Path,
    models: tuple[str | Path, str | Path],
    *,
    studies: Sequence[Study] | None,
    overrides: Mapping[str, Any] | None,
    allow_unexpected: Sequence[str],
    semantics: Semantics,
    limit: int | None,
    stage: Callable[[str], None],
) -> list[ParityCheck]:
    from transformers import LlamaConfig

    from r2gen_export.exporting.estimate import estimate
    from r2gen_export.exporting.manifest_parts import bundle_dims, bundle_prompt
    from r2gen_export.exporting.parity import gate
    from r2gen_export.exporting.parity.probe import gate_decodings, probe_studies
    from r2gen_export.exporting.source_model import load_sources, merge_lora
    from r2gen_export.training.hub import source_config

    stage("loading sources")
    precision = manifest.precision["decoder"]
    config = LlamaConfig(**source_config(models[1], "LLM", "llama"))
    way = estimate(config, dialect=manifest.dialect, precision=precision).gate
    plan = gate.GatePlan(
        way,
        precision,
        manifest.precision.get("lm_head", precision),
        manifest.precision["vision"],
        manifest.precision["embed_tokens"],
    )
    sources = load_sources(
        checkpoint,
        *models,
        overrides=overrides,
        allow_unexpected=allow_unexpected,
        llm_dtype=gate.llm_dtype(plan, models[1]),
    )
    found = sha256_file(sources.file)
    same = found == manifest.source.checkpoint_sha256
    detail = f"{found[:12]}..." + ("" if same else f", exported from {manifest.source.checkpoint_sha256[:12]}...")
    checks = [ParityCheck("checkpoint SHA-256", same, float(not same), 0.0, detail)]
    contracts = (
        ("prompt", bundle_prompt(sources.model), manifest.prompt),
        ("sizes", bundle_dims(sources.model, sources.image), manifest.dims),
        ("image preprocessing", sources.image, manifest.image),
    )
    for name, theirs, ours in contracts:
        wrong = [key for key, value in dataclasses.asdict(theirs).items() if dataclasses.asdict(ours)[key] != value]
        checks.append(ParityCheck(name, not wrong, float(len(wrong)), 0.0, ", ".join(wrong)))
    if not all(check.passed for check in checks[1:]):
        return checks  # the graphs cannot even be run side by side
    pixels = probe_studies(manifest.image) if studies is None else study_pixels(studies, manifest.image)
    probe = gate.Probe(pixels, gate_decodings(manifest.presets, limit), semantics)
    stage("running PyTorch")
    wanted = gate.reference(
        sources.model, probe, plan, dims=manifest.dims, prompt=manifest.prompt, advance=lambda: None
    )
    merge_lora(sources.model, llm=plan.gate == "whole")
    wanted = gate.round_reference(sources.model, wanted, plan)
    stage("running the bundle")
    compared = gate.compare(
        gate.ExportedBundle(bundle, manifest.dims, manifest.prompt),
        probe,
        wanted,
        plan,
        llama=sources.model.llama_model,
        advance=lambda: None,
    )
    return [*checks, *compared.checks]


def verify_on_studies(
    bundle: Path,
    sources: tuple[Path, str | Path, str | Path],
    own: OwnStudies,
    *,
    overrides: Mapping[str, Any] | None = None,
    allow_unexpected: Sequence[str] = (),
    semantics: Semantics | None = None,
    stage: Callable[[str], None] = lambda name: None,
    advance: Callable[[int], None] = lambda studies: None,
) -> dict[str, Any]:
    """Compare a bundle's reports on a user's studies with those of the unrounded PyTorch model.

    The model is loaded by itself, and let go of before the bundle is.

    Args:
        bundle: the folder; `verify_bundle` has checked that the sources are its own.
        sources: checkpoint, vision encoder, LLM.
        own: the studies and margins.
        overrides, allow_unexpected, semantics, stage: as of `verify_bundle`.
        advance: called with the number of studies done, first by PyTorch, then by the bundle.

    Returns:
        The comparison, as `evaluation.compare.compare` gives it: A is PyTorch, B the bundle.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` when the model does not fit into the free memory; `R2G-EVAL-*`, `R2G-DATA-*`,
            `R2G-IMAGE-*` of the studies; `R2G-BUNDLE-*`, `R2G-CHECKPOINT-*`, `R2G-MODEL-*`.
    """
    from transformers import LlamaConfig

    from r2gen_export.exporting.estimate import estimate
    from r2gen_export.exporting.own_studies import choose_studies, compare_bundle, pytorch_reports, require_whole
    from r2gen_export.exporting.source_model import load_sources
    from r2gen_export.training.hub import source_config

    manifest = open_bundle(bundle)
    chosen = choose_studies(own, manifest.presets, manifest.default_preset, semantics or manifest.semantics)
    config = LlamaConfig(**source_config(sources[2], "LLM", "llama"))
    require_whole(estimate(config, dialect=manifest.dialect, precision="fp32").gate)
    stage(f"reports of PyTorch on {len(chosen.images)} studies")
    loaded = load_sources(*sources, overrides=overrides, allow_unexpected=allow_unexpected)
    expected = pytorch_reports(loaded.model, loaded.image, chosen, advance)
    del loaded
    stage(f"reports of the bundle on {len(chosen.images)} studies")
    return compare_bundle(bundle, chosen, expected, own.margins, advance)


def study_pixels(studies: Sequence[Study], spec: ImageSpec) -> list[NDArray[np.float32]]:
    """Pixel values [V, 3, H, W] of each study.

    Raises:
        R2GenError: `R2G-IMAGE-*`, `R2G-DICOM-*`, which number the studies from 1.
    """
    return [
        load_views(study.readable_images(f"study {number}"), spec, f"study {number}")
        for number, study in enumerate(studies, start=1)
    ]
