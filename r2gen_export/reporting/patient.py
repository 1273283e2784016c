"""The patient, study and order of an identity, as the forms that are not DICOM write them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from r2gen_export.reporting.document import printable
from r2gen_export.studies.identity import Identity


@dataclass(frozen=True, repr=False)
class PersonName:
    """A DICOM person name: its groups, each of up to five components (family, given, middle, prefix, suffix)."""

    alphabetic: tuple[str, ...] = ()
    ideographic: tuple[str, ...] = ()
    phonetic: tuple[str, ...] = ()

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """The groups that hold something."""
        return tuple(group for group in (self.alphabetic, self.ideographic, self.phonetic) if any(group))

    def shown(self) -> str:
        """For a reader: `Family, Given Middle`, other scripts behind it."""
        return " = ".join(_shown(group) for group in self.groups)


def _shown(group: Sequence[str]) -> str:
    family, given, middle, prefix, suffix = (*group, *[""] * 5)[:5]
    rest = " ".join(part for part in (prefix, given, middle, suffix) if part)
    return ", ".join(part for part in (family, rest) if part)


@dataclass(frozen=True, repr=False)
class Patient:
    """Whom and which examination a report is about; every field is empty where the images do not say it.

    Attributes:
        number, issuer: PatientID and who gave it. `issuer_oid`: the issuer's OID.
        name: PatientName.
        birth_date, study_date: YYYYMMDD. `study_time`: HHMMSS. `utc_offset`: `+0100`.
        sex: `M`, `F` or `O`.
        accession, placer: numbers of the order.
        study_uid: StudyInstanceUID.
    """

    number: str
    issuer: str
    issuer_oid: str
    name: PersonName
    birth_date: str
    sex: str
    accession: str
    placer: str
    study_uid: str
    study_date: str
    study_time: str
    utc_offset: str

    @classmethod
    def of(cls, identity: Identity) -> Patient:
        """What an identity says of them; values that are no dates or times count as not said."""
        attributes = identity.attributes
        order = _items(attributes, "00400275")  # RequestAttributesSequence
        qualifiers = _items(attributes, "00100024")
        is_oid = _text(qualifiers, "00400033") == "ISO"
        return cls(
            number=_text(attributes, "00100020"),
            issuer=_text(attributes, "00100021"),
            issuer_oid=_text(qualifiers, "00400032") if is_oid else "",
            name=_name(attributes, "00100010"),
            birth_date=_date(_text(attributes, "00100030")),
            sex=_match(r"[MFO]", _text(attributes, "00100040")),
            accession=_text(attributes, "00080050") or _text(order, "00080050"),
            placer=_text(attributes, "00402016") or _text(order, "00402016"),
            study_uid=_text(attributes, "0020000D"),
            study_date=_date(_text(attributes, "00080020")),
            study_time=_match(r"([01]\d|2[0-3])[0-5]\d[0-5]\d", _text(attributes, "00080030")[:6]),
            utc_offset=_match(r"[+-](0\d|1[0-4])[0-5]\d", _text(attributes, "00080201")),
        )

    def heading(self) -> tuple[tuple[str, str], ...]:
        """Labels and values for a page."""
        lines = (
            ("Patient", self.name.shown()),
            ("Patient ID", self.number),
            ("Born", iso_date(self.birth_date)),
            ("Sex", self.sex),
            ("Study date", iso_date(self.study_date)),
            ("Accession number", self.accession),
        )
        return tuple((label, value) for label, value in lines if value)


def iso_date(value: str) -> str:
    """`2026-01-31` for `20260131`; empty for nothing."""
    return f"{value[:4]}-{value[4:6]}-{value[6:]}" if value else ""


def _date(value: str) -> str:
    try:
        return value if re.fullmatch(r"\d{8}", value) and date.fromisoformat(iso_date(value)) else ""
    except ValueError:
        return ""


def _match(pattern: str, value: str) -> str:
    return value if re.fullmatch(pattern, value) else ""


def _values(attributes: Mapping[str, Any], tag: str) -> list[Any]:
    element = attributes.get(tag) or {}
    return list(element.get("Value") or [])


def _items(attributes: Mapping[str, Any], tag: str) -> Mapping[str, Any]:
    """The first item of a sequence, an empty one when there is none."""
    return next((item for item in _values(attributes, tag) if isinstance(item, dict)), {})


def _text(attributes: Mapping[str, Any], tag: str) -> str:
    values = _values(attributes, tag)
    value = values[0] if values else None
    return "" if value is None or isinstance(value, dict) else printable(str(value)).strip()


def _name(attributes: Mapping[str, Any], tag: str) -> PersonName:
    value = next((value for value in _values(attributes, tag) if isinstance(value, dict)), {})
    return PersonName(*(_components(value.get(group)) for group in ("Alphabetic", "Ideographic", "Phonetic")))


def _components(group: Any) -> tuple[str, ...]:
    return tuple(part.strip() for part in printable(str(group)).split("^")) if group else ()
