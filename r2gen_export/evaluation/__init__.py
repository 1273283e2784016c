"""Scores of reports against what they should say."""
