"""The words of a phantom's report: own sentences, filled in from the findings.

A report goes heart, lungs, pleura, devices, bones, in that order as radiologists' templates do. Findings that are
absent are denied or passed over, so that a word's presence alone says nothing. Every finding that is there has a
sentence of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np

from r2gen_export.phantoms.findings import KINDS, Finding

SENTENCES: Final[dict[str, tuple[str, ...]]] = {
    "cardiomegaly": (
        "There is {severity} cardiomegaly.",
        "{Severity} cardiomegaly is present.",
        "The heart is enlarged to a {severity} degree.",
        "The cardiac silhouette shows {severity} enlargement.",
        "{Severity} enlargement of the heart is seen.",
        "The cardiothoracic ratio is increased, in keeping with {severity} cardiomegaly.",
    ),
    "pleural effusion": (
        "There is a {severity} {side} pleural effusion.",
        "A {severity} pleural effusion is seen on the {side}.",
        "{Severity} {side} pleural effusion with a meniscus.",
        "The {side} costophrenic angle is blunted by a {severity} effusion.",
        "{Severity} pleural fluid layers on the {side}.",
        "The {side} base is obscured by a {severity} pleural effusion.",
    ),
    "pneumothorax": (
        "There is a {severity} {side} pneumothorax.",
        "A {severity} pneumothorax is seen on the {side}.",
        "{Severity} {side} pneumothorax with a visible pleural line.",
        "The {side} lung is displaced from the chest wall by a {severity} pneumothorax.",
        "A pleural line marks a {severity} {side} pneumothorax.",
    ),
    "consolidation": (
        "There is a {severity} consolidation in the {side} {zone} zone.",
        "A {severity} area of consolidation is seen in the {side} {zone} lung.",
        "{Severity} airspace opacity in the {zone} zone of the {side} lung.",
        "The {side} {zone} zone shows a {severity} consolidation.",
        "{Severity} patchy consolidation projects over the {side} {zone} zone.",
    ),
    "nodule": (
        "There is a {severity} nodule in the {side} {zone} zone.",
        "A {severity} round nodule projects over the {side} {zone} lung.",
        "{Severity} nodular opacity in the {zone} zone of the {side} lung.",
        "The {side} {zone} zone contains a {severity} nodule.",
        "A {severity} well defined nodule is seen in the {side} {zone} zone.",
    ),
    "atelectasis": (
        "There is {severity} {side} basilar atelectasis.",
        "{Severity} plate-like atelectasis is seen at the {side} base.",
        "Linear opacities at the {side} base reflect {severity} atelectasis.",
        "The {side} hemidiaphragm is raised with {severity} atelectasis above it.",
        "{Severity} atelectasis at the {side} lung base.",
    ),
    "interstitial edema": (
        "There is {severity} interstitial edema.",
        "{Severity} interstitial edema with septal lines.",
        "The interstitial markings are increased, in keeping with {severity} edema.",
        "Perihilar haze and septal lines reflect {severity} edema.",
        "Findings of {severity} interstitial edema are present.",
    ),
    "pacemaker": (
        "A {side} chest wall pacemaker is in place.",
        "There is a {side} sided pacemaker with two leads.",
        "A pacemaker projects over the {side} upper chest.",
        "{Side} pectoral pacemaker with leads in the right heart.",
        "Cardiac pacemaker on the {side}, leads intact.",
    ),
}
"""Sentences for a finding on one side; `{Severity}` and `{Side}` begin a sentence."""

BOTH_SIDES: Final[dict[str, tuple[str, ...]]] = {
    "pleural effusion": (
        "There are {severities} bilateral pleural effusions.",
        "Bilateral pleural effusions, {each}.",
        "Pleural effusions are seen on both sides, {each}.",
    ),
    "consolidation": (
        "There are consolidations in both lungs, {each}.",
        "Bilateral consolidations, {each}.",
        "Airspace opacities in both lungs, {each}.",
    ),
    "atelectasis": (
        "There is {severities} bilateral basilar atelectasis.",
        "Bibasilar atelectasis, {each}.",
        "Atelectasis is seen at both lung bases, {each}.",
    ),
}
"""Sentences for a finding on both sides; `{each}` spells out each side, `{severities}` both grades."""

DENIALS: Final[dict[str, tuple[str, ...]]] = {
    "cardiomegaly": (
        "The heart is normal in size.",
        "Heart size is within normal limits.",
        "The cardiac silhouette is not enlarged.",
        "The cardiomediastinal silhouette is normal.",
    ),
    "pleural effusion": ("There is no pleural effusion.", "No effusion is seen.", "The costophrenic angles are sharp."),
    "pneumothorax": ("There is no pneumothorax.", "No pneumothorax is seen.", "No evidence of pneumothorax."),
    "consolidation": ("There is no focal consolidation.", "No consolidation is seen.", "No airspace opacity."),
    "nodule": ("No nodule is seen.", "There is no pulmonary nodule."),
    "interstitial edema": ("There is no edema.", "The pulmonary vasculature is normal.", "No interstitial edema."),
}
"""What may be said of a finding that is absent. Findings without an entry are passed over in silence."""

JOINT_DENIALS: Final[tuple[str, ...]] = (
    "There is no pleural effusion or pneumothorax.",
    "No pneumothorax or pleural effusion is seen.",
)
CLEAR_LUNGS: Final[tuple[str, ...]] = (
    "The lungs are clear.",
    "Both lungs are clear and well expanded.",
    "The lungs are clear without focal opacity.",
)
BONES: Final[tuple[str, ...]] = (
    "The visualized osseous structures are intact.",
    "No acute bony abnormality.",
    "The bony thorax is unremarkable.",
)
OPENINGS: Final[tuple[str, ...]] = ("Chest radiograph.", "Synthetic chest radiograph.", "Phantom chest study.")
DENIED_SHARE: Final = 0.6
LUNG: Final = ("consolidation", "nodule", "atelectasis", "interstitial edema")
ORDER: Final = ("cardiomegaly", *LUNG, "pleural effusion", "pneumothorax", "pacemaker")


def keywords(findings: Iterable[Finding]) -> list[str]:
    """A short phrase per finding, such as "small left pleural effusion" or "large left nodule upper zone"."""
    phrases = []
    for finding in findings:
        words = [finding.severity, finding.side, finding.name, f"{finding.zone} zone" if finding.zone else None]
        phrases.append(" ".join(word for word in words if word))
    return phrases


def write_report(findings: Sequence[Finding], rng: np.random.Generator) -> str:
    """A report on the findings, one paragraph of two to ten sentences.

    Args:
        findings: as `sample_findings` draws them.
        rng: chooses among the wordings and which absences are mentioned.
    """
    by_name = {name: [finding for finding in findings if finding.name == name] for name in KINDS}
    sentences = [_pick(OPENINGS, rng)] if rng.random() < 0.3 else []
    sentences += _affirm(by_name, "cardiomegaly", rng) or [_pick(DENIALS["cardiomegaly"], rng)]
    if not any(by_name[name] for name in LUNG):
        sentences.append(_pick(CLEAR_LUNGS, rng))
    for name in LUNG:
        sentences += _affirm(by_name, name, rng) or _deny(name, DENIED_SHARE / 2, rng)
    sentences += _pleura(by_name, rng)
    sentences += _affirm(by_name, "pacemaker", rng)
    if rng.random() < 0.5:
        sentences.append(_pick(BONES, rng))
    return " ".join(sentences)


def _pick(choices: Sequence[str], rng: np.random.Generator) -> str:
    return choices[int(rng.integers(len(choices)))]


def _pleura(by_name: dict[str, list[Finding]], rng: np.random.Generator) -> list[str]:
    pleural = ("pleural effusion", "pneumothorax")
    if not any(by_name[name] for name in pleural) and rng.random() < 0.5:
        return [_pick(JOINT_DENIALS, rng)]
    return [sentence for name in pleural for sentence in _affirm(by_name, name, rng) or _deny(name, DENIED_SHARE, rng)]


def _deny(name: str, share: float, rng: np.random.Generator) -> list[str]:
    return [_pick(DENIALS[name], rng)] if name in DENIALS and rng.random() < share else []


def _affirm(by_name: dict[str, list[Finding]], name: str, rng: np.random.Generator) -> list[str]:
    found = by_name[name]
    if len(found) == 2:
        sentence = _pick(BOTH_SIDES[name], rng)
        grades = list(dict.fromkeys(finding.severity or "" for finding in found))
        return [sentence.format(each=" and ".join(map(_one_side, found)), severities=" and ".join(grades))]
    if found:
        finding = found[0]
        words = {"severity": finding.severity or "", "side": finding.side or "", "zone": finding.zone or ""}
        return [
            _pick(SENTENCES[name], rng).format(Severity=words["severity"].title(), Side=words["side"].title(), **words)
        ]
    return []


def _one_side(finding: Finding) -> str:
    """One side of a bilateral finding: "small on the right", "large in the left upper zone"."""
    place = f"in the {finding.side} {finding.zone} zone" if finding.zone else f"on the {finding.side}"
    return f"{finding.severity} {place}"
