"""preprocessor_config.json of a vision encoder into an `ImageSpec`: what passes here, `infer` can do.

Defaults and the meaning of null follow `ViTImageProcessor` of transformers 4.57, which Swin models use.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from r2gen_export.bundle import ImageSpec
from r2gen_export.errors import R2GenError
from r2gen_export.training.source_files.fields import Fields, is_number, read_object
from r2gen_export.training.source_files.place import missing, source_file, source_name

NAME: Final = "preprocessor_config.json"

PROCESSORS: Final = ("ViTImageProcessor", "ViTImageProcessorFast", "ViTFeatureExtractor")
"""What Swin models name in preprocessor_config.json; all three do the same."""

FILTERS: Final = {int(item): item.name.lower() for item in Image.Resampling if int(item) <= 5}
"""Pillow's filters by number; those above 5 are in its latest releases only."""

LARGEST_SIDE: Final = 4096
"""Pixels of a side; Swin's largest published input has 384."""

LARGEST_VALUE: Final = 1e4
"""Of a normalised pixel. ImageNet's values stay below 3."""

FOREIGN: Final[dict[str, tuple[Any, ...]]] = {
    "do_center_crop": (False,),
    "do_pad": (False,),
    "do_thumbnail": (False,),
    "do_align_long_axis": (False,),
    "do_flip_channel_order": (False,),
    "do_grayscale": (False,),
    "do_color_quantize": (False,),
    "do_reduce_labels": (False,),
    "reduce_labels": (False,),
    "crop_pct": (),
    "size_divisor": (),
    "max_size": (),
    "auto_map": ({},),
    "offset": (False,),
    "data_format": ("channels_first",),
    "input_data_format": ("channels_first",),
}
"""Settings of other processors, with the values under which they change nothing."""

FIX: Final = "use a Swin encoder with the preprocessing of ViTImageProcessor, or correct the file"


def image_spec(vision: str | Path) -> ImageSpec:
    """The preprocessing of a vision encoder, from its `preprocessor_config.json`.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` without a readable file, `R2G-MODEL-UNSUPPORTED`, naming the field and its
            value, for another processor, for cropping, a size that is not fixed, and values `infer` could not apply.
    """
    what = "vision encoder"
    path = source_file(vision, NAME, what)
    if path is None:
        fix = "put the file of the published model beside its config.json"
        raise missing(what, vision, f"it holds no {NAME}", fix)
    config = Fields(read_object(path, what, vision), NAME, f"the vision encoder {source_name(vision)!r}")
    kind = "image_processor_type" if "image_processor_type" in config else "feature_extractor_type"
    config.text(kind, PROCESSORS[0], choices=PROCESSORS)
    config.require_neutral(FOREIGN, FIX)
    if not config.flag("do_resize", True):
        raise config.refusal("do_resize", "true", FIX)
    height, width = _size(config)
    rescale = 1 / 255
    if config.flag("do_rescale", True):
        if "rescale_factor" in config.values and "rescale_factor" not in config:
            raise config.refusal("rescale_factor", "a number, because do_rescale is true", FIX)
        rescale = config.number("rescale_factor", 1 / 255)
    else:
        rescale = 1.0
    normalise = config.flag("do_normalize", True)
    # Null is the standard mean and deviation of transformers, 0.5 each.
    mean = _three(config, "image_mean", 0.5) if normalise else (0.0, 0.0, 0.0)
    std = _three(config, "image_std", 0.5) if normalise else (1.0, 1.0, 1.0)
    spec = ImageSpec(height, width, _filter(config), rescale, mean, std)
    _check_range(config, spec)
    return spec


def _size(config: Fields) -> tuple[int, int]:
    """Height and width: a number, a pair, or an object of both; null is 224."""
    expected = f"height and width in pixels, 1 to {LARGEST_SIDE}"
    size = config.values.get("size")
    if size is None:
        return 224, 224
    if isinstance(size, dict) and set(size) == {"height", "width"}:
        sides = [size["height"], size["width"]]
    elif isinstance(size, list) and len(size) == 2:
        sides = size
    elif type(size) is int:
        if config.values.get("default_to_square") not in (None, True):
            raise config.refusal("default_to_square", "true, beside a size that is a number", FIX)
        sides = [size, size]
    else:
        raise config.refusal("size", expected, FIX)
    if not all(type(side) is int and 1 <= side <= LARGEST_SIDE for side in sides):
        raise config.refusal("size", expected, FIX)
    return sides[0], sides[1]


def _filter(config: Fields) -> int:
    """Pillow's filter number; missing is bilinear, null is refused, as in transformers."""
    value = config.values.get("resample", 2)
    if type(value) is not int or value not in FILTERS:
        listed = ", ".join(f"{number} ({name})" for number, name in sorted(FILTERS.items()))
        raise config.refusal("resample", f"the number of one of Pillow's filters: {listed}", FIX)
    return value


def _three(config: Fields, name: str, default: float) -> tuple[float, float, float]:
    value = config.values.get(name)
    if value is None:
        value = default
    channels = value if isinstance(value, list) else [value] * 3
    if len(channels) != 3 or not all(is_number(channel) for channel in channels):
        raise config.refusal(name, "a number, or a list of three", FIX)
    return float(channels[0]), float(channels[1]), float(channels[2])


def _check_range(config: Fields, spec: ImageSpec) -> None:
    """Refuse settings under which a pixel is no number, or far from what an encoder is trained on."""
    if not all(np.float32(std) > 0 for std in spec.std):
        raise config.refusal("image_std", "numbers above 0", FIX)
    with np.errstate(all="ignore"):
        grey = np.array([[0.0], [255.0]]) * spec.rescale_factor
        largest = float(np.abs((grey - np.array(spec.mean)) / np.array(spec.std)).max())
    if not largest <= LARGEST_VALUE:
        names = [name for name in ("rescale_factor", "image_mean", "image_std") if name in config] or ["rescale_factor"]
        values = ", ".join(f"{name} {config.values.get(name)!r}" for name in names)
        message = f"{NAME} of {config.owner}: {values} give pixel values of up to {largest:.3g}"
        raise R2GenError("R2G-MODEL-UNSUPPORTED", f"{message}, expected at most {LARGEST_VALUE:g}", FIX)
