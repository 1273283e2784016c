"""`r2gen evaluate`: reads or generates reports, scores them, writes the folder and prints the tables."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from r2gen_export.commands.console import progress_bar, say, write_out
from r2gen_export.commands.options import Format
from r2gen_export.errors import R2GenError

if TYPE_CHECKING:
    from r2gen_export.bundle import Bundle
    from r2gen_export.commands.evaluate_options import GenerationOptions, OutputOptions, ScoreOptions, StudyOptions
    from r2gen_export.evaluation.pairs import Pairs
    from r2gen_export.evaluation.predictions import Predictions
    from r2gen_export.evaluation.protocols import Context
    from r2gen_export.evaluation.references import ReferenceSet


@dataclass(frozen=True)
class EvaluateRequest:
    """One call of `r2gen evaluate`; the options are described in its help."""

    bundle: Path | None
    predictions: Path | None
    studies: StudyOptions
    scores: ScoreOptions
    generation: GenerationOptions
    output: OutputOptions


def run_evaluate(request: EvaluateRequest) -> None:
    """Evaluate, write, print.

    Raises:
        R2GenError: of what is read (`R2G-EVAL-*`, `R2G-DATA-*`), generated (`R2G-BUNDLE-*`) or written
            (`R2G-OUTPUT-*`); `R2G-STUDIES-FAILED` behind the results when studies have no report.
    """
    from r2gen_export.bundle import Bundle
    from r2gen_export.evaluation.evaluate import Evaluation, evaluate
    from r2gen_export.evaluation.page import Texts
    from r2gen_export.evaluation.results_folder import write_results
    from r2gen_export.evaluation.scorer_cache import FOLDER
    from r2gen_export.evaluation.scorers import Scorer

    _check(request)
    bundle = Bundle(request.bundle)
    scorers = [Scorer.parse(text) for text in request.scores.scorer or ()]
    references = read_references(request.studies)
    context = context_of(request.studies, references, _tokenizer(request, bundle))
    predictions, pairs = _reports(request, bundle, references)
    evaluation = Evaluation(
        pairs,
        context,
        protocol=request.scores.protocol.value if request.scores.protocol else None,
        all_protocols=request.scores.all_protocols,
        scorers=scorers,
        scorer_cache=request.output.out / FOLDER if request.output.out is not None else None,
        with_meteor=request.scores.meteor,
        system=_system(predictions),
        data=_data(request, references),
        replicates=request.scores.replicates,
        seed=request.scores.seed,
    )
    results = evaluate(evaluation, (lambda name: None) if request.output.quiet else lambda name: say(f"{name} ..."))
    if request.output.out is not None:
        texts = Texts(pairs.hypotheses, pairs.references) if request.output.show_texts else None
        write_results(request.output.out, results, texts)
    for scorer in results["scorers"]:
        if scorer["about"].get("from_cache"):
            say(f"scorer {scorer['name']}: scores of an earlier run; remove scorers/ in the folder of --out to run it")
    for warning in results["warnings"]:
        say(f"WARNING {warning}")
    write_out(json.dumps(results, indent=1) + "\n" if request.output.form is Format.json else summary(results))
    if request.output.out is not None and not request.output.quiet:
        say(f"results in {request.output.out}: report.html, table.md, table.tex, results.json")
    if pairs.failed and request.predictions is None:
        message = f"{pairs.failed} of {len(pairs.ids)} studies have no report; they were scored as empty ones"
        raise R2GenError("R2G-STUDIES-FAILED", message, "predictions.jsonl of --out says why for each; run again")


def _check(request: EvaluateRequest) -> None:
    """Refuse, before any work, what cannot succeed."""
    studies, output = request.studies, request.output
    if studies.annotation is not None and studies.references is not None:
        raise R2GenError("R2G-CONFIG-VALUE", "--annotation and --references exclude each other", "give one of them")
    if request.predictions is None and (studies.annotation is None or output.out is None):
        fix = "add --annotation FILE and --out DIR, or score finished reports with --predictions FILE"
        raise R2GenError("R2G-CONFIG-VALUE", "a bundle is evaluated on an annotation, into a folder", fix)
    if output.show_texts and output.out is None:
        raise R2GenError("R2G-CONFIG-VALUE", "--show-texts is for report.html, which --out writes", "add --out DIR")
    if output.out is not None and not output.overwrite and (output.out / "results.json").exists():
        message = f"{output.out} holds results already"
        raise R2GenError("R2G-OUTPUT-EXISTS", message, "name another folder, or add --overwrite")


def read_references(studies: StudyOptions) -> ReferenceSet | None:
    """The references that the options name; None where predictions bring their own."""
    from r2gen_export.evaluation.references import read_annotation, read_reference_files

    section = studies.section.value if studies.section else None
    if studies.annotation is not None:
        return read_annotation(studies.annotation, studies.split.value, section)  # type: ignore[arg-type]
    if studies.references is not None:
        return read_reference_files(studies.references, section)  # type: ignore[arg-type]
    return None


def context_of(studies: StudyOptions, references: ReferenceSet | None, tokenizer: Path | None) -> Context:
    """What protocols are given."""
    from r2gen_export.evaluation.protocols import Context, TokenizerCutter

    return Context(
        dataset=studies.dataset.value if studies.dataset else None,
        cutter=TokenizerCutter(tokenizer) if tokenizer is not None else None,
        training=references.training if references is not None else None,
    )


def image_folders(studies: StudyOptions) -> list[Path]:
    """Folders that paths of the annotation's images start from."""
    from r2gen_export.studies.annotation import image_bases

    if studies.base_dir is not None:
        return [studies.base_dir]
    return [] if studies.annotation is None else image_bases(studies.annotation)


def _tokenizer(request: EvaluateRequest, bundle: Bundle) -> Path | None:
    from r2gen_export.bundle import TOKENIZER

    if request.studies.tokenizer is not None:
        return request.studies.tokenizer
    if request.predictions is not None and request.bundle is None:
        return None
    bundle.verified()
    return bundle.folder / TOKENIZER


def _reports(request: EvaluateRequest, bundle: Bundle, references: ReferenceSet | None) -> tuple[Predictions, Pairs]:
    from r2gen_export.evaluation.pairs import pair
    from r2gen_export.evaluation.predictions import read_predictions

    folders = image_folders(request.studies)
    if request.predictions is not None:
        predictions = read_predictions(request.predictions)
        return predictions, pair(predictions, references, folders[0] if folders else None)
    assert references is not None
    predictions = _generated(request, bundle, references, folders)
    return predictions, pair(predictions, references)


def _generated(
    request: EvaluateRequest, bundle: Bundle, references: ReferenceSet, folders: Sequence[Path]
) -> Predictions:
    from r2gen_export.evaluation.generate import Generation, generate_predictions
    from r2gen_export.evaluation.results_folder import PREDICTIONS
    from r2gen_export.runtime.pipeline import Pipeline

    options = request.generation.as_options()
    pipeline = Pipeline.from_bundle(
        bundle,
        device=request.generation.device,
        threads=request.generation.threads,
        learn=False,  # what is scored must not change what is generated next
        batch=request.generation.batch_size,
        decoding=options,
    )
    generation = Generation(pipeline, references.studies, folders, request.generation.batch_size, options)
    assert request.output.out is not None
    with progress_bar() as bar:
        task = bar.add_task("studies", total=len(references.studies), visible=not request.output.quiet)
        return generate_predictions(
            generation, request.output.out / PREDICTIONS, advance=lambda studies: bar.advance(task, studies)
        )


def _system(predictions: Predictions) -> dict[str, Any]:
    return {"form": predictions.form, **predictions.system}


def _data(request: EvaluateRequest, references: ReferenceSet | None) -> dict[str, Any]:
    studies = request.studies
    return {
        "split": references.split if references is not None else "",
        "section": studies.section.value if studies.section else None,
        "dataset": studies.dataset.value if studies.dataset else None,
    }


def summary(results: dict[str, Any]) -> str:
    """What a terminal shows: words and findings of every system, and what was evaluated."""
    from r2gen_export.evaluation import tables

    main = results["protocol"]
    words = [metric for metric in tables.WORDS if metric in tables.row_of(results, "model", "all", main)]
    lines = [*tables.facts_lines(results), ""]
    for protocol in results["protocols"]:
        rows = [[f"protocol {protocol}", *words]]
        for name in tables.systems(results):
            scores = tables.row_of(results, name, "all", protocol)
            rows.append([tables.SYSTEMS[name], *(tables.figure(scores.get(metric)) for metric in words)])
        lines += [*_aligned(rows), ""]
    names = [tables.SYSTEMS[name] for name in tables.systems(results)]
    lines += [*_aligned([[f"findings ({results['labeller']})", *names], *tables.label_rows(results)]), ""]
    lines += [*_aligned([list(tables.VARIETY_HEAD), *tables.variety_rows(results)]), ""]
    if results["scorers"]:
        lines += [*_aligned([["other scorers", "value"], *tables.other_rows(results)]), ""]
    lines += [f"not computed: {item['what']}: {item['why']}" for item in results["not_computed"]]
    return "\n".join([*lines, f"| {results['notice']}", ""])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
