"""A record for each backend that was considered for a part of a bundle, and the one function that puts it into words.

Records are made where the decision is taken (`runtime/backends`, `trt_engines/select`) and kept in every report. The
text is for people: code reads the fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Literal, get_args

GraphPart = Literal["vision", "decoder"]
PARTS: Final[tuple[GraphPart, ...]] = get_args(GraphPart)
"""Parts of a bundle that a backend runs."""

Part = Literal["all", "vision", "decoder"]

ENGINE: Final = "TensorRT engine"
"""Name of the candidate that is an engine built of the bundle."""


class Reason(StrEnum):
    """Why a candidate was taken, or was not."""

    requested = "requested"
    fastest_usable = "fastest-usable"
    measured_faster = "measured-faster"
    measured_slower = "measured-slower"
    trial_passed = "trial-passed"
    not_requested = "not-requested"
    not_measured = "not-measured"
    not_built = "not-built"
    not_installed = "not-installed"
    no_gpu = "no-gpu"
    old_driver = "old-driver"
    other_target = "other-target"
    unreadable = "unreadable"
    unsupported = "unsupported"
    does_not_load = "does-not-load"
    out_of_memory = "out-of-memory"
    not_exact = "not-exact"


@dataclass(frozen=True)
class Obstacle:
    """Why a backend cannot be used here: a code, the same in words, and the command that mends it, if one does."""

    reason: Reason
    message: str
    fix: str = ""


@dataclass(frozen=True)
class Candidate:
    """One backend that was considered.

    Attributes:
        name: of the backend, like `CUDA`.
        part: of the bundle it was considered for.
        taken: whether it runs that part.
        reason: why, as a code.
        message: why, in words; may be empty where the code says enough.
        fix: the command that makes it usable, empty where there is none. A bundle's folder is written `BUNDLE`.
    """

    name: str
    part: Part
    taken: bool
    reason: Reason
    message: str = ""
    fix: str = ""

    @classmethod
    def refused(cls, name: str, part: Part, obstacle: Obstacle) -> Candidate:
        """A candidate that an obstacle keeps from being taken."""
        return cls(name, part, False, obstacle.reason, obstacle.message, obstacle.fix)

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Candidate:
        """The record of its JSON form (`dataclasses.asdict`).

        Raises:
            TypeError, ValueError: when it is not one.
        """
        return cls(**{**fields, "reason": Reason(fields["reason"])})


def render(candidate: Candidate) -> str:
    """A record as one line: "CUDA: not taken, cuDNN 9 is not installed (pip install 'r2gen[cuda]')"."""
    taken = "taken" if candidate.taken else "not taken"
    part = "" if candidate.part == "all" else f" for the {candidate.part}"
    message = f", {candidate.message}" if candidate.message else ""
    fix = f" ({candidate.fix})" if candidate.fix else ""
    return f"{candidate.name}: {taken}{part}{message}{fix}"
