"""Vectors on the Hugging Face hub: `hf://user/name[@revision][/file]` is read as a file is, and written in one commit.

Everything on the network is `huggingface_hub`'s: endpoint, login, cache, offline mode. What is here says which file is
meant, refuses one that is too large before it is fetched, and makes one sentence of whatever the client raises.
"""

import contextlib
import dataclasses
import glob
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import unquote

from steerfn.values._errors import FileError
from steerfn.values.files._document import MAX_BYTES, Refused, brief
from steerfn.values.files._read import check_size, read_bytes

SCHEME = "hf://"
FILE, CARD = "vector.safetensors", "README.md"
"""What the vector and the card of a repository are called where nobody says otherwise."""
MOST = 1000
"""Files of a repository that are fetched together."""
HTTP = ("requests", "httpx", "httpx2")
_REPO = re.compile(r"[\w.-]+/[\w.-]+")
_ADDRESS = re.compile(rf"hf://(?P<repo>{_REPO.pattern})(?:@(?P<revision>[\w.%-]+))?(?:/(?P<file>.+))?")


@dataclasses.dataclass(frozen=True)
class HubAddress:
    """A file in a repository of the hub.

    Attributes:
        repo: its repository, "user/name".
        revision: a branch, tag or commit; None is the main branch.
        file: its path there; None where the address names none.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    @classmethod
    def of(cls, path: Any) -> "HubAddress | None":
        """The address that a text names, None for what is no `hf://`.

        Raises:
            FileError: an `hf://` that is no address.
        """
        if not is_hub(path):
            return None
        match = _ADDRESS.fullmatch(path)
        if match is None or ".." in re.split(r"[/\\]", path):
            raise FileError(
                f"'{path}' is not an address on the hub; write hf://user/name, with @revision and /file where they "
                "matter (a slash in a revision is %2F)."
            )
        revision = match["revision"]
        return cls(match["repo"], None if revision is None else unquote(revision), match["file"])

    def __str__(self) -> str:
        at = "" if self.revision is None else f"@{self.revision.replace('/', '%2F')}"
        return f"{SCHEME}{self.repo}{at}{'' if self.file is None else f'/{self.file}'}"


def is_hub(path: Any) -> bool:
    """Whether something names a place on the hub rather than one on this machine."""
    return isinstance(path, str) and path.startswith(SCHEME)


class HubReader:
    """Reads the files of one vector on the hub, as `read_bytes` does those of a disk.

    Attributes:
        address: the vector's.
        file: the vector's, in its repository.
        provenance: of what was read: `repo`, `revision` (the commit), `file`, and its `sha256`.
    """

    def __init__(self, address: HubAddress) -> None:
        self.address, self.file = address, address.file or FILE
        self.provenance: dict[str, str] = {}

    def __call__(self, path: Path, limit: int) -> bytes:
        """The bytes of a file of the repository, from the cache where it is there or the hub cannot be reached.

        Raises:
            Refused: there is no such file, repository or revision, it has more than `limit` bytes, or no way to it.
        """
        address = dataclasses.replace(self.address, file=path.as_posix())
        # A vector's second file is of the commit that its first one came from.
        revision = self.provenance.get("revision", address.revision)
        place = _fetch(dataclasses.replace(address, revision=revision), limit)
        data = read_bytes(place, limit)
        if not self.provenance:
            commit = place.parts[-1 - len(path.parts)]  # the cache is .../snapshots/commit/file
            self.provenance = {
                "repo": address.repo,
                "revision": commit,
                "file": path.as_posix(),
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        return data


def _fetch(address: HubAddress, limit: int) -> Path:
    """Where a file of the hub lies in the client's cache."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    where = {"repo_id": address.repo, "filename": address.file or FILE, "revision": address.revision}

    def ask() -> None:
        check_size(get_hf_file_metadata(hf_hub_url(**where)).size or 0, limit)

    with _sentences(address):
        return _download(ask, lambda cached: hf_hub_download(**where, local_files_only=cached))


def fetch_folder(address: HubAddress, *suffixes: str) -> tuple[Path, HubAddress]:
    """The files of a repository that have one of some suffixes, as a folder, and the address of its commit.

    Raises:
        FileError: as a vector's; also more than a thousand files.
    """
    from huggingface_hub import HfApi, snapshot_download

    names: list[str] = []

    def ask() -> None:
        about = HfApi().model_info(address.repo, revision=address.revision, files_metadata=True)
        files = [each for each in about.siblings or [] if each.rfilename.endswith(suffixes)]
        if len(files) > MOST:
            raise Refused(f"it has {len(files)} such files, more than {MOST}", "divide the repository")
        # A vector is small; what is larger is a model's weights, and nothing of ours.
        names.extend(each.rfilename for each in files if (each.size or 0) <= MAX_BYTES)
        if not names:
            raise Refused(f"it has no file {' or '.join(suffixes)}", "check the repository's name")

    def take(cached: bool) -> str:  # of the cache nothing is demanded: it has what was fetched, which was not all
        patterns = [glob.escape(name) for name in names]
        return snapshot_download(
            address.repo, revision=address.revision, allow_patterns=patterns, local_files_only=cached
        )

    with _as_file_error(f"Cannot load '{address}'"), _sentences(address):
        place = _download(ask, take)
    return place, HubAddress(address.repo, place.name)


def push(repo: str, files: dict[str, bytes], *, revision: str | None, private: bool | None, message: str) -> HubAddress:
    """Put files into a repository of the hub in one commit, and create the repository if it does not exist.

    Returns:
        The address of the repository at that commit.

    Raises:
        FileError: not the name of a repository, no login, no right to write there, or no way to the hub.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    address = HubAddress(repo)
    if not (isinstance(repo, str) and _REPO.fullmatch(repo)):
        raise FileError(f"'{repo}' does not name a repository; write 'user/name'.")
    hub, operations = HfApi(), [CommitOperationAdd(path, data) for path, data in files.items()]
    with _as_file_error(f"Cannot push to '{repo}'"), _sentences(address):
        hub.create_repo(repo, private=private, exist_ok=True)
        commit = hub.create_commit(repo, operations, commit_message=message, revision=revision)
    return HubAddress(repo, commit.oid)


def _download(ask: Callable[[], None], take: Callable[[bool], str]) -> Path:
    """Fetch with `take` once `ask` was answered; where the hub does not answer, take it from the cache."""
    from huggingface_hub import errors

    silent = None
    try:
        ask()
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError):
        raise
    except _unreachable() as error:
        silent = error
    try:
        return Path(take(silent is not None))
    except errors.LocalEntryNotFoundError:
        raise silent or ConnectionError("it broke off") from None


def _unreachable() -> tuple[type[Exception], ...]:
    """The errors that the client lets through from beneath it: of requests, httpx or httpx2, by its version."""
    from huggingface_hub import errors

    # Its own error for a status is a subclass of theirs, whose bases are those of all their errors.
    theirs = (base for base in errors.HfHubHTTPError.__mro__ if base.__module__.split(".")[0] in HTTP)
    return (OSError, *(base for base in theirs if issubclass(base, Exception)))


@contextlib.contextmanager
def _as_file_error(what: str) -> Iterator[None]:
    """A refusal as the error that people see."""
    try:
        yield
    except Refused as refused:
        raise FileError(f"{what}: {refused.what}; {refused.fix}.") from None


@contextlib.contextmanager
def _sentences(address: HubAddress) -> Iterator[None]:
    """Whatever the client raises, as what is wrong and what to do.

    Raises:
        Refused: in place of the client's error.
    """
    from huggingface_hub import errors

    try:
        yield
    except (errors.HFValidationError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        _refuse_repository(address, error)
    except errors.EntryNotFoundError:
        there = _vector_files(address)
        known = f"it has {', '.join(map(repr, there))}" if there else "it has no vector file"
        fix = f"load '{dataclasses.replace(address, file=there[0])}'" if there else "check the repository's name"
        raise Refused(f"the repository has no file '{address.file}' ({known})", fix) from None
    except errors.OfflineModeIsEnabled:
        raise Refused(
            "the hub client is offline (HF_HUB_OFFLINE) and this is not in its cache",
            "load it once with a connection, or unset HF_HUB_OFFLINE",
        ) from None
    except errors.LocalTokenNotFoundError:
        raise Refused("nobody is logged in to the hub", "run `hf auth login`, or set HF_TOKEN") from None
    except _unreachable() as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status in (401, 403):
            fix = "log in with `hf auth login` (or HF_TOKEN) as someone who may write there"
            raise Refused(f"the hub refuses it (status {status})", fix) from None
        what = f"the hub answers with status {status}" if status else "the hub cannot be reached"
        raise Refused(
            f"{what} ({type(error).__name__}: {brief(str(error))})",
            "check the connection; what was loaded before is read from the cache without one",
        ) from None


def _refuse_repository(address: HubAddress, error: Exception) -> NoReturn:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        what, fix = "is gated", f"ask for access on the page of {address.repo}, and log in with `hf auth login`"
    elif isinstance(error, errors.RevisionNotFoundError):
        what, fix = f"has no revision '{address.revision}'", "name a branch, tag or commit that it has, or leave it out"
    elif isinstance(error, errors.HFValidationError):
        what, fix = f"has a name that the hub does not allow ({brief(str(error), 200)})", "check the name"
    else:
        what, fix = "is not there, or is private", "check its name, or log in with `hf auth login` (or HF_TOKEN)"
    raise Refused(f"the repository {address.repo} {what}", fix) from None


def _vector_files(address: HubAddress) -> list[str]:
    """Some vector files of a repository, to be named where one is missing."""
    from huggingface_hub import HfApi

    with contextlib.suppress(*_unreachable()):
        files = HfApi().list_repo_files(address.repo, revision=address.revision)
        return [name for name in files if os.path.splitext(name)[1] in (".safetensors", ".gguf")][:8]
    return []
