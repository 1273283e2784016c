"""Micro-F1 of a bundle on held-out phantoms, by preset: `python -m benchmarks.quality.phantom_f1 [--bundle DIR]`."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from r2gen_export.evaluation.phantom_findings import DEMO_SEED, score_phantoms, write_held_out
from r2gen_export.runtime.pipeline import Pipeline


def main() -> None:
    """Draw the held-out phantoms, report on them and print one line per preset."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="default: the embedded demo bundle")
    parser.add_argument("--studies", type=int, default=500)
    parser.add_argument("--seed", type=int, default=DEMO_SEED, help="seed of the build; the phantoms take another one")
    parser.add_argument("--presets", default="fast,paper")
    options = parser.parse_args()
    pipeline = Pipeline.from_bundle(options.bundle, device="cpu")
    with tempfile.TemporaryDirectory() as scratch:
        phantoms = Path(scratch) / "phantoms"
        write_held_out(phantoms, options.studies, options.seed)
        print(f"bundle {pipeline.bundle_id}, {options.studies} held-out phantoms, labels are (finding, side)")
        for preset in options.presets.split(","):
            score = score_phantoms(pipeline, phantoms, preset=preset)
            f1 = score.f1
            print(
                f"{preset}: micro-F1 {f1.f1:.3f} (precision {f1.precision:.3f}, recall {f1.recall:.3f}; "
                f"{f1.hits} hits, {f1.missed} missed, {f1.extra} extra), all labels right in {score.exact:.1%}, "
                f"{score.distinct} distinct reports, {score.failed} failed"
            )


if __name__ == "__main__":
    main()
