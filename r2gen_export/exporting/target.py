"""What an export is for, a GPU or a CPU, and what follows for precision and dialect where they were not given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from r2gen_export.errors import R2GenError
from r2gen_export.exporting.decoder.export import check_variant
from r2gen_export.exporting.settings import Target
from r2gen_export.precision import PRECISIONS, with_half_activations
from r2gen_export.system.gpu import why_no_gpu

if TYPE_CHECKING:
    from transformers import LlamaConfig

    from r2gen_export.exporting.settings import ExportSettings


KERNELS: Final = "GroupQueryAttention of dialect ort has CUDA kernels for float16 activations only"


@dataclass(frozen=True)
class Choice:
    """How a bundle is written. `reason`: why the target is what it is, and what it led to, for the user."""

    target: Target
    dialect: str
    precision: str
    head_precision: str
    vision_precision: str
    reason: str


def choose(settings: ExportSettings, llm: LlamaConfig) -> Choice:
    """Target, dialect and precisions of an export: those given, the others by the target.

    For a CPU everything is float32 and the dialect `default_dialect`. For a GPU everything is float16, and a decoder
    asked for with float32 activations is written in dialect `trt`, see `KERNELS`. A target that was only detected
    refuses nothing: what the given dialect and precisions cannot run on the GPU is exported for the CPU.

    Args:
        settings: `target`, `dialect` and the precisions None where they were not given.
        llm: the LLM's configuration.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` for a decoder that cannot be written, or not run on the GPU it is for.
    """
    from r2gen_export.exporting.decoder.skeleton import default_dialect

    target, why = _target(settings)
    gpu, fitting = target == "gpu", default_dialect(llm)
    widest = "standard" in (settings.dialect, fitting) or _float32(settings.head_precision)
    precision = settings.precision or ("fp16" if gpu and not widest else "fp32")
    dialect = settings.dialect or ("trt" if gpu and fitting == "ort" and _float32(precision) else fitting)
    head_precision = settings.head_precision or precision
    check_variant(dialect, precision, head_precision)
    vision_precision = settings.vision_precision or ("fp16" if gpu else "fp32")
    led_to = f"decoder in dialect {dialect}, {precision}; vision encoder in {vision_precision}"
    return Choice(target, dialect, precision, head_precision, vision_precision, f"--for {target}: {why}; {led_to}")


def _target(settings: ExportSettings) -> tuple[Target, str]:
    """The target, and why it is this one."""
    given = [name for name in (settings.precision, settings.head_precision) if name and _float32(name)]
    # One sentence for an error and for a remark.
    better = f"--precision {with_half_activations(given[0])}" if given and settings.dialect == "ort" else ""
    if settings.target == "gpu" and better:
        message = f"a decoder in dialect ort with precision {given[0]} would not run on a GPU: {KERNELS}"
        raise R2GenError("R2G-CONFIG-VALUE", message, f"{better}, or --dialect trt")
    if settings.target is not None:
        return settings.target, "as given"
    if missing := why_no_gpu():
        return "cpu", missing
    if better:
        return "cpu", f"{KERNELS}, on the GPU of this machine {better} would run"
    return "gpu", "an NVIDIA GPU is there"


def _float32(precision: str | None) -> bool:
    """Whether a precision is known and has float32 activations."""
    return precision in PRECISIONS and not PRECISIONS[precision].half
