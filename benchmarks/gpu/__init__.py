"""The GPU check: everything r2gen does on an NVIDIA GPU, measured in one command."""
