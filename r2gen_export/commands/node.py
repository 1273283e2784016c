"""`r2gen node`: the PACS node, and its queue."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from r2gen_export.commands.console import guarded, say, write_out
from r2gen_export.commands.help_page import HelpCommand, HelpGroup, command_app, examples
from r2gen_export.commands.option_groups import option_groups
from r2gen_export.commands.options import BundleOption, DeviceOption

if TYPE_CHECKING:
    from r2gen_export.bundle import Manifest
    from r2gen_export.serving.queue import Queue
    from r2gen_export.serving.settings import NodeSettings, Tls
    from r2gen_export.serving.spool import Spool

DEFAULT: Final = "run"
MEBI: Final = 2**20
SPOOL_VARIABLE: Final = "R2GEN_SPOOL"
EXAMPLES: Final = examples(
    "r2gen node --bundle bundle --aet R2GEN --allow-aet PACS --forward PACS@10.0.0.5:104 --host 0.0.0.0",
    "r2gen node --aet R2GEN --allow-aet PACS --forward-web http://10.0.0.5:8042/dicom-web --format sr",
    "r2gen node status       # the queue; also: show ID, retry ID, purge",
)


class NodeGroup(HelpGroup):
    """`r2gen node status` and the like are commands of their own; everything else is `r2gen node --aet ...`."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The group's context for the name of a command or its own help, else that of the default command."""
        if args and (args[0] in self.commands and args[0] != DEFAULT):
            return super().make_context(info_name, args, parent, **extra)
        return self.commands[DEFAULT].make_context(info_name, args, parent, **extra)


SpoolOption = Annotated[
    Path | None,
    typer.Option(
        "--spool",
        metavar="DIR",
        help="Folder of the queue, the images and the results, made when it is not there. Default: $R2GEN_SPOOL, else "
        "r2gen/node below $XDG_STATE_HOME or ~/.local/state.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
StudyArgument = Annotated[int, typer.Argument(metavar="ID", help="Number of the study, as r2gen node status shows it.")]


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Network."""

    aet: Annotated[str, typer.Option("--aet", metavar="TITLE", help="Application entity title of this node.")]
    allow_aet: Annotated[
        str,
        typer.Option(
            "--allow-aet", metavar="TITLE,...", help="Titles of the peers that may send, with commas between."
        ),
    ]
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 11112
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 is every IPv4 address of the machine."
        ),
    ] = "127.0.0.1"
    tls_cert: Annotated[
        Path | None, typer.Option("--tls-cert", metavar="FILE", help="Certificate chain of this node, in PEM form.")
    ] = None
    tls_key: Annotated[
        Path | None, typer.Option("--tls-key", metavar="FILE", help="Key of the certificate, without a password.")
    ] = None
    tls_ca: Annotated[
        Path | None,
        typer.Option(
            "--tls-ca", metavar="FILE", help="Authorities whose certificates peers and destinations must have."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ResultOptions:
    """Results."""

    forward: Annotated[
        list[str] | None,
        typer.Option(
            "--forward",
            metavar="AET@HOST:PORT",
            help="Destination by C-STORE; may be repeated. One destination is needed.",
        ),
    ] = None
    forward_web: Annotated[
        list[str] | None,
        typer.Option(
            "--forward-web",
            metavar="URL",
            help="Destination by STOW-RS; may be repeated. $R2GEN_WEB_AUTHORIZATION is sent as its Authorization.",
        ),
    ] = None
    form: Annotated[
        str,
        typer.Option("--format", metavar="sr,pdf,kos", help="Objects to send: structured report, PDF, key objects."),
    ] = "sr,pdf"
    retry_after: Annotated[
        float,
        typer.Option(
            "--retry-after", metavar="S", min=0.1, help="Seconds before a failed delivery is repeated; then doubled."
        ),
    ] = 5.0
    give_up_after: Annotated[
        float, typer.Option("--give-up-after", metavar="H", min=0.01, help="Hours after which a delivery is given up.")
    ] = 72.0


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """Studies."""

    spool: SpoolOption = None
    close_after: Annotated[
        float,
        typer.Option("--close-after", metavar="S", min=0.0, help="Seconds without a new image that complete a study."),
    ] = 60.0
    watch: Annotated[
        Path | None,
        typer.Option(
            "--watch",
            metavar="DIR",
            help="Folder whose DICOM files are taken in as well, and moved into r2gen-done or r2gen-refused there.",
        ),
    ] = None
    keep: Annotated[
        float | None,
        typer.Option(
            "--keep", metavar="DAYS", min=0.0, help="Remove pixels and results this long after a study is done. "
            "Default: never.",
        ),
    ] = None  # fmt: skip
    reserve: Annotated[
        int, typer.Option("--reserve", metavar="MIB", min=1, help="Free disk space below which images are refused.")
    ] = 1024
    max_object: Annotated[
        int, typer.Option("--max-object", metavar="MIB", min=1, help="Size of an image above which it is refused.")
    ] = 256
    metrics_port: Annotated[
        int | None,
        typer.Option(
            "--metrics-port",
            metavar="N",
            min=0,
            max=65535,
            help="Loopback port of /metrics and /health. Default: none is opened.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model."""

    bundle: BundleOption = None
    device: DeviceOption = "auto"
    preset: Annotated[
        str | None,
        typer.Option("--preset", metavar="paper|fast", help="Decoding settings. Default: the bundle's."),
    ] = None


app = command_app(
    """Receive studies from a PACS, report them and send the results.

    Listens for C-STORE of CR and DX images and sends a structured report and a PDF back into the same study. What was
    answered with success is on the disk. Research use only: the reports are unverified drafts, never a diagnosis.
    """,
    cls=NodeGroup,
    epilog=EXAMPLES,
)


@app.command(
    DEFAULT,
    cls=HelpCommand,
    hidden=True,
    epilog=EXAMPLES,
)
@guarded
@option_groups
def run(network: NetworkOptions, results: ResultOptions, studies: StudyOptions, model: ModelOptions) -> None:
    """Receive studies from a PACS, report them and send the results.

    Listens for C-STORE of CR and DX images. A study is complete after a quiet time; its results go into the same study
    of each destination. What was answered with success is on the disk and outlives a power cut. The log is JSON on
    stderr and names no patient. SIGTERM ends the node; the next one goes on. Further commands: r2gen node status,
    show ID, retry ID, purge. Research use only: the reports are unverified drafts, never a diagnosis.
    """
    from r2gen_export.bundle import bundle_path, load_manifest
    from r2gen_export.system.extras import needs
    from r2gen_export.system.interrupts import Terminated

    manifest = load_manifest(bundle_path(model.bundle))  # a wrong folder is said before anything listens
    settings = _settings(network, results, studies, model)
    with needs("dicom"):
        import prometheus_client  # noqa: F401
        import pynetdicom  # noqa: F401

        from r2gen_export.serving.node import running_node
    _log_bundle(manifest)
    try:
        with running_node(settings) as node, _ended_by_signals(node.end):
            node.run()
    except (Terminated, KeyboardInterrupt):
        return  # it came before the node ran, or after


def _log_bundle(manifest: Manifest) -> None:
    """The first line of the log: which model will report; a warning where it knows phantoms only."""
    from r2gen_export.bundle import bundle_id
    from r2gen_export.bundle.manifest import DEMO_NOTICE
    from r2gen_export.serving.log import EventLog

    fields = {"model": manifest.model_id, "bundle": bundle_id(manifest)}
    if manifest.synthetic:
        EventLog()("bundle", "warning", **fields, reason=DEMO_NOTICE)
    else:
        EventLog()("bundle", **fields)


@contextmanager
def _ended_by_signals(end: Callable[[], None]) -> Iterator[None]:
    """Inside the block SIGTERM, SIGHUP and Ctrl-C call `end`: what the node is doing is finished or put back."""
    import signal

    from r2gen_export.system.interrupts import TERMINATING

    before = {number: signal.signal(number, lambda *_: end()) for number in (signal.SIGINT, *TERMINATING)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@app.command(cls=HelpCommand, epilog=examples("r2gen node status", "r2gen node status --unfinished --json"))
@guarded
def status(
    spool: SpoolOption = None,
    as_json: JsonOption = False,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Leave out studies that were sent.")] = False,
) -> None:
    """Show the queue: the studies, their states and the reasons.

    Studies appear by number and keyed hash, and never by name. May be called while the node runs.
    """
    import json

    from r2gen_export.serving import status as shown

    with _queue(spool) as (_, queue):
        rows = shown.studies(queue, unfinished=unfinished)
        if as_json:
            write_out(json.dumps({"counts": shown.counts(queue), "studies": rows}) + "\n")
            return
        write_out(shown.table(rows))
        say(", ".join(f"{count} {state}" for state, count in shown.counts(queue).items()) or "no studies")


@app.command(cls=HelpCommand, epilog=examples("r2gen node show 12"))
@guarded
def show(study: StudyArgument, spool: SpoolOption = None) -> None:
    """Show one study of the queue and its deliveries, as JSON."""
    import json

    from r2gen_export.serving import status as shown

    with _queue(spool) as (_, queue):
        write_out(json.dumps(shown.study(queue, study), indent=2) + "\n")


@app.command(cls=HelpCommand, epilog=examples("r2gen node retry 12"))
@guarded
def retry(study: StudyArgument, spool: SpoolOption = None) -> None:
    """Try a refused study, or deliveries that were given up, again."""
    from r2gen_export.errors import R2GenError
    from r2gen_export.serving import status as shown

    with _queue(spool) as (_, queue):
        state = shown.study(queue, study)["state"]
        what = queue.retry(study)
        if not what:
            message = f"study {study} is {state}: only refused and dead ones whose files are there are tried again"
            raise R2GenError("R2G-NODE-SPOOL", message, f"r2gen node show {study}")
        say(f"study {study}: its {what} is tried again by the running node, or by the next one")


@app.command(cls=HelpCommand, epilog=examples("r2gen node purge --older 30"))
@guarded
def purge(
    older: Annotated[
        float, typer.Option("--older", metavar="DAYS", min=0.0, help="Days since a study was done; 0 takes all.")
    ],
    spool: SpoolOption = None,
) -> None:
    """Remove pixels and results of studies that are done.

    Their rows stay: an image that comes again is known. Studies that are not done are left alone.
    """
    from r2gen_export.serving.node import remove_old

    with _queue(spool) as (folder, queue):
        say(f"{remove_old(folder, queue, older)} files removed")


@contextmanager
def _queue(spool: Path | None) -> Iterator[tuple[Spool, Queue]]:
    from r2gen_export.errors import R2GenError
    from r2gen_export.serving.queue import Queue
    from r2gen_export.serving.spool import open_spool

    folder = open_spool(spool_folder(spool))
    if not folder.database.exists():
        raise R2GenError("R2G-NODE-SPOOL", "the spool has no queue yet", "start the node once")
    queue = Queue(folder.database, folder.pseudonym)
    try:
        yield folder, queue
    finally:
        queue.close()


def spool_folder(given: Path | None) -> Path:
    """The spool a call means."""
    import os

    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    return given or Path(os.environ.get(SPOOL_VARIABLE) or base / "r2gen/node")


def _settings(
    network: NetworkOptions, results: ResultOptions, studies: StudyOptions, model: ModelOptions
) -> NodeSettings:
    from r2gen_export.errors import R2GenError
    from r2gen_export.serving.settings import (
        Limits,
        NodeSettings,
        Retry,
        parse_dimse,
        parse_forms,
        parse_title,
        parse_url,
    )

    destinations = [parse_dimse(text) for text in results.forward or ()]
    destinations += [parse_url(text) for text in results.forward_web or ()]
    if not destinations:
        raise R2GenError("R2G-CONFIG-VALUE", "no destination for the results", "give --forward or --forward-web")
    allowed = tuple(parse_title(text) for text in network.allow_aet.split(",") if text.strip())
    if not allowed:
        raise R2GenError("R2G-CONFIG-VALUE", "--allow-aet names nobody", "give the titles of the peers that may send")
    return NodeSettings(
        title=parse_title(network.aet),
        allowed=allowed,
        destinations=tuple({place.name: place for place in destinations}.values()),
        spool=spool_folder(studies.spool),
        host=network.host,
        port=network.port,
        forms=parse_forms(results.form),
        close_after=studies.close_after,
        bundle=model.bundle,
        device=model.device,
        preset=model.preset,
        tls=_tls(network),
        keep_days=studies.keep,
        watch=studies.watch,
        metrics_port=studies.metrics_port,
        retry=Retry(first_seconds=results.retry_after, give_up_seconds=results.give_up_after * 3600),
        limits=Limits(reserve_bytes=studies.reserve * MEBI, object_bytes=studies.max_object * MEBI),
    )


def _tls(network: NetworkOptions) -> Tls | None:
    from r2gen_export.errors import R2GenError
    from r2gen_export.serving.settings import Tls

    files = (network.tls_cert, network.tls_key, network.tls_ca)
    if not any(files):
        return None
    if network.tls_cert is None or network.tls_key is None or network.tls_ca is None:
        message = "TLS needs the certificate, the key and the authorities: peers must show a certificate too"
        raise R2GenError("R2G-CONFIG-VALUE", message, "give --tls-cert, --tls-key and --tls-ca")
    return Tls(network.tls_cert, network.tls_key, network.tls_ca)
