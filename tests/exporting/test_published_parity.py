"""From a published `.pth` to a bundle whose words are PyTorch's, for every kind, under both semantics."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from r2gen_export.bundle import open_bundle
from r2gen_export.decoding import FAST, Decoding
from r2gen_export.errors import R2GenError
from r2gen_export.exporting.export import export_bundle
from r2gen_export.exporting.parity.torch_decoder import TorchDecoder, TorchEmbeddings
from r2gen_export.exporting.settings import ExportSettings
from r2gen_export.exporting.source_model import load_sources
from r2gen_export.exporting.verify import verify_bundle
from r2gen_export.runtime.decoding.generate import generate
from r2gen_export.runtime.pipeline import Pipeline
from r2gen_export.studies.collect import collect_studies
from r2gen_export.studies.images import load_image, preprocess
from tests.helpers.published import KINDS, phantom_batches, published_args, train_published
from tests.helpers.tiny import make_tiny_llm, make_tiny_vision
from tests.marks import slow

STUDIES = 24
BEAMS = Decoding(num_beams=3, min_new_tokens=5, max_new_tokens=30, repetition_penalty=2.0, length_penalty=2.0)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("parity")
    make_tiny_vision(folder / "vision")
    make_tiny_llm(folder / "llm")
    return folder


@pytest.mark.parametrize("kind", ["delta", *slow(one for one in KINDS if one != "delta")])
def test_bundle_tokens_are_pytorch_tokens(home: Path, kind: str) -> None:
    """24 phantom studies, of one and of two views; beam 3 with penalties 2.0, and greedy; both semantics."""
    sources = home / "vision", home / "llm"
    folder = home / kind
    batches = phantom_batches(folder / "phantoms", *sources, studies=STUDIES)
    checkpoint, _ = train_published(published_args(*sources, **KINDS[kind]), batches[:6], folder / "run")
    said: list[str] = []
    settings = ExportSettings(checkpoint, *sources, folder / "bundle", target="cpu", parity_max_new_tokens=8)
    manifest = export_bundle(settings, say=said.append)
    assert sum("published checkpoint" in line for line in said) == 1
    assert manifest.presets["paper"] == BEAMS, "the checkpoint's own settings"
    studies = [study.images for study in collect_studies([folder / "phantoms/annotation.json"]).studies]
    assert len(studies) >= 20
    assert {len(study) for study in studies} == {1, 2}
    pipeline = Pipeline.from_bundle(folder / "bundle", device="cpu", threads=1)
    model = load_sources(checkpoint, *sources).model
    tokenizer = model.tokenizer
    assert tokenizer is not None
    with torch.no_grad():
        pixels = [preprocess([load_image(view) for view in study], manifest.image) for study in studies]
        embeds = torch.cat([model.encode_images(torch.from_numpy(one)) for one in pixels])
        prompts: np.ndarray = model.wrap_prompt(embeds).numpy()
    distinct = set()
    for decoding, preset in ((BEAMS, "paper"), (FAST, "fast")):
        rows = model.generate_from(embeds, decoding).tolist()
        eos = tokenizer.eos_token_id
        current = [tuple(row[: row.index(eos) + 1] if eos in row else row) for row in rows]
        old = generate(
            TorchDecoder(model.llama_model), TorchEmbeddings(model.llama_model), prompts, decoding,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=eos, semantics="hf-4.30",
        )  # fmt: skip
        wanted = {"hf-current": current, "hf-4.30": [one.token_ids for one in old]}
        for semantics, ids in wanted.items():
            found = [one.unwrap() for one in pipeline.generate_many(studies, preset=preset, semantics=semantics)]
            assert [one.token_ids for one in found] == ids, (kind, preset, semantics)
            distinct |= set(ids)
    assert len(distinct) > 2


def test_verify_reads_published_files_too(home: Path) -> None:
    sources = home / "vision", home / "llm"
    folder = home / "verified"
    batches = phantom_batches(folder / "phantoms", *sources)
    pth, ckpt = train_published(published_args(*sources), batches, folder / "run")
    more = {"target": "cpu", "parity_max_new_tokens": 8, "semantics": "hf-4.30"}
    export_bundle(ExportSettings(ckpt, *sources, folder / "bundle", **more))  # type: ignore[arg-type]
    assert open_bundle(folder / "bundle").source.checkpoint == "epoch=0.ckpt"
    assert all(check.passed for check in verify_bundle(folder / "bundle", ckpt, *sources, max_new_tokens=8))
    failed = [one.name for one in verify_bundle(folder / "bundle", pth, *sources, max_new_tokens=8) if not one.passed]
    assert failed == ["checkpoint SHA-256"]


@pytest.mark.slow
def test_flags_override_what_the_file_says(home: Path, tmp_path: Path) -> None:
    sources = home / "vision", home / "llm"
    batches = phantom_batches(tmp_path / "phantoms", *sources)
    pth, _ = train_published(published_args(*sources, vis_use_lora=True, vis_r=2, vis_alpha=8), batches, tmp_path / "r")
    settings = {"target": "cpu", "parity_max_new_tokens": 4, "overrides": {"vis_alpha": 2, "prompt": "Describe it."}}
    manifest = export_bundle(
        ExportSettings(pth, *sources, tmp_path / "b", decoding={"num_beams": 2, "max_new_tokens": 40}, **settings)  # type: ignore[arg-type]
    )
    assert manifest.prompt.after == "</Img> Describe it. \nAssistant:"
    assert (manifest.presets["paper"].num_beams, manifest.presets["paper"].max_new_tokens) == (2, 40)
    # Another alpha is another model: the sources as the file describes them do not pass.
    checks = verify_bundle(tmp_path / "b", pth, *sources, max_new_tokens=4, overrides={"prompt": "Describe it."})
    assert "image_embeds, 1 view" in [check.name for check in checks if not check.passed]
    with pytest.raises(R2GenError, match="max_new_tokens"):
        export_bundle(ExportSettings(pth, *sources, tmp_path / "c", decoding={"max_new_tokens": 9_999}))
