"""Latency measurement: what r2gen claims about speed, with the command that repeats it."""
