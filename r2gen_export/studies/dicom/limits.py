"""What reading one DICOM file may take."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Limits:
    """Bounds for one file. Detectors give up to 20 megapixels of 16 bits: 40 MB.

    Attributes:
        file_bytes: largest file that is opened.
        inflated_bytes: most that the deflated transfer syntax may expand to.
        side: most rows, and most columns.
        pixels: most rows x columns.
        memory_bytes: address space of the child process. Python, numpy, pydicom and the codecs take 0.5 GiB of it.
        seconds: wall-clock time for one file, after which the child process is ended.
    """

    file_bytes: int = 1 << 30
    inflated_bytes: int = 256 << 20
    side: int = 30_000
    pixels: int = 100_000_000
    memory_bytes: int = 3 << 30
    seconds: float = 60.0

    def as_dict(self) -> dict[str, float]:
        """For JSON."""
        return asdict(self)
