"""A report and its written forms."""
