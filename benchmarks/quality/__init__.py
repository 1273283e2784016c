"""What a reduced precision costs in words and findings."""
