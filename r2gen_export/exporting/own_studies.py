"""A bundle judged on a user's own studies: its reports against those of the unrounded PyTorch model it came from.

PyTorch writes its reports while the model is in memory, the bundle when the model is gone, both a few studies at a
time; of the first only token ids are held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from r2gen_export.bundle import TOKENIZER, ImageSpec, Manifest, ParityCheck, load_manifest
from r2gen_export.decoding import Decoding, Semantics
from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.references import Reference, read_annotation
from r2gen_export.exporting.settings import OwnStudies
from r2gen_export.studies.annotation import image_bases, resolve
from r2gen_export.studies.images import load_views

if TYPE_CHECKING:
    from r2gen_export.training.model import R2GenGPT

TokenIds = tuple[int, ...]

BATCH: Final = 4
"""Studies decoded together on both sides."""

PROTOCOL: Final = "coco"
"""The one that needs neither a data set's rules nor a training split."""

OWN_REPORTS: Final = "reports on own studies"


@dataclass(frozen=True)
class ChosenStudies:
    """The studies that are compared: references, their images, and how reports are decoded."""

    references: tuple[Reference, ...]
    images: tuple[tuple[Path, ...], ...]
    decoding: Decoding
    semantics: Semantics
    preset: str


def choose_studies(
    own: OwnStudies, presets: Mapping[str, Decoding], preset: str, semantics: Semantics
) -> ChosenStudies:
    """Read the annotation and take `own.studies` of its split, evenly spaced: neighbours are often of one patient.

    Raises:
        R2GenError: `R2G-DATA-*`, `R2G-EVAL-*` as of `read_annotation`, `R2G-EVAL-STUDIES` for a study without images,
            `R2G-CONFIG-VALUE` when the preset draws at random.
    """
    decoding = presets[preset]
    if decoding.do_sample:
        message = f"preset {preset!r} draws tokens at random, so its reports cannot be compared"
        raise R2GenError("R2G-CONFIG-VALUE", message, "choose a default preset without sampling")
    if own.max_new_tokens is not None:
        most = min(decoding.max_new_tokens, own.max_new_tokens)
        decoding = dataclasses.replace(decoding, max_new_tokens=most, min_new_tokens=min(decoding.min_new_tokens, most))
    every = read_annotation(own.annotation, own.split).studies
    count = min(own.studies, len(every))
    references = tuple(every[at * len(every) // count] for at in range(count))
    bases = [own.base_dir] if own.base_dir is not None else image_bases(own.annotation)
    for reference in references:
        if not reference.paths:
            raise R2GenError("R2G-EVAL-STUDIES", f"{reference.place} has no image_path", "name one with images")
    images = tuple(tuple(resolve(path, bases) for path in reference.paths) for reference in references)
    return ChosenStudies(references, images, decoding, semantics, preset)


def pytorch_reports(
    model: R2GenGPT, image: ImageSpec, chosen: ChosenStudies, advance: Callable[[int], None] = lambda studies: None
) -> list[TokenIds]:
    """Token ids of PyTorch's reports, the end symbol included.

    Args:
        model: float32, eval mode, LoRA unmerged, weights as they were trained.
        image: the encoder's preprocessing.
        chosen: the studies.
        advance: called with the number of studies done.

    Raises:
        R2GenError: `R2G-IMAGE-*`, which names the place of the study in the annotation.
    """
    import torch

    from r2gen_export.exporting.parity.compare import reference_embeds, torch_tokens

    reports: list[TokenIds] = []
    for start in range(0, len(chosen.images), BATCH):
        part = slice(start, start + BATCH)
        pixels = [
            load_views(paths, image, reference.place)
            for paths, reference in zip(chosen.images[part], chosen.references[part], strict=True)
        ]
        with torch.no_grad():
            embeds = torch.from_numpy(reference_embeds(model, pixels))
            reports += torch_tokens(model, embeds, chosen.decoding, chosen.semantics)
        advance(len(pixels))
    return reports


def compare_bundle(
    bundle: Path,
    chosen: ChosenStudies,
    expected: Sequence[TokenIds],
    margins: Mapping[str, float],
    advance: Callable[[int], None] = lambda studies: None,
) -> dict[str, Any]:
    """Let the bundle report on the same studies, on the CPU, and compare: A is PyTorch, B the bundle.

    Args:
        bundle: a sealed bundle.
        chosen: the studies.
        expected: of `pytorch_reports`.
        margins: see `gates.parse_margins`; whether they were shown to be held is in the result.
        advance: called with the number of studies done.

    Returns:
        The comparison, as `evaluation.compare.compare` gives it, with `preset` and `empty_reports` of both.

    Raises:
        R2GenError: `R2G-IMAGE-*`, `R2G-BUNDLE-*`, `R2G-GENERATE-*`.
    """
    from r2gen_export.evaluation.compare import compare
    from r2gen_export.runtime.detokenizer import Detokenizer

    prompt = load_manifest(bundle).prompt
    detokenizer = Detokenizer(bundle / TOKENIZER, unk_token_id=prompt.unk_token_id, bos_token_id=prompt.bos_token_id)
    texts = [detokenizer.text(ids, chosen.semantics) for ids in expected]
    # The pipeline gives no tokens of an empty report; two empty ones are the same report.
    expected = [ids if text else () for ids, text in zip(expected, texts, strict=True)]
    reports = _bundle_reports(bundle, chosen, advance)
    first = _side(chosen, texts, expected)
    second = _side(chosen, [text for text, _ in reports], [ids for _, ids in reports])
    empty = {"first": sum(not text for text in texts), "second": sum(not text for text, _ in reports)}
    return {**compare(first, second, margins), "preset": chosen.preset, "empty_reports": empty}


def _bundle_reports(bundle: Path, chosen: ChosenStudies, advance: Callable[[int], None]) -> list[tuple[str, TokenIds]]:
    from r2gen_export.runtime.pipeline import Pipeline

    decoding = chosen.decoding
    pipeline = Pipeline.from_bundle(bundle, device="cpu", learn=False, batch=BATCH)
    reports: list[tuple[str, TokenIds]] = []
    for outcome in pipeline.generate_many(
        chosen.images,
        batch_size=BATCH,
        preset=chosen.preset,
        semantics=chosen.semantics,
        max_new_tokens=decoding.max_new_tokens,
        min_new_tokens=decoding.min_new_tokens,
    ):
        if outcome.error is not None and outcome.error.code == "R2G-GENERATE-EMPTY":
            reports.append(("", ()))
        else:
            report = outcome.unwrap()
            reports.append((report.text, tuple(report.token_ids)))
        advance(1)
    return reports


def _side(chosen: ChosenStudies, texts: Sequence[str], token_ids: Sequence[TokenIds]) -> Any:
    from r2gen_export.evaluation.compare import side_of_pairs
    from r2gen_export.evaluation.pairs import Pairs
    from r2gen_export.evaluation.protocols import Context

    patients = tuple(reference.patient or "" for reference in chosen.references)
    pairs = Pairs(
        tuple(reference.id for reference in chosen.references),
        tuple(texts),
        tuple(reference.text for reference in chosen.references),
        patients if all(patients) else None,
        tuple(token_ids),
        failed=0,
        left_out=0,
    )
    return side_of_pairs(pairs, Context(), PROTOCOL)


def own_check(comparison: Mapping[str, Any]) -> ParityCheck:
    """The comparison as a manifest keeps it: figures without texts; `observed` is the share of reports that differ."""
    studies = comparison["studies"]
    rows = {row["metric"]: row for row in comparison["metrics"]}
    differing = 1 - comparison["identical"] / studies
    detail = (
        f"preset {comparison['preset']}, {studies} studies, against PyTorch with unrounded weights: "
        f"{comparison['identical']} reports identical, {comparison['flipped_share']:.2%} of findings flip, "
        f"BLEU-4 {rows['BLEU-4']['difference']:+.4f}; {comparison['empty_reports']['second']} empty"
    )
    metrics = {
        "studies": float(studies),
        "identical": float(comparison["identical"]),
        "flipped_share": float(comparison["flipped_share"]),
        **{f"difference {name}": float(row["difference"]) for name, row in rows.items()},
    }
    passed = all(gate["passed"] for gate in comparison["gates"])
    gated = bool(comparison["gates"])
    return ParityCheck(OWN_REPORTS, passed, differing, differing, detail, "report", metrics, gate=gated)


def record_comparison(bundle: Path, manifest: Manifest, check: ParityCheck) -> Manifest:
    """Put the check into a sealed bundle's manifest; no other file changes.

    Raises:
        R2GenError: `R2G-OUTPUT-WRITE`.
    """
    from r2gen_export.bundle import MANIFEST
    from r2gen_export.system.files import atomic_file

    others = tuple(present for present in manifest.parity if present.name != OWN_REPORTS)
    recorded = dataclasses.replace(manifest, parity=(*others, check))
    with atomic_file(bundle / MANIFEST) as file:
        file.write_text(recorded.to_json(), encoding="utf-8")
    return recorded


def require_whole(gate: str) -> None:
    """Refuse what cannot be done where the LLM does not fit into memory.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`.
    """
    if gate != "whole":
        message = "--evaluate runs the whole model in PyTorch, which is too large for the free memory"
        fix = "add --gate whole where there is more; or export fp32 as well, and use r2gen evaluate and its compare"
        raise R2GenError("R2G-CONFIG-VALUE", message, fix)
