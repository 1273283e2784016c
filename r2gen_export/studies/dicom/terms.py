"""Defined terms and codes of DICOM that decide what is read. Values of a file are shown only when they are among them:
anything else may hold a name.

Sources: PS3.3 C.7.3.1.1.1 (modality), PS3.16 annex L (body parts), CID 4010 (views), PS3.4 annex B.5 (SOP classes).
"""

from __future__ import annotations

from typing import Final


def _words(lines: str) -> frozenset[str]:
    return frozenset(lines.split())


CR: Final = "1.2.840.10008.5.1.4.1.1.1"
DX_FOR_PRESENTATION: Final = "1.2.840.10008.5.1.4.1.1.1.1"
DX_FOR_PROCESSING: Final = "1.2.840.10008.5.1.4.1.1.1.1.1"
SECONDARY_CAPTURE: Final = "1.2.840.10008.5.1.4.1.1.7"
SECONDARY_CAPTURES: Final = frozenset(SECONDARY_CAPTURE + end for end in ("", ".1", ".2", ".3", ".4"))

NOT_IMAGES: Final = (
    ("1.2.840.10008.1.3.10", "a DICOMDIR"),
    ("1.2.840.10008.5.1.4.1.1.88.59", "a key object selection"),
    ("1.2.840.10008.5.1.4.1.1.88.", "a structured report"),
    ("1.2.840.10008.5.1.4.1.1.11.", "a presentation state"),
    ("1.2.840.10008.5.1.4.1.1.66.4", "a segmentation"),
    ("1.2.840.10008.5.1.4.1.1.66", "raw data, a registration or a segmentation"),
    ("1.2.840.10008.5.1.4.1.1.104.", "an encapsulated document"),
    ("1.2.840.10008.5.1.4.1.1.9.", "a waveform"),
    ("1.2.840.10008.5.1.4.1.1.481.", "a radiotherapy object"),
)
"""SOP class UIDs, or their beginnings, of objects that are no images; the first that fits names the object."""

MODALITIES: Final = _words(
    """
    AR ASMT AU BDUS BI BMD CR CT CTPROTOCOL DG DMS DOC DX ECG EEG EMG EOG EPS ES FID GM HC HD IO IOL
    IVOCT IVUS KER KO LEN LS MG MR M3D NM OAM OCT OP OPM OPT OPTBSV OPTENF OPV OSS OT PA PLAN POS PR PT
    PX REG RESP RF RG RTDOSE RTIMAGE RTINTENT RTPLAN RTRAD RTRECORD RTSEGANN RTSTRUCT RWV SEG SM SMR SR
    SRF STAIN TEXTUREMAP TG US VA XA XAPROTOCOL XC
    """
)

CHEST_WORDS: Final = frozenset({"CHEST", "THORAX", "TORAX", "LUNG", "LUNGS"})
"""In BodyPartExamined. RIB, STERNUM, CLAVICLE and TSPINE are other examinations, taken with other exposures to show
bone; a babygram (CHESTABDOMEN) shows more than the chest. None of them is what the models were trained on."""

VIEW_WORDS: Final = _words(
    """
    PA AP LAT LATERAL LL RL FRONTAL VIEW VIEWS ERECT UPRIGHT SUPINE PORTABLE BEDSIDE ROUTINE 1 2
    """
)
"""Beside the body part, in the values of scanners that put the view there too."""

OTHER_PARTS: Final = _words(
    """
    ABDOMEN ABDOMENPELVIS ANKLE ARM BREAST CALCANEUS CERVIX CHESTABDOMEN CHESTABDPELVIS CLAVICLE COCCYX
    CSPINE ELBOW EXTREMITY FEMUR FINGER FOOT FOREARM HAND HEAD HEADNECK HEART HIP HUMERUS JAW KNEE LEG
    LSPINE LSSPINE MAXILLA MEDIASTINUM NECK ORBIT PELVIS RIB RIBS SCAPULA SHOULDER SKULL SPINE SSPINE
    STERNUM THIGH THUMB TOE TSPINE TLSPINE WHOLEBODY WRIST ZYGOMA
    """
)
"""Body parts that may be named in a message."""

CHEST_CODES: Final = {
    "SCT": frozenset({"816094009", "51185008", "43799004", "302551006", "39607008", "181216001"}),
    "SRT": frozenset({"T-D3000", "T-D3200", "T-28000"}),
}
"""Chest, thoracic structure, intrathoracic, entire thorax, lung, entire lung (AnatomicRegionSequence)."""

SCHEMES: Final = {"SCT": "SCT", "SNOMED-CT": "SCT", "SRT": "SRT", "SNM3": "SRT", "99SDM": "SRT"}
"""Designators of SNOMED, in its two kinds of codes."""

HUMAN_CODES: Final = frozenset({"337915000", "L-85B00", "L-85003"})
HUMAN_WORDS: Final = frozenset({"HUMAN", "HOMO SAPIENS", "HOMO SAPIENS SAPIENS", "HUMAN BEING", "PERSON"})

FRONTAL: Final = frozenset({"PA", "AP"})
LATERAL: Final = frozenset({"LL", "RL", "LAT", "LATERAL", "LLAT", "RLAT"})
OTHER_VIEWS: Final = frozenset({"LLD", "RLD", "LLO", "RLO", "LAO", "RAO", "LPO", "RPO", "AP AXIAL", "LORDOTIC"})

FRONTAL_CODES: Final = frozenset({"399348003", "272479007", "399033003", "R-10202", "R-10206", "R-10214", "R-40888"})
LATERAL_CODES: Final = _words(
    "399067008 399173006 399198007 399352003 399260004 R-102CD R-10236 R-10232 R-10228 R-10224"
)
