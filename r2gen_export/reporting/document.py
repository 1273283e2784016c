"""What every written form says of a report beside its words, and the identifiers that follow from its content."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import uuid
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from r2gen_export.bundle import DEMO_NOTICE
from r2gen_export.reporting.predecessor import Predecessor
from r2gen_export.reporting.report import Report
from r2gen_export.reporting.source import Source
from r2gen_export.studies.identity import Identity

TITLE: Final = "Draft report, AI-generated, not verified"

NAMESPACE: Final = uuid.UUID("6b3c1f0e-5a0d-5c86-9c55-5f0f6f1d9a41")
"""Of the name-based UUIDs (RFC 9562, version 5) behind all UIDs of our documents; it must never change."""

CONTROL: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff]")


@dataclass(frozen=True, repr=False)
class Document:
    """A report on its way into a written form.

    Attributes:
        form: name of the form, which goes into the identifiers: the same report as SR and as PDF is two instances.
        study_uid: StudyInstanceUID, empty when the images did not come from DICOM files.
        replaces: the earlier result of the same study.
    """

    form: str
    report: Report
    source: Source
    study_uid: str = ""
    replaces: Predecessor | None = None

    @property
    def identity(self) -> Identity:
        """The study's identity, an empty one when there is none."""
        return self.source.identity or Identity()

    @property
    def text(self) -> str:
        """The report text without characters that the written forms cannot hold."""
        return printable(self.report.text)

    @property
    def remarks(self) -> tuple[str, ...]:
        """The warnings, whether the report was cut off, and views that it cannot refer to; a sentence each."""
        warnings = [f"WARNING {printable(warning)}" for warning in self.report.warnings]
        if self.report.finish_reason == "length":
            warnings.append(f"WARNING the text was cut off after {len(self.report.token_ids)} tokens")
        missing = self.report.views - len(self.identity.images)
        if self.source.identity is not None and missing > 0:
            are, them = ("is no DICOM image", "it") if missing == 1 else ("are no DICOM images", "them")
            which = f"{missing} of {self.report.views} views"
            warnings.append(f"WARNING {which} {are}, and the report does not refer to {them}")
        return tuple(warnings)

    @property
    def notice(self) -> str:
        """The notice, which is the first thing a reader of any form sees."""
        return printable(self.report.notice)

    @property
    def synthetic(self) -> bool:
        """Whether the model was trained on phantoms only."""
        return DEMO_NOTICE in self.report.notice

    @property
    def software(self) -> str:
        """`r2gen 0.1.0`."""
        return f"r2gen {self.report.r2gen_version}"

    @property
    def settings(self) -> str:
        """What decided the words: preset, semantics, backend and decoding settings, as one line."""
        report = self.report
        decoding = " ".join(f"{name}={value}" for name, value in dataclasses.asdict(report.decoding).items())
        return f"preset={report.preset} semantics={report.semantics} backend={report.execution_provider} {decoding}"

    @property
    def revision(self) -> int:
        """InstanceNumber: 1, or the number after the predecessor's."""
        return 1 if self.replaces is None else self.replaces.instance_number + 1

    def created(self) -> datetime:
        """When the report was done, in the study's time zone where that is known, else in this machine's."""
        moment = datetime.fromisoformat(self.report.created)
        values = self.identity.attributes.get("00080201", {}).get("Value") or [""]
        if re.fullmatch(r"[+-](0\d|1[0-4])[0-5]\d", str(values[0]).strip()):
            return moment.astimezone(datetime.strptime(str(values[0]).strip(), "%z").tzinfo)
        return moment.astimezone()

    def content_hash(self) -> str:
        """64 hex digits over everything the document says but its date and time.

        Two identical calls give equal digits. A study that was read or decoded in another way gives others, also where
        only the words differ (a seed that was drawn, another backend): an archive keeps the first of two instances
        with one UID, whatever the second holds.
        """
        report, images = self.report, sorted(image.sop_instance_uid for image in self.identity.images)
        said = [report.text, *self.remarks, report.notice, report.model_id, report.r2gen_version, self.settings]
        made_from = [self.source.bundle_sha256, list(report.inputs), images]
        earlier = self.replaces.sop_instance_uid if self.replaces else ""
        whole = json.dumps([self.form, self.study_uid, said, made_from, earlier])
        return hashlib.sha256(whole.encode()).hexdigest()

    def instance_uid(self) -> str:
        """SOPInstanceUID of the document."""
        return derived_uid("instance", self.content_hash())

    def series_uid(self) -> str:
        """SeriesInstanceUID: one series for each study, form, release and bundle, so that revisions share it."""
        bundle = self.source.bundle_sha256
        return derived_uid("series", self.form, self.study_uid, self.report.r2gen_version, self.report.model_id, bundle)

    def device_uid(self) -> str:
        """UID of what observed: the bundle."""
        return derived_uid("device", self.source.bundle_sha256)

    def number(self) -> str:
        """A number of our own for all results of a study: 24 hex digits that are not the order's, nor its accession."""
        return hashlib.sha256(f"r2gen {self.study_uid}".encode()).hexdigest()[:24]


def derived_uid(*parts: str) -> str:
    """A UID under 2.25 (PS3.5 annex B.2) that is equal for equal parts."""
    return f"2.25.{uuid.uuid5(NAMESPACE, json.dumps(parts)).int}"


def printable(text: str) -> str:
    """Text without control characters but tab and line break, and without halves of surrogate pairs.

    A character that cannot be written becomes U+FFFD: a reader sees that something stood there.
    """
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return CONTROL.sub("\ufffd", whole.replace("\r\n", "\n").replace("\r", "\n"))
