"""A report as the pipeline gives it."""

from __future__ import annotations

from r2gen_export.bundle import DEMO_NOTICE, NOTICE
from r2gen_export.decoding import Decoding
from r2gen_export.reporting.report import STAGES, Report

REPORT = Report(
    text="the lungs are clear .",
    token_ids=(5, 6, 2),
    logprobs=(-0.5, -0.25, -1.0),
    score=None,
    finish_reason="eos",
    timings_ms={**dict.fromkeys(STAGES, 1.23456), "total": 6.1},
    decode_steps_ms=(0.12345, 0.2),
    batch_size=1,
    decoding=Decoding(num_beams=1),
    preset="fast",
    semantics="hf-current",
    bundle_id="0123456789ab",
    model_id="tiny",
    execution_provider="CPUExecutionProvider",
    provider_steps=("CPU: taken",),
    notice=f"{NOTICE} {DEMO_NOTICE}",
    created="2026-01-31T12:00:00.000+00:00",
    r2gen_version="0.1.0",
    inputs=("0" * 64,),
)
