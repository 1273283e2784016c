"""Settings of a request, from fields of a form, which are text, or members of a JSON object; checked, or refused by
name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from r2gen_export.bundle import Manifest
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.decoding.generate import check_decoding
from r2gen_export.runtime.settings import FIELDS, Settings, resolve_settings
from r2gen_export.serving.http_preview import PICTURE

JSON: Final = "json"
TEXT: Final = "text"
STREAM: Final = "stream"
READING: Final = ("force", "polarity")
OTHERS: Final = ("preset", "semantics", *READING, "format")
BOOLEANS: Final = {"true": True, "false": False}

MEDIA: Final[Mapping[str, str]] = {
    "sr": "application/dicom",
    "dicom-pdf": "application/dicom",
    "kos": "application/dicom",
    "pdf": "application/pdf",
    "fhir": "application/fhir+json",
    "fhir-r5": "application/fhir+json",
    "hl7": "application/hl7-v2",
    TEXT: "text/plain; charset=utf-8",
    JSON: "application/json",
    STREAM: "text/event-stream",
}
"""Media type of each form of an answer."""

_WHOLE: Final = ("num_beams", "min_new_tokens", "max_new_tokens", "no_repeat_ngram_size", "top_k", "seed")
_NUMBERS: Final = ("repetition_penalty", "length_penalty", "temperature", "top_p")
# As JSON writes them; Python's own conversions also take digits of other scripts and underscores.
_WHOLE_TEXT: Final = re.compile(r"-?[0-9]{1,19}")
_NUMBER_TEXT: Final = re.compile(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][-+]?[0-9]{1,3})?")


@dataclass(frozen=True)
class ReportRequest:
    """What a client wants: how to decode, how to read DICOM files, and the form of the answer (a key of `MEDIA`)."""

    settings: Settings
    form: str
    force: bool = False
    polarity: str = "auto"

    def told(self) -> dict[str, Any]:
        """For the worker."""
        return {
            "decoding": asdict(self.settings.decoding),
            "preset": self.settings.preset,
            "semantics": self.settings.semantics,
            "force": self.force,
            "polarity": self.polarity,
            "form": self.form,
        }


@dataclass(frozen=True)
class PictureRequest:
    """What a client wants of a picture: how to read DICOM files."""

    force: bool = False
    polarity: str = "auto"
    form: str = PICTURE

    def told(self) -> dict[str, Any]:
        """For the worker."""
        return asdict(self)


@dataclass(frozen=True)
class Most:
    """Largest reports this service writes."""

    beams: int
    tokens: int

    @classmethod
    def of(cls, manifest: Manifest, beams: int | None, tokens: int | None) -> Most:
        """The limits given, else the largest of the bundle's presets."""
        presets = manifest.presets.values()
        return cls(
            beams or max(preset.num_beams for preset in presets),
            tokens or max(preset.max_new_tokens for preset in presets),
        )


def parse_request(manifest: Manifest, most: Most, fields: Mapping[str, Any], form: str) -> ReportRequest:
    """The request that fields say.

    Args:
        manifest: of the bundle.
        most: what the service allows.
        fields: of a form (text) or of a JSON object, where null counts as not given.
        form: of the answer, unless the field `format` says another.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`, naming the setting.
    """
    _check_known(fields, (*sorted(FIELDS), *OTHERS))
    fields = {name: value for name, value in fields.items() if value is not None}
    overrides = {name: _value(name, value) for name, value in fields.items() if name in FIELDS}
    preset, semantics = (_choice(fields, name) for name in ("preset", "semantics"))
    if preset is not None and preset not in manifest.presets:
        raise _wrong("preset is none of this bundle's", f"choose one of {', '.join(sorted(manifest.presets))}")
    settings = resolve_settings(manifest, preset=preset, semantics=semantics, overrides=overrides)
    check_decoding(settings.decoding)
    _check_most(settings, most)
    given = _choice(fields, "format")
    form = form if given is None else given
    if form not in MEDIA:
        raise _wrong("format is none of this service's", f"choose one of {', '.join(MEDIA)}")
    return ReportRequest(settings, form, *_reading(fields))


def parse_picture(fields: Mapping[str, Any]) -> PictureRequest:
    """The request for a picture that fields say.

    Args:
        fields: of a form (text) or of a JSON object.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE`, naming the setting.
    """
    _check_known(fields, READING)
    return PictureRequest(*_reading({name: value for name, value in fields.items() if value is not None}))


def form_of(accept: str, query: str | None) -> str:
    """The form of an answer by the Accept header and the query's `format`.

    Raises:
        R2GenError: `R2G-CONFIG-VALUE` when neither is one of this service's.
    """
    if query is not None:
        if query not in MEDIA:
            raise _wrong("format is none of this service's", f"choose one of {', '.join(MEDIA)}")
        return query
    kinds = [part.partition(";")[0].strip().lower() for part in accept.split(",")]
    by_kind = {kind.partition(";")[0]: form for form, kind in reversed(list(MEDIA.items()))}
    for kind in kinds:
        if kind in ("", "*/*", "application/*"):
            return JSON
        if kind in by_kind:
            return by_kind[kind]
    raise _wrong("the Accept header names no form of this service", f"one of {', '.join(by_kind)}")


def _check_known(fields: Mapping[str, Any], known: Sequence[str]) -> None:
    if unknown := [name for name in fields if name not in known]:
        names = ", ".join(repr(name[:40]) for name in unknown[:5])
        raise _wrong(f"no setting {names}", f"known: {', '.join(known)}")


def _reading(fields: Mapping[str, Any]) -> tuple[bool, str]:
    """`force` and `polarity`."""
    polarity = _choice(fields, "polarity") or "auto"
    if polarity not in ("auto", "shape", "photometric"):
        raise _wrong("polarity is unknown", "choose one of auto, shape, photometric")
    force = fields.get("force", False)
    force = BOOLEANS.get(force, force) if isinstance(force, str) else force
    if not isinstance(force, bool):
        raise _wrong("force is neither true nor false", "give true or false")
    return force, polarity


def _check_most(settings: Settings, most: Most) -> None:
    decoding = settings.decoding
    if decoding.max_new_tokens > most.tokens:
        raise _wrong(f"max_new_tokens {decoding.max_new_tokens}", f"this service writes at most {most.tokens} tokens")
    if decoding.num_beams > most.beams:
        raise _wrong(f"num_beams {decoding.num_beams}", f"this service takes at most {most.beams} beams")


def _choice(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and (not isinstance(value, str) or not value):
        raise _wrong(f"{name} is empty or no text", "see /openapi.json")
    return value


def _value(name: str, value: Any) -> Any:
    """A decoding setting, converted where it came as text."""
    if name in _WHOLE:
        if isinstance(value, str) and _WHOLE_TEXT.fullmatch(value):
            value = int(value)
        if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 1 << 63:
            raise _wrong(f"{name} is no whole number", "see /openapi.json")
        return value
    if name in _NUMBERS:
        if isinstance(value, str) and _NUMBER_TEXT.fullmatch(value):
            value = float(value)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > 1e30:
            raise _wrong(f"{name} is no number", "see /openapi.json")
        return float(value)
    value = BOOLEANS.get(value, value) if isinstance(value, str) else value
    if not isinstance(value, bool) and not (name == "early_stopping" and value == "never"):
        raise _wrong(f"{name} is neither true nor false", "see /openapi.json")
    return value


def _wrong(message: str, fix: str) -> R2GenError:
    return R2GenError("R2G-CONFIG-VALUE", message, fix)
