"""What reports call the findings: own phrases, as regular expressions over a sentence in lower case."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal

Value = Literal["positive", "uncertain", "negative"]

FINDINGS: Final = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Lung Opacity",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
"""CheXpert's 14 labels, in its order."""

COMMON: Final = (
    "Cardiomegaly",
    "Pleural Effusion",
    "Pneumothorax",
    "Consolidation",
    "Atelectasis",
    "Edema",
    "Lung Opacity",
    "Lung Lesion",
    "Fracture",
)
"""The nine labels that are scored together against human coding."""

SPELLED: Final = frozenset(
    {
        "atelectasis",
        "atelectatic",
        "cardiomegaly",
        "consolidation",
        "consolidations",
        "effusion",
        "effusions",
        "pneumothorax",
        "pneumothoraces",
        "hydropneumothorax",
        "pneumonia",
        "opacification",
        "opacities",
        "infiltrate",
        "infiltrates",
        "fracture",
        "fractures",
        "enlarged",
        "enlargement",
        "silhouette",
        "interstitial",
        "pacemaker",
        "sternotomy",
        "congestion",
        "granuloma",
        "granulomas",
        "costophrenic",
    }
)
"""Words whose misspellings are understood."""


@dataclass(frozen=True)
class Phrase:
    """A way to say a finding.

    Attributes:
        finding: one of `FINDINGS`.
        pattern: where it matches; its group `at`, or all of it, is the place that negations and doubts refer to.
        value: what it says whatever stands around it; None when that is for the context to say.
    """

    finding: str
    pattern: re.Pattern[str]
    value: Value | None


HEART: Final = r"(?:heart(?: size)?|cardiac (?:silhouette|size|shadow|contours?)|cardiac)"
GAP: Final = r"(?:[ ,]+(?!no\b|and\b|with\b|but\b|lungs?\b|aort\w+)[\w/'-]+){0,7}?[ ,]+"
LUNG: Final = (
    r"(?:lungs?|lobes?|lobar|basilar|bases?|basal|bibasilar|retrocardiac|perihilar|apex|apical|apices|hemithorax|lingul\w*"
    r"|infrahilar|suprahilar|parenchymal|pulmonary|airspace|air space|interstitial|alveolar|subpleural|midlung)"
)


def said(finding: str, *patterns: str, value: Value | None = None) -> tuple[Phrase, ...]:
    """The phrases of a finding; `value`: see `Phrase`."""
    return tuple(Phrase(finding, re.compile(rf"\b(?:{pattern})\b"), value) for pattern in patterns)


HEART_AND_MEDIASTINUM: Final = (
    *said(
        "Cardiomegaly",
        r"(?P<at>cardiomegaly)",
        rf"{HEART}{GAP}(?P<at>enlarged|enlargement|increased in size|large in size|prominent|generous|globular)",
        r"(?P<at>enlarge(?:d|ment)(?: of)?)(?: the| appearance of the)? (?:heart|cardiac (?:silhouette|shadow|size))",
        r"cardiac (?P<at>enlargement|prominence)",
        r"(?P<at>prominent|increased|large) (?:heart|cardiac (?:silhouette|size|shadow)|heart size)",
        r"(?:cardiomediastinal|cardiopericardial) silhouette" + GAP + r"(?P<at>enlarged|enlargement|prominent)",
        r"(?P<at>enlarge(?:d|ment)(?: of)?|prominent)(?: the)? (?:cardiomediastinal|cardiopericardial) silhouette",
        r"(?:left )?ventric(?:le|ular)" + GAP + r"(?P<at>enlarge(?:d|ment)|hypertrophy|prominence)",
    ),
    *said(
        "Cardiomegaly",
        rf"borderline (?:enlarged |prominent |size )?(?:{HEART}|cardiomegaly|enlargement of the (?:heart"
        rf"|cardiac silhouette))",
        rf"{HEART}{GAP}borderline",
        rf"{HEART} (?:is |are |appears |remains )?large\b",
        rf"(?:increase|enlargement) in (?:the )?{HEART}",
        value="positive",
    ),
    *said(
        "Cardiomegaly",
        rf"{HEART}{GAP}(?:(?:upper|top|high)[ -](?:limits?|range|normal|size)|near(?:ly)? normal)(?: of"
        rf"| size)?(?: normal)?",
        r"(?:top|upper)[ -]normal (?:size )?heart",
        rf"(?:{HEART}|cardiomediastinal silhouette)(?: and [\w ,]{{3,80}}?| size)? (?:is|are|appears?|remains?|size)?"
        r"(?: \w+){0,3}? ?(?:normal(?! aside)|unremarkable|within normal)",
        rf"(?:normal|unremarkable|stable normal) (?:appearance of the |size of the )?(?:{HEART}"
        rf"|cardiomediastinal silhouette)",
        value="negative",
    ),
    *said(
        "Enlarged Cardiomediastinum",
        r"(?:mediastinum|mediastinal (?:contours?|silhouette))"
        + GAP
        + r"(?P<at>wide|widened|widening|enlarged|prominent)",
        r"(?P<at>wide|widened|widening of the|enlarged|prominent) (?:superior )?(?:mediastinum|mediastinal)",
        r"mediastinal (?P<at>widening|enlargement|prominence)",
        r"cardiomediastinal" + GAP + r"(?P<at>enlarged|enlargement|prominent)",
        r"(?P<at>enlarged|enlargement of the|prominent) cardiomediastinal",
    ),
    *said(
        "Enlarged Cardiomediastinum",
        r"(?:cardio)?mediastin(?:um|al)(?: (?:silhouette|contours?))?(?: and [\w ]{3,60}?)?(?: size)? (?:is|are"
        r"|appears?|remains?)?"
        r"(?: \w+){0,3}? ?(?:normal|unremarkable|within normal)",
        r"(?:normal|unremarkable) (?:cardio)?mediastin(?:um|al)",
        value="negative",
    ),
)

LUNGS: Final = (
    *said(
        "Lung Lesion",
        r"(?:micro)?nodules?",
        r"(?<!soft tissue )(?<!breast )(?<!body )(?<!heart )mass(?:es)?(?! effect|[ -]?like)",
        r"granulomas?|granulomata|granulomatous",
        r"(?:lung|pulmonary|parenchymal|cavitary|lytic lung|suspicious|lobe) lesions?",
        r"(?:lung |pulmonary |bronchogenic )?(?:carcinoma|neoplasms?|tumou?rs?|malignanc(?:y|ies)|metastas[ie]s"
        r"|metastatic disease)",
        r"(?<!chest )(?<!pleural )(?<!thoracic )(?<!oral )cavit(?:y|ation)|cavitary",
    ),
    *said(
        "Lung Lesion",
        r"mass[ -]?like (?:densit(?:y|ies)|opacit(?:y|ies)|lesions?)|nodular (?:densit(?:y|ies)|opacit(?:y|ies)"
        r"|foc(?:us|i)|shadows?)|nodularity",
        value="uncertain",
    ),
    *said(
        "Lung Opacity",
        r"opacit(?:y|ies)",
        r"opacifications?",
        r"opacified",
        r"infiltrat(?:e|es|ion|ions)",
        r"air[ -]?space (?:disease|process|opacif\w+|abnormalit\w+)",
        rf"(?:{LUNG}|patchy|hazy|streaky|linear|focal|increased|nodular|rounded|vague|ill-defined)"
        r"(?: (?!calc|metal)\w+){0,2} densit(?:y|ies)",
        r"(?<!calcific )(?<!calcified )(?<!metallic )(?<!bone )densit(?:y|ies)(?: \w+){0,3} (?:lungs?|lobes?"
        r"|bases?|basilar|apex|lingula|midlung|retrocardiac)",
        r"parenchymal disease|ground[ -]glass|reticul(?:ation|ar (?:pattern|changes?))",
    ),
    *said("Lung Opacity", r"(?:lungs?|lung fields?) (?:\w+ ){0,5}?clear(?! of)", r"clear lungs?", value="negative"),
    *said(
        "Edema",
        r"(?<!soft tissue )(?<!subcutaneous )o?edema(?:tous)?",
        r"(?<!nasal )(?<!sinus )congestion",
        r"vascular (?P<at>prominence|engorgement|redistribution|cephalization)",
        r"(?:increased|prominent|engorged|indistinct|prominence of(?: the)?)(?: \w+){0,2} (?P<at>vascularity"
        r"|vasculature|vascular markings)",
        r"(?:pulmonary |central )(?:\w+ )?(?:vascularity|vasculature|vessels)(?: \w+){0,2} (?P<at>prominent"
        r"|increased|engorged|congested|indistinct)",
        r"(?:congestive )?heart failure",
        r"chf",
        r"fluid overload|volume overload",
        r"kerley[ -]b? ?lines?",
        r"cephalization",
    ),
    *said("Consolidation", r"consolidat(?:ion|ions|ive|ed)"),
    *said(
        "Pneumonia",
        r"(?:broncho)?pneumonias?",
        r"infectio(?:n|us)(?: process| etiolog\w+| infiltrat\w+)?",
        r"pneumonic",
    ),
    *said(
        "Atelectasis",
        r"atelecta(?:sis|ses|tic)",
        r"(?:lobe|lobar|lung|segmental) collapse",
        r"collapse of the (?:\w+ ){1,3}(?:lobe|lung)",
    ),
)

PLEURA: Final = (
    *said("Pneumothorax", r"(?:hydro|hemo|tension )?pneumothora(?:x|ces)", r"ptx", r"pleural air"),
    *said(
        "Pleural Effusion",
        r"(?<!pericardial )(?<!joint )effusions?",
        r"pleural fluid",
        r"(?:hydro|hemo)(?:pneumo)?thorax",
        r"fluid in the (?:\w+ )?(?:pleural space|fissure)",
        r"empyema",
    ),
    *said(
        "Pleural Effusion",
        r"(?:costophrenic|cp) (?:angles?|sulc\w+)(?: \w+){0,3}? (?:clear|sharp|preserved)",
        value="negative",
    ),
    *said(
        "Pleural Other",
        r"pleural (?:\w+ )?(?:thickening|plaques?|scar(?:ring)?|calcifications?|disease|based)",
        r"fibrothorax",
        r"(?:apical|biapical) (?:pleural )?(?:thickening|cap(?:ping)?)",
    ),
)

BONES_AND_DEVICES: Final = (
    *said(
        "Fracture",
        r"(?<!catheter )(?<!wire )(?<!lead )(?<!screw is )(?<!wires are )fractur(?:e|es"
        r"|ed)(?! (?:of the )?(?:\w+ )?(?:catheters?|wires?|leads?|screws?|hardware)\b)",
    ),
    *said("Fracture", r"broken (?:\w+ ){0,2}(?:ribs?|clavicle|bones?)", r"fx"),
    *said("Fracture", r"(?:compression|wedge|rib|costal) deformit(?:y|ies)", value="uncertain"),
    *said(
        "Support Devices",
        r"(?:endotracheal|tracheostomy|nasogastric|orogastric|enteric|feeding|chest|thoracostomy|pleural"
        r"|dobhoff|ng|og|et|ett|gastric|drainage) (?:tubes?|drains?|catheters?)",
        r"\bett\b|picc(?: line)?|pigtail",
        r"(?:central|venous|subclavian|jugular|dialysis|swan[ -]ganz|pulmonary artery|picc|port|infusion"
        r"|indwelling|arterial|midline)(?: \w+){0,2} (?:lines?|catheters?)",
        r"catheters?",
        r"pacemakers?|pacers?|\bicds?\b|aicd|defibrillators?",
        r"(?:pacemaker|pacer|pacing|icd|defibrillator) (?:leads?|wires?)",
        r"(?:port|chemo\w*|mediport|port-?a-?cath|med[ -]?port)\b(?! of)",
        r"sternal wires?|sternotomy wires?|median sternotomy|sternotomy",
        r"(?:prosthetic|artificial|mechanical|replacement) (?:\w+ )?valves?|valve (?:replacement|prosthesis)"
        r"|valvuloplasty",
        r"stents?|balloon pump|iabp|lvad|ecmo|impella|stimulator|filter",
        r"(?:surgical|vascular|cabg|mediastinal|cholecystectomy) clips?|sutures?|staples?",
        r"(?:orthopedic|surgical|fixation|spinal|fusion) (?:hardware|rods?|screws?|plates?|devices?)|hardware"
        r"|arthroplasty",
        r"lines? and tubes?|tubes? and lines?|support (?:devices?|apparatus|lines?)",
    ),
    *said("Support Devices", r"extubat(?:ed|ion)", value="negative"),
)

PHRASES: Final = (*HEART_AND_MEDIASTINUM, *LUNGS, *PLEURA, *BONES_AND_DEVICES)
