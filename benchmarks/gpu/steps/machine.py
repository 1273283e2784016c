"""Steps about the machine: what it can do, what ONNX Runtime offers, whether a bound input is read as r2gen expects."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.gpu.steps import Answer, Context, median_ms

RESHAPE: Final = bytes.fromhex(
    "08093a520a160a01780a0573686170651201792207526573686170651201672a0f080210073a020202420573686170655a0f0a0178120a0a08"
    "080112040a02080462130a0179120e0a0c080112080a0208020a02080242040a001012"
)
"""An ONNX model: Reshape of float32 `x` [4] to `y` [2, 2]. It moves bytes only, as the imitated runtime can.

Not every machine that runs the check has the package `onnx`.
"""


def ceilings(context: Context) -> Answer:
    """What the GPU can do: device copy, streaming read by a matrix-vector product, PCIe, matrix products."""
    import torch

    device, small = context.torch_device, context.torch_device == "cpu"
    if small and not context.few:
        return {"skipped": "the installed torch has no CUDA"}
    count = (1 << 22) if small else (1 << 30)
    source, target = (torch.ones(count, dtype=torch.float16, device=device) for _ in range(2))
    target.copy_(source)
    context.synchronize()
    copy = median_ms(lambda: target.copy_(source), 10, context)
    rows = 1024 if small else 65536
    matrices = [torch.randn(rows, 4096, dtype=torch.float16, device=device) for _ in range(3)]  # more than any cache
    vector, turn = torch.randn(4096, 1, dtype=torch.float16, device=device), iter(range(10**9))
    read = median_ms(lambda: matrices[next(turn) % 3] @ vector, 12, context)
    host = torch.ones(count // 16, dtype=torch.float16)
    answer = {
        "copy_gb_s": round(2 * source.nbytes / copy / 1e6, 1),
        "read_gb_s": round(matrices[0].nbytes / read / 1e6, 1),
        "pageable_h2d_gb_s": round(host.nbytes / median_ms(lambda: host.to(device), 5, context) / 1e6, 2),
        "torch": torch.__version__,
    }
    if small:
        return answer
    pinned, there = host.pin_memory(), host.to(device)
    square = torch.randn(8192, 8192, dtype=torch.float16, device=device)
    return answer | {
        "pinned_h2d_gb_s": round(host.nbytes / median_ms(lambda: there.copy_(pinned), 5, context) / 1e6, 2),
        "pageable_d2h_gb_s": round(host.nbytes / median_ms(there.cpu, 5, context) / 1e6, 2),
        "fp16_tflops": round(2 * 8192**3 / median_ms(lambda: square @ square, 10, context) / 1e9, 1),
        "gpu": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "free_gib": round(torch.cuda.mem_get_info()[0] / 2**30, 1),
    }


def providers(context: Context) -> Answer:
    """What ONNX Runtime offers, and what `--device auto`, `cuda` and `tensorrt` make of it."""
    import onnxruntime

    from r2gen_export.errors import R2GenError
    from r2gen_export.runtime.backends.ort_providers import choose_providers

    answer: Answer = {"onnxruntime": onnxruntime.__version__, "offered": onnxruntime.get_available_providers()}
    for device in ("auto", "cuda", "tensorrt"):
        try:
            choice = choose_providers(device)
            answer[device] = {"name": choice.name, "steps": choice.steps}
        except R2GenError as error:
            answer[device] = {"error": error.message}
    maps = Path("/proc/self/maps")
    if maps.exists():
        names = ("libcudart", "libcublas", "libcudnn", "libcurand")
        loaded = {Path(line.split()[-1]).name for line in maps.read_text(encoding="utf-8").splitlines() if "/" in line}
        answer["libraries"] = sorted(name for name in loaded if name.startswith(names))
        answer["cudnn_loads"] = _loads("libcudnn.so.9")
    return answer


def _loads(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def binding(context: Context) -> Answer:
    """Whether a pass sees what was written into an input after it was bound.

    A host array is copied to the device when it is bound and never again, so it is seen on the CPU alone; a value on
    the device that `update_inplace` writes must be seen everywhere.
    """
    import onnxruntime as ort

    from r2gen_export.runtime.backends.ort_providers import choose_providers

    session = ort.InferenceSession(RESHAPE, providers=choose_providers(context.device).providers)
    array, out = np.zeros(4, np.float32), np.full((2, 2), -1, np.float32)
    fresh = np.array([1, 2, 3, 4], np.float32)
    on_device = ort.OrtValue.ortvalue_from_numpy(np.zeros(4, np.float32), context.device, 0)

    def result(value: ort.OrtValue) -> list[float]:
        bound = session.io_binding()
        bound.bind_ortvalue_input("x", value)
        bound.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(out))
        if value is on_device:
            value.update_inplace(fresh)
        else:
            array[...] = fresh
        session.run_with_iobinding(bound)
        values: list[float] = out.ravel().tolist()
        return values

    return {
        "provider": session.get_providers()[0],
        "expected": fresh.tolist(),
        "host_array_written_after_bind": result(ort.OrtValue.ortvalue_from_numpy(array)),
        "device_value_updated_after_bind": result(on_device),
    }
