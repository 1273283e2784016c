"""Linux's control groups of this process, which limit what a container may use."""

from __future__ import annotations

from pathlib import Path
from typing import Final

CGROUPS: Final = Path("/sys/fs/cgroup")
"""Where Linux has its control groups."""

OWN_GROUPS: Final = Path("/proc/self/cgroup")
"""Lines `NUMBER:CONTROLLERS:GROUP`; in version 2, number 0 without controllers."""


def group_folders(controller: str, groups: Path = CGROUPS, own: Path = OWN_GROUPS) -> list[Path]:
    """Folders of the groups that hold this process for a controller (`cpu`, `memory`), from its own up to the root.

    Each of them may limit; those of versions 1 and 2 are told apart by the files in them.
    """
    try:
        lines = own.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        lines = ["0::/"]
    folders: list[Path] = []
    for line in lines:
        _, controllers, group = [*line.split(":", 2), "", ""][:3]
        if controllers and controller not in controllers.split(","):
            continue
        root = groups / (controllers or "")
        if controllers and not root.is_dir():
            root = groups / controller
        # Inside a container the group's path may be the host's, which is not there: the root is the container's then.
        place = root / group.strip("/")
        folders += [folder for folder in (place, *place.parents, root) if folder.is_relative_to(root)]
    return list(dict.fromkeys(folders))
