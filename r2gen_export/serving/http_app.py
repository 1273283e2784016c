"""The paths of the HTTP service, and what answers those that need no report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from r2gen_export.serving.http_chat import Chat, models
from r2gen_export.serving.http_errors import no_path
from r2gen_export.serving.http_front import WORK, Front
from r2gen_export.serving.http_pictures import Pictures
from r2gen_export.serving.http_reports import Reports
from r2gen_export.serving.http_site import Site
from r2gen_export.system.versions import VERSION

PAGE: Final = Path(__file__).parent / "page"
OPENAPI: Final = Path(__file__).parent / "openapi.json"
KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".json": "application/json",
}


def make_app(site: Site) -> Front:
    """The ASGI application of a service."""
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route, Router

    async def health(_: Request) -> Response:
        """Alive: the front answers."""
        return JSONResponse({"status": "alive", "notice": site.manifest.notice})

    async def ready(_: Request) -> Response:
        """Ready: the graphs are loaded, and compute what the bundle keeps of its export."""
        fields: dict[str, Any] = {"ready": site.jobs.ready is not None, "bundle_id": site.bundle_id,
                                  "model_id": site.manifest.model_id, "release": VERSION,
                                  "restarts": site.jobs.restarts, "notice": site.manifest.notice}  # fmt: skip
        if site.jobs.ready is not None:
            return JSONResponse({**fields, **site.jobs.ready})
        problem = site.jobs.problem or {"code": "R2G-HTTP-READY", "message": "the bundle is being loaded", "fix": ""}
        return JSONResponse({**fields, "error": dict(problem)}, 503, {"Retry-After": "2"})

    async def metrics(_: Request) -> Response:
        """For Prometheus."""
        return Response(site.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def openapi(_: Request) -> Response:
        """The description of this interface, with the prefix of a reverse proxy as its server."""
        fields = json.loads(OPENAPI.read_text(encoding="utf-8"))
        fields["info"]["version"] = VERSION
        fields["servers"] = [{"url": site.settings.root_path or "/"}]
        fields["security"] = [{"key": []} if site.keys is not None else {}]
        _narrow(fields, site)
        return JSONResponse(fields)

    async def page(request: Request) -> Response:
        """A file of the page."""
        name = request.path_params.get("name", "index.html")
        data = files.get(name)
        if data is None:
            raise no_path(404)
        return Response(data, media_type=KINDS[Path(name).suffix], headers={"Cache-Control": "no-cache"})

    async def nothing(scope: Any, _: Any, __: Any) -> None:
        raise no_path(404)

    # Read once: a path of a request never becomes a path of the disk.
    files = {path.name: path.read_bytes() for path in PAGE.glob("*") if path.is_file() and path.suffix in KINDS}
    routes = [
        Route("/health", health),
        Route("/ready", ready),
        Route("/metrics", metrics),
        Route("/openapi.json", openapi),
        Route("/v1/models", models(site)),
        Route("/v1/reports", Only(Reports(site))),
        Route("/v1/chat/completions", Only(Chat(site))),
        Route("/v1/pictures", Only(Pictures(site))),
        Route("/", page),
        Route("/{name}", page),
    ]
    router = Router(routes, redirect_slashes=False, default=nothing)
    return Front(Allowed(router, routes), site, files)


def _narrow(fields: dict[str, Any], site: Site) -> None:
    """Put into a description what this bundle and this service take."""
    narrower: dict[str, Any] = {
        "preset": {"enum": [*sorted(site.manifest.presets), None]},
        "model": {"enum": [site.manifest.model_id, "r2gen"]},
        "images": {"maxItems": site.settings.limits.views},
        "num_beams": {"maximum": site.most.beams},
        **{name: {"maximum": site.most.tokens} for name in ("max_new_tokens", "max_tokens", "max_completion_tokens")},
    }
    for path in WORK:
        for content in fields["paths"][path]["post"]["requestBody"]["content"].values():
            properties = content["schema"]["properties"]
            for name in narrower.keys() & properties.keys():
                if "maxItems" not in properties[name]:  # a picture is of one image, whatever a study may have
                    properties[name].update(narrower[name])


class Only:
    """An application that is called by POST only. A class of its own: starlette takes a function for another thing."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on, or 405."""
        if scope["method"] != "POST":
            raise no_path(405, Allow="POST")
        await self._app(scope, receive, send)


class Allowed:
    """Answers the methods that a path does not have by an error of ours."""

    def __init__(self, app: Any, routes: Sequence[Any]) -> None:
        self._app, self._routes = app, routes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass on, or 404, or 405."""
        from starlette.routing import Match

        if scope["method"] not in ("GET", "HEAD") and scope["path"] not in WORK:
            if all(route.matches(scope)[0] is Match.NONE for route in self._routes):
                raise no_path(404)
            raise no_path(405, Allow="GET, HEAD")
        await self._app(scope, receive, send)
