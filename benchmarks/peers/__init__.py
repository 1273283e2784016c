"""r2gen beside other engines on one random-weight LLaMA: `python -m benchmarks.peers`."""
