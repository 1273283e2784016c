"""Which engine runs a part of a bundle, and the engines themselves."""
