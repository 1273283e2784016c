"""What the parts of one node share."""

from __future__ import annotations

from dataclasses import dataclass

from r2gen_export.serving.log import EventLog
from r2gen_export.serving.metrics import Metrics
from r2gen_export.serving.queue import Queue
from r2gen_export.serving.spool import Spool


@dataclass(frozen=True)
class Parts:
    """Folder, queue, log and counters of a node."""

    spool: Spool
    queue: Queue
    log: EventLog
    metrics: Metrics
