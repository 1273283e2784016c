"""Where a source model lies: a local folder, never left and never looked up on the hub, or a hub id."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from huggingface_hub.utils import logging as hub_logging
from transformers.utils.hub import extract_commit_hash

from r2gen_export.errors import R2GenError, cause_of
from r2gen_export.system.git_lfs import refuse_pointer

MISSING: Final = "R2G-MODEL-MISSING"


def source_name(source: str | Path) -> str:
    """A hub id as it is, a local folder as its last part: a checkpoint carries no path of this machine."""
    return Path(source).resolve().name if is_local(source) else str(source)


def is_local(source: str | Path) -> bool:
    """Whether `source` names a folder rather than a hub id."""
    if Path(source).exists():
        return True
    return not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)) or str(source)[0] in "./"


def missing(what: str, source: str | Path, reason: str = "", fix: str = "") -> R2GenError:
    """`R2G-MODEL-MISSING` for a source that cannot be loaded, with what was tried and why it failed."""
    path = Path(source)
    if path.is_dir():
        tried = "as a local folder"
    elif is_local(source):
        tried = "as a local folder, which is not there" if not path.exists() else "as a local folder, but it is a file"
    else:
        tried = "as a local folder, which is not there, and as a Hugging Face hub id"
    shown = f": {' '.join(reason.split())[:300]}" if reason else ""
    advice = fix or "give the folder that holds config.json and the weights, or a hub id reachable from here"
    return R2GenError(MISSING, f"the {what} {source_name(source)!r} cannot be loaded (tried {tried}){shown}", advice)


def source_file(source: str | Path, name: str, what: str = "source model") -> Path | None:
    """Path of one file of a local folder or a hub repository, None when it has no such file.

    Raises:
        R2GenError: `R2G-MODEL-MISSING` when the hub cannot be asked, or the file is a git-lfs pointer.
    """
    path = Path(source) / name if is_local(source) else _hub_file(str(source), name, what)
    if path is None or not path.is_file():
        return None
    refuse_pointer(path, MISSING, f"the {what} {source_name(source)!r}")
    return path


def required_file(source: str | Path, name: str, what: str) -> Path:
    """As `source_file`; a file that is not there is an error too."""
    path = source_file(source, name, what)
    if path is None:
        local = is_local(source) and not Path(source).is_dir()
        raise missing(what, source, "" if local else f"it holds no {name}")
    return path


_OFFLINE: Final = set[str]()
"""Hub ids for which the hub did not answer: it is not asked again, each try takes half a minute."""

_REVISIONS: Final = dict[str, str]()
"""Commit of a hub id whose files are read: all are taken from the same one, and from the cache where it has them."""


def _hub_file(source: str, name: str, what: str) -> Path | None:
    revision = _REVISIONS.get(source)
    cached = try_to_load_from_cache(source, name, revision=revision) if revision else None
    if isinstance(cached, str):
        return Path(cached)
    if cached is not None:  # the cache knows that there is no such file
        return None
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()  # each of its retries is a warning of two lines
    try:
        path = hf_hub_download(source, name, revision=revision, local_files_only=source in _OFFLINE)
    except LocalEntryNotFoundError as error:
        _OFFLINE.add(source)
        if revision is None:
            raise _unreachable(what, source, "nor are its files in the cache of this machine") from error
        return None
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise missing(what, source, "not a valid hub id") from error
    except Exception as error:  # requests, urllib3, huggingface_hub and the disk cache each raise their own
        raise _hub_error(source, what, error) from error
    finally:
        hub_logging.set_verbosity(verbosity)
    commit = extract_commit_hash(path, None)
    if commit is not None:
        _REVISIONS[source] = commit
    return Path(path)


def _hub_error(source: str, what: str, error: Exception) -> R2GenError:
    """The cause of a failed download: unknown or gated repository, full disk, no connection."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and len(chain) < 8:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(link, GatedRepoError) for link in chain):
        return missing(what, source, "access to it is restricted", "ask for access on its page, then `hf auth login`")
    if any(isinstance(link, RepositoryNotFoundError) for link in chain):
        return missing(what, source, "the hub has no repository of this name, or it is private")
    if any(isinstance(link, PermissionError) for link in chain):
        return missing(
            what, source, f"the cache: {cause_of(error)}", "make the Hugging Face cache folder (HF_HOME) writable"
        )
    return _unreachable(what, source, str(error) or type(error).__name__)


def _unreachable(what: str, source: str, reason: str) -> R2GenError:
    fix = (
        f"where there is a connection: hf download {source} --local-dir FOLDER; "
        "copy FOLDER to this machine and give it instead of the hub id"
    )
    return missing(what, source, f"the Hugging Face hub cannot be reached ({reason[:160]})", fix)
