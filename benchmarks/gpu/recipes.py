"""Graphs of known shapes without their weights: `python -m benchmarks.gpu.recipes FOLDER NAME ...`.

A decoder of 7B weighs up to 13 GB and its graph 0.3 MB. The exporter writes the graph as always; the weights are listed
in `recipe.json` (name, type, dims, offset) and made from seeds where they are needed (`weights.py`).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

from benchmarks.peers.model import SHAPES
from r2gen_export.system.files import atomic_dir

INLINE: Final = 65536
"""Bytes up to which a weight of the vision encoder stays in its graph."""


def make_recipes(folder: Path, names: Sequence[str]) -> None:
    """Write the recipes that are not in `folder` yet.

    Args:
        folder: gets a folder for each.
        names: `SHAPE-DIALECT-PRECISION` of a decoder, or `swin-base-PRECISION`.
    """
    for name in names:
        if (folder / name).exists():
            continue
        with atomic_dir(folder / name, subject=name) as out:
            if name.startswith("swin-base-"):
                make_vision_recipe(out, name.removeprefix("swin-base-"))
            else:
                shape = next(shape for shape in SHAPES if name.startswith(f"{shape}-"))
                dialect, _, precision = name.removeprefix(f"{shape}-").partition("-")
                make_decoder_recipe(out, shape, dialect, precision)
        print("recipe", name, flush=True)


def make_decoder_recipe(out: Path, shape: str, dialect: str, precision: str) -> None:
    """The graph the exporter writes for an LLM of `SHAPES`, and the list of its weights."""
    from transformers import LlamaConfig

    from r2gen_export.exporting.decoder import fill as lowering
    from r2gen_export.exporting.decoder import write

    config = LlamaConfig(**SHAPES[shape], dtype="float16", tie_word_embeddings=False)
    entries: list[dict[str, Any]] = []
    with (
        mock.patch.object(write, "ExternalData", _recorder(entries)),
        mock.patch.object(lowering, "quantize", _zero_blocks),
    ):
        write.write_streamed(config, _Zeros(config), out, dialect=dialect, precision=precision)
    (out / "model.onnx.data").unlink(missing_ok=True)
    facts = {"shape": shape, "dialect": dialect, "precision": precision, "config": SHAPES[shape], "tensors": entries}
    (out / "recipe.json").write_text(json.dumps(facts), encoding="utf-8")


class _Zeros:
    """Weights of a LLaMA that take no memory."""

    def __init__(self, config: Any) -> None:
        heads, keys = config.num_attention_heads, config.num_key_value_heads
        width = config.hidden_size // heads
        self._hidden, self._inner = config.hidden_size, config.intermediate_size
        self._rows = {
            **dict.fromkeys(("q_proj", "o_proj", "down_proj"), config.hidden_size),
            **dict.fromkeys(("k_proj", "v_proj"), keys * width),
            **dict.fromkeys(("gate_proj", "up_proj"), config.intermediate_size),
            "lm_head": config.vocab_size,
        }

    def read(self, name: str) -> Any:
        """The tensor of a name of the checkpoint."""
        import torch

        last = name.split(".")[-2]
        if last not in self._rows:
            return torch.ones(1, dtype=torch.float16).expand(self._hidden)
        inner = self._inner if last == "down_proj" else self._hidden
        return torch.zeros(1, dtype=torch.float16).expand(self._rows[last], inner)


def _zero_blocks(weight: Any, bits: int, block: int = 32) -> Any:
    """What `quantize` gives, all zeros."""
    import numpy as np

    from r2gen_export.exporting.decoder.quantize import BlockWeights

    count, features = weight.shape
    blocks = -(-features // block)
    codes = np.zeros((count, blocks, block * bits // 8), np.uint8)
    return BlockWeights(codes, np.zeros((count, blocks), np.float32), bits, features, block)


def _recorder(entries: list[dict[str, Any]]) -> Callable[[Path], Any]:
    """`ExternalData` that lists its large tensors in `entries` instead of writing them."""
    from onnx import TensorProto, helper

    from r2gen_export.bundle.external_data import ALIGNMENT, INLINE, ExternalData

    class Recorder(ExternalData):
        def tensor(self, name: str, values: Any, *, kind: Any = None, dims: Any = None) -> Any:
            if values.nbytes <= INLINE:
                return super().tensor(name, values, kind=kind, dims=dims)
            proto = TensorProto(
                name=name,
                data_type=kind or helper.np_dtype_to_tensor_dtype(values.dtype),
                dims=values.shape if dims is None else dims,
            )
            offset = self._size + -self._size % ALIGNMENT
            self._size = offset + values.nbytes
            _point(proto, self._path.name, offset, values.nbytes)
            entry = {"name": name, "type": proto.data_type, "dims": list(proto.dims)}
            entries.append({**entry, "offset": offset, "bytes": values.nbytes})
            return proto

    return Recorder


def _point(tensor: Any, location: str, offset: int, size: int) -> None:
    """Let a `TensorProto` take its values from a file."""
    from onnx import TensorProto

    for part in ("raw_data", "float_data", "int32_data"):
        tensor.ClearField(part)
    tensor.data_location = TensorProto.EXTERNAL
    del tensor.external_data[:]
    for key, value in {"location": location, "offset": offset, "length": size}.items():
        tensor.external_data.add(key=key, value=str(value))


def make_vision_recipe(out: Path, precision: str) -> None:
    """Swin-base with its projector to a width of 4096, large weights left out."""
    import numpy as np
    import onnx
    import torch
    from onnx import numpy_helper

    from r2gen_export.exporting.vision import export_vision
    from r2gen_export.exporting.vision_precision import lower_precision

    torch.manual_seed(0)
    path = out / "vision.onnx"
    export_vision(_encoder(), path, height=224, width=224)
    lower_precision(path, precision)
    model = onnx.load(path)
    entries: list[dict[str, Any]] = []
    offset = 0
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.nbytes < INLINE or values.dtype.kind != "f" or _is_mask(values):
            continue
        exact = values.astype(np.float64)  # sums of float16 overflow
        offset += -offset % 4096
        entry = {"name": tensor.name, "dims": list(values.shape), "half": values.dtype.itemsize == 2, "offset": offset}
        entries.append({**entry, "std": float(exact.std()), "mean": float(exact.mean())})
        _point(tensor, "vision.data", offset, values.nbytes)
        offset += values.nbytes
    for file in out.iterdir():
        file.unlink()
    path.write_bytes(model.SerializeToString())
    (out / "recipe.json").write_text(json.dumps({"tensors": entries}), encoding="utf-8")


def _is_mask(values: Any) -> bool:
    """Whether a constant has a few values, which random ones cannot replace: the attention masks of shifted windows."""
    import numpy as np

    return 1 < len(np.unique(values)) < 100


def _encoder() -> Any:
    """What `export_vision` needs of a model: Swin-base, the mean of the views, a projector."""
    import torch
    from transformers import SwinConfig, SwinModel

    from benchmarks.random_sources import SWIN_BASE

    class Encoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.visual_encoder = SwinModel(SwinConfig(**SWIN_BASE)).eval()
            self.llama_proj, self.layer_norm = torch.nn.Linear(1024, 4096), torch.nn.LayerNorm(4096)

        def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
            states = self.visual_encoder(pixels).last_hidden_state
            return self.layer_norm(self.llama_proj(states.mean(0, keepdim=True)))

    return Encoder()


if __name__ == "__main__":
    make_recipes(Path(sys.argv[1]), sys.argv[2:])
