"""A trial pass behind loading: does this device compute what the bundle computed when it was exported?

Export keeps logits of two positions in the manifest. A driver, a kernel or a binding that goes wrong shows here, before
the first report, and not in the middle of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast

import numpy as np
from numpy.typing import NDArray

from r2gen_export.bundle import ImageSpec, Manifest, Prompt, ReferenceLogits
from r2gen_export.errors import R2GenError
from r2gen_export.precision import PRECISIONS

if TYPE_CHECKING:
    from r2gen_export.interfaces import Decoder, Embeddings, Encoder, RowDecoder

Floats = NDArray[np.float32]

KEPT: Final = 256
"""Logits kept of each position, spread evenly over the vocabulary."""

VISION_TOLERANCE: Final[dict[str, float]] = {"fp32": 0.0, "fp16": 2e-2, "int8": 1e-1}
"""What the encoder's precision may add to the difference of the logits."""


@dataclass(frozen=True)
class Trial:
    """What a trial pass showed.

    `difference`: the largest of any logit compared, per unit of the largest logit; None where the bundle keeps no
    reference, and the pass was only finite and not constant. `tolerance`: what is allowed. `rows`: empty, or why rows
    of different length are not decoded together, although the decoder offers it.
    """

    difference: float | None
    tolerance: float
    rows: str = ""

    def __str__(self) -> str:
        rest = f"; studies are decoded in batches that begin together ({self.rows})" if self.rows else ""
        if self.difference is None:
            return f"trial pass finite; this bundle keeps no reference logits, so more is not known{rest}"
        return f"trial pass within {self.difference:.1e} of the exported logits, allowed {self.tolerance:.0e}{rest}"


def trial_pixels(image: ImageSpec) -> Floats:
    """Pixel values [1, 3, H, W] float32 of a picture made by arithmetic alone: the same on every machine, for ever."""
    rows, columns = np.mgrid[0 : image.height, 0 : image.width]
    grey = ((rows * 7 + columns * 13) % 97 + rows * 120 // image.height + 20).astype(np.float32)
    mean, std = (np.array(value, np.float32)[:, None, None] for value in (image.mean, image.std))
    return np.ascontiguousarray(((grey * np.float32(image.rescale_factor) - mean) / std)[None], dtype=np.float32)


def trial_prompt(vision: Encoder, table: Embeddings, prompt: Prompt, image: ImageSpec) -> Floats:
    """Prompt embeddings [1, S, d] float32 around the trial picture's image tokens."""
    before = table.lookup(np.array([[prompt.bos_token_id, *prompt.before_ids]]))
    after = table.lookup(np.array([prompt.after_ids], dtype=np.int64))
    return np.concatenate([before, vision.encode(trial_pixels(image)), after], axis=1)


def trial_token(prompt: Prompt) -> int:
    """The token behind the prompt whose logits are the second position's."""
    return prompt.after_ids[-1] if prompt.after_ids else prompt.bos_token_id


def trial_logits(decoder: Decoder, table: Embeddings, embeds: Floats, token_id: int) -> Floats:
    """Logits [2, vocab] float32 of the last prompt position and of `token_id` behind it."""
    state = decoder.prefill(embeds, 2)
    first = state.logits[0].copy()
    state.decode(table.lookup(np.array([[token_id]])))
    return np.stack([first, state.logits[0]])


def reference_of(logits: Floats, token_id: int) -> ReferenceLogits:
    """What a manifest keeps of the logits [2, vocab] that `trial_logits` gives on the CPU."""
    vocab = logits.shape[1]
    ids = np.unique(np.linspace(0, vocab - 1, min(KEPT, vocab)).round().astype(np.int64))
    first, second = ([float(f"{value:.6g}") for value in row[ids]] for row in logits)
    scale = np.abs(logits).max(axis=1)
    return ReferenceLogits(
        token_id=token_id,
        vocab_ids=tuple(ids.tolist()),
        logits=(tuple(first), tuple(second)),
        scale=(float(scale[0]), float(scale[1])),
    )


def tolerance_of(manifest: Manifest, *, precision: str | None = None) -> float:
    """Allowed difference per unit of the largest logit; `precision`: of an engine, where it is not the bundle's."""
    decoder = max(PRECISIONS[name].logits_tolerance for name in (manifest.precision["decoder"], precision) if name)
    return max(decoder, VISION_TOLERANCE.get(manifest.precision["vision"], 0.0))


def run_trial(
    embeds: Floats, decoder: Decoder, table: Embeddings, manifest: Manifest, *, precision: str | None = None
) -> Trial:
    """Prefill, decode, extend, take back, move rows, of one prompt and two: every kind of pass reports are made of.

    A decoder that offers rows of different length and computes them wrong loses its `row_lengths`; one that is wrong in
    wide passes over several of them its `wide_rows`.

    Args:
        embeds: from `trial_prompt`, with the vision encoder of the device under trial.
        decoder: on that device.
        table: the bundle's token embeddings.
        manifest: its manifest; bundles of earlier releases keep no reference.
        precision: of a TensorRT engine, where it is not the bundle's.

    Raises:
        R2GenError: `R2G-DEVICE-UNAVAILABLE` when the logits are not those of the export within the tolerance, or
            constant; and what a pass raises.
    """
    prompt, reference = manifest.prompt, manifest.reference
    token_id = reference.token_id if reference else trial_token(prompt)
    other = prompt.bos_token_id if prompt.bos_token_id != token_id else prompt.eos_token_id
    try:
        passes = _passes(decoder, table, embeds, (token_id, other), _shape(manifest))
    except R2GenError as error:
        if error.code != "R2G-GENERATE-NONFINITE":
            raise
        raise _wrong("logits of the trial pass are NaN or infinity") from None
    tolerance = tolerance_of(manifest, precision=precision)
    if any(float(np.ptp(entry.logits)) == 0 for entry in passes):
        raise _wrong("every logit of the trial pass is equal")
    worst = max(_compare(passes, reference, tolerance), default=0.0)
    rows = ""
    if getattr(decoder, "row_lengths", False):
        rows_decoder = cast("RowDecoder", decoder)
        embedded = (table.lookup(np.array([[token_id]])), table.lookup(np.array([[other]])))
        # The last of the other passes gives what a row must that has read both tokens.
        arguments = rows_decoder, embeds, embedded, _shape(manifest), passes[-1].logits
        try:
            worst = max(worst, *_compare(_row_passes(*arguments), reference, tolerance))
        except R2GenError as error:
            rows_decoder.row_lengths = rows_decoder.wide_rows = False
            rows = error.message
        if rows_decoder.wide_rows:
            try:
                worst = max(worst, *_compare(_wide_passes(*arguments), reference, tolerance))
            except R2GenError:
                rows_decoder.wide_rows = False  # drafts are then for studies that run by themselves
    return Trial(None if reference is None else worst, tolerance, rows)


def _compare(passes: list[_Pass], reference: ReferenceLogits | None, tolerance: float) -> list[float]:
    """Differences per unit of the largest logit.

    Raises:
        R2GenError: `R2G-DEVICE-UNAVAILABLE` for the first one above the tolerance.
    """
    differences = []
    for entry in passes:
        if isinstance(entry.expected, int):
            if reference is None:
                continue
            ids, scale = np.array(reference.vocab_ids), reference.scale[entry.expected]
            actual, expected = entry.logits[ids], np.array(reference.logits[entry.expected], np.float32)
        else:
            actual, expected, scale = entry.logits, entry.expected, float(np.abs(entry.expected).max())
        differences.append(float(np.abs(actual - expected).max()) / max(1.0, scale))
        if not differences[-1] <= tolerance:
            message = f"logits of the trial pass ({entry.name}) differ by {differences[-1]:.1e}"
            raise _wrong(f"{message}, allowed {tolerance:.0e}")
    return differences


@dataclass(frozen=True)
class _Pass:
    """Logits [vocab] of one row, and what they must be: those of a position of the reference, or of another pass."""

    name: str
    logits: Floats
    expected: int | Floats


def _shape(manifest: Manifest) -> tuple[int, int]:
    """Rows and positions of the default preset: the caches of the trial then serve the reports."""
    preset = manifest.presets[manifest.default_preset]
    return max(2, preset.num_beams), preset.max_new_tokens


def _passes(
    decoder: Decoder, table: Embeddings, embeds: Floats, tokens: tuple[int, int], shape: tuple[int, int]
) -> list[_Pass]:
    """Every kind of pass that reports are made of, with rows that differ.

    Args:
        decoder: on the device under trial.
        table: token embeddings.
        embeds: prompt [1, S, d].
        tokens: that of the reference, and another one.
        shape: rows after a reorder, and positions behind the prompt.
    """
    token, other = tokens
    rows, room = shape

    def embedded(*ids: int) -> Floats:
        return table.lookup(np.array(ids)[:, None])

    # One row: a pass taken back, which a replay that reads old inputs would repeat.
    state = decoder.prefill(embeds, room)
    passes = [_Pass("prefill", state.logits[0].copy(), 0)]
    state.decode(embedded(other))
    after_other = state.logits[0].copy()
    state.rollback(1)
    state.decode(embedded(token))
    passes.append(_Pass("decode", state.logits[0].copy(), 1))
    state.decode(embedded(other))
    third = state.logits[0].copy()
    # Several positions in one pass.
    state.rollback(2)
    wide = state.extend(table.lookup(np.array([[token, other]])))[0]
    passes += [_Pass("extend, first", wide[0].copy(), 1), _Pass("extend, second", wide[1].copy(), third)]
    # Rows that part, then change places: what each row holds must go with it.
    state.rollback(2)
    state.reorder(np.zeros(rows, np.int64))
    state.decode(embedded(token, *[other] * (rows - 1)))
    passes += [
        _Pass("decode, first row", state.logits[0].copy(), 1),
        _Pass("decode, row", state.logits[1].copy(), after_other),
    ]
    state.reorder(np.array([1, 0, *range(2, rows)]))
    state.decode(embedded(*[other] * rows))
    passes.append(_Pass("decode after a change of rows", state.logits[1].copy(), third))
    del state
    # Two prompts at once.
    both = decoder.prefill(np.repeat(embeds, 2, axis=0), room)
    passes += [_Pass(f"prefill of two, {row}", both.logits[row].copy(), 0) for row in range(2)]
    both.decode(embedded(other, token))
    both.reorder(np.array([1]))
    both.decode(embedded(other))
    return [*passes, _Pass("decode after a row left", both.logits[0].copy(), third)]


def _row_passes(
    decoder: RowDecoder, embeds: Floats, tokens: tuple[Floats, Floats], shape: tuple[int, int], both: Floats
) -> list[_Pass]:
    """Passes over rows of different length.

    Args:
        decoder: on the device under trial.
        embeds: prompt [1, S, d].
        tokens: embeddings [1, 1, d] of that of the reference, and of another one.
        shape: rows, and positions behind the prompt.
        both: logits [vocab] behind the two tokens.
    """
    rows, room = shape
    first, second = tokens
    state = decoder.open_rows(rows, embeds.shape[1] + room)
    state.join(embeds, 0)
    passes = [_Pass("decode of one row", state.advance(first)[0, 0].copy(), 1)]
    passes.append(_Pass("prefill beside a row", state.join(embeds, 1)[0].copy(), 0))
    logits = state.advance(np.concatenate([second, first]))[:, 0]
    passes += [_Pass("decode, longer row", logits[0].copy(), both), _Pass("decode, shorter row", logits[1].copy(), 1)]
    # The longer row is replaced by the shorter one, and another prompt comes behind it.
    state.reorder(np.array([1]))
    passes.append(_Pass("prefill in a used row", state.join(embeds, 1)[0].copy(), 0))
    logits = state.advance(np.concatenate([second, first]))[:, 0]
    return [
        *passes,
        _Pass("decode after a row moved", logits[0].copy(), both),
        _Pass("decode in a used row", logits[1].copy(), 1),
    ]


def _wide_passes(
    decoder: RowDecoder, embeds: Floats, tokens: tuple[Floats, Floats], shape: tuple[int, int], both: Floats
) -> list[_Pass]:
    """Passes over two positions of two rows; what each takes, as in `_row_passes`."""
    rows, room = shape
    first, second = tokens
    state = decoder.open_rows(rows, embeds.shape[1] + max(room, 4))
    state.join(embeds, 0)
    state.advance(first)
    state.join(embeds, 1)
    wide = state.advance(np.concatenate([np.concatenate(ids, axis=1) for ids in ((second, first), (first, second))]))
    passes = [
        _Pass("two positions, longer row", wide[0, 0].copy(), both),
        _Pass("two positions, first of the shorter row", wide[1, 0].copy(), 1),
        _Pass("two positions, second of the shorter row", wide[1, 1].copy(), both),
    ]
    # One row gives both back, the other one none.
    state.take_back(np.array([0, 2]))
    logits = state.advance(np.concatenate([second, first]))[1, 0]
    return [*passes, _Pass("decode after positions were taken back", logits.copy(), 1)]


def _wrong(message: str) -> R2GenError:
    return R2GenError(
        "R2G-DEVICE-UNAVAILABLE",
        f"{message}: this device does not compute what was exported",
        "--device cpu, update the driver, and report it with the output of r2gen doctor",
    )
