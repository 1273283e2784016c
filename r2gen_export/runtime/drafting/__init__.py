"""Speculative decoding from n-grams of earlier reports: tokens as without, sooner."""
