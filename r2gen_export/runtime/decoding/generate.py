"""The decode loop: greedy search and sampling here, beam search in `beam.py`; one loop for every backend.

Token ids equal those of `generate(inputs_embeds=...)` in transformers 4.57 (semantics `hf-current`) and 4.30.2
(`hf-4.30`). Sampling draws from the same distribution, with numpy's random numbers instead of torch's.
"""

from __future__ import annotations

import math
from collections.abc import Generator
from time import perf_counter
from typing import Final

import numpy as np
from numpy.typing import NDArray

from r2gen_export.decoding import Decoding, Semantics
from r2gen_export.errors import InternalError, R2GenError
from r2gen_export.interfaces import Decoder, Embeddings
from r2gen_export.runtime.decoding.batch_studies import GreedyStudy, Request, choose_greedy
from r2gen_export.runtime.decoding.beam import beam_search
from r2gen_export.runtime.decoding.sequence import OnToken, Sequence, TokenEvent, drain
from r2gen_export.runtime.decoding.speculative import drafted_steps
from r2gen_export.runtime.drafting.drafter import Drafter

__all__ = ["OnToken", "Sequence", "TokenEvent", "check_decoding", "generate", "generate_steps"]

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

MOST_BEAMS: Final = 64

LARGEST_LOG: Final = 80.0
"""Natural logarithm of the largest length^length_penalty; float32 ends at 88."""

LARGEST_FACTOR: Final = 1e15
"""By which one setting divides or multiplies scores: two of them on scores of 1e4 stay within float32."""


def generate(
    decoder: Decoder,
    embed_tokens: Embeddings,
    prompt_embeds: Floats,
    decoding: Decoding,
    *,
    bos_token_id: int,
    eos_token_id: int,
    semantics: Semantics = "hf-current",
    drafter: Drafter | None = None,
    on_token: OnToken | None = None,
) -> list[Sequence]:
    """`generate_steps`, run to its end.

    Args:
        on_token: called for each token. What it raises ends the generation.

    Returns:
        B sequences, in the order of the prompts.

    Raises:
        R2GenError: what `generate_steps` raises.
    """
    steps = generate_steps(
        decoder,
        embed_tokens,
        prompt_embeds,
        decoding,
        bos_token_id=bos_token_id,
        eos_token_id=eos_token_id,
        semantics=semantics,
        drafter=drafter,
    )
    return drain(steps, on_token)


def generate_steps(
    decoder: Decoder,
    embed_tokens: Embeddings,
    prompt_embeds: Floats,
    decoding: Decoding,
    *,
    bos_token_id: int,
    eos_token_id: int,
    semantics: Semantics = "hf-current",
    drafter: Drafter | None = None,
) -> Generator[TokenEvent, None, list[Sequence]]:
    """Generate one sequence for each prompt, token by token. What a row gets does not depend on the other rows.

    Closing the generator ends the generation and frees the KV cache.

    Args:
        decoder: prefills prompts, then decodes position by position.
        embed_tokens: embeddings of generated ids.
        prompt_embeds: [B, S, d] float32.
        decoding: settings. In sampling every row draws its own random numbers from `seed`.
        bos_token_id: what transformers 4.30 starts from beside the prompt; `hf-current` does not use it.
        eos_token_id: ends a sequence.
        semantics: which transformers release's arithmetic.
        drafter: drafts for a single prompt without beams (see `speculative.py`).

    Yields:
        Each token as soon as it is certain: at every step, with beam search all of them at the end.

    Returns:
        B sequences, in the order of the prompts.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` (see `check_decoding`), `R2G-GENERATE-NONFINITE`.
    """
    check_decoding(decoding)
    if prompt_embeds.ndim != 3 or 0 in prompt_embeds.shape:
        raise InternalError(f"prompt embeddings of shape {list(prompt_embeds.shape)}, expected [B, S, d] without zeros")
    if decoding.num_beams == 1:
        special = {"bos": bos_token_id, "eos": eos_token_id}
        studies = [
            GreedyStudy(row, Request(prompt[None], decoding, semantics), np.array([row]), **special)
            for row, prompt in enumerate(prompt_embeds)
        ]
        if drafter is not None and len(studies) == 1:
            return [(yield from drafted_steps(decoder, embed_tokens, prompt_embeds, studies[0], drafter))]
        return (yield from _step_by_step(decoder, embed_tokens, prompt_embeds, studies))
    dummy_bos = bos_token_id if semantics == "hf-4.30" else None
    sequences = beam_search(
        decoder, embed_tokens, prompt_embeds, decoding, eos_token_id=eos_token_id, dummy_bos=dummy_bos
    )
    for row, sequence in enumerate(sequences):
        for step, (token_id, logprob) in enumerate(zip(sequence.token_ids, sequence.logprobs, strict=True)):
            yield TokenEvent(row, token_id, logprob, step)
    return sequences


def check_decoding(decoding: Decoding) -> None:
    """Refuse settings out of range or against each other.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`, naming the setting.
    """
    one = decoding
    least = {"num_beams": 1, "min_new_tokens": 0, "max_new_tokens": 1, "no_repeat_ngram_size": 0, "top_k": 0}
    for name, bound in least.items():
        value = getattr(one, name)
        if not isinstance(value, int) or isinstance(value, bool) or value < bound:
            raise _wrong(f"{name} {value!r}", f"give a whole number, {bound} or more")
    if one.num_beams > MOST_BEAMS:
        raise _wrong(f"num_beams {one.num_beams}, which needs as many copies of the KV cache", f"at most {MOST_BEAMS}")
    if one.min_new_tokens > one.max_new_tokens:
        message = f"min_new_tokens {one.min_new_tokens} is above max_new_tokens {one.max_new_tokens}"
        raise _wrong(message, "lower one or raise the other")
    for name in ("repetition_penalty", "temperature"):
        value = getattr(one, name)
        if not (_is_finite(value) and 1 / LARGEST_FACTOR <= value <= LARGEST_FACTOR):
            raise _wrong(f"{name} {value!r}", f"give a number from {1 / LARGEST_FACTOR:g} to {LARGEST_FACTOR:g}")
    if not _is_finite(one.length_penalty):
        raise _wrong(f"length_penalty {one.length_penalty!r}", "give a number")
    if abs(one.length_penalty) * math.log(one.max_new_tokens + 1) > LARGEST_LOG:
        raise _wrong(f"length_penalty {one.length_penalty!r} leaves the range of float32", "give one nearer to 0")
    if not (_is_finite(one.top_p) and 0 <= one.top_p <= 1):
        raise _wrong(f"top_p {one.top_p!r}", "give a number from 0 to 1")
    early = one.early_stopping
    if early is not True and early is not False and early != "never":
        raise _wrong(f"early_stopping {early!r}", 'give true, false or "never"')
    if one.seed is not None and (not isinstance(one.seed, int) or one.seed < 0):
        raise _wrong(f"seed {one.seed!r}", "give a whole number, 0 or more")
    if one.do_sample and one.num_beams != 1:
        raise _wrong(f"sampling with num_beams {one.num_beams}", "sample with --num-beams 1")


def _step_by_step(
    decoder: Decoder, embed_tokens: Embeddings, prompt_embeds: Floats, studies: list[GreedyStudy]
) -> Generator[TokenEvent, None, list[Sequence]]:
    """Greedy search and sampling (`GenerationMixin._sample`); rows leave the batch when they end."""
    running = studies
    started = perf_counter()
    state = decoder.prefill(prompt_embeds, studies[0].left)
    prefill_ms = (perf_counter() - started) * 1000
    for study in studies:
        study.prefill_ms = prefill_ms
    while True:
        started = perf_counter()
        events = choose_greedy(running, state.logits)
        choosing = perf_counter() - started
        yield from events
        started = perf_counter() - choosing  # what the caller does with a token is not decoding
        going = [row for row, study in enumerate(running) if not study.done]
        if not going:
            return [study.sequence() for study in studies]
        if len(going) < len(running):
            running = [running[row] for row in going]
            state.reorder(np.array(going))
        state.decode(embed_tokens.lookup(np.concatenate([study.tokens[:, -1:] for study in running])))
        elapsed = (perf_counter() - started) * 1000
        for study in running:
            study.passes.append(elapsed)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _wrong(message: str, fix: str) -> R2GenError:
    return R2GenError("R2G-CONFIG-VALUE", message, fix)
