"""Where a bundle's nodes run on CUDA, and what one step copies: `python -m benchmarks.gpu.measure BUNDLE`.

Fields of the answer, which are stable:

- `dialect`, `precision`: the decoder's.
- `cpu_nodes`: operators of the nodes that the CUDA session leaves on the CPU, sorted; those of the vision encoder with
  the prefix `vision:`. `cpu_node_count`: how many nodes that are.
- `memcpy_nodes`: nodes of the optimised decoder by which ONNX Runtime copies between host and device.
- `bytes_up_per_step`, `bytes_down_per_step`: host to device and device to host in the third decode step of one row.
- `cache_copies_per_step`: copies in that step, in any direction, of at least the bytes of one row of one cache tensor.
- `cache_copies_per_reorder`: the same for `reorder([0, 0, 1])` of three beams that were reordered before, and what the
  decode step behind it copies beyond a step without a reorder. `host_bytes_per_reorder`: bytes up and down, of the
  reorder alone.
- `cache_copies_per_rollback`, `host_bytes_per_rollback`: the same for `rollback(2)` of one row.
- `refused`: what r2gen says when it refuses this bundle on CUDA, else null. What can be measured all the same, is.
- `error`: only where a pass ended with an error; numbers of later passes are then null.

Placement is known wherever the CUDA provider starts. Copies are counted by the imitated runtime (`imitated/`) only,
else they are null.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final
from unittest import mock

import numpy as np

from benchmarks.gpu.imitated import Copy, CopyLog
from benchmarks.gpu.imitated.copies import DOWN, UP
from r2gen_export.bundle import Dims, load_manifest
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.backends.placement import nodes_on_cpu

PROMPT: Final = 40
ROOM: Final = 24
"""Positions of the prompt, and of what may follow: together one step of the cache's length."""

COPIES: Final = (
    *("bytes_up_per_step", "bytes_down_per_step", "cache_copies_per_step", "cache_copies_per_reorder"),
    *("host_bytes_per_reorder", "cache_copies_per_rollback", "host_bytes_per_rollback"),
)
MEMCPY: Final = (b'"\x0cMemcpyToHost', b'"\x0eMemcpyFromHost')
"""`op_type` of the nodes that copy, as a file in ONNX has them: field 4, length, name."""


def measure_bundle(folder: Path) -> dict[str, Any]:
    """All fields for a bundle, in a process in which CUDA starts.

    Args:
        folder: a bundle with dialect, precision and sizes in its manifest.

    Raises:
        R2GenError: `R2G-DEVICE-UNAVAILABLE` when CUDA does not start; what `load_manifest` raises.
    """
    from r2gen_export.runtime.backends.ort_providers import choose_providers
    from r2gen_export.runtime.backends.ort_vision import VisionSession

    manifest, providers = load_manifest(folder), choose_providers("cuda").providers
    fields: dict[str, Any] = {"dialect": manifest.dialect, "precision": manifest.precision["decoder"]}
    fields |= measure_decoder(folder / "decoder/model.onnx", manifest.dims, providers=providers)
    vision, _, refused = _open(lambda: VisionSession(folder / "vision.onnx", providers=providers))
    left = nodes_on_cpu(vision._session)
    fields["cpu_nodes"] += [f"vision:{name}" for name in sorted(left)]
    fields["cpu_node_count"] += left.total()
    fields["refused"] = fields["refused"] or refused
    return fields


def measure_decoder(path: Path, dims: Dims, *, providers: Sequence[str]) -> dict[str, Any]:
    """All fields but `dialect` and `precision` for a decoder.

    Args:
        path: `decoder/model.onnx` of a bundle.
        dims: its sizes.
        providers: of ONNX Runtime, CUDA's first.

    Raises:
        R2GenError: `R2G-BUNDLE-GRAPH` when ONNX Runtime does not open it.
    """
    from r2gen_export.runtime.backends.ort_decoder import DecoderSession

    session, memcpy, refused = _open(lambda: DecoderSession(path, dims, providers=providers))
    left = nodes_on_cpu(session._session)
    fields: dict[str, Any] = {"cpu_nodes": sorted(left), "cpu_node_count": left.total(), "memcpy_nodes": memcpy}
    fields |= {**dict.fromkeys(COPIES), "refused": refused}
    try:
        log = CopyLog()
    except R2GenError:  # on a GPU: there is no log
        return fields
    try:
        for part in _measured_copies(session, dims, log):
            fields |= part
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        fields["error"] = f"{type(error).__name__}: {str(error)[:300]}"
    return fields


def _open(make: Callable[[], Any]) -> tuple[Any, int, str | None]:
    """A session as r2gen opens it but for its refusals, Memcpy nodes of its graph, and why r2gen refuses it."""
    refused = None
    try:
        make()
    except R2GenError as error:
        refused = error.message
    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        with _recorded(optimised):
            session = make()
        return session, sum(map(optimised.read_bytes().count, MEMCPY)), refused


@contextmanager
def _recorded(optimised: Path) -> Iterator[None]:
    """Sessions opened within keep where their nodes run and write their graph; none is refused for its placement."""
    from r2gen_export.runtime.backends import ort_session as sessions

    original = sessions.session_options

    def options(*arguments: Any, **settings: Any) -> Any:
        made = original(*arguments, **settings)
        made.optimized_model_filepath = str(optimised)
        return made

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(sessions, "session_options", options))
        stack.enter_context(mock.patch.object(sessions, "check_placement"))
        yield


def _measured_copies(session: Any, dims: Dims, log: CopyLog) -> Iterator[dict[str, Any]]:
    """The fields of `COPIES`, those of one kind of pass at a time."""
    row = dims.num_kv_heads * PROMPT * dims.head_dim * np.dtype(session.dtype).itemsize

    def copied(work: Callable[[], object]) -> list[Copy]:
        log.reset()
        work()
        return log.copies()

    def large(copies: list[Copy]) -> int:
        return sum(copy.bytes >= row for copy in copies)

    def size(copies: list[Copy], *kinds: int) -> int:
        return sum(copy.bytes for copy in copies if copy.kind in kinds)

    rng = np.random.default_rng(0)
    single, three = (rng.normal(size=(rows, 1, dims.d_llm)).astype(np.float32) for rows in (1, 3))
    state = _filled(session, dims)
    for _ in range(2):
        state.decode(single)
    step = copied(lambda: state.decode(single))
    yield {
        "bytes_up_per_step": size(step, UP),
        "bytes_down_per_step": size(step, DOWN),
        "cache_copies_per_step": large(step),
    }
    for _ in range(2):  # the first time makes what the second uses
        back = copied(lambda: state.rollback(2))
        behind = copied(lambda: state.decode(single))
        state.decode(single)
    yield {
        "cache_copies_per_rollback": large(back) + large(behind) - large(step),
        "host_bytes_per_rollback": size(back, UP, DOWN),
    }
    state.reorder(np.zeros(3, np.int64))
    for _ in range(2):
        state.decode(three)
        state.reorder(np.array([0, 0, 1]))
    state.decode(three)
    plain = copied(lambda: state.decode(three))
    moved = copied(lambda: state.reorder(np.array([0, 0, 1])))
    behind = copied(lambda: state.decode(three))
    yield {
        "cache_copies_per_reorder": large(moved) + large(behind) - large(plain),
        "host_bytes_per_reorder": size(moved, UP, DOWN),
    }


def _filled(session: Any, dims: Dims) -> Any:
    """A state of `PROMPT` positions of one row.

    Kernels of the imitated runtime write nothing, so a GroupQueryAttention on the CPU is told lengths of 0 and refuses
    a prompt of more than one position: the cache is then filled position by position.
    """
    embeds = np.random.default_rng(1).normal(size=(1, PROMPT, dims.d_llm)).astype(np.float32)
    try:
        return session.prefill(embeds, ROOM)
    except Exception:
        state = session.prefill(embeds[:, :1], PROMPT + ROOM - 1)
        for position in range(1, PROMPT):
            state.decode(embeds[:, position : position + 1])
        return state


if __name__ == "__main__":
    print(json.dumps(measure_bundle(Path(sys.argv[1])), indent=1))
