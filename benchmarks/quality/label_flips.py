"""What a precision costs in reports: `python -m benchmarks.quality.label_flips [--studies N] [--preset fast|paper]`.

The demo bundle in fp32 (A) against the same model in other precisions (B), on phantoms it was not trained on: the
figures of `r2gen evaluate compare`, and the findings that only one side names. `PyTorch` decodes with transformers,
from the image embeddings of the bundle's encoder: its reports must all be the bundle's.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from benchmarks.quality.decoder_precision import CPU, read_llama, read_prompts, write_bundle
from benchmarks.quality.vision_precision import read_phantoms
from r2gen_export import bundle as layout
from r2gen_export.bundle import demo_bundle, load_manifest
from r2gen_export.evaluation.compare import Side, compare, side_of_pairs
from r2gen_export.evaluation.compare_tables import FLIP_HEAD, HEAD, facts, flip_rows, metric_rows
from r2gen_export.evaluation.pairs import Pairs
from r2gen_export.evaluation.phantom_findings import write_held_out
from r2gen_export.evaluation.protocols import Context
from r2gen_export.evaluation.references import Reference, read_annotation
from r2gen_export.evaluation.tables import markdown_table
from r2gen_export.runtime.backends.ort_vision import VisionSession
from r2gen_export.runtime.detokenizer import Detokenizer
from r2gen_export.runtime.pipeline import Pipeline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from transformers import LlamaForCausalLM

    from r2gen_export.decoding import Decoding

VARIANTS: Final = ("int8", "int4", "int4-128")

Reports = list[tuple[str, tuple[int, ...]]]


def bundle_reports(bundle: Path, phantoms: Path, references: Sequence[Reference], preset: str) -> Reports:
    """Texts and token ids, one thread."""
    pipeline = Pipeline.from_bundle(bundle, device="cpu", threads=1, learn=False)
    images = [[phantoms / "images" / path for path in reference.paths] for reference in references]
    reports = [outcome.unwrap() for outcome in pipeline.generate_many(images, preset=preset)]
    return [(report.text, tuple(report.token_ids)) for report in reports]


def pytorch_reports(model: LlamaForCausalLM, phantoms: Path, decoding: Decoding) -> Reports:
    """The same by transformers' own `generate`, study by study."""
    import torch

    from r2gen_export.training.model import generation_config

    manifest = load_manifest(demo_bundle())
    prompt, folder = manifest.prompt, demo_bundle()
    encoder = VisionSession(folder / layout.VISION, **CPU)
    detokenizer = Detokenizer(
        folder / layout.TOKENIZER, unk_token_id=prompt.unk_token_id, bos_token_id=prompt.bos_token_id
    )
    config = generation_config(decoding, bos=prompt.bos_token_id, eos=prompt.eos_token_id, pad=prompt.pad_token_id)
    reports = []
    for pixels in read_phantoms(phantoms, "test", manifest.image):
        (embeds,) = read_prompts(folder, [encoder.encode(pixels)])
        inputs = torch.from_numpy(embeds)
        mask = torch.ones(inputs.shape[:2], dtype=torch.long)
        row = model.generate(
            inputs_embeds=inputs, attention_mask=mask, generation_config=config, use_model_defaults=False
        )[0].tolist()
        ids = tuple(row[: row.index(prompt.eos_token_id) + 1] if prompt.eos_token_id in row else row)
        reports.append((detokenizer.text(ids, "hf-current"), ids))
    return reports


def side(references: Sequence[Reference], reports: Reports) -> Side:
    """One system of `compare`, protocol coco."""
    ids, expected = zip(*((reference.id, reference.text) for reference in references), strict=True)
    texts, tokens = zip(*reports, strict=True)
    return side_of_pairs(Pairs(ids, texts, expected, None, tokens, failed=0, left_out=0), Context(), "coco")


def show(name: str, comparison: dict[str, Any]) -> None:
    """Sentences and both tables."""
    print(f"\n## {name} against fp32\n")
    print("\n".join(facts(comparison)), end="\n\n")
    print(markdown_table(HEAD, metric_rows(comparison)), end="\n\n")
    print(markdown_table(FLIP_HEAD, flip_rows(comparison)), flush=True)


def measure(work: Path, variants: Sequence[str], studies: int, preset: str) -> None:
    """Draw phantoms, write the variants, let all report, and print the comparisons."""
    phantoms = work / "held-out"
    write_held_out(phantoms, studies)
    references = read_annotation(phantoms / "annotation.json", "test").studies
    model = read_llama(demo_bundle())
    print(f"demo, {len(references)} held-out phantoms, preset {preset}")
    first = side(references, bundle_reports(demo_bundle(), phantoms, references, preset))
    decoding = load_manifest(demo_bundle()).presets[preset]
    show("PyTorch", compare(first, side(references, pytorch_reports(model, phantoms, decoding)), {}))
    for variant in variants:
        bundle = work / variant
        write_bundle(model, variant, bundle)
        show(variant, compare(first, side(references, bundle_reports(bundle, phantoms, references, preset)), {}))


def main() -> None:
    """Parse, then measure in a folder that is removed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=VARIANTS, action="append", help="leave out the others; may be repeated")
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--preset", default="fast")
    options = parser.parse_args()
    if options.studies < 1:
        parser.error(f"--studies {options.studies}")
    with tempfile.TemporaryDirectory() as scratch:
        measure(Path(scratch), options.only or VARIANTS, options.studies, options.preset)


if __name__ == "__main__":
    main()
