"""`trt_engines` without TensorRT: its stream, memory, graphs and KV cache, against numpy."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from benchmarks.gpu.steps import Answer, Context, median_ms

HEAD: Final = (4, 64, 32)
"""Key and value heads, positions and width of the small cache."""

TENSORS, PROMPT, LENGTH = 6, 10, 50
REORDERS: Final = ([0, 0, 1], [2, 0, 1], [1, 1, 1], [0, 2, 1, 0])


def engine_memory(context: Context) -> Answer:
    """Largest differences after reorders and graph replays, `right` when all are 0, and a reorder's time at 7B."""
    if context.few:
        return {"skipped": "needs a GPU"}
    from trt_engines.cuda import Cuda

    cuda = Cuda()
    answer = {**_reorders(cuda), **_replays(cuda)}
    answer["right"] = not any(answer.values())
    answer["reorder_7b_beam3_ms"] = _large_reorder_ms(cuda)
    cuda.close()
    return answer


def _reorders(cuda: Any) -> Answer:
    from trt_engines.kv_cache import EngineCache

    rng, answer = np.random.default_rng(0), {}
    cache = EngineCache(cuda, TENSORS, 2, HEAD, np.dtype(np.float16))
    expected = [rng.normal(size=(2, *HEAD)).astype(np.float16) for _ in range(TENSORS)]
    pinned = cuda.pinned((2, *HEAD), np.float16)
    for tensor, values in enumerate(expected):
        pinned[...] = values
        cuda.upload(pinned, cache.address(tensor, 0))
        cuda.synchronize()
    for rows in REORDERS:
        same = np.array([index % 2 == 0 and index < cache.rows and rows[index] == index for index in range(len(rows))])
        cache.reorder(np.array(rows), same, PROMPT, LENGTH)
        expected = [np.stack([values[row] for row in rows]) for values in expected]
        worst = 0.0
        for tensor, values in enumerate(expected):
            back = cuda.pinned(values.shape, np.float16)
            cuda.download(cache.address(tensor, 0), back)
            cuda.synchronize()
            worst = max(worst, float(np.abs(back[:, :, :LENGTH] - values[:, :, :LENGTH]).max()))
        answer[f"reorder {rows}"] = worst
    cache.close()
    return answer


def _replays(cuda: Any) -> Answer:
    source, target = cuda.pinned((1000,), np.float32), cuda.pinned((1000,), np.float32)
    place, answer = cuda.allocate(source.nbytes), {}

    def there_and_back() -> None:
        cuda.upload(source, place)
        cuda.download(place, target)

    graph = cuda.capture(there_and_back)
    for turn in range(3):
        source[...] = turn + 1
        cuda.launch(graph)
        cuda.synchronize()
        answer[f"graph replay {turn}"] = float(np.abs(source - target).max())
    cuda.drop(graph)
    return answer


def _large_reorder_ms(cuda: Any) -> float:
    """Milliseconds of a reorder of three beams of 7B in float16: 64 tensors, 180 of 256 positions in use."""
    from trt_engines.kv_cache import EngineCache

    cache = EngineCache(cuda, 64, 3, (32, 256, 128), np.dtype(np.float16))

    def reorder() -> None:
        cache.reorder(np.array([0, 0, 1]), np.ones(3, bool), 80, 180)
        cuda.synchronize()

    milliseconds = median_ms(reorder, 10)
    cache.close()
    return milliseconds
