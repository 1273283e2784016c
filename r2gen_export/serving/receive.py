"""The Storage and Verification SCP: an image is answered 0x0000 after its row in the queue is on the disk."""

from __future__ import annotations

import re
import threading
from io import BytesIO
from pathlib import Path
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

from r2gen_export.errors import R2GenError, cause_of
from r2gen_export.serving.records import Added, Image
from r2gen_export.serving.settings import NodeSettings

if TYPE_CHECKING:
    from r2gen_export.serving.parts import Parts

STORED: Final = 0x0000
NO_RESOURCES: Final = 0xA700
MISMATCH: Final = 0xA900
NOT_UNDERSTOOD: Final = 0xC000
NOT_SUPPORTED: Final = 0x0122

CR: Final = "1.2.840.10008.5.1.4.1.1.1"
DX: Final = "1.2.840.10008.5.1.4.1.1.1.1"
DX_FOR_PROCESSING: Final = "1.2.840.10008.5.1.4.1.1.1.1.1"
VERIFICATION: Final = "1.2.840.10008.1.1"

SYNTAXES: Final = (
    "1.2.840.10008.1.2.1",  # Explicit VR Little Endian
    "1.2.840.10008.1.2",  # Implicit VR Little Endian
    "1.2.840.10008.1.2.2",  # Explicit VR Big Endian
    "1.2.840.10008.1.2.5",  # RLE
    "1.2.840.10008.1.2.4.50",  # JPEG baseline, extended, lossless
    "1.2.840.10008.1.2.4.51",
    "1.2.840.10008.1.2.4.57",
    "1.2.840.10008.1.2.4.70",
    "1.2.840.10008.1.2.4.80",  # JPEG-LS lossless, near-lossless
    "1.2.840.10008.1.2.4.81",
    "1.2.840.10008.1.2.4.90",  # JPEG 2000 lossless, lossy
    "1.2.840.10008.1.2.4.91",
    "1.2.840.10008.1.2.4.201",  # High-throughput JPEG 2000
    "1.2.840.10008.1.2.4.202",
    "1.2.840.10008.1.2.4.203",
)
"""Transfer syntaxes of images. Deflated is not offered: a peer that has it sends another, and nothing can be inflated
in the process that serves the network."""

HEADER_BYTES: Final = 1 << 20
"""How far into a data set StudyInstanceUID is looked for; it stands before the pixels and before most sequences."""

_UID: Final = re.compile(r"[0-9.]{1,64}")


class Receiver:
    """Answers C-STORE: writes to the spool and the queue, from the threads of the associations."""

    def __init__(self, parts: Parts) -> None:
        self._spool = parts.spool
        self._queue = parts.queue
        self._log = parts.log
        self._metrics = parts.metrics

    def store(self, event: Any) -> Any:
        """Handler of `evt.EVT_C_STORE`: a status, with a comment where it is none of success."""
        scratch = event.request._dataset_file
        try:
            status, comment = self._store(event, scratch)
        except Exception as error:  # a full disk, the queue, or a bug of ours, which pynetdicom would not show
            self._log.failure("image not stored", error)
            status, comment = NO_RESOURCES, "this node cannot store images now"
        finally:
            scratch.remove()
        self._metrics.answered(status)
        return STORED if status == STORED else _answer(status, comment)

    def _store(self, event: Any, scratch: Any) -> tuple[int, str]:
        if scratch.problem == "full":
            self._log("image refused", "error", reason="the disk is full", status=NO_RESOURCES)
            return NO_RESOURCES, "the disk of this node is full"
        if scratch.problem == "large":
            self._log("image refused", "warning", reason="too large", status=NOT_UNDERSTOOD)
            return NOT_UNDERSTOOD, "larger than this node takes"
        sop_class, sop_uid = str(event.request.AffectedSOPClassUID), str(event.request.AffectedSOPInstanceUID)
        if sop_class == DX_FOR_PROCESSING:
            return NOT_SUPPORTED, "DX for processing is not reported: send for presentation"
        scratch.close()
        uids = read_uids(scratch.path)
        if uids is None or not _UID.fullmatch(uids[0]) or not _UID.fullmatch(sop_uid):
            self._log("image refused", "warning", reason="no study or unreadable", status=NOT_UNDERSTOOD)
            return NOT_UNDERSTOOD, "no StudyInstanceUID, or not readable"
        study_uid, said_class, said_uid = uids
        if (said_class, said_uid) != (sop_class, sop_uid):
            self._log("image refused", "warning", reason="data set and command differ", status=MISMATCH)
            return MISMATCH, "data set does not match the command"
        self.take_in(scratch, study_uid, sop_uid)
        return STORED, ""

    def take_in(self, scratch: Any, study_uid: str, sop_uid: str) -> Added:
        """Enter a file of the spool's `incoming` into the queue; when this returns, a power cut does not lose it.

        Args:
            scratch: with `path`, `sha256` and `size`; the file is moved away where it is new.
            study_uid, sop_uid: of the file.

        Raises:
            OSError, sqlite3.Error: it is not in the queue then.
        """
        sha256 = scratch.sha256
        added = None
        if self._queue.image_sha256(study_uid, sop_uid) is None:
            target = self._spool.image_path(study_uid, sop_uid, sha256)
            self._spool.move_in(scratch.path, target)
        else:
            target = self._spool.folder / "-"  # not entered: the first bytes stay
        added = self._queue.add_image(Image(study_uid, sop_uid, sha256, self._spool.relative(target), scratch.size))
        if added is Added.conflict and target.name != "-":
            target.unlink(missing_ok=True)  # two associations sent it at the same time
        level = "warning" if added in (Added.conflict, Added.too_late) else "info"
        study = self._spool.pseudonym(study_uid)
        self._log("image received", level, study=study, image=self._spool.pseudonym(sop_uid), result=added.value)
        self._metrics.received(added.value, scratch.size)
        return added


def read_uids(path: Path) -> tuple[str, str, str] | None:
    """StudyInstanceUID, SOPClassUID and SOPInstanceUID of a DICOM file; None when it cannot be read.

    Reads `HEADER_BYTES` at most, so that no file takes long: this runs in the process that serves the network.
    """
    from pydicom.filereader import read_partial

    with path.open("rb") as file:
        head = BytesIO(file.read(HEADER_BYTES))
    try:
        data = read_partial(
            head, lambda tag, vr, length: tag > 0x0020000D, specific_tags=[0x00080016, 0x00080018, 0x0020000D]
        )
        return tuple(str(data.get(name, "")) for name in ("StudyInstanceUID", "SOPClassUID", "SOPInstanceUID"))  # type: ignore[return-value]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException:  # pydicom raises anything on damaged files, RecursionError among them
        return None


class Server:
    """The listening node."""

    def __init__(self, settings: NodeSettings, receiver: Receiver, refused: Any) -> None:
        """Listen.

        Args:
            settings: title, address, peers, TLS and limits.
            receiver: answers C-STORE.
            refused: called with a word for each connection that is not served.

        Raises:
            R2GenError: `R2G-NODE-NETWORK`.
        """
        from pynetdicom import AE, evt

        from r2gen_export.serving.connections import LimitedServer
        from r2gen_export.serving.tls import server_context

        self._entity = entity = AE(ae_title=settings.title)
        entity.add_supported_context(VERIFICATION)
        for sop_class in (CR, DX, DX_FOR_PROCESSING):
            entity.add_supported_context(sop_class, list(SYNTAXES))
        entity.require_called_aet = True
        entity.require_calling_aet = list(settings.allowed)
        entity.maximum_associations = 10 * settings.limits.associations  # counts threads that are ending too
        entity.maximum_pdu_size = 128 * 1024
        entity.acse_timeout = settings.limits.acse_seconds
        entity.dimse_timeout = entity.network_timeout = settings.limits.idle_seconds
        context = server_context(settings.tls) if settings.tls else None
        handlers = [
            (evt.EVT_C_STORE, receiver.store),
            (evt.EVT_REJECTED, lambda event: refused("association")),
            (evt.EVT_CONN_CLOSE, _discard),
        ]
        try:
            self._server = LimitedServer(
                entity, (settings.host, settings.port), settings.title, entity.supported_contexts,
                evt_handlers=handlers, limits=settings.limits, refused=refused, ssl_context=context,
            )  # fmt: skip
        except OSError as error:
            message = f"the node cannot listen on port {settings.port}: {cause_of(error)}"
            raise R2GenError("R2G-NODE-NETWORK", message, "choose another --port or --host") from error
        entity._servers.append(self._server)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.2,), name="accept", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port it listens on."""
        return int(self._server.server_address[1])

    @property
    def is_alive(self) -> bool:
        """Whether it accepts connections."""
        return self._thread.is_alive()

    def open_connections(self) -> int:
        """How many connections are open."""
        return self._server.open_connections()

    def close(self) -> None:
        """Stop listening and end associations: what was not answered is sent again."""
        self._server.shutdown()
        self._server.cut_connections()


def _discard(event: Any) -> None:
    """Remove what an association that ends in the middle of an image has written, and images that nobody answered."""
    service = event.assoc.dimse
    scratches = [getattr(service.message, "_data_set_file", None)]
    while not service.msg_queue.empty():
        try:
            _, request = service.msg_queue.get_nowait()
        except Empty:  # the association's own thread was faster
            break
        scratches.append(getattr(request, "_dataset_file", None))
    for scratch in scratches:
        if scratch is not None:
            scratch.remove()


def _answer(status: int, comment: str) -> Any:
    from pydicom.dataset import Dataset

    answer = Dataset()
    answer.Status = status
    answer.ErrorComment = comment
    return answer
