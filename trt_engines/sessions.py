"""Engines behind the runtime's interfaces: `encode` of a vision session, and a `Decoder` with its states."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import Dims
from r2gen_export.errors import R2GenError
from r2gen_export.interfaces import Flags, JoiningState, check_room, require_finite
from trt_engines.backends import Backend
from trt_engines.cuda import Cuda
from trt_engines.identity import PLAN
from trt_engines.kv_cache import EngineCache
from trt_engines.runner import BoundPass, EngineRunner, Shape

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

EMBEDS, POSITIONS, KEEP, LOGITS = "inputs_embeds", "position_ids", "logits_to_keep", "logits"
PIXELS, IMAGE = "pixel_values", "image_embeds"


class Staging:
    """Memory for inputs and outputs, pinned and on the GPU: one pair each for all passes, which run in turn.

    Args:
        runner: whose tensors they are.
        elements: how many elements each tensor has at most.
    """

    def __init__(self, runner: EngineRunner, elements: Mapping[str, int]) -> None:
        types = {name: runner.tensors[name].dtype for name in elements}
        self._pinned = {name: runner.cuda.pinned((count,), types[name]) for name, count in elements.items()}
        self.addresses = {name: runner.cuda.allocate(array.nbytes) for name, array in self._pinned.items()}

    def array(self, name: str, shape: Shape) -> NDArray[Any]:
        """The pinned memory of a tensor, for a pass in which it has this shape."""
        return self._pinned[name][: math.prod(shape)].reshape(shape)

    def attach(self, bound: BoundPass, inputs: Mapping[str, Shape], output: str, shape: Shape) -> None:
        """Make a pass copy its inputs to the GPU, and its output back.

        Raises:
            R2GenError: `R2G-ENGINE-MISMATCH` when the output has another shape.
        """
        if bound.shape(output) != shape:
            raise _other(f"{output} comes as {list(bound.shape(output))}, expected {list(shape)}")
        before = [(self.array(name, size), self.addresses[name]) for name, size in inputs.items()]
        bound.stage(before, [(self.addresses[output], self.array(output, shape))])


class EngineVision:
    """The vision engine: the views of one study to its image tokens.

    Args:
        folder: holds the plan.
        dims: the bundle's sizes.
        backend: what it was built with.
        cuda: where it runs.
        jit_cache: see `EngineRunner`.

    Raises:
        R2GenError: `R2G-ENGINE-MISMATCH` when the plan does not load or has other inputs and outputs.
    """

    def __init__(
        self, folder: Path, dims: Dims, backend: Backend, cuda: Cuda, *, jit_cache: Path | None = None
    ) -> None:
        with cuda.undone_on_error():
            self._runner = EngineRunner(folder / PLAN, backend, cuda, jit_cache=jit_cache)
            _check_names(self._runner, {PIXELS}, {IMAGE})
            largest = max(math.prod(one) for one in self._runner.tensors[PIXELS].largest)
            self._shape: Shape = (1, dims.image_tokens, dims.d_llm)
            self._staging = Staging(self._runner, {PIXELS: largest, IMAGE: math.prod(self._shape)})
        self._passes: dict[Shape, BoundPass] = {}

    def encode(self, pixel_values: Floats) -> Floats:
        """Image tokens [1, T, d] float32 of the views [V, 3, H, W] float32 of one study.

        Raises:
            R2GenError: `R2G-GENERATE-NONFINITE`; `R2G-ENGINE-MISMATCH` for more views than the engine was built for.
        """
        shape: Shape = pixel_values.shape
        if shape not in self._passes:
            bound = self._runner.bind({PIXELS: shape}, self._staging.addresses)
            self._staging.attach(bound, {PIXELS: shape}, IMAGE, self._shape)
            self._passes[shape] = bound
        self._staging.array(PIXELS, shape)[...] = pixel_values
        self._passes[shape].run(captured=False)
        image_embeds = np.array(self._staging.array(IMAGE, self._shape), dtype=np.float32)
        require_finite(image_embeds, "image tokens")
        return image_embeds

    def close(self) -> None:
        """Give back the engine; the stream and its memory are the caller's."""
        self._passes.clear()
        self._runner.close()


class EngineDecoder:
    """The decoder engine: a KV cache of fixed length, written in place.

    Args:
        folder: holds the plan.
        dims: the bundle's sizes.
        backend: what it was built with.
        cuda: where it runs.
        jit_cache: see `EngineRunner`, here and below.
        weight_budget: bytes of weights on the GPU.

    Raises:
        R2GenError: `R2G-ENGINE-MISMATCH` when the plan does not load or has other inputs and outputs;
            `R2G-RESOURCE-MEMORY`.
    """

    def __init__(
        self,
        folder: Path,
        dims: Dims,
        backend: Backend,
        cuda: Cuda,
        *,
        jit_cache: Path | None = None,
        weight_budget: int | None = None,
    ) -> None:
        self._cuda, self._dims = cuda, dims
        self.row_lengths, self.wide_rows = True, False  # no profile is for several positions of several rows
        with cuda.undone_on_error():
            self._runner = EngineRunner(folder / PLAN, backend, cuda, jit_cache=jit_cache, weight_budget=weight_budget)
            parts = [f"{layer}.{part}" for layer in range(dims.num_layers) for part in ("key", "value")]
            self._past = [f"past_key_values.{part}" for part in parts]
            present = {f"present.{part}" for part in parts}
            _check_names(self._runner, {EMBEDS, POSITIONS, KEEP, *self._past}, {LOGITS, *present})
            cache = self._runner.tensors[self._past[0]]
            self._dtype, self._head = cache.dtype, (dims.num_kv_heads, cache.shape[2], dims.head_dim)
            for past in self._past:
                if self._runner.tensors[past.replace("past_key_values", "present")].alias != past:
                    raise _other("its cache is not written in place")
            embeds, keep = self._runner.tensors[EMBEDS].largest, self._runner.tensors[KEEP].largest
            self._limits = [(rows, size, kept) for (rows, size, _), (kept,) in zip(embeds, keep, strict=True)]
            """Rows, positions and positions with logits each profile goes up to."""
            cells = max(rows * size for rows, size, _ in self._limits)
            kept = max(rows * kept for rows, _, kept in self._limits)
            self._staging = Staging(
                self._runner,
                {
                    EMBEDS: cells * dims.d_llm,
                    POSITIONS: cells,
                    KEEP: max(kept for _, _, kept in self._limits),
                    LOGITS: kept * dims.vocab_size,
                },
            )
        self._free: list[EngineCache] = []

    def share_prefix(self, inputs_embeds: Floats) -> None:
        """Nothing: a few positions of a prompt cost a GPU no time."""

    def prefill(self, inputs_embeds: Floats, room: int) -> EngineState:
        """Read the prompts [B, S, d] float32, all of one length, behind which at most `room` positions follow.

        Raises:
            R2GenError: `R2G-GENERATE-NONFINITE`; `R2G-CONFIG-VALUE` when there are more positions than the model has
                or the engine was built for.
        """
        rows, size = inputs_embeds.shape[:2]
        state = self.open_rows(rows, size + room)
        try:
            state.fill(inputs_embeds)
        except BaseException:
            state.returned()  # now, and not when nobody looks at the exception any more
            raise
        return state

    def open_rows(self, rows: int, positions: int) -> EngineState:
        """See `interfaces.RowDecoder`."""
        check_room(positions, self._dims.max_positions)
        if positions > self._head[1]:
            message = f"{positions} positions, but the engine was built for {self._head[1]}"
            raise R2GenError("R2G-CONFIG-VALUE", message, "--max-new-tokens with a smaller number, or build it longer")
        cache = self._take(rows)
        state = EngineState(self, cache)
        state.returned = weakref.finalize(state, self._free.append, cache)
        return state

    def _take(self, rows: int) -> EngineCache:
        """A cache no state uses any more, else a new one. Too small ones are let go."""
        while self._free:
            cache = self._free.pop()
            if cache.rows >= rows:
                return cache
            cache.close()
        return EngineCache(self._cuda, len(self._past), rows, self._head, self._dtype)

    def run(self, cache: EngineCache, embeds: Floats, starts: Integers, *, keep: int = 1, row: int = 0) -> Floats:
        """Pass over embeds [B, n, d], each row behind `starts` [B] cached positions, in rows from `row` on.

        In as many passes as the engine's profiles ask for: one, when it was built for what is asked of it.

        Returns:
            Logits [B, keep, vocab] float32 of the last `keep` positions, not checked.
        """
        rows, size = embeds.shape[:2]
        length = min(size, max(min(size, kept) if keep > 1 else size for _, size, kept in self._limits))
        kept = length if keep > 1 else 1
        height = max((high for high, wide, most in self._limits if wide >= length and most >= kept), default=rows)
        blocks = []
        for top in range(0, rows, height):
            some = slice(top, top + height)
            pieces = [
                self._pass(cache, row + top, embeds[some, left : left + length], starts[some] + left, keep > 1)
                for left in range(0, size, length)
            ]
            blocks.append(np.concatenate(pieces, axis=1)[:, -keep:])
        return np.concatenate(blocks)

    def _pass(self, cache: EngineCache, row: int, embeds: Floats, starts: Integers, every: bool) -> Floats:
        rows, size = embeds.shape[:2]
        keep = size if every else 1
        shapes: dict[str, Shape] = {EMBEDS: embeds.shape, POSITIONS: (rows, size), KEEP: (keep,)}
        logits = (rows, keep, self._dims.vocab_size)
        bound = cache.bound((row, rows, size, keep), lambda: self._bind(cache, row, rows, shapes, logits))
        self._staging.array(EMBEDS, shapes[EMBEDS])[...] = embeds
        self._staging.array(POSITIONS, shapes[POSITIONS])[...] = starts[:, None] + np.arange(size)
        self._staging.array(KEEP, shapes[KEEP])[...] = np.arange(size - keep, size)
        # Prompts come once per report, everything else again and again.
        bound.run(captured=bool(starts[0]))
        return np.array(self._staging.array(LOGITS, logits), dtype=np.float32)  # a copy: the next pass writes there

    def _bind(self, cache: EngineCache, row: int, rows: int, inputs: dict[str, Shape], logits: Shape) -> BoundPass:
        shapes = {**inputs, **dict.fromkeys(self._past, (rows, *self._head))}
        addresses = {name: cache.address(tensor, row) for tensor, name in enumerate(self._past)}
        bound = self._runner.bind(shapes, {**self._staging.addresses, **addresses})
        self._staging.attach(bound, inputs, LOGITS, logits)
        return bound

    def close(self) -> None:
        """Give back the engine and the caches no state uses; the stream is the caller's."""
        for cache in self._free:
            cache.close()
        self._free.clear()
        self._runner.close()


class EngineState(JoiningState):
    """A `RowState` in an `EngineCache`: positions taken back stay there until others take their place.

    Attributes:
        returned: gives the cache back to the decoder, at the latest when nobody holds this state any more.
    """

    returned: weakref.finalize[..., Any]

    def __init__(self, decoder: EngineDecoder, cache: EngineCache) -> None:
        super().__init__()
        self._decoder, self._cache = decoder, cache

    def _read(self, prompts: Floats, row: int) -> Floats:
        count, size = prompts.shape[:2]
        self._cache.grow(row + count)
        begin = np.zeros(count, np.int64)
        if row == 0:
            return self._decoder.run(self._cache, prompts, begin)[:, -1]
        # In one row, whichever it goes to: a pass has an execution context for each address it is bound to.
        logits = []
        for place, prompt in enumerate(prompts, start=row):
            logits.append(self._decoder.run(self._cache, prompt[None], begin[:1], row=self._cache.spare)[:, -1])
            self._cache.copy(place, self._cache.spare, size)
        return np.concatenate(logits)

    def _pass(self, embeds: Floats, keep: int) -> Floats:
        return self._decoder.run(self._cache, embeds, self._lengths, keep=keep)

    def _forget(self, rows: Integers) -> None:
        self._cache.clear([*rows.tolist(), self._cache.spare])

    def _move(self, rows: Integers, same: Flags, prompt: int, length: int) -> None:
        self._cache.reorder(rows, same, prompt, length)


def _check_names(runner: EngineRunner, inputs: set[str], outputs: set[str]) -> None:
    for kind, found, wanted in (("input", runner.inputs, inputs), ("output", runner.outputs, outputs)):
        names = {one.name for one in found}
        if names != wanted:
            lacking, extra = ", ".join(sorted(wanted - names)), ", ".join(sorted(names - wanted))
            raise _other(f"{kind}s missing: {lacking or 'none'}; unexpected: {extra or 'none'}")


def _other(reason: str) -> R2GenError:
    message = f"the engine is not one of this bundle: {reason}"
    return R2GenError("R2G-ENGINE-MISMATCH", message, "build it again: r2gen build BUNDLE")
