"""Opening a graph in ONNX Runtime, on the CPU or a GPU, and what its failures become.

`import onnxruntime` happens when the first session is made, so importing this module costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from r2gen_export.errors import CodedError, R2GenError
from r2gen_export.runtime.backends.linked_graph import with_weights_in_place
from r2gen_export.runtime.backends.ort_providers import (
    CPU,
    CUDA,
    PLAIN,
    TENSORRT_RTX,
    Acceleration,
    gpu_session_entries,
    provider_options,
    rtx_devices,
)
from r2gen_export.runtime.backends.placement import check_placement
from r2gen_export.system.cores import thread_count
from r2gen_export.system.gpu import is_out_of_memory
from r2gen_export.system.memory import is_out_of_host_memory, out_of_host_memory

if TYPE_CHECKING:
    import onnxruntime

    from r2gen_export.runtime.backends.ort_tensorrt import ProviderTuning

WEIGHTS_FOLDER: Final = "session.model_external_initializers_file_folder_path"
"""Session setting: what locations of external data are relative to, for a model that is no file."""

LONGEST: Final = 300
"""Characters of a library's message that an error repeats."""


def session_options() -> onnxruntime.SessionOptions:
    """What every session of ONNX Runtime is opened with, so that a gate runs the kernels that `infer` runs."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # For the 4-bit kernel that ONNX Runtime makes of `DequantizeLinear` (dialect `trt`): as `MatMulNBits` in `ort`.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "4")
    return options


def open_session(
    graph: Path | bytes,
    *,
    providers: Sequence[str],
    threads: int | None,
    tuning: ProviderTuning | None = None,
    acceleration: Acceleration = PLAIN,
    gpu: int = 0,
    growing: bool = False,
) -> onnxruntime.InferenceSession:
    """Open a graph the way every session of the runtime is opened.

    Args:
        graph: a file, which may have links to its weights beside it, or a whole model.
        providers: names of ONNX Runtime's execution providers, best first.
        threads: CPU threads, None: the cores this process may use.
        tuning: for providers that build engines.
        acceleration: of the CUDA provider.
        gpu: index of the GPU, as CUDA counts them.
        growing: tensors of the graph grow from run to run.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when it cannot be loaded; `R2G-RESOURCE-MEMORY` when memory does not suffice;
            `R2G-DEVICE-UNAVAILABLE` when the first provider does not start, or leaves attention or nodes with weights
            on the CPU.
    """
    import onnxruntime

    path = graph if isinstance(graph, Path) else Path("graph")
    on_gpu = providers[0] != CPU
    options = session_options()
    options.intra_op_num_threads = thread_count(threads)
    if on_gpu:
        # What fails is raised; the library would write it to stderr as well, in colour.
        options.log_severity_level = 4
        onnxruntime.set_default_logger_severity(4)  # of the process: cuDNN's failures are logged there
        for name, value in gpu_session_entries(acceleration).items():
            options.add_session_config_entry(name, value)
    # The providers that build engines read weights by the graph's path themselves, and follow links.
    if isinstance(graph, Path) and providers[0] in (CPU, CUDA) and (in_place := with_weights_in_place(graph)):
        graph, folder = in_place
        options.add_session_config_entry(WEIGHTS_FOLDER, str(folder))
    settings = [
        (
            name,
            {**provider_options(name, gpu, acceleration, growing=growing), **(tuning.options(name) if tuning else {})},
        )
        for name in providers
    ]
    try:
        if providers[0] == TENSORRT_RTX:  # a plug-in: it is asked for by its devices, the CPU's comes by itself
            options.add_provider_for_devices(rtx_devices(), settings[0][1])
            session = onnxruntime.InferenceSession(graph, options, enable_fallback=0)
        else:
            # Its Python wrapper would print to stdout and open the graph again on the CPU.
            session = onnxruntime.InferenceSession(graph, options, providers=settings, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        if on_gpu and is_out_of_memory(error):
            raise out_of_memory(f"{path.name} does not fit", first_line(error, path)) from error
        if is_out_of_host_memory(error):
            raise out_of_host_memory(f"{path.name} does not fit", first_line(error, path)) from error
        if on_gpu:  # a broken graph says so again on the CPU
            message = f"{path.name} does not load on {providers[0]} ({first_line(error, path)})"
            raise R2GenError("R2G-DEVICE-UNAVAILABLE", message, "--device cpu, or see r2gen doctor") from error
        raise bad_graph(path, f"ONNX Runtime does not load it ({first_line(error, path)})") from error
    # In a pass, too, the wrapper would go on on the CPU, with the report saying GPU.
    session.disable_fallback()
    if session.get_providers()[0] != providers[0]:
        # ONNX Runtime falls back on its own and would only log it.
        actual = session.get_providers()[0]
        message = f"{providers[0]} did not start, ONNX Runtime offers {actual} instead"
        raise R2GenError("R2G-DEVICE-UNAVAILABLE", message, "--device cpu, or see r2gen doctor")
    if on_gpu:
        check_placement(path, session)
    return session


@contextmanager
def coded_failures(session: onnxruntime.InferenceSession, stage: str) -> Iterator[None]:
    """Turn what ONNX Runtime raises in a pass on a GPU into an error the user can act on.

    Raises:
        R2GenError: `R2G-RESOURCE-MEMORY`, `R2G-DEVICE-UNAVAILABLE`. On the CPU every exception but one about memory
            stays what it is, a bug.
    """
    try:
        yield
    except CodedError:
        raise
    except Exception as error:
        provider = session.get_providers()[0]
        if provider != CPU and is_out_of_memory(error):
            raise out_of_memory(f"{stage} needs more", first_line(error)) from error
        if is_out_of_host_memory(error):
            raise out_of_host_memory(f"{stage} needs more", first_line(error)) from error
        if provider == CPU:
            raise
        message = f"{provider} failed in {stage} ({first_line(error)})"
        raise R2GenError("R2G-DEVICE-UNAVAILABLE", message, "--device cpu, or see r2gen doctor") from error


def out_of_memory(what: str, said: str) -> R2GenError:
    """The error for a GPU whose memory does not suffice, with what the library said."""
    fix = "a smaller --batch-size, fewer beams, a bundle of fewer bits (--precision int4-f16), or --device cpu"
    return R2GenError("R2G-RESOURCE-MEMORY", f"not enough memory on the GPU: {what} ({said})", fix)


def check_names(path: Path, session: onnxruntime.InferenceSession, inputs: set[str], outputs: set[str]) -> None:
    for kind, nodes, wanted in (("input", session.get_inputs(), inputs), ("output", session.get_outputs(), outputs)):
        found = {node.name for node in nodes}
        if found != wanted:
            lacking, extra = ", ".join(sorted(wanted - found)), ", ".join(sorted(found - wanted))
            raise bad_graph(path, f"{kind}s missing: {lacking or 'none'}; unexpected: {extra or 'none'}")


def bad_graph(path: Path, reason: str, mend: str = "export the bundle again") -> R2GenError:
    return R2GenError("R2G-BUNDLE-GRAPH", f"{path.name}: {reason}", mend)


def first_line(error: Exception, path: Path | None = None) -> str:
    """What a library's exception says, shortened to a line; `path` is named without its folder."""
    line = str(error).strip().split("\n", maxsplit=1)[0]
    if path is not None:
        line = line.replace(str(path), path.name).replace(f"{path.parent}/", "")
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}..."
