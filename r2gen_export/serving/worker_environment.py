"""The environment of the processes that write reports."""

from __future__ import annotations

import os

from r2gen_export.bundle import bundle_path, load_manifest
from r2gen_export.errors import R2GenError
from r2gen_export.runtime.backends.decoders import is_large
from r2gen_export.system.gpu import decodes_on_cpu
from r2gen_export.system.huge_pages import huge_page_environment


def worker_environment(bundle: str | None, device: str) -> dict[str, str]:
    """This process's variables, and what lets the weights of a large model on the CPU lie in huge pages.

    `infer` restarts itself for that; a process that is started can have it from its start.

    Args:
        bundle, device: what the process will load, as `Pipeline.from_bundle` takes them.
    """
    try:
        large = is_large(load_manifest(bundle_path(bundle)))
    except R2GenError:  # the process itself will say what is wrong with the bundle
        large = False
    return {**os.environ, **(huge_page_environment() if large and decodes_on_cpu(device) else {})}
