"""Plain scripts for `--scorer`, run by the Python of another environment; they import nothing of r2gen."""
