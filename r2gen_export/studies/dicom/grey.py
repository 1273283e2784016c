"""Stored pixel values to grey levels, as a viewer shows them: modality step, VOI step, polarity.

Follows PS3.3 C.11.1 (modality LUT), C.11.2 (VOI LUT) and C.7.6.3.1.2 (photometric interpretation). The rule is our own
because both library pipelines are wrong on legal CR and DX images; the oracle of its tests is dcmtk's `dcm2pnm`.
Everything is computed on a table of all 2^BitsStored values, which the picture is then looked up in.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.studies.dicom.types import Polarity
from r2gen_export.studies.dicom.values import UnreadableError, code, items, number
from r2gen_export.studies.refusal import RefusedError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

Values = NDArray[np.float64]

_SOURCE: Final = "export it again from its source"


@dataclass(frozen=True)
class Step:
    """Values [2^BitsStored] after a step, and the ends of the scale they lie on."""

    values: Values
    low: float
    high: float


def grey_table(dataset: Dataset, bits: int, signed: bool, polarity: Polarity) -> tuple[NDArray[np.uint8], list[str]]:
    """The grey level of every stored value.

    Args:
        dataset: the image's attributes.
        bits: BitsStored, at most 16.
        signed: PixelRepresentation is 1; the stored values are two's complement.
        polarity: as `DicomSettings.polarity`.

    Returns:
        uint8 [2^bits], indexed by the stored bits as an unsigned number, 255 the brightest; and what is odd.

    Raises:
        RefusedError: `R2G-DICOM-PIXELS` when a step is stated and cannot be carried out.
    """
    remarks: list[str] = []
    stored = np.arange(1 << bits, dtype=np.float64)
    if signed:
        stored[1 << (bits - 1) :] -= 1 << bits
    modality = _modality(dataset, Step(stored, float(stored.min()), float(stored.max())), signed, remarks)
    if not (np.isfinite(modality.values).all() and np.isfinite(modality.high - modality.low)):
        raise _unusable("grey scale transformation overflows")
    shown = _voi(dataset, modality, signed or modality.low < 0, remarks)
    with np.errstate(all="ignore"):
        levels = np.clip((shown.values - shown.low) / (shown.high - shown.low), 0, 1)
    if not np.isfinite(levels).all():
        raise _unusable("grey scale transformation overflows")
    if inverted(dataset, polarity, remarks):
        levels = 1 - levels
    return np.rint(levels * 255).astype(np.uint8), remarks


def inverted(dataset: Dataset, polarity: Polarity, remarks: list[str]) -> bool:
    """Whether low values are shown bright. PresentationLUTShape decides where it is there, as in dcmtk and Weasis."""
    shape = code(dataset, "PresentationLUTShape")
    first = code(dataset, "PhotometricInterpretation") == "MONOCHROME1"
    if shape not in ("IDENTITY", "INVERSE"):
        if shape:
            remarks.append("its PresentationLUTShape is unknown and was left out")
        if polarity == "shape" and first:
            remarks.append("it has no PresentationLUTShape, and polarity `shape` leaves its MONOCHROME1 out")
        return first and polarity != "shape"
    if (shape == "INVERSE") != first:
        remarks.append(
            "its PhotometricInterpretation and PresentationLUTShape contradict each other: it may be shown as a "
            "negative (polarity `photometric` or `shape` chooses)"
        )
    return first if polarity == "photometric" else shape == "INVERSE"


def _modality(dataset: Dataset, stored: Step, signed: bool, remarks: list[str]) -> Step:
    """PS3.3 C.11.1: a table goes before slope and intercept."""
    tables = items(dataset, "ModalityLUTSequence")
    if tables:
        return _looked_up(tables[0], stored.values, signed, "modality LUT", remarks)
    try:
        slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    except UnreadableError as error:
        raise _unusable(f"{error} is no number") from error
    if not slope and intercept is None:
        return stored
    # A slope of zero would make the picture constant; it is written where none is meant.
    slope, intercept = slope or 1.0, intercept or 0.0
    ends = sorted((slope * stored.low + intercept, slope * stored.high + intercept))
    return Step(slope * stored.values + intercept, *ends)


def _voi(dataset: Dataset, modality: Step, signed: bool, remarks: list[str]) -> Step:
    """PS3.3 C.11.2: a table goes before a window; without either, the full range of the modality step is shown."""
    tables = items(dataset, "VOILUTSequence")
    if tables:
        return _looked_up(tables[0], modality.values, signed, "VOI LUT", remarks)
    try:
        centre, width = number(dataset, "WindowCenter"), number(dataset, "WindowWidth")
    except UnreadableError:
        remarks.append("its window cannot be read: its full range is shown")
        return modality
    if centre is None or width is None:
        return modality
    function = code(dataset, "VOILUTFunction") or "LINEAR"
    if function not in _WINDOWS:
        remarks.append("its VOILUTFunction is unknown; LINEAR was used")
        function = "LINEAR"
    if width < 1 and not (function == "LINEAR_EXACT" and width > 0):
        remarks.append("its window has no width: its full range is shown")
        return modality
    return Step(_WINDOWS[function](modality.values, centre, width), 0.0, 1.0)


def _linear(values: Values, centre: float, width: float) -> Values:
    if width == 1:
        return (values > centre - 0.5).astype(np.float64)
    return (values - (centre - 0.5)) / (width - 1) + 0.5


def _linear_exact(values: Values, centre: float, width: float) -> Values:
    return (values - centre) / width + 0.5


def _sigmoid(values: Values, centre: float, width: float) -> Values:
    return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))


_WINDOWS: Final[dict[str, Callable[[Values, float, float], Values]]] = {
    "LINEAR": _linear,
    "LINEAR_EXACT": _linear_exact,
    "SIGMOID": _sigmoid,
}


def _looked_up(item: Dataset, values: Values, signed: bool, name: str, remarks: list[str]) -> Step:
    """Values through a table (PS3.3 C.11.1.1.1): those outside it take its first or last entry."""
    little = item.original_encoding[1] is not False
    descriptor, vr = _raw(item, 0x00283002, little)
    if len(descriptor) < 6:
        raise _unusable(f"{name} has no descriptor")
    words = np.frombuffer(descriptor[:6], "<u2" if little else ">u2").astype(np.int64)
    count = int(words[0]) or 65536
    first = int(words[1])
    if first >= 1 << 15 and (signed or vr == "SS"):
        first -= 1 << 16
    depth = int(words[2])
    entries = _entries(item, count, depth, little, name)
    index = np.clip(np.rint(values) - first, 0, count - 1).astype(np.int64)
    used = int(entries.max()).bit_length()
    if used != depth:
        # dcmtk obeys the descriptor unless called with +Mc, and shows 12 bits under a descriptor of 16 nearly black.
        remarks.append(f"its {name} states {depth} bits and uses {used}, which were taken")
        depth = max(1, used)
    return Step(entries[index].astype(np.float64), 0.0, float((1 << depth) - 1))


def _entries(item: Dataset, count: int, depth: int, little: bool, name: str) -> NDArray[np.int64]:
    """LUTData as it is in the file, one entry a word, or with up to 8 bits two a word."""
    data, _ = _raw(item, 0x00283006, little)
    order = "<u2" if little else ">u2"
    if len(data) >= 2 * count:
        return np.frombuffer(data[: 2 * count], order).astype(np.int64)
    if depth <= 8 and len(data) >= count + count % 2:
        packed = np.frombuffer(data[: count + count % 2], order).astype("<u2").view(np.uint8)
        return packed[:count].astype(np.int64)
    raise _unusable(f"{name} holds fewer values than it states")


def _raw(item: Dataset, tag: int, little: bool) -> tuple[bytes, str]:
    """An element's bytes and value representation as they are in the file, before pydicom guesses its type."""
    try:
        element = item.get_item(tag)
        value = getattr(element, "value", None)
        if isinstance(value, bytes):
            return value, str(element.VR or "")
        many = [value] if isinstance(value, int) else list(value or [])
        return (np.array(many, np.int64) & 0xFFFF).astype("<u2" if little else ">u2").tobytes(), str(element.VR)
    except Exception:
        return b"", ""


def _unusable(what: str) -> RefusedError:
    return RefusedError("R2G-DICOM-PIXELS", f"cannot be shown: its {what}", _SOURCE)
