"""One module per command: its options, help and rendering, around one call of the library."""
