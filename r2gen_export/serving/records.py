"""What the node's queue holds: its tables, the states of a study, and the rows as other modules see them."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS studies (
    id INTEGER PRIMARY KEY, study_uid TEXT NOT NULL, revision INTEGER NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL,
    code TEXT NOT NULL DEFAULT '', reason TEXT NOT NULL DEFAULT '', attempts INTEGER NOT NULL DEFAULT 0,
    deaths INTEGER NOT NULL DEFAULT 0, conflicts INTEGER NOT NULL DEFAULT 0, too_late INTEGER NOT NULL DEFAULT 0,
    created REAL NOT NULL, changed REAL NOT NULL, purged INTEGER NOT NULL DEFAULT 0, UNIQUE (study_uid, revision)
);
CREATE TABLE IF NOT EXISTS images (
    study_uid TEXT NOT NULL, sop_uid TEXT NOT NULL, revision INTEGER NOT NULL, sha256 TEXT NOT NULL, path TEXT NOT NULL,
    bytes INTEGER NOT NULL, received REAL NOT NULL, PRIMARY KEY (study_uid, sop_uid)
);
CREATE TABLE IF NOT EXISTS results (
    id INTEGER PRIMARY KEY, study INTEGER NOT NULL REFERENCES studies, form TEXT NOT NULL, sop_class TEXT NOT NULL,
    sop_uid TEXT NOT NULL, path TEXT NOT NULL, UNIQUE (study, form)
);
CREATE TABLE IF NOT EXISTS deliveries (
    id INTEGER PRIMARY KEY, result INTEGER NOT NULL REFERENCES results, study INTEGER NOT NULL REFERENCES studies,
    destination TEXT NOT NULL, state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, due REAL NOT NULL,
    ready REAL NOT NULL, reason TEXT NOT NULL DEFAULT '', UNIQUE (result, destination)
);
CREATE INDEX IF NOT EXISTS studies_by_state ON studies (state, changed);
CREATE INDEX IF NOT EXISTS deliveries_by_state ON deliveries (destination, state, due);
CREATE INDEX IF NOT EXISTS deliveries_by_study ON deliveries (study);
PRAGMA user_version = 1;
"""


class State(StrEnum):
    """Where a study is. The last three are final, but for `r2gen node retry`."""

    received = "received"
    quiet = "quiet"
    generating = "generating"
    ready = "ready"
    sending = "sending"
    sent = "sent"
    refused = "refused"
    dead = "dead"


FINAL: Final = (State.sent, State.refused, State.dead)


class Added(StrEnum):
    """What became of an image."""

    new = "new"
    again = "again"
    conflict = "conflict"
    too_late = "too late"


@dataclass(frozen=True, repr=False)
class Image:
    """An image that is on the disk. `path` is relative to the spool; the UIDs are not for messages."""

    study_uid: str
    sop_uid: str
    sha256: str
    path: str
    bytes: int


@dataclass(frozen=True, repr=False)
class Study:
    """One report to be made: a study, or a revision of it. `name` is its keyed hash; `study_uid` is not for messages.

    `paths`: its images, relative to the spool. `earlier`: paths of the last revision's results by form.
    """

    id: int
    study_uid: str
    revision: int
    name: str
    paths: tuple[str, ...]
    earlier: dict[str, str]


@dataclass(frozen=True)
class Result:
    """A written form of a report: its SOP class and instance, and its file relative to the spool."""

    form: str
    sop_class: str
    sop_uid: str
    path: str


@dataclass(frozen=True)
class Delivery:
    """A result on its way to a destination. `ready`: when the results were stored, in seconds of the epoch."""

    id: int
    study: int
    name: str
    attempts: int
    ready: float
    result: Result
