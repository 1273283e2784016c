"""Bundle to report: images, sessions, generation, report. Imports neither torch nor transformers nor optimum."""
