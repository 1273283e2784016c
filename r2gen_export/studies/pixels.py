"""Grey values of any depth to 8 bits: the range that becomes black to white, found so that outliers do not set it."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

TAIL: Final = 0.02
"""Share of the (capped) histogram on either side of the bulk."""

CAP: Final = 0.001
"""Share of the pixels that one grey value may count for: an area of padding counts little more than any other value."""

SAMPLE: Final = 1_000_000
"""The range is measured on at most about this many pixel values."""

HUGE: Final = 1e300
"""Larger values (no-data values of 64-bit files) are clipped to it, so that differences stay finite."""

FEW_LEVELS: Final = 32


class GreyRange(NamedTuple):
    """`black` becomes 0 and `white` 255. `stretched`: the values use too little of their scale to be shown on it."""

    black: float
    white: float
    stretched: bool


def grey_range(values: NDArray[Any], top: float | None = None) -> GreyRange:
    """The range of grey values that becomes black to white, for data of more than 8 bits.

    8-bit files are not touched: the models were trained on 8-bit levels as they are. Deeper files must give what the
    same picture gives in 8 bits, although most of them do not say how many of their bits are used. The steps:

    1. The bulk is what lies between the 2 % and 98 % points of a histogram in which no grey value counts for more
       than 0.1 % of the pixels; else a padded border or a saturated area would be the bulk.
    2. The range ends at the largest value within half the bulk's width beyond the bulk. What lies farther out (a
       burned-in marker, a dead pixel, a padding value) moves the end less the farther it is, and not at all from one
       width on: no threshold at which a single pixel would change the whole picture.
    3. White is the next 2^n - 1 above the end of the range (for floating point up to 1: the next power of two), and
       black is zero: 12 used bits of 16 are shown as 12 bits. Just above 2^n white moves continuously from one to the
       other, so that a largest value of 32,767 and one of 32,768 give the same picture. This estimates what DICOM
       states as BitsStored, whose full range, not the picture's own minimum and maximum, is shown there.
    4. A range that uses less than a fifth of this scale (data with an offset) is stretched from its own ends; between
       one and two fifths, both are blended. `stretched` says so.

    Negative values that reach a quarter of the scale are taken for signed data around zero.

    Args:
        values: integers or finite floating point, any shape, at least one value.
        top: the largest value of the scale where the file states it (12 bits per sample: 4095); it is white.
    """
    if top is not None:
        return GreyRange(0.0, top, False)
    least, most = _robust_ends(values)
    if least < 0:
        scale = _next_scale(max(most, -least))
        signed = min(1.0, 4 * -least / scale)
        floor = least + signed * (-scale - (values.dtype.kind == "i") - least)
    else:
        scale = _next_scale(most)
        floor = 0.0
    if most <= least:
        return GreyRange(floor, scale, False)
    use = (most - least) / (scale - floor)
    blend = float(np.clip((use - 0.2) / 0.2, 0.0, 1.0))
    return GreyRange(least + blend * (floor - least), most + blend * (scale - most), blend < 1)


def to_eight_bits(
    values: NDArray[Any], *, alpha: NDArray[Any] | None = None, top: float | None = None, zero_is_white: bool = False
) -> tuple[NDArray[np.uint8], list[str]]:
    """Pixels of more than 8 bits as 8-bit RGB, by the rule of `grey_range`.

    Args:
        values: [H, W, 1] grey or [H, W, 3] RGB, unsigned, signed or floating point. One range for all channels.
        alpha: [H, W] of the same kind; the picture is laid over black, and what is transparent sets no range.
        top: as `grey_range`.
        zero_is_white: PhotometricInterpretation 0 of TIFF: the levels are inverted.

    Returns:
        uint8 [H, W, 3], and what a reader of the report should know, as sentences without subject.

    Raises:
        FloatingPointError: a value is NaN or infinite.
    """
    if values.dtype.kind == "f":
        if not np.isfinite(values).all():
            raise FloatingPointError("NaN or infinite pixel values")
        values = np.clip(values.astype(np.float64), -HUGE, HUGE)
    seen = values if alpha is None or not alpha.any() else values[alpha > 0]
    chosen = grey_range(seen, top)
    levels = _scaled(values, chosen.black, chosen.white)
    if zero_is_white:
        levels = 255 - levels
    if alpha is not None:
        opaque = _next_scale(float(alpha.max())) if alpha.dtype.kind == "f" else _opaque(alpha)
        levels = np.rint(levels * np.clip(alpha / opaque, 0, 1).astype(np.float32)[:, :, None]).astype(np.uint8)
    return np.repeat(levels, 3, axis=2) if levels.shape[2] == 1 else levels, _remarks(seen, chosen)


def grey_levels(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3] as grey ones [H, W], by Pillow's weights (ITU-R 601-2); equal channels stay as they are."""
    from PIL import Image  # not at the top: the process that reads DICOM imports this module and never calls this

    return np.asarray(Image.fromarray(pixels).convert("L"))


def few_levels(pixels: NDArray[np.uint8]) -> list[str]:
    """A sentence when a picture [H, W, 3] holds so few grey levels that it cannot be a sound radiograph."""
    count = int(np.count_nonzero(np.bincount(pixels.reshape(-1), minlength=256)))
    return [f"it holds only {count} grey levels; it may be badly converted"] if count < FEW_LEVELS else []


def _robust_ends(values: NDArray[Any]) -> tuple[float, float]:
    """Steps 1 and 2 of `grey_range`."""
    step = max(1, int(np.sqrt(values.size / SAMPLE)))
    # What alpha selects is [N, C]: no picture whose columns could be skipped.
    sample = values[::step, ::step] if values.ndim == 3 else values[:: step * step]
    levels, counts = np.unique(sample, return_counts=True)
    capped = np.cumsum(np.minimum(counts, max(1.0, CAP * sample.size)))
    low, high = levels[np.searchsorted(capped, np.array([TAIL, 1 - TAIL]) * capped[-1])].astype(np.float64)
    width = max(high - low, np.finfo(np.float64).tiny)
    # The sample may have missed the extreme values.
    levels = np.append(levels.astype(np.float64), [float(values.min()), float(values.max())])
    above, below = levels - high, low - levels
    reach = [float(np.minimum(beyond, width - beyond).max(initial=0.0)) for beyond in (above, below)]
    return low - reach[1], high + reach[0]


def _next_scale(most: float) -> float:
    """Step 3 of `grey_range`: the white that belongs to a largest value."""
    if most <= 0:
        return 1.0
    exponent = int(np.frexp(most)[1])  # 2 ** (exponent - 1) <= most < 2 ** exponent
    if most <= 1:
        exponent -= most == 2.0 ** (exponent - 1)
        lower, upper = 2.0 ** (exponent - 1), 2.0**exponent
    else:
        exponent += most > 2.0**exponent - 1
        lower, upper = max(1.0, 2.0 ** (exponent - 1) - 1), 2.0**exponent - 1
    return min(upper, lower + 8 * (most - lower))


def _opaque(alpha: NDArray[Any]) -> float:
    """The alpha that hides the ground: as used bits are recognised for colours, never more than the type holds."""
    return min(_next_scale(float(alpha.max())), float(np.iinfo(alpha.dtype).max))


def _scaled(values: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    def scale(part: NDArray[Any]) -> NDArray[np.uint8]:
        exact = np.clip((part.astype(np.float64) - black) / (white - black) * 255, 0, 255)
        rounded: NDArray[np.uint8] = np.rint(exact).astype(np.uint8)
        return rounded

    if values.dtype.kind in "ui" and values.dtype.itemsize <= 2:
        info = np.iinfo(values.dtype)
        table = scale(np.arange(info.min, info.max + 1))
        return table[values.astype(np.int64) - info.min] if info.min else table[values]
    levels = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), 256):  # bounds the memory for float64
        levels[row : row + 256] = scale(values[row : row + 256])
    return levels


def _remarks(values: NDArray[Any], chosen: GreyRange) -> list[str]:
    remarks = []
    clipped = int(np.count_nonzero(values < chosen.black)) + int(np.count_nonzero(values > chosen.white))
    if clipped:
        share = 100 * clipped / values.size
        shown = f"{share:.1f} %" if share >= 0.1 else "less than 0.1 %"
        remarks.append(
            f"{shown} of its pixel values lie far outside the others (marker, padding or defective pixels) and were "
            "clipped to black or white"
        )
    if chosen.stretched:
        remarks.append("its grey values use only a small part of their scale and were stretched: contrast may be off")
    return remarks
