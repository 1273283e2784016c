"""The project's own performance suite: `python -m benchmarks.suite`."""
