"""Latency measurement: what r2gen claims about speed, with the command that repeats it."""

import r2gen_export.errors  # noqa: F401  its package turns the telemetry of libraries off before they are imported
