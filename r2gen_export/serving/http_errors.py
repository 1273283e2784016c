"""Errors as answers: a status, and `{"error": {"code", "message", "fix"}}` beside the notice. Never a traceback."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from r2gen_export.errors import CodedError

STATUS: Final[Mapping[str, int]] = {
    "R2G-CONFIG-VALUE": 400,
    "R2G-DATA-EMPTY": 400,
    "R2G-DEPENDENCY-MISSING": 501,
    "R2G-DICOM-LIMIT": 413,
    "R2G-IMAGE-SIZE": 413,
    "R2G-OUTPUT-WRITE": 503,
    "R2G-RESOURCE-DISK": 503,
    "R2G-RESOURCE-MEMORY": 503,
    "R2G-DEVICE-UNAVAILABLE": 503,
    "R2G-INTERNAL": 500,
}
"""HTTP status of a code; those about the study itself, which are not listed, are 422."""


class HttpError(Exception):
    """A request that gets no report.

    Args:
        status: of HTTP.
        code: a key of `errors.CODES`.
        message, fix: as in `CodedError`; they show nothing that the client sent but names of settings.
        headers: of the answer.
    """

    def __init__(
        self, status: int, code: str, message: str, fix: str = "", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(code, message)
        self.status, self.code, self.message, self.fix = status, code, message, fix
        self.headers = dict(headers or {})

    def fields(self) -> dict[str, str]:
        """The member `error` of an answer."""
        return {"code": self.code, "message": self.message, "fix": self.fix}

    @classmethod
    def of(cls, error: CodedError) -> HttpError:
        """For a coded error."""
        return cls(STATUS.get(error.code, 422), error.code, error.message, error.fix)

    @classmethod
    def of_fields(cls, fields: Mapping[str, Any]) -> HttpError:
        """For an error that the worker process said."""
        code = str(fields["code"])
        return cls(STATUS.get(code, 422), code, str(fields["message"]), str(fields["fix"]))


def bad_body(message: str, fix: str = "see /openapi.json") -> HttpError:
    """A body that cannot be understood."""
    return HttpError(400, "R2G-HTTP-BODY", message, fix)


def too_large(message: str, fix: str = "send less, or let the service's limits be raised") -> HttpError:
    """More than the limits allow."""
    return HttpError(413, "R2G-HTTP-LIMIT", message, fix)


def busy(message: str, seconds: float) -> HttpError:
    """Come again later."""
    wait = str(max(1, round(seconds)))
    return HttpError(429, "R2G-HTTP-BUSY", message, f"try again in {wait} s", {"Retry-After": wait})


def not_ready(message: str) -> HttpError:
    """There is no process that writes reports now."""
    return HttpError(503, "R2G-HTTP-READY", message, "send the request again", {"Retry-After": "2"})


def no_path(status: int, **headers: str) -> HttpError:
    """404 or 405."""
    what = "there is no such path" if status == 404 else "this path has no such method"
    return HttpError(status, "R2G-HTTP-PATH", what, "see /openapi.json", headers)
