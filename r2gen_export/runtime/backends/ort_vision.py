"""The vision encoder in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from r2gen_export.interfaces import require_finite
from r2gen_export.runtime.backends.ort_session import check_names, coded_failures, open_session

if TYPE_CHECKING:
    from r2gen_export.runtime.backends.ort_tensorrt import ProviderTuning


Floats = NDArray[np.float32]
Integers = NDArray[np.int64]


class VisionSession:
    """`vision.onnx`: the views of one study to its image tokens.

    Args:
        path: the graph.
        providers: names of ONNX Runtime's execution providers, best first.
        threads: CPU threads, None: the cores this process may use.
        tuning: for providers that build engines.
        gpu: index of the GPU.

    Raises:
        R2GenError: what `open_session` raises; `R2G-BUNDLE-GRAPH` when it has other inputs and outputs.
    """

    def __init__(
        self,
        path: Path,
        *,
        providers: Sequence[str],
        threads: int | None = None,
        tuning: ProviderTuning | None = None,
        gpu: int = 0,
    ) -> None:
        self._session = open_session(path, providers=providers, threads=threads, tuning=tuning, gpu=gpu)
        check_names(path, self._session, {"pixel_values"}, {"image_embeds"})

    def encode(self, pixel_values: Floats) -> Floats:
        """Image tokens [1, T, d] float32 of the views [V, 3, H, W] float32 of one study.

        Raises:
            R2GenError: `R2G-GENERATE-NONFINITE`; on a GPU `R2G-RESOURCE-MEMORY`, `R2G-DEVICE-UNAVAILABLE`.
        """
        with coded_failures(self._session, "encode"):
            output = self._session.run(["image_embeds"], {"pixel_values": pixel_values})[0]
        image_embeds: Floats = np.asarray(output, dtype=np.float32)
        require_finite(image_embeds, "image tokens")
        return image_embeds
