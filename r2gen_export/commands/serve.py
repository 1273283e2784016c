"""`r2gen serve`: the HTTP service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from r2gen_export.commands.console import guarded
from r2gen_export.commands.help_page import HelpCommand, command_app, examples
from r2gen_export.commands.option_groups import option_groups
from r2gen_export.commands.options import BundleOption, DeviceOption

if TYPE_CHECKING:
    from r2gen_export.serving.http_settings import ServeSettings

MEBI: Final = 2**20
# `readable=False` below: the service itself says what it cannot read, without the path that typer would show.


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Network."""

    host: Annotated[
        str,
        typer.Option(
            "--host",
            metavar="ADDRESS",
            help="Address to listen on. Another one than loopback needs --api-key-file and TLS, or --insecure.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8321
    tls_cert: Annotated[
        Path | None,
        typer.Option("--tls-cert", metavar="FILE", readable=False, help="Certificate chain for HTTPS, in PEM form."),
    ] = None
    tls_key: Annotated[
        Path | None,
        typer.Option("--tls-key", metavar="FILE", readable=False, help="Key of the certificate, without a password."),
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow another address without keys and TLS: behind a proxy, say.")
    ] = False
    root_path: Annotated[
        str,
        typer.Option("--root-path", metavar="/PREFIX", help="Prefix under which a reverse proxy shows the service."),
    ] = ""
    allow_host: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-host", metavar="NAME", help="Further name for this machine in URLs, where no key is used."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ClientOptions:
    """Clients."""

    api_key_file: Annotated[
        Path | None,
        typer.Option(
            "--api-key-file",
            metavar="FILE",
            readable=False,
            help="Keys that clients send as Authorization: Bearer KEY; a line each, NAME KEY [REPORTS-A-MINUTE]. It "
            "is read again when it changes.",
        ),
    ] = None
    queue: Annotated[
        int, typer.Option("--queue", metavar="N", min=1, help="Requests that may wait; further ones get status 429.")
    ] = 64
    queue_each: Annotated[
        int, typer.Option("--queue-each", metavar="N", min=1, help="Requests that one key or address may have open.")
    ] = 32
    deadline: Annotated[
        float, typer.Option("--deadline", metavar="S", min=1, help="Seconds after which a request is given up.")
    ] = 300.0
    max_body: Annotated[int, typer.Option("--max-body", metavar="MIB", min=1, help="Size of a request.")] = 256
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", metavar="MILLION", min=1, max=100, help="Size of an image, by its header.")
    ] = 100
    max_views: Annotated[int, typer.Option("--max-views", metavar="N", min=1, help="Images of a study.")] = 8
    max_tokens: Annotated[
        int | None,
        typer.Option("--max-tokens", metavar="N", min=1, help="Tokens of a report. Default: the largest preset's."),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RecordOptions:
    """Records."""

    audit_file: Annotated[
        Path | None,
        typer.Option(
            "--audit-file",
            metavar="FILE",
            readable=False,
            help="Append a line for each report: key name, time, bundle, settings, hashes. Without the line no report "
            "is given. Default: the log on stderr.",
        ),
    ] = None
    scratch: Annotated[
        Path | None,
        typer.Option(
            "--scratch",
            metavar="DIR",
            readable=False,
            help="Folder for uploads while they are read. Default: the system's.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model."""

    bundle: BundleOption = None
    device: DeviceOption = "auto"
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Number of CPU threads. Default: one per core.")
    ] = None
    batch_size: Annotated[
        int, typer.Option("--batch-size", metavar="N", min=1, help="Number of studies decoded together.")
    ] = 8
    draft: Annotated[
        bool | None,
        typer.Option(
            "--draft/--no-draft",
            help="Use speculative decoding, for requests that run together where the backend allows it. Default: on "
            "when the bundle has a store and the words stay the same, which they may not with int8 or int4 weights on "
            "a CPU.",
        ),
    ] = None


app = command_app()


@app.command(
    cls=HelpCommand,
    epilog=examples(
        "r2gen serve",
        "r2gen serve --bundle my-bundle --port 9000 --audit-file audit.jsonl",
        "r2gen serve --host 0.0.0.0 --api-key-file keys --tls-cert cert.pem --tls-key key.pem",
    ),
)
@guarded
@option_groups
def serve(network: NetworkOptions, clients: ClientOptions, records: RecordOptions, model: ModelOptions) -> None:
    """Serve draft reports over HTTP, with a page for the browser.

    POST /v1/reports takes the images of one study: curl -F images=@chest.png http://127.0.0.1:8321/v1/reports.
    /v1/chat/completions is for clients of OpenAI's interface. Requests are decoded together. The log is JSON on stderr
    and names no patient. SIGTERM lets open requests finish, a second one stops. Research use only: the reports are
    unverified drafts, never a diagnosis.
    """
    from r2gen_export.system.extras import needs

    with needs("serve"):
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401

    from r2gen_export.serving.http_server import serve as run

    run(_settings(network, clients, records, model))


def _settings(
    network: NetworkOptions, clients: ClientOptions, records: RecordOptions, model: ModelOptions
) -> ServeSettings:
    from r2gen_export.serving.http_settings import HttpLimits, ServeSettings

    limits = HttpLimits(
        body_bytes=clients.max_body * MEBI,
        views=clients.max_views,
        pixels=clients.max_pixels * 1_000_000,
        most_tokens=clients.max_tokens,
        queue=clients.queue,
        queue_each=clients.queue_each,
        deadline_seconds=clients.deadline,
    )
    return ServeSettings(
        host=network.host,
        port=network.port,
        bundle=model.bundle,
        device=model.device,
        threads=model.threads,
        draft=model.draft,
        batch=model.batch_size,
        key_file=clients.api_key_file,
        certificate=network.tls_cert,
        private_key=network.tls_key,
        insecure=network.insecure,
        root_path=network.root_path,
        names=tuple(network.allow_host or ()),
        audit_file=records.audit_file,
        scratch=records.scratch,
        limits=limits,
    )
