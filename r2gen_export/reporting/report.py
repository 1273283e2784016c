"""The result of `infer`: one frozen object per study, and its JSON and text forms."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from r2gen_export.candidates import Candidate
from r2gen_export.decoding import Decoding, Semantics

REPORT_SCHEMA: Final = "r2gen-report/1"
"""Changes its number when a field of `Report.to_dict` changes its meaning or goes."""

FAILURE_SCHEMA: Final = "r2gen-failure/1"
"""Schema of the object that stands in a study's place when it could not be reported."""

STAGES: Final = ("preprocess", "encode", "prefill", "decode", "detokenize")


@dataclass(frozen=True)
class RunnerUp:
    """The likeliest token that was not chosen at a position: its id, what it shows as, and how likely it was.

    `logprob` is the natural log of the model's own probability, as in `Report.logprobs`: above that of the chosen token
    where beam search, sampling or a penalty preferred another one.
    """

    token_id: int
    piece: str
    logprob: float


@dataclass(frozen=True)
class Report:
    """A draft report of one study.

    Attributes:
        text: the cleaned report text, never empty.
        token_ids: generated ids, up to and including the closing EOS when there is one.
        logprobs: natural log of the model's own probability of each of `token_ids`, before any penalty or filter.
        score: the beam's score in Hugging Face's scoring, None without beam search.
        finish_reason: `eos`, or `length` when max_new_tokens cut the report off.
        timings_ms: milliseconds by stage. `preprocess` (reading the images included), `encode` and `detokenize` are
            this study's own. `decode` is the sum of the decoder passes that this study took part in; each pass is of
            all studies that run at that moment, so the times of two reports may cover the same passes and must not be
            added. `prefill` is this study's own where studies enter a running batch, and that of all studies together
            where they begin together (`row_lengths` of the decoder). `total` runs from the start of reading
            this study's images (where studies begin together: the first image of any) until this report was done; it
            has what the other stages do not, while studies wait for a free row or for another's prompt. In a batch of
            one every figure is this study's own.
        decode_steps_ms: raw samples, one per pass of the decoder after the prefill; a pass is of all running studies.
        batch_size: the most studies decoded in one pass with this one, itself included.
        decoding: the settings in force, after preset and overrides.
        preset: the preset they started from.
        semantics: `hf-current` or `hf-4.30` (design, section 1).
        bundle_id: first 12 hex digits of the hash over the bundle's files; `model_id` is the manifest's name.
        execution_provider: what ran the graphs; `provider_steps` says why each faster one was not taken.
        backends: the same as records, one for each backend that was considered; `provider_steps` is their text.
        notice: research use only; goes with the text wherever it goes.
        created: when the report was done, in UTC, ISO 8601: `2026-01-31T12:00:00.000+00:00`.
        r2gen_version: the release of r2gen that made it.
        inputs: SHA-256 as hex of each view, in their order: of the bytes of the file, as they were read for this
            report, or of the bytes of the array that was given in its place.
        drafted: tokens that were proposed from earlier reports and verified; `accepted`: those the model chose too.
        passes: passes of the decoder after the prefill.
        study: number of the study in its call, counted from 1. `views`: images of the study.
        warnings: what is odd about the images ("view 2: ..."), never with the name of a file.
        pieces: the part of the text that each of `token_ids` gives, some of them empty. Together they are the text
            before it is cut at the first `</s>`, stripped and cleared of `<unk>`, which gives `text`.
        runner_up: for each of `token_ids` the likeliest other token in its place.
        name: the study's name (often a file name), only when the caller asked to keep it.
    """

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    score: float | None
    finish_reason: Literal["eos", "length"]
    timings_ms: dict[str, float]
    decode_steps_ms: tuple[float, ...]
    batch_size: int
    decoding: Decoding
    preset: str
    semantics: Semantics
    bundle_id: str
    model_id: str
    execution_provider: str
    provider_steps: tuple[str, ...]
    notice: str
    created: str
    r2gen_version: str
    inputs: tuple[str, ...]
    drafted: int = 0
    accepted: int = 0
    passes: int = 0
    study: int = 1
    views: int = 1
    warnings: tuple[str, ...] = ()
    name: str | None = None
    backends: tuple[Candidate, ...] = ()
    pieces: tuple[str, ...] = ()
    runner_up: tuple[RunnerUp, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """JSON form: `schema` and every attribute under its own name; `name` only where it is kept."""
        fields = dataclasses.asdict(self)
        if self.name is None:
            del fields["name"]
        fields["timings_ms"] = {stage: round(value, 3) for stage, value in self.timings_ms.items()}
        fields["decode_steps_ms"] = [round(value, 3) for value in self.decode_steps_ms]
        return {"schema": REPORT_SCHEMA, **fields}

    def to_text(self) -> str:
        """The report text, the warnings, the notice, with empty lines between. Ends without a line break."""
        return self.text + closing(self.warnings, self.notice)


def closing(warnings: Sequence[str], notice: str) -> str:
    """What follows the words of a report as text: the warnings, if any, and the notice, an empty line before each.

    Ends without a line break.
    """
    blocks = (warning_block(warnings), notice_block(notice))
    return "".join(f"\n\n{block}" for block in blocks if block)


def warning_block(warnings: Sequence[str]) -> str:
    """The warnings as text outputs show them, wrapped to 100 columns; empty when there are none."""
    lines = [f"WARNING {warning}" for warning in warnings]
    return "\n".join(textwrap.fill(line, 100, subsequent_indent="  ") for line in lines)


def notice_block(notice: str) -> str:
    """The notice as text outputs show it, wrapped to 100 columns behind a bar."""
    return "\n".join(f"| {line}" for line in textwrap.wrap(notice, 98))
