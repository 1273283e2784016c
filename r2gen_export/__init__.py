"""r2gen: an R2GenGPT model from PyTorch to a hospital GPU workstation. Research use only."""

__version__ = "0.1.0"
