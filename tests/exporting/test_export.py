"""Export: every alignment passes the gate, a sabotaged graph does not, nothing half is left."""

from __future__ import annotations

import gc
import json
import mmap
import shutil
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from r2gen_export.bundle import FORMAT_VERSION, open_bundle, seal
from r2gen_export.errors import R2GenError
from r2gen_export.evaluation.phantom_findings import FINDINGS
from r2gen_export.exporting import estimate, source_model, tokenizer, vision
from r2gen_export.exporting.export import export_bundle
from r2gen_export.exporting.parity import gate
from r2gen_export.exporting.settings import ExportSettings
from r2gen_export.exporting.verify import verify_bundle
from r2gen_export.runtime.backends.embedding_table import EmbeddingTable
from r2gen_export.runtime.pipeline import Pipeline
from tests import conftest
from tests.command import run_here
from tests.conftest import TinySources, make_sources
from tests.helpers.tiny import make_tiny_llm
from tests.marks import slow


def export(sources: TinySources, out: Path, **more: object) -> None:
    settings = {"checkpoint": sources.checkpoint, "vision": sources.vision, "llm": sources.llm, "out": out, **more}
    export_bundle(ExportSettings(**{"target": "cpu", "parity_max_new_tokens": 20, **settings}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "config",
    [{"alignment": "delta"}, *slow([{"alignment": "deep"}, {"global_only": True}, {"llm_lora": True}])],
    ids=["delta", "deep", "global", "llm-lora"],
)
def test_every_kind_passes_the_gate(tmp_path: Path, config: dict[str, object]) -> None:
    export(make_sources(tmp_path, **config), tmp_path / "bundle")
    manifest = open_bundle(tmp_path / "bundle")
    assert len(manifest.parity) >= 8
    assert all(check.passed for check in manifest.parity)


@pytest.mark.slow
def test_either_semantics_is_exported_recorded_and_verified(tiny_sources: TinySources, tmp_path: Path) -> None:
    export(tiny_sources, tmp_path / "bundle", semantics="hf-4.30")
    assert open_bundle(tmp_path / "bundle").semantics == "hf-4.30"
    found = {}
    phantom = Path(__file__).parents[1] / "data/phantom.png"
    pipeline = Pipeline.from_bundle(tmp_path / "bundle", device="cpu")
    for semantics in (None, "hf-4.30", "hf-current"):
        checks = verify_bundle(
            tmp_path / "bundle", tiny_sources.checkpoint, tiny_sources.vision, tiny_sources.llm,
            semantics=semantics, max_new_tokens=30,
        )  # fmt: skip
        assert all(check.passed for check in checks)
        found[semantics] = pipeline.generate(phantom, preset="paper", semantics=semantics)
        assert found[semantics].semantics == (semantics or "hf-4.30")
    assert found[None].token_ids == found["hf-4.30"].token_ids
    assert found[None].score != found["hf-current"].score


def test_shallow_bundle_verifies_and_names_no_folder(tiny_bundle: Path, tiny_sources: TinySources) -> None:
    checks = verify_bundle(
        tiny_bundle, tiny_sources.checkpoint, tiny_sources.vision, tiny_sources.llm, max_new_tokens=10
    )
    assert len(checks) > 8
    assert all(check.passed for check in checks)
    for path in tiny_bundle.rglob("*"):
        if path.is_file():
            assert str(tiny_sources.llm.parent).encode() not in path.read_bytes()
            assert str(Path(__file__).parents[2]).encode() not in path.read_bytes()


def test_another_checkpoint_is_noticed(tiny_bundle: Path, tiny_sources: TinySources, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_sources.checkpoint, tmp_path / "other"))
    tensors = load_file(other / "adapter.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 0.5}, other / "adapter.safetensors")
    checks = verify_bundle(tiny_bundle, other, tiny_sources.vision, tiny_sources.llm, max_new_tokens=5)
    assert "checkpoint SHA-256" in [check.name for check in checks if not check.passed]
    with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE"):
        verify_bundle(tiny_bundle, other)


def test_sabotage_between_export_and_gate(
    tiny_sources: TinySources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The vision graph is written from a model that was changed after PyTorch's reference ran."""
    honest = vision.export_vision

    def sabotaged(model: object, *arguments: object, **options: object) -> object:
        model.layer_norm.bias.data += 0.01  # type: ignore[attr-defined]
        return honest(model, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(vision, "export_vision", sabotaged)
    with pytest.raises(R2GenError) as caught:
        export(tiny_sources, tmp_path / "bundle")
    assert (caught.value.code, caught.value.exit_status) == ("R2G-PARITY-FAILED", 3)
    assert "first in encode: image_embeds, 1 view" in caught.value.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("way", ["whole", "layers"])
def test_the_gate_runs_when_the_pytorch_model_is_gone(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two models side by side would double the memory of an export. The LLM stays for a gate layer by layer.

    The cycle collector is off: the model must be freed by the end of a scope alone.
    """
    models: list[tuple[weakref.ref[object], weakref.ref[object]]] = []
    at_the_gate: list[tuple[bool, bool]] = []
    load, compare = source_model.load_sources, gate.compare

    def watched_load(*arguments: object, **options: object) -> object:
        sources = load(*arguments, **options)  # type: ignore[arg-type]
        models.append((weakref.ref(sources.model), weakref.ref(sources.model.llama_model)))
        return sources

    def watched_compare(*arguments: object, **options: object) -> object:
        at_the_gate.append((models[0][0]() is not None, models[0][1]() is not None))
        return compare(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(source_model, "load_sources", watched_load)
    monkeypatch.setattr(gate, "compare", watched_compare)
    sources = make_sources(tmp_path, alignment="delta", llm_lora=True)
    gc.disable()
    try:
        export(sources, tmp_path / "bundle", gate=way, dialect="ort")
    finally:
        gc.enable()
    assert at_the_gate == [(False, way == "layers")]


def test_verify_command_says_where_two_runs_part(tiny_bundle: Path, tiny_sources: TinySources, tmp_path: Path) -> None:
    """The bundle's embedding table is changed: the vision encoder still agrees, the prefill does not."""
    changed = Path(shutil.copytree(tiny_bundle, tmp_path / "changed"))
    table = np.load(changed / "embed_tokens.npy")
    np.save(changed / "embed_tokens.npy", table * np.float32(1.02))
    seal(changed, open_bundle(tiny_bundle))
    data = Path(__file__).parents[1] / "data"
    command = ("--checkpoint", tiny_sources.checkpoint, "--vision", tiny_sources.vision, "--llm", tiny_sources.llm,
               "--images", data, "--parity-tokens", 6, "--format", "json")  # fmt: skip
    good = run_here("verify", tiny_bundle, *command)
    assert good.returncode == 0, good.stderr
    checks = {check["name"]: check for check in json.loads(good.stdout)}
    assert checks["image_embeds, 1 view"]["metrics"]["cosine"] > 0.9999
    assert checks["logits, next 12 steps"]["metrics"]["top1"] == 1.0
    assert 0 <= checks["logits, first step"]["metrics"]["kl_max"] < 1e-6
    assert "3 studies" in checks["tokens, paper"]["detail"]
    bad = run_here("verify", changed, *command)
    assert bad.returncode == 3
    assert "first in prefill: logits, first step" in bad.stderr
    verdicts = {check["name"]: check["passed"] for check in json.loads(bad.stdout)}
    assert verdicts["image_embeds, 1 view"]
    assert not verdicts["logits, first step"]
    assert run_here("verify", tiny_bundle, *command[:6], "--images", tmp_path / "none").returncode == 2


def test_missing_and_nan_tensors(tiny_sources: TinySources, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(tiny_sources.checkpoint, tmp_path / "broken"))
    tensors = load_file(broken / "adapter.safetensors")
    gone = sorted(tensors)[:2]
    save_file({name: one for name, one in tensors.items() if name not in gone}, broken / "adapter.safetensors")
    sources = TinySources(broken, tiny_sources.vision, tiny_sources.llm)
    with pytest.raises(R2GenError) as caught:
        export(sources, tmp_path / "bundle")
    assert caught.value.code == "R2G-CHECKPOINT-KEYS"
    assert all(name in caught.value.message for name in gone)
    save_file({**tensors, gone[0]: tensors[gone[0]] * float("nan")}, broken / "adapter.safetensors")
    with pytest.raises(R2GenError, match=r"R2G-(MODEL|CHECKPOINT)"):
        export(sources, tmp_path / "bundle")
    for wrong in ({"dialect": "standard", "precision": "int4"}, {"precision": "int5"}, {"dialect": "coreml"}):
        with pytest.raises(R2GenError, match="R2G-"):
            export(tiny_sources, tmp_path / "bundle", **wrong)
    assert [path.name for path in tmp_path.iterdir()] == ["broken"]


@pytest.mark.slow
def test_export_works_without_the_train_extra(tiny_sources: TinySources, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(lightning=None, tensorboard=None)\n"
        "import cli; cli.app(sys.argv[1:])\n"
    )  # fmt: skip
    command = ["export", "--checkpoint", tiny_sources.checkpoint, "--vision", tiny_sources.vision,
               "--llm", tiny_sources.llm, "--out", tmp_path / "bundle", "--parity-tokens", 3,
               "--for", "cpu"]  # fmt: skip
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, command)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert open_bundle(tmp_path / "bundle").parity


EVERY = [
    ({"dialect": "trt"}, True),
    ({"precision": "int4-f16", "head_precision": "int8-f16"}, False),
    ({"embeddings": "int8", "gate": "layers"}, False),
]
"""What a newcomer's run exports: both dialects, both kinds of activations and both gates. CI exports the rest too."""
REST = [
    ({"dialect": "standard"}, True),
    ({"precision": "fp16"}, False),
    ({"precision": "int8", "head_precision": "fp32"}, False),
    ({"head_precision": "int8", "vision_precision": "fp16"}, False),
    ({"precision": "int4-128-f16", "dialect": "trt", "vision_precision": "fp16"}, False),
    ({"precision": "int4", "vision_precision": "int8"}, False),
    ({"precision": "int4-128", "embeddings": "fp32"}, False),
    ({"embeddings": "int8"}, False),
    ({"precision": "int4", "gate": "layers"}, False),
    ({"gate": "layers"}, True),
]


@pytest.mark.parametrize(("settings", "exact"), [*EVERY, *slow(REST)], ids=str)
def test_every_precision_passes_its_gate_records_its_distance_and_verifies(
    tiny_sources: TinySources, tmp_path: Path, settings: dict[str, str], exact: bool
) -> None:
    export(tiny_sources, tmp_path / "bundle", **settings)
    manifest = open_bundle(tmp_path / "bundle")
    assert manifest.dialect == settings.get("dialect", "ort")
    assert manifest.precision["decoder"] == settings.get("precision", "fp32")
    assert manifest.precision["lm_head"] == settings.get("head_precision", manifest.precision["decoder"])
    assert manifest.precision["vision"] == settings.get("vision_precision", "fp32")
    assert (manifest.target, manifest.format_version) == ("cpu", FORMAT_VERSION)
    assert manifest.reference is not None
    assert np.isfinite(manifest.reference.logits).all()
    usual = "fp32" if manifest.precision["decoder"] == "fp32" else "fp16"
    assert manifest.precision["embed_tokens"] == settings.get("embeddings", usual)
    measured = [check for check in manifest.parity if not check.gate]
    assert bool(measured) is not exact
    for check in measured[:1]:
        assert check.name == "next token, against fp32"
        assert check.metrics["positions"] >= 200
        assert 0 < check.metrics["kl_mean"] < 1
    tokens = [check for check in manifest.parity if check.stage == "tokens"]
    assert bool(tokens) is (settings.get("gate") != "layers")
    for check in tokens:
        assert (check.metrics["match"] == 1) is ("first_divergence" not in check.metrics)
        assert check.metrics["match"] == 1 or not exact
    checks = verify_bundle(
        tmp_path / "bundle", tiny_sources.checkpoint, tiny_sources.vision, tiny_sources.llm, max_new_tokens=5
    )
    assert all(check.passed for check in checks)
    phantom = Path(__file__).parents[1] / "data/phantom.png"
    assert Pipeline.from_bundle(tmp_path / "bundle", device="cpu").generate(phantom, min_new_tokens=5).text


@pytest.mark.parametrize("gate", ["whole", "layers"])
def test_a_wrong_int8_table_does_not_pass(
    tiny_sources: TinySources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: str
) -> None:
    """A valid file with scales a tenth too large: the gate layer by layer sees it in the rows alone."""
    honest = tokenizer.stored_rows

    def sabotaged(rows: object, precision: str) -> object:
        stored = honest(rows, precision)  # type: ignore[arg-type]
        stored["scales"] *= 1.1
        return stored

    monkeypatch.setattr(tokenizer, "stored_rows", sabotaged)
    with pytest.raises(R2GenError, match="R2G-PARITY-FAILED"):
        export(tiny_sources, tmp_path / "bundle", embeddings="int8", gate=gate)


def test_a_tied_output_layer_does_not_round_the_embeddings(tmp_path: Path) -> None:
    sources = make_sources(tmp_path, tied=True)
    export(sources, tmp_path / "bundle", precision="int4", gate="whole")
    model = LlamaForCausalLM.from_pretrained(sources.llm)
    rounded = model.get_input_embeddings().weight.detach().half().float().numpy()
    table = EmbeddingTable(tmp_path / "bundle/embed_tokens.npy")
    np.testing.assert_array_equal(table.lookup(np.arange(len(rounded))), rounded)
    checks = {check.name: check for check in open_bundle(tmp_path / "bundle").parity}
    assert checks["logits, first step, int4 weights"].metrics["cosine"] > 0.999


@pytest.mark.slow
def test_reports_on_phantoms_are_scored_before_the_bundle_appears(tiny_sources: TinySources, tmp_path: Path) -> None:
    done = run_here("export", "--checkpoint", tiny_sources.checkpoint, "--vision", tiny_sources.vision,
                   "--llm", tiny_sources.llm, "--out", tmp_path / "bundle", "--parity-tokens", 3,
                   "--default-preset", "fast", "--embeddings", "int8", "--phantom-studies", 5,
                   "--for", "cpu")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "micro-F1" in done.stderr
    check = open_bundle(tmp_path / "bundle").parity[-1]
    assert (check.name, check.gate, check.metrics["studies"]) == (FINDINGS, False, 5)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE"):
        export(tiny_sources, tmp_path / "other", phantom_studies=-1)
    with pytest.raises(R2GenError, match="R2G-CONFIG-VALUE"):
        export(tiny_sources, tmp_path / "other", embeddings="int4")


def test_scales_float16_cannot_hold_do_not_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Infinity in the stored scales: a coded error that names the layer, and no bundle."""

    def make_scaled_llm(folder: Path, **options: bool) -> None:
        make_tiny_llm(folder, **options)  # type: ignore[arg-type]
        model = LlamaForCausalLM.from_pretrained(folder)
        model.model.layers[0].mlp.up_proj.weight.data *= 1e8
        model.model.layers[0].mlp.down_proj.weight.data /= 1e8
        model.save_pretrained(folder)

    monkeypatch.setattr(conftest, "make_tiny_llm", make_scaled_llm)
    sources = make_sources(tmp_path)
    with pytest.raises(R2GenError, match=r"R2G-PARITY-FAILED.*first in node /model/layers\.0/") as caught:
        export(sources, tmp_path / "bundle", precision="int4-f16", gate="whole")
    assert caught.value.exit_status == 3
    assert not (tmp_path / "bundle").exists()


@pytest.mark.slow
def test_layered_export_merges_lora_of_the_llm(tmp_path: Path) -> None:
    export(
        make_sources(tmp_path, llm_lora=True, alignment="delta"), tmp_path / "bundle", gate="layers", precision="int8"
    )
    assert all(check.passed for check in open_bundle(tmp_path / "bundle").parity)


def test_an_export_without_room_is_refused_before_it_starts(
    tiny_sources: TinySources, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    sources = (tiny_sources.checkpoint, tiny_sources.vision, tiny_sources.llm)
    settings = ExportSettings(*sources, tmp_path / "bundle", target="cpu")
    with monkeypatch.context() as patch:
        patch.setattr(estimate, "available_memory", lambda: 1e9)
        with pytest.raises(R2GenError, match="R2G-RESOURCE-MEMORY"):
            export_bundle(settings, say=said.append)
    with monkeypatch.context() as patch:
        patch.setattr(estimate.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))  # type: ignore[attr-defined]
        with pytest.raises(R2GenError, match="R2G-RESOURCE-DISK"):
            export_bundle(settings, say=said.append)
    assert ["M parameters" in line for line in said] == [False, True] * 2
    assert list(tmp_path.iterdir()) == []


def test_estimates_of_known_sizes() -> None:
    """LLaMA-2-7B as it was measured: 6,738 M parameters, 2.33 GiB of its own memory and a bundle of 4.5 GiB at int4."""
    seven = LlamaConfig(intermediate_size=11008, num_hidden_layers=32)
    layered = estimate.estimate(seven, dialect="ort", precision="int4", gate="layers")
    assert layered.parameters == pytest.approx(6738e6, rel=0.001)
    assert 2.33 < layered.memory / 2**30 < 3
    assert 4.2 < layered.disk / 2**30 < 4.8
    small = estimate.estimate(seven, dialect="ort", precision="int4", embeddings="int8", gate="layers")
    assert layered.disk - small.disk == pytest.approx(32000 * 4096 * 0.875)
    assert 5 < estimate.estimate(seven, dialect="ort", precision="int4", gate="layers", runs=True).memory / 2**30 < 6
    assert estimate.estimate(seven, dialect="ort", precision="int4", gate="whole").memory > 50e9
    assert estimate.estimate(seven, dialect="standard", precision="fp32").gate == "whole"
    half = estimate.estimate(seven, dialect="ort", precision="int4-f16", gate="layers")
    assert layered.disk - half.disk == pytest.approx((layered.parameters - 32000 * 4096) * 2 / 32)


def test_peak_memory_counts_what_is_allocated_and_not_what_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "big.npy", np.ones(30_000_000, np.float32))
    with estimate.PeakMemory(0.001) as memory:
        before = estimate.anonymous_memory()
        mapped = np.load(tmp_path / "big.npy", mmap_mode="r")
        assert mapped.sum() > 0
        between = memory.peak
        # Not from malloc, which may have as much left over from the tests before this one.
        memory_map = mmap.mmap(-1, 120_000_000, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        held = np.frombuffer(memory_map, np.uint8)
        held[:] = 1
    assert between - before < 40e6
    assert memory.peak - before > 100e6
