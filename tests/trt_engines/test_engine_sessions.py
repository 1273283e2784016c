"""Engines in the place of ONNX Runtime's sessions: a whole report, loading, refusals; and that the double bites."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2gen_export import bundle as layout
from r2gen_export.bundle import demo_bundle, load_manifest, sha256_file
from r2gen_export.candidates import Reason, render
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.backends.ort_providers import ProviderChoice
from r2gen_export.runtime.backends.select import EngineCandidates, _open_engines
from r2gen_export.runtime.detokenizer import Detokenizer
from r2gen_export.runtime.loaded_model import LoadedModel
from r2gen_export.runtime.pipeline import Pipeline
from tests.trt_engines.fake_cuda import FakeRuntime
from tests.trt_engines.fake_engine import Plan, Port, decoder_output, graph
from tests.trt_engines.rig import DIMS, Rig, make_rig
from trt_engines import kv_cache, store
from trt_engines import prepare as networks
from trt_engines.backends import load_backend
from trt_engines.cuda import Cuda
from trt_engines.graph import Graph
from trt_engines.identity import PLAN, EngineIdentity, Profile, platform_name
from trt_engines.runner import BoundPass, EngineRunner
from trt_engines.select import Fitting
from trt_engines.sessions import EngineDecoder, EngineVision

PHANTOM = Path(__file__).parents[1] / "data/phantom.png"
KINDS = {1: "FLOAT", 7: "INT64", 10: "HALF"}
"""ONNX's numbers of types, and TensorRT's names."""


def plan_of(source: Graph, path: Path, profiles: tuple[Profile, ...], vocab_size: int, tokens: Any) -> Plan:
    """A fake engine of the very graph and profiles a real one is built of."""
    ports = []
    for one in source.inputs:
        shape = tuple(dim.dim_value or -1 for dim in one.type.tensor_type.shape.dim)
        sizes = [profile.inputs.get(one.name) for profile in profiles]
        ranges = tuple((size.minimum, size.maximum) if size else (shape, shape) for size in sizes)
        ports.append(Port(one.name, KINDS[one.type.tensor_type.elem_type], shape, ranges))
    for one in source.outputs:
        alias = one.name.replace("present", "past_key_values") if one.name.startswith("present") else None
        shape = tuple(dim.dim_value or -1 for dim in one.type.tensor_type.shape.dim)
        ports.append(Port(one.name, KINDS[one.type.tensor_type.elem_type], shape, alias=alias))
    outputs = tuple(port.name for port in ports if not port.is_input)
    shape_of = decoder_output(vocab_size) if "logits" in outputs else lambda name, inputs: tokens
    return Plan(tuple(ports), graph(path, outputs), shape_of)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_bundle_reports_through_its_engines(
    tmp_path: Path, stub_folder: Callable[[str], Path], cuda_runtime: Any, precision: str
) -> None:
    """Both halves together: the graphs `r2gen build` hands to TensorRT, run by what runs their engines."""
    bundle = demo_bundle()
    manifest = load_manifest(bundle)
    dims, limits = manifest.dims, networks.Limits()
    opened: dict[str, Any] = {}
    for part, session in (("vision", EngineVision), ("decoder", EngineDecoder)):
        source = networks.prepare(bundle, manifest, part, precision, limits)
        (tmp_path / part).mkdir()
        path = source.write(tmp_path / part)
        profiles = networks.profiles(source, manifest, part, limits)
        tokens = (1, dims.image_tokens, dims.d_llm)
        plan = plan_of(source, path, profiles, dims.vocab_size, tokens)
        rig = make_rig(plan, tmp_path / part, stub_folder("11.4") / "tensorrt_stubs/__init__.pyi", cuda_runtime)
        opened[part] = session(rig.folder, dims, rig.backend, rig.cuda)
    prompt = manifest.prompt
    tokenizer = bundle / layout.TOKENIZER
    model = LoadedModel(
        manifest=manifest, vision=opened["vision"], decoder=opened["decoder"],
        embed_tokens=EmbeddingTable(bundle / layout.EMBED_TOKENS), provider=ProviderChoice([], "TensorRT"),
        detokenizer=Detokenizer(tokenizer, unk_token_id=prompt.unk_token_id, bos_token_id=prompt.bos_token_id),
    )  # fmt: skip
    pipeline = Pipeline(model)
    reference = Pipeline.from_bundle(bundle, device="cpu")
    for images, settings in (
        ([PHANTOM], {"num_beams": 1}),
        ([PHANTOM, PHANTOM], {"num_beams": 3, "repetition_penalty": 2.0, "min_new_tokens": 20}),
    ):
        found, wanted = (one.generate(images, **settings) for one in (pipeline, reference))
        assert found.token_ids == wanted.token_ids
        np.testing.assert_allclose(found.logprobs, wanted.logprobs, atol=1e-3 if precision == "fp32" else 5e-2)
    many = list(pipeline.generate_many([PHANTOM] * 5, num_beams=3, max_new_tokens=12))
    alone = reference.generate(PHANTOM, num_beams=3, max_new_tokens=12)
    assert [one.unwrap().token_ids for one in many] == [alone.token_ids] * 5
    with pytest.raises(R2GenError, match="the engine was built for other shapes than pixel_values") as caught:
        pipeline.generate([PHANTOM] * (limits.max_views + 1))
    assert caught.value.code == "R2G-ENGINE-MISMATCH"


def toy(ports: tuple[Port, ...] | None = None, **plan: Any) -> Plan:
    """A decoder of no layers that adds one: enough for loading and for sequences."""
    dims = DIMS
    size = ((1, 1, dims.d_llm), (2, 4, dims.d_llm))
    made = ports or (
        Port("inputs_embeds", "FLOAT", (-1, -1, dims.d_llm), (size,)),
        Port("position_ids", "INT64", (-1, -1), (((1, 1), (2, 4)),)),
        Port("logits_to_keep", "INT64", (-1,), (((1,), (4,)),)),
        Port("past_key_values.0.key", "FLOAT", (-1, 2, 16, 16), (((1, 2, 16, 16), (2, 2, 16, 16)),)),
        Port("present.0.key", "FLOAT", (-1, 2, 16, 16), alias="past_key_values.0.key"),
        Port("logits", "FLOAT", (-1, -1, dims.vocab_size)),
    )

    def compute(tensors: dict[str, Any]) -> None:
        rows = tensors["position_ids"].shape[0]
        tensors["present.0.key"][:, 0, tensors["position_ids"][0], :] = tensors["inputs_embeds"][:, :, :16]
        seen = tensors["past_key_values.0.key"][:, 0, : tensors["position_ids"].max() + 1].sum((1, 2))
        tensors["logits"][...] = seen.reshape(rows, 1, 1)

    return Plan(made, compute, decoder_output(dims.vocab_size), **plan)


@pytest.fixture
def new_rig(tmp_path: Path, stub_file: Path, cuda_runtime: Any) -> Callable[..., Rig]:
    """Makes the rig of a plan, on a GPU with so much memory."""
    return lambda plan, memory=1 << 30: make_rig(plan, tmp_path, stub_file, cuda_runtime, memory)


@pytest.fixture
def rig(new_rig: Callable[..., Rig]) -> Rig:
    return new_rig(toy())


def addresses(rig: Rig, runner: EngineRunner, rows: int = 1) -> tuple[dict[str, tuple[int, ...]], dict[str, int]]:
    """Shapes of a pass over one position, and memory for it."""
    shapes = {
        "inputs_embeds": (rows, 1, DIMS.d_llm), "position_ids": (rows, 1), "logits_to_keep": (1,),
        "past_key_values.0.key": (rows, 2, 16, 16),
    }  # fmt: skip
    return shapes, {name: rig.cuda.allocate(1 << 14) for name in (*shapes, "logits")}


def exercise(rig: Rig) -> None:
    """A pass plainly, captured and replayed; the sum over the cache shows which positions were seen."""
    runner = EngineRunner(rig.folder / PLAN, rig.backend, rig.cuda)
    shapes, where = addresses(rig, runner)
    bound = runner.bind(shapes, where)
    embeds, positions = rig.cuda.pinned((1, 1, DIMS.d_llm), np.float32), rig.cuda.pinned((1, 1), np.int64)
    logits = rig.cuda.pinned((1, 1, DIMS.vocab_size), np.float32)
    bound.stage([(embeds, where["inputs_embeds"]), (positions, where["position_ids"])], [(where["logits"], logits)])
    for step in range(4):
        embeds[...], positions[...] = step + 1, step
        bound.run(captured=True)
        assert logits[0, 0, 0] == 16 * (step + 1) * (step + 2) / 2
    bound.close()
    runner.close()


def test_a_pass_runs_plainly_then_captured_then_replayed(rig: Rig) -> None:
    exercise(rig)
    assert rig.runtime.calls.count("cudaGraphLaunch") == 3
    assert rig.runtime.calls.count("cudaStreamBeginCapture") == 1
    assert rig.double.names("IExecutionContext").count("execute_async_v3") == 2


def test_what_tensorrt_rtx_compiles_is_kept_between_starts(
    tmp_path: Path, stub_folder: Callable[[str], Path], cuda_runtime: Any
) -> None:
    """Restored before the first context, written after the first pass of a shape; damage costs time alone."""
    kept = tmp_path / "cache" / "plan.cache"
    for before in (None, b"damaged", b"compiled"):
        rig = make_rig(toy(), tmp_path, stub_folder("rtx-1.7") / "tensorrt_stubs/__init__.pyi", cuda_runtime)
        if before:
            kept.write_bytes(before)
        runner = EngineRunner(rig.folder / PLAN, rig.backend, rig.cuda, jit_cache=kept)
        bound = runner.bind(*addresses(rig, runner))
        for _ in range(3):
            bound.run(captured=True)
        assert kept.read_bytes() == b"compiled\0"
        assert rig.double.names("IRuntimeCache") == [*(["deserialize"] if before else []), "serialize"]
        strategy = [one.arguments[0] for one in rig.double.calls if "specialization" in one.name]
        assert strategy == [rig.double.module.DynamicShapesKernelSpecializationStrategy.EAGER]
    runner = EngineRunner(rig.folder / PLAN, rig.backend, rig.cuda, jit_cache=tmp_path / PLAN / "no folder")
    runner.bind(*addresses(rig, runner)).run(captured=True)


def _no_scratch(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        EngineRunner, "_new_context",
        lambda self: self._engine.create_execution_context(self._trt.ExecutionContextAllocationStrategy.USER_MANAGED),
    )  # fmt: skip


def _captured_at_once(patch: pytest.MonkeyPatch) -> None:
    plain = BoundPass.__init__

    def eager(self: BoundPass, *arguments: Any) -> None:
        plain(self, *arguments)
        self._passes = 1

    patch.setattr(BoundPass, "__init__", eager)


def _changed_after_capture(patch: pytest.MonkeyPatch) -> None:
    plain = BoundPass.run

    def run(self: BoundPass, *, captured: bool) -> None:
        plain(self, captured=captured)
        if self._graph is not None:
            self._context.set_tensor_address("logits", self._context.get_tensor_address("logits"))

    patch.setattr(BoundPass, "run", run)


def _without_waiting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Cuda, "synchronize", lambda self: None)


def _cache_elsewhere(patch: pytest.MonkeyPatch) -> None:
    plain = EngineRunner.bind

    def bind(self: EngineRunner, shapes: Any, where: Any) -> BoundPass:
        bound = plain(self, shapes, where)
        bound._context.set_tensor_address("present.0.key", where["logits"])
        return bound

    patch.setattr(EngineRunner, "bind", bind)


def _wrong_profile(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(EngineRunner, "profile_of", lambda self, shapes: 1)


def _skewed(patch: pytest.MonkeyPatch) -> None:
    plain = EngineRunner.bind
    patch.setattr(
        EngineRunner, "bind",
        lambda self, shapes, where: plain(self, shapes, {name: address + 64 for name, address in where.items()}),
    )  # fmt: skip


def _memory_too_small(patch: pytest.MonkeyPatch) -> None:
    plain = Cuda.allocate
    patch.setattr(Cuda, "allocate", lambda self, size: plain(self, size // 512))


def _graph_given_back_twice(patch: pytest.MonkeyPatch) -> None:
    plain = Cuda.drop
    patch.setattr(Cuda, "drop", lambda self, graph: [plain(self, graph) for _ in range(2)])


@pytest.mark.parametrize(
    "sabotage",
    [
        _no_scratch, _captured_at_once, _changed_after_capture, _without_waiting, _cache_elsewhere, _wrong_profile,
        _skewed, _memory_too_small, _graph_given_back_twice,
    ],
)  # fmt: skip
def test_a_broken_sequence_is_noticed(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, sabotage: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """The runner with one thing wrong about it: the double or the fake GPU has to object."""
    sabotage(monkeypatch)
    with pytest.raises((AssertionError, KeyError, R2GenError)):
        exercise(rig)


def test_a_cache_moved_in_the_wrong_order_is_noticed() -> None:
    moves = kv_cache.row_moves(np.array([1, 2, 0]), spare=3)
    content = ["a", "b", "c", ""]
    for target, source, _ in (*moves[1:], moves[0]):
        content[target] = content[source]
    assert content[:3] != ["b", "c", "a"]


@pytest.mark.parametrize(
    ("streamable", "memory", "asked", "kept"),
    [
        (0, 1 << 32, None, []), (1 << 20, 1 << 32, None, [1 << 20]), (1 << 20, 1 << 25, None, [1 << 19]),
        (1 << 20, 1 << 32, 5000, [5000]), (1 << 20, 1 << 32, 1 << 30, [1 << 20]),
    ],
)  # fmt: skip
def test_weights_stay_on_the_gpu_as_far_as_they_fit(new_rig, streamable, memory, asked, kept) -> None:
    rig = new_rig(toy(streamable=streamable), memory)
    EngineRunner(rig.folder / PLAN, rig.backend, rig.cuda, weight_budget=asked)
    assert [one.arguments[0] for one in rig.double.calls if one.name == "set weight_streaming_budget_v2"] == kept


def test_other_engines_are_refused_by_name(new_rig: Callable[..., Rig]) -> None:
    whole = toy().ports
    for ports, reason in (
        (whole, r"inputs missing: past_key_values.0.value, .*; unexpected: none"),
        ((*whole, Port("seed", "INT64", (1,), (((1,), (1,)),))), "unexpected: seed"),
    ):
        rig = new_rig(toy(ports))
        with pytest.raises(R2GenError, match=reason) as caught:
            EngineDecoder(rig.folder, DIMS, rig.backend, rig.cuda)
        assert caught.value.code == "R2G-ENGINE-MISMATCH"
        assert not rig.runtime.blocks


def vision_plan() -> Plan:
    """A vision engine with one image token too many."""
    shape = (1, DIMS.image_tokens + 1, DIMS.d_llm)
    ports = (
        Port("pixel_values", "FLOAT", (-1, 3, 8, 8), (((1, 3, 8, 8), (2, 3, 8, 8)),)),
        Port("image_embeds", "FLOAT", (1, -1, DIMS.d_llm)),
    )
    return Plan(ports, lambda tensors: None, lambda name, inputs: shape)


def test_an_output_of_another_shape_is_refused(new_rig: Callable[..., Rig]) -> None:
    """Before it is read: its memory would not do."""
    rig = new_rig(vision_plan())
    session = EngineVision(rig.folder, DIMS, rig.backend, rig.cuda)
    with pytest.raises(R2GenError, match=r"image_embeds comes as \[1, 17, 32\], expected \[1, 16, 32\]") as caught:
        session.encode(np.zeros((1, 3, 8, 8), np.float32))
    assert caught.value.code == "R2G-ENGINE-MISMATCH"


def test_a_gpu_without_memory_is_a_coded_error(new_rig: Callable[..., Rig]) -> None:
    rig = new_rig(toy(scratch=1 << 20), 1 << 16)
    with pytest.raises(R2GenError, match=r"gives no 1 MiB \(out of memory\)") as caught:
        EngineRunner(rig.folder / PLAN, rig.backend, rig.cuda)
    assert caught.value.code == "R2G-RESOURCE-MEMORY"


def test_an_engine_without_room_for_its_inputs_leaves_nothing_behind(new_rig: Callable[..., Rig]) -> None:
    """There is room for scratch memory and pixels (4096 and 1536 bytes), and none for the image tokens (2048)."""
    rig = new_rig(vision_plan(), 7000)
    kept = rig.cuda.allocate(64)
    with pytest.raises(R2GenError) as caught:
        EngineVision(rig.folder, DIMS, rig.backend, rig.cuda)
    assert caught.value.code == "R2G-RESOURCE-MEMORY"
    assert list(rig.runtime.blocks) == [kept], "what was there before stays"


def test_a_cache_that_cannot_grow_stays_as_it_was(cuda_runtime: Any) -> None:
    """8 KiB for one row of two tensors with one to spare, 16 KiB for three: not both at once in 20 KiB."""
    runtime = FakeRuntime(cuda_runtime, 20 << 10)
    cuda = Cuda(runtime)
    cache = kv_cache.EngineCache(cuda, 2, 1, (2, 16, 16), np.dtype(np.float32))
    before = [cache.address(tensor, 0) for tensor in range(2)]
    with pytest.raises(R2GenError) as caught:
        cache.reorder(np.zeros(3, np.int64), np.zeros(3, np.bool_), 0, 4)
    assert caught.value.code == "R2G-RESOURCE-MEMORY"
    assert cache.rows == 1
    assert [cache.address(tensor, 0) for tensor in range(2)] == before
    cache.clear(range(cache.rows))
    cuda.synchronize()  # the fake GPU refuses what goes beyond the block
    cache.close()
    assert not runtime.blocks


def test_engines_that_do_not_load_step_down_and_leave_nothing_on_the_gpu(
    new_rig: Callable[..., Rig], cuda_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ladder with a plan that is whole, and an engine that is none of this bundle."""
    rig = new_rig(toy())
    monkeypatch.setattr("cuda.bindings.runtime", rig.runtime)
    rig.cuda.close()
    bundle = demo_bundle()
    manifest = load_manifest(bundle)
    engines = EngineCandidates(bundle, manifest, "cpu")
    for part in store.PARTS:
        identity = EngineIdentity(
            backend=rig.backend.name, version=rig.backend.version, platform=platform_name(),
            compute_capabilities=("8.9",), gpu=None, driver=None, part=part, precision="fp16", asked="fp16",
            dialect=manifest.dialect, bundle_id="", source_sha256="", onnx_sha256="", max_length=None, profiles=(),
            flags=(), plan_sha256=sha256_file(rig.folder / PLAN), plan_bytes=(rig.folder / PLAN).stat().st_size,
            timing_cache_sha256=None, options=(), created="1", build_s=1.0, peak_rss_bytes=1, parameter_bytes=1,
            layer_source="network",
        )  # fmt: skip
        engines.fitting[part] = Fitting(store.Engine("target", part, rig.folder), identity, rig.backend)
    assert render(engines.candidates[1]) == f"TensorRT engine: taken for the decoder, {rig.backend.product} 1.2.3, fp16"
    assert _open_engines(engines, manifest)[:2] == (None, None)
    assert not engines.fitting
    for part, missing in (("vision", "pixel_values"), ("decoder", "past_key_values.0.value")):
        (refused,) = engines.refused[part]
        assert refused.reason is Reason.does_not_load
        assert refused.message.startswith("R2G-ENGINE-MISMATCH: the engine is not one of this bundle: inputs ")
        assert missing in refused.message
    assert not rig.runtime.blocks
    assert rig.runtime.calls.count("cudaStreamCreateWithFlags") == rig.runtime.calls.count("cudaStreamDestroy") == 2


def test_the_real_runtime_refuses_what_is_no_plan(tmp_path: Path, cuda_runtime: Any) -> None:
    """TensorRT-RTX itself: its runtime starts without a GPU, and reads a plan up to where it asks the driver."""
    pytest.importorskip("tensorrt_rtx_bindings")
    backend = load_backend("tensorrt-rtx")
    (tmp_path / PLAN).write_bytes(b"no plan" * 100)
    with pytest.raises(R2GenError, match=rf"TensorRT-RTX {backend.version} does not load {tmp_path.name}: .") as caught:
        EngineRunner(tmp_path / PLAN, backend, Cuda(FakeRuntime(cuda_runtime)))
    assert caught.value.code == "R2G-ENGINE-MISMATCH"
    assert "it gives no reason" not in caught.value.message
