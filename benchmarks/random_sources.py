"""Sources of a whole model of the paper's kind, with random weights: `python -m benchmarks.random_sources DIR`.

Swin-base at 224 (microsoft/swin-base-patch4-window7-224's shape), a LLaMA of one of the peers' shapes, a projector
between them. To be exported and measured where no weights may be downloaded: speed means something, words do not.
`r2gen export --checkpoint DIR/checkpoint --vision DIR/vision --llm DIR/llm` takes them.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.model import SHAPES, make_model

SWIN_BASE: Final[dict[str, Any]] = {
    "image_size": 224, "embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32], "window_size": 7,
}  # fmt: skip
"""microsoft/swin-base-patch4-window7-224."""

PROCESSOR: Final = {
    "image_processor_type": "ViTImageProcessor", "do_resize": True, "do_rescale": True, "do_normalize": True,
    "size": {"height": 224, "width": 224}, "resample": 3, "rescale_factor": 1 / 255,
    "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
}  # fmt: skip
"""Of the published encoder."""


def make_sources(folder: Path, shape: str, llm: Path | None = None, seed: int = 0) -> None:
    """Write `vision/`, `llm/` (unless one is given) and `checkpoint/`, each from a seed.

    Args:
        folder: where; parts that are there are kept.
        shape: of the LLM, a key of `SHAPES`.
        llm: folder of an LLM to use instead.
        seed: of all weights.
    """
    import torch
    from transformers import SwinConfig, SwinModel

    from r2gen_export.training.checkpoint import save_checkpoint
    from r2gen_export.training.hub import stored_dtype
    from r2gen_export.training.model import ModelConfig, R2GenGPT

    vision = folder / "vision"
    if not (vision / "preprocessor_config.json").exists():
        torch.manual_seed(seed)
        SwinModel(SwinConfig(**SWIN_BASE)).eval().save_pretrained(vision)
        (vision / "preprocessor_config.json").write_text(json.dumps(PROCESSOR), encoding="utf-8")
    if llm is None:
        llm = folder / "llm"
        if not (llm / "tokenizer_config.json").exists():
            make_model(llm, shape, seed)
    if not (folder / "checkpoint").exists():
        torch.manual_seed(seed + 1)
        model = R2GenGPT.from_sources(vision, llm, ModelConfig(), stored_dtype(llm))
        save_checkpoint(model, folder / "checkpoint", {"dataset": "iu_xray"})


def main() -> None:
    """Make what is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama-1.1b")
    parser.add_argument("--llm", type=Path, help="folder of an LLM to use instead of making one")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    make_sources(options.folder, options.shape, options.llm, options.seed)


if __name__ == "__main__":
    main()
