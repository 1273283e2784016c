"""Scores of one system on one set of studies, with what must stand beside them: the results as one JSON object."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import NOTICE
from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.baselines import constant_report, random_reports
from r2gen_export.evaluation.bootstrap import (
    FEWEST,
    REPLICATES,
    SEED,
    Resampling,
    Statistic,
    mean_statistic,
    resampling,
)
from r2gen_export.evaluation.breakdown import breakdown
from r2gen_export.evaluation.label_scores import LabelSet, disagreements, label_statistics, label_texts, per_label
from r2gen_export.evaluation.metrics.cider import ReferenceFrequencies
from r2gen_export.evaluation.metrics.meteor import meteor, why_no_meteor
from r2gen_export.evaluation.pairs import Pairs
from r2gen_export.evaluation.protocols import CLEAN, PROTOCOLS, Context, Prepared, prepare, why_not
from r2gen_export.evaluation.ptb import ptb_words
from r2gen_export.evaluation.published import published_rows
from r2gen_export.evaluation.scorer_cache import cached_score
from r2gen_export.evaluation.scorers import Scorer
from r2gen_export.evaluation.scoring import TextScores, rows, score_texts
from r2gen_export.evaluation.texts import text_hash
from r2gen_export.evaluation.variety import novel, variety
from r2gen_export.system.versions import VERSION

RESULTS_SCHEMA: Final = "r2gen-evaluation/1"
"""Changes its number when a field of the results changes its meaning or goes."""

LABELLER: Final = "r2gen-rules"


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate.

    Attributes:
        pairs: the studies.
        context: what protocols need; `context.training` gives the baselines and the novel subset.
        protocol: of the main table; None: `r2gengpt` where it can be followed, else `coco`.
        all_protocols: give the numbers of every protocol that can be followed.
        scorers: of other environments.
        scorer_cache: folder that keeps what they answered; None: nowhere.
        with_meteor: compute METEOR 1.5 where it can be.
        system, data: recorded with the results as they are.
        replicates, seed: of the bootstrap; the seed is that of the baselines too.
    """

    pairs: Pairs
    context: Context = field(default_factory=Context)
    protocol: str | None = None
    all_protocols: bool = False
    scorers: Sequence[Scorer] = ()
    scorer_cache: Path | None = None
    with_meteor: bool = True
    system: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    replicates: int = REPLICATES
    seed: int = SEED

    def main_protocol(self) -> str:
        """The protocol of the main table."""
        return self.protocol or ("coco" if why_not("r2gengpt", self.context) else "r2gengpt")


@dataclass(frozen=True)
class _System:
    """Reports of a system: `texts` as they are; `cleaned`, as R2GenGPT's code would have trained on them."""

    name: str
    texts: Sequence[str]
    cleaned: bool = False


@dataclass
class _Rows:
    """Rows of results that are resampled together."""

    plan: Resampling
    statistics: list[tuple[dict[str, Any], list[Statistic]]] = field(default_factory=list)

    def add(self, about: dict[str, Any], statistics: list[Statistic]) -> None:
        """Metrics of one system under one protocol."""
        self.statistics.append((about, statistics))

    def results(self) -> list[dict[str, Any]]:
        """All rows, with intervals."""
        every = [statistic for _, statistics in self.statistics for statistic in statistics]
        abouts = [about for about, statistics in self.statistics for _ in statistics]
        return [{**about, **row} for about, row in zip(abouts, rows(every, self.plan, {}), strict=True)]


def evaluate(evaluation: Evaluation, stage: Callable[[str], None] = lambda name: None) -> dict[str, Any]:
    """Score, resample, and compare with what needs no image. The fields of the results are described in EVALUATE.md.

    Args:
        evaluation: what to evaluate.
        stage: called with the name of each stage.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for a protocol that lacks what it needs, `R2G-EVAL-SCORER`, `R2G-DATA-EMPTY`.
    """
    pairs, context = evaluation.pairs, evaluation.context
    if not pairs.ids:
        raise R2GenError("R2G-DATA-EMPTY", "there is no study to evaluate", "name predictions and references")
    main = evaluation.main_protocol()
    prepared = {main: prepare(main, pairs.references, context)}
    for name in PROTOCOLS if evaluation.all_protocols else ():
        if name != main and not why_not(name, context):
            prepared[name] = prepare(name, pairs.references, context)
    stage("labels")
    plan = resampling(len(pairs.ids), pairs.patients, replicates=evaluation.replicates, seed=evaluation.seed)
    words = [ptb_words(text) for text in context.training or ()]
    known = frozenset(words)
    systems = [_System("model", pairs.hypotheses), *_baselines(evaluation, words)]
    labels = {system.name: label_texts(system.texts) for system in systems}
    reference_labels = label_texts(pairs.references)
    subsets = _subsets(evaluation, reference_labels, known)
    stage("words")
    scores = _score_all(systems, prepared, context)
    stage("intervals")
    own = _whole_rows(plan, scores, labels, reference_labels) + _subset_rows(plan, subsets, scores, main)
    model = scores[main, "model"]
    stage("other scorers")
    others, about_scorers, not_computed = _other_metrics(evaluation, prepared[main], plan)
    return {
        "schema": RESULTS_SCHEMA,
        "r2gen_version": VERSION,
        "notice": NOTICE,
        "system": evaluation.system,
        "data": {**evaluation.data, **_data(evaluation, plan, subsets)},
        "protocol": main,
        "protocols": {name: _protocol(part, len(pairs.ids)) for name, part in prepared.items()},
        "labeller": LABELLER,
        "scores": own + others,
        "labels": _label_tables(labels, reference_labels),
        "breakdown": breakdown(model, plan, pairs.references, pairs.images),
        "reports": {
            **{system.name: variety(system.texts, labels[system.name], known) for system in systems},
            "references": variety(pairs.references, reference_labels, known),
        },
        "published": published_rows(context.dataset),
        "bootstrap": {
            "replicates": evaluation.replicates,
            "seed": evaluation.seed,
            "unit": plan.unit,
            "units": plan.units,
            "method": "percentiles 2.5 and 97.5, studies drawn with replacement; CIDEr's document frequencies fixed",
        },
        "scorers": about_scorers,
        "warnings": _warnings(evaluation, prepared),
        "not_computed": not_computed + _not_computed(evaluation, plan),
        "findings": list(reference_labels.findings),
        "studies": _studies(evaluation, plan, model, (labels["model"], reference_labels), subsets),
    }


def _baselines(evaluation: Evaluation, words: Sequence[str]) -> list[_System]:
    """`words`: those of each training report."""
    training = evaluation.context.training
    if not training:
        return []
    chosen = words.index(constant_report(words, evaluation.seed))
    studies = len(evaluation.pairs.ids)
    return [
        _System("constant", [training[chosen]] * studies, cleaned=True),
        _System("random", random_reports(training, studies, evaluation.seed), cleaned=True),
    ]


def _subsets(evaluation: Evaluation, labels: LabelSet, known: Set[str]) -> dict[str, NDArray[np.bool_]]:
    """Parts of the studies by name, those that hold any."""
    parts = {"positive": labels.abnormal()}
    if known:
        parts["novel"] = np.array(novel(evaluation.pairs.references, known), dtype=np.bool_)
    return parts


def _score_all(
    systems: Sequence[_System], prepared: dict[str, Prepared], context: Context
) -> dict[tuple[str, str], TextScores]:
    scores = {}
    for name, part in prepared.items():
        frequencies = ReferenceFrequencies(part.references)
        for system in systems:
            change: Callable[[str], str] = part.hypothesis
            if name == "r2gengpt" and system.cleaned and context.dataset:
                change = CLEAN[context.dataset]
            known = {text: change(text) for text in set(system.texts)}
            scores[name, system.name] = score_texts(
                [known[text] for text in system.texts], part.references, frequencies
            )
    return scores


def _whole_rows(
    plan: Resampling,
    scores: dict[tuple[str, str], TextScores],
    labels: dict[str, LabelSet],
    references: LabelSet,
) -> list[dict[str, Any]]:
    whole = _Rows(plan)
    for (protocol, system), part in scores.items():
        whole.add({"system": system, "subset": "all", "protocol": protocol}, part.statistics())
    for system, values in labels.items():
        about = {"system": system, "subset": "all", "protocol": LABELLER}
        whole.add(about, label_statistics(values, references))
    return whole.results()


def _subset_rows(
    plan: Resampling,
    subsets: dict[str, NDArray[np.bool_]],
    scores: dict[tuple[str, str], TextScores],
    main: str,
) -> list[dict[str, Any]]:
    results = []
    for subset, chosen in subsets.items():
        if not chosen.any():
            continue
        group = _Rows(plan.subset(chosen))
        for (protocol, system), part in scores.items():
            if protocol == main:
                about = {"system": system, "subset": subset, "protocol": main}
                group.add(about, part.subset(chosen).statistics())
        results += group.results()
    return results


def _other_metrics(
    evaluation: Evaluation, prepared: Prepared, plan: Resampling
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, str]]]:
    """Rows of METEOR and of other scorers, what those scorers say they are, and what was not computed."""
    pairs = evaluation.pairs
    collected: list[dict[str, Any]] = []
    not_computed: list[dict[str, str]] = []
    reason = why_no_meteor() if evaluation.with_meteor else "switched off"
    if reason:
        not_computed.append({"what": "METEOR-1.5", "why": reason})
    else:
        texts = [prepared.hypothesis(text) for text in pairs.hypotheses]
        row = {"system": "model", "subset": "all", "protocol": prepared.name, "metric": "METEOR-1.5"}
        value = meteor(texts, prepared.references).corpus
        collected.append({**row, "value": value, "low": None, "high": None, "studies": len(pairs.ids)})
    about = []
    for scorer in evaluation.scorers:
        result = cached_score(scorer, pairs.hypotheses, pairs.references, evaluation.scorer_cache)
        about.append({"name": result.name, "about": result.about})
        group = _Rows(plan)
        means = [mean_statistic(f"{result.name}:{name}", values) for name, values in result.studies.items()]
        group.add({"system": "model", "subset": "all", "protocol": "raw"}, means)
        computed = {row["metric"]: row for row in group.results()} if means else {}
        for name, value in result.corpus.items():
            metric = f"{result.name}:{name}"
            mean = computed[metric]["value"] if metric in computed else None
            if mean is None or abs(mean - value) > 1e-6 * max(1.0, abs(value)):
                # The scorer's corpus score is not the mean of the studies: an interval of the mean is not its.
                blank = {"low": None, "high": None, "studies": len(pairs.ids)}
                where = {"system": "model", "subset": "all", "protocol": "raw", "metric": metric}
                computed[metric] = {**where, "value": value, **blank}
        collected += computed.values()
    return collected, about, not_computed


def _not_computed(evaluation: Evaluation, plan: Resampling) -> list[dict[str, str]]:
    """What is missing, and why: protocols, baselines, the novel subset, intervals."""
    context = evaluation.context
    missing = [
        {"what": f"protocol {name}", "why": reason}
        for name in (PROTOCOLS if evaluation.all_protocols else ())
        if (reason := why_not(name, context))
    ]
    if not context.training:
        why = "needs the training split of --annotation"
        missing += [{"what": what, "why": why} for what in ("baselines", "novel references")]
    if plan.units < FEWEST:
        missing.append({"what": "intervals", "why": f"fewer than {FEWEST} {plan.unit} units: {plan.units}"})
    return missing


def _data(evaluation: Evaluation, plan: Resampling, subsets: dict[str, NDArray[np.bool_]]) -> dict[str, Any]:
    pairs = evaluation.pairs
    return {
        "studies": len(pairs.ids),
        "patients": plan.units if plan.unit == "patient" else None,
        "studies_sha256": pairs.sha256(),
        "without_reference": pairs.left_out,
        "without_report": pairs.failed,
        "empty_reports": pairs.empty,
        "subsets": {name: int(chosen.sum()) for name, chosen in subsets.items()},
        "training_reports": len(evaluation.context.training or ()),
    }


def _warnings(evaluation: Evaluation, prepared: dict[str, Prepared]) -> list[str]:
    """What makes numbers misleading, as sentences."""
    texts = evaluation.pairs.hypotheses
    warnings = []
    capitals = sum(text != text.lower() for text in texts) / len(texts)
    if "r2gengpt" in prepared and capitals > 0.5:
        warnings.append(
            f"{capitals:.0%} of the generated reports have capitals, and protocol r2gengpt leaves generated text as it "
            "is while references are lower case: its numbers are low for that reason; r2gen or coco treat both alike"
        )
    brought, differing = evaluation.pairs.other_references
    if differing:
        warnings.append(
            f"the predictions bring references of their own for {brought} studies, {differing} of them in other words "
            "than those of --annotation or --references, which are the ones used"
        )
    if evaluation.pairs.failed:
        warnings.append(f"{evaluation.pairs.failed} studies have no report and count as empty ones")
    return warnings


def _protocol(prepared: Prepared, studies: int) -> dict[str, Any]:
    return {
        "description": prepared.description,
        "references_cut": prepared.cut,
        "share_cut": prepared.cut / studies,
        **prepared.notes,
    }


def _label_tables(labels: dict[str, LabelSet], references: LabelSet) -> list[dict[str, Any]]:
    return [
        {"system": system, **row}
        for system, values in labels.items()
        for convention in ("u1", "u0")
        for row in per_label(values, references, convention)
    ]


def _studies(
    evaluation: Evaluation,
    plan: Resampling,
    scores: TextScores,
    both: tuple[LabelSet, LabelSet],
    subsets: dict[str, NDArray[np.bool_]],
) -> list[dict[str, Any]]:
    """A row a study, by its number: what it adds to every metric, without ids and texts."""
    pairs = evaluation.pairs
    labels, references = both
    letters, expected = labels.letters(), references.letters()
    differ = disagreements(labels, references)
    return [
        {
            "study": at + 1,
            "unit": int(plan.groups[at]),
            "bleu": scores.bleu[at].tolist(),
            "rouge_l": float(scores.rouge_l[at]),
            "cider": float(scores.cider[at]),
            "labels": letters[at],
            "reference_labels": expected[at],
            "label_disagreements": int(differ[at]),
            "text_sha256": text_hash(pairs.hypotheses[at]),
            "subsets": [name for name, chosen in subsets.items() if chosen[at]],
        }
        for at in range(len(pairs.ids))
    ]
