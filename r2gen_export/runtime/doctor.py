"""State of this installation, for `r2gen doctor`: versions, GPU, execution providers, bundle, and a trial report."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from r2gen_export.errors import CodedError, InternalError, cause_of
from r2gen_export.system.cores import allowed_cpus
from r2gen_export.system.nvml import driver_and_gpus
from r2gen_export.system.versions import VERSION, installed_version

if TYPE_CHECKING:
    from r2gen_export.bundle import Bundle, Manifest
    from r2gen_export.candidates import Candidate
    from r2gen_export.runtime.pipeline import Pipeline

BASE_PACKAGES: Final = ("numpy", "onnxruntime", "onnxruntime-gpu", "tokenizers", "pillow", "typer", "rich", "filelock")
EXTRAS: Final[dict[str, tuple[str, ...]]] = {
    "export": ("torch", "transformers", "optimum", "optimum-onnx", "onnx", "onnxscript", "safetensors", "accelerate"),
    "train": ("torch", "transformers", "safetensors", "lightning", "peft", "tensorboard"),
    "dicom": (
        *("pydicom", "pynetdicom", "pylibjpeg-openjpeg", "pyjpegls", "imagecodecs"),
        *("reportlab", "prometheus-client"),
    ),
    "serve": ("starlette", "uvicorn", "python-multipart", "prometheus-client"),
}
RUNTIMES: Final = frozenset({"onnxruntime", "onnxruntime-gpu"})
TRIAL_TOKENS: Final = 8

Status = Literal["ok", "info", "fail"]


@dataclass(frozen=True)
class Check:
    """One line of `r2gen doctor`. `fail` means that `infer` cannot run; then `code` and `fix` say what mends it."""

    area: str
    name: str
    status: Status
    detail: str
    code: str = ""
    fix: str = ""


def system_checks() -> list[Check]:
    """Versions of r2gen, Python and the platform, and the CPU cores this process may use."""
    return [
        Check("system", "r2gen", "ok", VERSION),
        Check("system", "python", "ok", platform.python_version()),
        Check("system", "platform", "ok", f"{platform.platform()}, {len(allowed_cpus())} CPU cores"),
    ]


def package_checks() -> list[Check]:
    """Packages of the base install, and the optional extras. Reads their metadata and imports none."""
    checks = []
    found = {name: version for name in BASE_PACKAGES if (version := installed_version(name)) is not None}
    for name in BASE_PACKAGES:
        if name in found:
            checks.append(Check("packages", name, "ok", found[name]))
        elif name not in RUNTIMES:
            checks.append(_missing(name))
    if not RUNTIMES & found.keys():
        checks.append(_missing("onnxruntime"))
    if found.keys() >= RUNTIMES:
        detail = "onnxruntime and onnxruntime-gpu overwrite each other's files"
        fix = "pip uninstall onnxruntime onnxruntime-gpu, then install r2gen again"
        checks.append(Check("packages", "onnxruntime", "fail", detail, "R2G-DEPENDENCY-MISSING", fix))
    for extra, names in EXTRAS.items():
        lacking = [name for name in names if installed_version(name) is None]
        detail = f"not installed: {', '.join(lacking)} (pip install 'r2gen[{extra}]')" if lacking else "installed"
        checks.append(Check("extras", extra, "info" if lacking else "ok", detail))
    return checks


def _missing(name: str) -> Check:
    return Check("packages", name, "fail", "not installed", "R2G-DEPENDENCY-MISSING", "pip install r2gen")


def gpu_checks() -> list[Check]:
    """The NVIDIA driver and its GPUs, asked through NVML (no CUDA toolkit needed)."""
    try:
        driver, gpus = driver_and_gpus()
    except OSError as error:
        return [Check("gpu", "NVIDIA driver", "info", f"none: {error}")]
    checks = [Check("gpu", "NVIDIA driver", "ok", driver)]
    if not gpus:
        checks.append(Check("gpu", "GPU", "info", "the driver shows none"))
    for index, gpu in enumerate(gpus):
        detail = f"{gpu.name}, {(gpu.memory or 0) / 2**30:.1f} GiB, compute capability {gpu.compute_capability}"
        checks.append(Check("gpu", f"GPU {index}", "ok", detail))
    return checks


def backend_checks(device: str, bundle: Bundle) -> tuple[list[Check], tuple[Candidate, ...]]:
    """What `infer` takes for a bundle, and a record for each backend that was considered. Loads no graph."""
    try:
        from r2gen_export.runtime.backends.decoders import choose_cpu_decoder
        from r2gen_export.runtime.backends.ort_providers import CPU, choose_providers
        from r2gen_export.runtime.backends.select import EngineCandidates

        checks: list[Check] = []
        try:
            manifest = bundle.manifest
        except CodedError:  # what is wrong with it is told under "bundle"
            choice = choose_providers(device)
        else:
            engines = EngineCandidates(bundle.folder, manifest, device)
            choice = engines.choose(device)
            if choice.providers[0] == CPU and "decoder" not in engines.fitting:
                choice = choose_cpu_decoder(manifest, choice, device=device).choice
                checks = [_tuning_check(manifest)]
    except Exception as error:
        return [_failed("backends", "chosen", error)], ()
    return [Check("backends", "chosen", "ok", choice.name), *checks], choice.candidates


def _tuning_check(manifest: Manifest) -> Check:
    """Whether the backends of the CPU were measured for this bundle on this machine."""
    from r2gen_export.runtime.backends.tuning import WORKLOADS, read_tuning

    record = read_tuning(manifest)
    if record is None:
        detail = "none for this bundle on this machine: ONNX Runtime decodes (r2gen tune BUNDLE measures)"
        return Check("backends", "tuning record", "info", detail, fix="r2gen tune BUNDLE")
    chosen = [(workload.title, record.best(workload)) for workload in WORKLOADS]
    settings = [f"{title}: {best.backend}, threads {best.threads}" for title, best in chosen if best is not None]
    return Check("backends", "tuning record", "ok", "; ".join(settings))


def bundle_checks(bundle: Bundle, device: str) -> list[Check]:
    """Hashes of the bundle, its parity verdicts, what it runs on, and a trial report on a synthetic picture."""
    try:
        from r2gen_export.runtime.pipeline import Pipeline

        pipeline = Pipeline.from_bundle(bundle, device=device)
    except Exception as error:
        return [_failed("bundle", "load", error)]
    manifest = pipeline.manifest
    checks = [
        Check("bundle", "model", "ok", f"{manifest.model_id}, bundle id {pipeline.bundle_id}, hashes agree"),
        Check("bundle", "semantics", "ok", f"{manifest.semantics}, presets {', '.join(manifest.presets)}"),
    ]
    if failed := [check.name for check in manifest.parity if not check.passed]:
        checks.append(Check("bundle", "parity", "info", f"differs from PyTorch in: {', '.join(failed)}"))
    else:
        checks.append(Check("bundle", "parity", "ok", f"{len(manifest.parity)} verdicts, all passed"))
    checks.append(Check("bundle", "runs on", "ok", pipeline.provider.name))
    if trial := pipeline.provider.trial:
        checks.append(Check("bundle", "trial pass", "info" if trial.difference is None else "ok", str(trial)))
    return [*checks, _trial(pipeline)]


def _trial(pipeline: Pipeline) -> Check:
    import numpy as np

    try:
        picture = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
        report = pipeline.generate(
            picture, num_beams=1, do_sample=False, min_new_tokens=TRIAL_TOKENS, max_new_tokens=TRIAL_TOKENS
        )
    except Exception as error:
        return _failed("infer", "trial", error)
    stages = ", ".join(f"{stage} {value:.0f} ms" for stage, value in report.timings_ms.items())
    return Check("infer", "trial", "ok", f"{len(report.token_ids)} tokens: {stages}")


def _failed(area: str, name: str, error: Exception) -> Check:
    coded = error if isinstance(error, CodedError) else InternalError(cause_of(error))
    return Check(area, name, "fail", coded.message, coded.code, coded.fix)
