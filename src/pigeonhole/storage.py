"""Files by URL: `file://` (or a plain path), `package://module/path` (what a Python package carries), `gs://` and other clouds.

The only module that imports fsspec. Promises: `write`, `create` and `swap` are atomic (a reader sees the old bytes or the new);
`create` never overwrites; `swap` is a compare-and-swap (a generation precondition on GCS, a lock and a rename on disk).
"""

import contextlib
import errno
import functools
import glob
import hashlib
import importlib.util
import io
import mmap
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from filelock import FileLock

from pigeonhole.errors import ConfigError, NotFoundError, StorageError

if TYPE_CHECKING:
    import fsspec

REMOTE = ("gs", "s3", "az", "http", "https", "memory")  # all but gs need a package that is not in the lock, or are read only
REMOTE_BUFFER_BYTES = 1 << 20
NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS)  # what exFAT and some mounts of buckets say of a link
ABSENT = ""  # the version of a file that is not there


def local_path(url: str) -> Path | None:
    """The path of a local URL, or None for a remote one."""
    if url.startswith("package://"):
        return _package_path(url)
    if url.startswith("file://"):
        return Path(url.removeprefix("file://"))
    return None if "://" in url else Path(url)


def join(url: str, *parts: str) -> str:
    """Raises StorageError for a scheme alone, which would become a folder `gs:` of this machine."""
    if not url:
        raise StorageError("an empty URL names no folder; expected a path or a URL such as gs://BUCKET/PATH")
    place = url.rstrip("/")
    if place.endswith(":") and "://" in url:
        raise StorageError(f"{url}: names no bucket or folder; expected {place}//NAME or {place}//NAME/PATH")
    return "/".join([place, *parts])


def to_url(path: str | Path) -> str:
    """A URL that means the same from any working directory."""
    text = str(path)
    return text if "://" in text else f"file://{os.path.realpath(text)}"  # Path.resolve() fails at links in a circle


def exists(url: str) -> bool:
    path = local_path(url)
    with _explained(url):
        return path.exists() if path else bool(_filesystem(url).exists(url))


def read(url: str, most: int | None = None) -> bytes:
    """Raises NotFoundError, StorageError; the latter for a file with more bytes than `most`, too, of which no more are read."""
    path = local_path(url)
    with _explained(url):
        if path is None:
            data = bytes(_filesystem(url).cat_file(url, end=None if most is None else most + 1))
            if most is not None and len(data) > most:
                raise StorageError(f"{url}: has more than {most:,} bytes, no more are read")
            return data
        if most is not None and (size_bytes := path.stat().st_size) > most:
            raise StorageError(f"{url}: has {size_bytes:,} bytes, at most {most:,} are read")
        return _regular(path).read_bytes()


@contextlib.contextmanager
def open_read(url: str) -> Iterator[IO[bytes]]:
    """Stream a file that may be larger than memory."""
    path = local_path(url)
    with _explained(url), _regular(path).open("rb") if path else _filesystem(url).open(url, "rb") as stream:
        # fsspec's own files know no readline with a bound.
        yield cast(IO[bytes], stream if path else io.BufferedReader(stream, REMOTE_BUFFER_BYTES))


def download(url: str, path: Path) -> None:
    """Copy a file that may be larger than memory to a local one. Raises NotFoundError, StorageError."""
    local = local_path(url)
    with _explained(url):
        if local:
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(_regular(local), path)
        else:
            _filesystem(url).get_file(url, str(path))


def write(url: str, data: bytes | mmap.mmap) -> None:
    """Create or overwrite; of a mapped file a piece at a time is in memory."""
    path = local_path(url)
    with _explained(url):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            _replace(path, data)
        else:
            _filesystem(url).pipe_file(url, data)


def keep(url: str, data: bytes) -> bool:
    """Write a file that is not there yet; False, and nothing written, where another one is.

    These very bytes are no other one: a client that heard no answer sends again, and meets its own.
    """
    return create(url, data) or read(url) == data


def create(url: str, data: bytes) -> bool:
    """Write a file that is not there yet; False, and nothing written, where it is."""
    path = local_path(url)
    with _explained(url):
        if path is None:
            return _create_remote(url, data)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = _write_aside(path, data)
        try:
            os.link(aside, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in NO_LINKS:
                raise
            raise StorageError(
                f"{url}: this disk has no hard links, by which a file is made only once; choose a folder on another disk"
            ) from error
        finally:
            aside.unlink()
        sync_folder(path.parent)
        return True


def read_versioned(url: str) -> tuple[bytes, str]:
    """A file and the version to give to `swap`; `(b"", ABSENT)` where there is none.

    The version of a remote file is asked for first: of one that is written meanwhile it is too old, and `swap` refuses it.
    """
    path = local_path(url)
    try:
        if path:
            data = read(url)
            return data, _digest(data)
        version = _generation(url)
        return read(url), version
    except NotFoundError:
        return b"", ABSENT


def swap(url: str, data: bytes, version: str) -> bool:
    """Write `data` if the file still has `version` (as `read_versioned` gave it); otherwise write nothing and return False."""
    path = local_path(url)
    with _explained(url):
        if path is None:
            return _swap_remote(url, data, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock")):
            found = _digest(path.read_bytes()) if path.exists() else ABSENT
            if found != version:
                return False
            _replace(path, data)
            return True


def is_local_file(url: str) -> bool:
    path = local_path(url)
    with _explained(url):
        return path is not None and path.is_file()


def require_writable(key: str, url: str) -> None:
    """Write a file into a folder and delete it again. Raises ConfigError, naming the key, where that is not possible."""
    name = f".writable-{uuid.uuid4().hex}"  # of its own: several processes may ask at one time
    try:
        probe = join(url, name)
        write(probe, b"")
        delete(probe)
    except StorageError as error:
        why = str(error).partition(f"{name}: ")[2] or error  # nobody knows the name that was tried
        raise ConfigError(f"{key}={url}: cannot be written ({why}); choose a folder that you may write to") from error


def delete(url: str) -> None:
    path = local_path(url)
    with _explained(url):
        if path:
            path.unlink()
        else:
            _filesystem(url).rm_file(url)


def list_files(url: str) -> list[str]:
    """The paths below a folder, relative to it, sorted; empty for a folder that is not there."""
    path = local_path(url)
    with _explained(url):
        if path:
            found = [entry for entry in path.rglob("*") if entry.is_file() or entry.is_symlink()]
            return sorted(entry.relative_to(path).as_posix() for entry in found)
        return sorted(_found(url))


def remote_sizes(url: str) -> dict[str, int]:
    """The bytes of each file below a remote folder, by its path relative to it; 0 where the store does not tell."""
    with _explained(url):
        return {name: entry["size"] or 0 for name, entry in _found(url).items()}


def list_folders(url: str) -> list[str]:
    """The names of the folders right below a folder, sorted; empty for a folder that is not there."""
    path = local_path(url)
    with _explained(url):
        if path:
            return sorted(found.name for found in path.iterdir() if found.is_dir()) if path.is_dir() else []
        filesystem = _filesystem(url)
        filesystem.invalidate_cache()
        if not filesystem.exists(url):
            return []
        names = {entry["name"].rstrip("/") for entry in filesystem.ls(url, detail=True) if entry["type"] == "directory"}
        return sorted(name.rsplit("/", 1)[-1] for name in names - {filesystem._strip_protocol(url).rstrip("/")})


def expand(url: str) -> list[str]:
    """The files that a glob (`folder/*.csv`, `**` for any depth), a folder or a file stands for, sorted, as full URLs."""
    path = local_path(url)
    with _explained(url):
        if path is None:
            filesystem = _filesystem(url)
            filesystem.invalidate_cache()
            found = filesystem.glob(url) if any(letter in url for letter in "*?[") else filesystem.find(url)
            return sorted(filesystem.unstrip_protocol(name) for name in found if not filesystem.isdir(name))
        if path.is_dir():
            return [to_url(path / name) for name in list_files(url)]
        if path.exists():
            return [to_url(path)]
        names = glob.glob(str(path), recursive=True)  # noqa: PTH207  Path.glob wants a folder apart from the pattern
        return sorted(to_url(name) for name in names if Path(name).is_file())


def forget_clients() -> None:
    """The next URL makes a new client, by the environment as it is then."""
    _filesystem_of.cache_clear()


def sync_folder(folder: Path) -> None:
    """Make the names in it survive the host, as fsync does for the bytes of a file."""
    if os.name == "nt":
        return  # Windows cannot open a folder to sync it
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _regular(path: Path) -> Path:
    """A pipe would be waited for, /dev/zero read for ever, and nothing is read twice from either."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(0, "is a pipe or a device, a file is needed")
    return path


def _package_path(url: str) -> Path:
    module, _, inside = url.removeprefix("package://").partition("/")
    if not module.isidentifier() or ".." in inside.split("/"):
        raise StorageError(f"{url}: expected package://MODULE/PATH without '..'")
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise NotFoundError(f"{url}: the Python package {module} is not installed here")
    return Path(spec.submodule_search_locations[0]) / inside


@functools.cache
def _filesystem_of(scheme: str) -> "fsspec.AbstractFileSystem":
    if scheme not in REMOTE:
        raise StorageError(f"{scheme}:// cannot be used here; use a path, file://, package:// or one of {', '.join(REMOTE)}")
    # fsspec and a cloud client take 0.1 to 1 s to import: a laptop on file:// never pays for them.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    try:
        import fsspec
    except ModuleNotFoundError as error:
        raise StorageError(f"{scheme}:// cannot be used here: fsspec is not installed; uv sync --group store") from error
    options: dict[str, Any] = {}
    if scheme == "gs":
        import aiohttp

        # gcsfs waits five minutes for a store that has gone quiet, six times over; a large file may take as long as it likes.
        options["requests_timeout"] = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
    try:
        return fsspec.filesystem(scheme, **options)
    except ImportError as error:
        raise StorageError(f"{scheme}:// cannot be used here: {error}") from error


def _filesystem(url: str) -> "fsspec.AbstractFileSystem":
    scheme, _, place = url.partition("://")
    if scheme in ("gs", "s3", "az") and not place.strip("/"):  # the client looks for it for a quarter of a minute
        raise StorageError(f"{url}: names no bucket; expected {scheme}://BUCKET/PATH")
    if scheme in ("http", "https") and not _has_host(url):
        raise StorageError(f"{url}: expected {scheme}://HOST/PATH")
    return _filesystem_of(scheme)


def _found(url: str) -> dict[str, dict[str, Any]]:
    filesystem = _filesystem(url)
    root = filesystem._strip_protocol(url).rstrip("/") + "/"
    filesystem.invalidate_cache()
    found = filesystem.find(url, detail=True)
    # A name with a slash at its end is what the cloud's own pages make of an empty folder.
    return {name.removeprefix(root): entry for name, entry in found.items() if not name.endswith("/")}


def _has_host(url: str) -> bool:
    try:
        return bool((urlsplit(url).hostname or "").encode("idna"))
    except ValueError:
        return False


@contextlib.contextmanager
def _explained(url: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if isinstance(error.__cause__, OSError):  # a host that cannot be reached, which fsspec takes for a file that is not there
            raise StorageError(f"{url}: {error.__cause__.strerror or error.__cause__}") from error
        raise NotFoundError(f"{url}: there is no such file") from error
    except PermissionError as error:
        raise StorageError(f"{url}: access denied; check the path's permissions or the account's roles") from error
    except IsADirectoryError as error:
        raise StorageError(f"{url}: is a folder, a file is needed") from error
    except OSError as error:
        raise StorageError(f"{url}: {error.strerror or error}") from error
    except Exception as error:
        # The errors of a cloud's client share no base class, and to import them would load the client.
        if type(error).__module__.partition(".")[0] not in ("aiohttp", "gcsfs", "google"):
            raise
        raise StorageError(f"{url}: {error}") from error


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _write_aside(path: Path, data: bytes | mmap.mmap) -> Path:
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    aside = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
    except BaseException:
        aside.unlink()  # half of it would keep a full disk full
        raise
    aside.chmod(0o644)  # mkstemp's 0600 would hide the file from a server that runs as another user
    return aside


def _replace(path: Path, data: bytes | mmap.mmap) -> None:
    _write_aside(path, data).replace(path)
    sync_folder(path.parent)


def _create_remote(url: str, data: bytes) -> bool:
    try:
        _filesystem(url).pipe_file(url, data, mode="create")
    except FileExistsError:
        return False
    return True


def _generation(url: str) -> str:
    filesystem = _filesystem(url)
    filesystem.invalidate_cache()
    with _explained(url):
        found: dict[str, Any] = filesystem.info(url)
    if "generation" not in found:
        raise StorageError(f"{url}: this store has no generations; aliases need gs:// or file://")
    return str(found["generation"])


def _swap_remote(url: str, data: bytes, version: str) -> bool:
    if version == ABSENT:
        return keep(url, data)
    filesystem = _filesystem(url)
    bucket, key, _ = filesystem.split_path(url)
    try:
        filesystem.call(
            "POST",
            f"{filesystem._location}/upload/storage/v1/b/{bucket}/o",
            uploadType="media",
            name=key,
            ifGenerationMatch=version,
            data=data,
        )
    except FileExistsError:  # what gcsfs makes of 412: the generation is another one by now
        return read(url) == data  # ours: it sends again what it heard no answer to, and meets what it sent before
    filesystem.invalidate_cache()
    return True
