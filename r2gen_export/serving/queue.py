"""The node's queue: one SQLite database, in which every step is committed to the disk before the next one begins.

WAL with `synchronous = FULL`: a commit is on the disk when it returns (4 ms); with NORMAL a power cut would take the
last ones, after 0x0000 was answered for them.
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from r2gen_export.errors import R2GenError, cause_of
from r2gen_export.serving.records import FINAL, SCHEMA, Added, Delivery, Image, Result, State, Study

MOST_REVISIONS: Final = 3
"""Reports of one study: late images make a further one, up to this number."""

MOST_DEATHS: Final = 2
"""How often the process that makes reports may die of one study."""

MOST_ATTEMPTS: Final = 5
"""How often a study may be begun at all: the node itself can be killed for other reasons, a power cut for one."""


class Queue:
    """The queue. Safe to use from all threads of a node; other processes may read and retry meanwhile."""

    def __init__(self, path: Path, pseudonym: Any) -> None:
        """Open the database, and make it when it is not there.

        Args:
            path: the database.
            pseudonym: from a UID to the name by which outputs call the study.

        Raises:
            R2GenError: `R2G-NODE-SPOOL`.
        """
        self._pseudonym = pseudonym
        self._lock = threading.RLock()
        try:
            self._db = sqlite3.connect(path, timeout=30, isolation_level=None, check_same_thread=False)
            path.chmod(0o600)
            self._db.row_factory = sqlite3.Row
            for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
                self._db.execute(f"PRAGMA {pragma}")
            self._db.executescript(SCHEMA)
        except (sqlite3.Error, OSError) as error:
            message = f"the spool's queue cannot be opened: {cause_of(error)}"
            raise R2GenError("R2G-NODE-SPOOL", message, "check the disk, or name another --spool") from error

    def close(self) -> None:
        """Close the database."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A transaction that is on the disk when the block has ended, or did not happen."""
        with self._lock:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield self._db
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")

    def rows(self, query: str, *values: object) -> list[sqlite3.Row]:
        """Rows of a query, for reading only."""
        with self._lock:
            return self._db.execute(query, values).fetchall()

    # Receiving

    def image_sha256(self, study_uid: str, sop_uid: str) -> str | None:
        """The hash of an image that is there already."""
        rows = self.rows("SELECT sha256 FROM images WHERE study_uid = ? AND sop_uid = ?", study_uid, sop_uid)
        return str(rows[0]["sha256"]) if rows else None

    def add_image(self, image: Image) -> Added:
        """Enter an image, which makes its study wait for the quiet time again, or begins a revision of it.

        The first bytes under a UID stay: others are counted as a conflict. After `MOST_REVISIONS` an image is entered,
        counted, and reported by nobody.
        """
        now = time.time()
        with self._transaction() as db:
            latest = db.execute(
                "SELECT * FROM studies WHERE study_uid = ? ORDER BY revision DESC LIMIT 1", (image.study_uid,)
            ).fetchone()
            before = self.image_sha256(image.study_uid, image.sop_uid)
            if before is not None:
                if before == image.sha256:
                    return Added.again
                db.execute("UPDATE studies SET conflicts = conflicts + 1 WHERE id = ?", (latest["id"],))
                return Added.conflict
            if latest is None:
                revision = self._insert_study(db, image.study_uid, 1, now)
            elif latest["state"] in (State.received, State.quiet):
                revision = latest["revision"]
                db.execute("UPDATE studies SET state = 'received', changed = ? WHERE id = ?", (now, latest["id"]))
            elif latest["revision"] < MOST_REVISIONS:
                revision = self._insert_study(db, image.study_uid, latest["revision"] + 1, now)
            else:
                revision = latest["revision"] + 1
                db.execute("UPDATE studies SET too_late = too_late + 1 WHERE id = ?", (latest["id"],))
            db.execute(
                "INSERT INTO images VALUES (?, ?, ?, ?, ?, ?, ?)",
                (image.study_uid, image.sop_uid, revision, image.sha256, image.path, image.bytes, now),
            )
        return Added.too_late if revision > MOST_REVISIONS else Added.new

    def _insert_study(self, db: sqlite3.Connection, study_uid: str, revision: int, now: float) -> int:
        db.execute(
            "INSERT INTO studies (study_uid, revision, name, state, created, changed) VALUES (?, ?, ?, ?, ?, ?)",
            (study_uid, revision, self._pseudonym(study_uid), State.received, now, now),
        )
        return revision

    # Generating

    def recover(self) -> int:
        """At the start of a node: put back what its predecessor was generating, and give open studies a quiet time.

        Whoever was cut off while sending sends again, and its images must not make a second revision.

        Returns:
            How many studies were being generated.
        """
        now = time.time()
        with self._transaction() as db:
            db.execute("UPDATE studies SET changed = ? WHERE state = 'received'", (now,))
            begun = db.execute("UPDATE studies SET state = 'quiet' WHERE state = 'generating'").rowcount
            _refuse_poison(db)
        return begun

    def close_quiet(self, close_after: float) -> int:
        """Close studies without a new image for `close_after` seconds. A clock that was set back closes them too."""
        now = time.time()
        with self._lock:
            due = "state = 'received' AND abs(? - changed) >= ?"
            if not self.rows(f"SELECT 1 FROM studies WHERE {due} LIMIT 1", now, close_after):
                return 0
            with self._transaction() as db:
                return db.execute(f"UPDATE studies SET state = 'quiet' WHERE {due}", (now, close_after)).rowcount

    def claim(self) -> Study | None:
        """The study that waits longest, now `generating`: the attempt is counted on the disk before it is made."""
        with self._lock:
            if not self.rows("SELECT 1 FROM studies WHERE state = 'quiet' LIMIT 1"):
                return None
            with self._transaction() as db:
                row = db.execute("SELECT * FROM studies WHERE state = 'quiet' ORDER BY changed, id LIMIT 1").fetchone()
                change = "UPDATE studies SET state = 'generating', attempts = attempts + 1 WHERE id = ?"
                db.execute(change, (row["id"],))
        uid, revision = row["study_uid"], row["revision"]
        images = self.rows(
            "SELECT path FROM images WHERE study_uid = ? AND revision <= ? ORDER BY received, sop_uid", uid, revision
        )
        # The last revision that has results: one that was refused has none to be replaced.
        earlier = self.rows(
            "SELECT form, path FROM results WHERE study = (SELECT max(s.id) FROM studies s JOIN results r ON r.study = "
            "s.id WHERE s.study_uid = ? AND s.revision < ?)",
            uid,
            revision,
        )
        paths = tuple(image["path"] for image in images)
        return Study(row["id"], uid, revision, row["name"], paths, {at["form"]: at["path"] for at in earlier})

    def put_back(self, study: Study) -> None:
        """A study whose report was stopped on purpose; the attempt does not count."""
        with self._transaction() as db:
            db.execute("UPDATE studies SET state = 'quiet', attempts = attempts - 1 WHERE id = ?", (study.id,))

    def release(self) -> None:
        """Put back whatever is `generating`, for the one thread that reports, when it does not know how a step ended.

        The queue itself may have failed (a full disk), so that nothing else could be written about the study.
        """
        with self._transaction() as db:
            db.execute("UPDATE studies SET state = 'quiet', attempts = attempts - 1 WHERE state = 'generating'")

    def died(self, study: Study) -> bool:
        """The process that makes reports died of this study. True: it is tried again; False: it is refused now."""
        with self._transaction() as db:
            db.execute("UPDATE studies SET state = 'quiet', deaths = deaths + 1 WHERE id = ?", (study.id,))
            return not _refuse_poison(db)

    def refuse(self, study: Study, code: str, reason: str) -> None:
        """No report is made of a study, for this reason, which names no patient."""
        with self._transaction() as db:
            change = "UPDATE studies SET state = 'refused', code = ?, reason = ?, changed = ? WHERE id = ?"
            db.execute(change, (code, reason, time.time(), study.id))

    def finish(self, study: Study, results: Sequence[Result], destinations: Sequence[str]) -> None:
        """Enter results, whose files are on the disk, and their deliveries: in one transaction, before any is sent."""
        now = time.time()
        with self._transaction() as db:
            for result in results:
                row = db.execute(
                    "INSERT INTO results (study, form, sop_class, sop_uid, path) VALUES (?, ?, ?, ?, ?)",
                    (study.id, result.form, result.sop_class, result.sop_uid, result.path),
                ).lastrowid
                for name in destinations:
                    db.execute(
                        "INSERT INTO deliveries (result, study, destination, state, due, ready) "
                        "VALUES (?, ?, ?, 'waiting', ?, ?)",
                        (row, study.id, name, now, now),
                    )
            db.execute("UPDATE studies SET state = 'ready', changed = ? WHERE id = ?", (now, study.id))

    # Sending

    def due(self, destination: str) -> list[Delivery]:
        """What a destination is to be sent now: the results of the study that is due longest."""
        now = time.time()
        columns = "d.id, d.study, s.name, d.attempts, d.ready, r.form, r.sop_class, r.sop_uid, r.path"
        tables = "deliveries d JOIN results r ON r.id = d.result JOIN studies s ON s.id = d.study"
        waiting = "destination = ? AND state = 'waiting' AND due <= ?"
        rows = self.rows(
            f"SELECT {columns} FROM {tables} WHERE d.destination = ? AND d.state = 'waiting' AND d.due <= ? AND "
            f"d.study = (SELECT study FROM deliveries WHERE {waiting} ORDER BY due, id LIMIT 1) ORDER BY d.id",
            destination, now, destination, now,
        )  # fmt: skip
        return [
            Delivery(row["id"], row["study"], row["name"], row["attempts"], row["ready"],
                     Result(row["form"], row["sop_class"], row["sop_uid"], row["path"]))
            for row in rows
        ]  # fmt: skip

    def begin_sending(self, deliveries: Sequence[Delivery]) -> None:
        """Count an attempt for each."""
        with self._transaction() as db:
            for delivery in deliveries:
                db.execute("UPDATE deliveries SET attempts = attempts + 1 WHERE id = ?", (delivery.id,))
                db.execute("UPDATE studies SET state = 'sending' WHERE id = ? AND state = 'ready'", (delivery.study,))

    def sent(self, delivery: Delivery, remark: str = "") -> None:
        """The destination answered success."""
        self._settle(delivery, "sent", remark)

    def give_up(self, delivery: Delivery, reason: str) -> None:
        """A dead letter: nothing more is tried until `r2gen node retry`."""
        self._settle(delivery, "dead", reason)

    def try_later(self, delivery: Delivery, reason: str, seconds: float) -> None:
        """It failed, and is due again in so many seconds."""
        with self._transaction() as db:
            change = "UPDATE deliveries SET due = ?, reason = ? WHERE id = ?"
            db.execute(change, (time.time() + seconds, reason, delivery.id))

    def _settle(self, delivery: Delivery, state: str, reason: str) -> None:
        with self._transaction() as db:
            db.execute("UPDATE deliveries SET state = ?, reason = ? WHERE id = ?", (state, reason, delivery.id))
            _settle_study(db, delivery.study)

    def drop_destinations(self, current: Sequence[str]) -> int:
        """Give up what waits for destinations that the node no longer has. Returns how many deliveries."""
        reason = "the node no longer has this destination"
        marks = ", ".join("?" * len(current))
        with self._transaction() as db:
            where = f"state = 'waiting' AND destination NOT IN ({marks})"
            studies = db.execute(f"SELECT DISTINCT study FROM deliveries WHERE {where}", tuple(current)).fetchall()
            change = f"UPDATE deliveries SET state = 'dead', reason = ? WHERE {where}"
            dropped = db.execute(change, (reason, *current)).rowcount
            for row in studies:
                _settle_study(db, row["study"])
        return dropped

    def files(self) -> list[str]:
        """Paths of all files that the queue names."""
        query = "SELECT path FROM images WHERE path != '' UNION SELECT path FROM results WHERE path != ''"
        return [row["path"] for row in self.rows(query)]

    # By hand

    def retry(self, study: int) -> str:
        """Try a refused or dead study again, with all counters at zero.

        Returns:
            What is tried: "report" or "delivery"; empty when there is no such study or nothing to try.
        """
        now = time.time()
        with self._transaction() as db:
            row = db.execute("SELECT * FROM studies WHERE id = ?", (study,)).fetchone()
            if row is None or row["purged"] or row["state"] not in (State.refused, State.dead):
                return ""
            if row["state"] == State.refused:
                change = "state = 'quiet', code = '', reason = '', attempts = 0, deaths = 0"
                db.execute(f"UPDATE studies SET {change} WHERE id = ?", (study,))
                return "report"
            change = "state = 'waiting', attempts = 0, due = ?, ready = ?"
            db.execute(f"UPDATE deliveries SET {change} WHERE study = ? AND state = 'dead'", (now, now, study))
            db.execute("UPDATE studies SET state = 'sending', changed = ? WHERE id = ?", (now, study))
            return "delivery"

    def purge(self, days: float) -> list[str]:
        """Forget pixels and results of studies all of whose revisions have been final for so many days.

        Returns:
            The paths whose files are to be removed now; no row names them any more.
        """
        before = time.time() - days * 86400
        final = ", ".join(f"'{state}'" for state in FINAL)
        with self._transaction() as db:
            due = db.execute(
                "SELECT study_uid FROM studies GROUP BY study_uid HAVING min(purged) = 0 AND max(changed) <= ? AND "
                f"sum(state NOT IN ({final})) = 0",
                (before,),
            ).fetchall()
            paths: list[str] = []
            for row in due:
                uid = (row["study_uid"],)
                ours = "study IN (SELECT id FROM studies WHERE study_uid = ?)"
                paths += [at["path"] for at in db.execute("SELECT path FROM images WHERE study_uid = ?", uid)]
                paths += [at["path"] for at in db.execute(f"SELECT path FROM results WHERE {ours}", uid)]
                db.execute("UPDATE images SET path = '' WHERE study_uid = ?", uid)
                db.execute(f"UPDATE results SET path = '' WHERE {ours}", uid)
                db.execute("UPDATE studies SET purged = 1 WHERE study_uid = ?", uid)
        return [path for path in paths if path]


def _settle_study(db: sqlite3.Connection, study: int) -> None:
    """A study is done when no delivery waits: `dead` when a destination was given up, else `sent`."""
    states = {row["state"] for row in db.execute("SELECT DISTINCT state FROM deliveries WHERE study = ?", (study,))}
    if "waiting" not in states:
        state = State.dead if "dead" in states else State.sent
        db.execute("UPDATE studies SET state = ?, changed = ? WHERE id = ?", (state, time.time(), study))


def _refuse_poison(db: sqlite3.Connection) -> int:
    """Refuse waiting studies that the reporting process died of too often."""
    return db.execute(
        "UPDATE studies SET state = 'refused', code = 'R2G-INTERNAL', reason = 'the process that makes reports died ' "
        "|| CASE WHEN deaths >= ? THEN deaths ELSE attempts END || ' times while it worked on this study', changed = ? "
        "WHERE state = 'quiet' AND (deaths >= ? OR attempts >= ?)",
        (MOST_DEATHS, time.time(), MOST_DEATHS, MOST_ATTEMPTS),
    ).rowcount
