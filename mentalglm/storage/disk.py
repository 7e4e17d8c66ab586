"""Local disks, and whatever is mounted like one: what is written appears under its name whole, by link or rename."""

import errno
import os
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from mentalglm.errors import StorageError, UnusableStorageError
from mentalglm.storage.places import StoredFile, UnfinishedUpload, failure, join, local_path


class Disk:
    """What the functions of `mentalglm.storage` promise, by their names, for paths and file:// addresses."""

    # Half-written: no reader of the folder takes such a name for a result.
    _TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")

    def read_bytes(self, uri: str) -> bytes | None:
        with _disk_errors(uri):
            try:
                return local_path(uri).read_bytes()
            except FileNotFoundError:
                return None

    def read_versioned(self, uri: str) -> tuple[bytes, str] | None:
        with _disk_errors(uri):
            try:
                with local_path(uri).open("rb") as stream:
                    version = _version(stream)  # first: what changes from here on is another version
                    return stream.read(), version
            except FileNotFoundError:
                return None

    def read_chunks(self, uri: str) -> Iterator[bytes] | None:
        return self._chunks(uri) if self.exists(uri) else None

    def _chunks(self, uri: str) -> Iterator[bytes]:
        with _disk_errors(uri), local_path(uri).open("rb") as stream:
            while chunk := stream.read(16 << 20):
                yield chunk

    def exists(self, uri: str) -> bool:
        with _disk_errors(uri):
            return local_path(uri).is_file()

    def age_s(self, uri: str) -> float | None:
        path = local_path(uri)
        with _disk_errors(uri):
            try:
                now = self._now(path.parent)  # first: what is written meanwhile is not of the future
                return max(0.0, now - path.stat().st_mtime)
            except (FileNotFoundError, NotADirectoryError):
                return None

    def list_names(self, uri: str) -> list[str]:
        with _disk_errors(uri):
            try:
                with os.scandir(local_path(uri)) as entries:
                    return [entry.name for entry in entries if entry.is_file()]
            except FileNotFoundError:
                return []

    def list_files(self, uri: str) -> Iterator[StoredFile]:
        root = local_path(uri)
        with _disk_errors(uri):
            try:
                now = self._now(root)
            except (FileNotFoundError, NotADirectoryError):
                return
            folders = [root]
            while folders:
                try:
                    with os.scandir(folders.pop()) as entries:
                        found = list(entries)
                except FileNotFoundError:  # removed since it was listed
                    continue
                folders += [Path(entry) for entry in found if entry.is_dir(follow_symlinks=False)]
                for entry in found:
                    with suppress(FileNotFoundError):
                        if entry.is_file(follow_symlinks=False):
                            stat = entry.stat(follow_symlinks=False)
                            path = Path(entry).relative_to(root).as_posix()
                            version = f"{stat.st_mtime_ns}-{stat.st_size}-{stat.st_ino}"
                            yield StoredFile(path, stat.st_size, max(0.0, now - stat.st_mtime), version)

    def put(self, uri: str, data: bytes, *, replace: bool, staging: str | None) -> bool:
        with _disk_errors(uri), self._temporary(uri, staging) as (temporary, stream):
            stream.write(data)
            return self._publish(temporary, stream, local_path(uri), replace=replace)

    def put_file(self, uri: str, source: Path, *, version: str | None, staging: str | None) -> bool:
        # A copy, not a link to `source`: it is synced, has the usual permissions, and no later write to `source`
        # shows in it.
        with (
            source.open("rb") as data,
            _disk_errors(uri),
            self._temporary(uri, staging, version) as (temporary, stream),
        ):
            shutil.copyfileobj(data, stream, 8 << 20)
            return self._publish(temporary, stream, local_path(uri), version=version)

    def delete(self, uri: str) -> None:
        with _disk_errors(uri):
            local_path(uri).unlink(missing_ok=True)

    def list_unfinished_uploads(self, uri: str) -> Iterator[UnfinishedUpload]:
        for file in self.list_files(uri):
            if self._TEMPORARY.fullmatch(file.path.rpartition("/")[2]):
                yield UnfinishedUpload(join(uri, file.path), "", file.age_s)

    def abort_upload(self, upload: UnfinishedUpload) -> None:
        self.delete(upload.uri)

    @contextmanager
    def _temporary(self, uri: str, staging: str | None, version: str | None = None) -> Iterator[tuple[Path, BinaryIO]]:
        """A new file on the disk of `uri`; gone at the end, under this name."""
        path = local_path(uri)
        folder = local_path(staging) if staging else path.parent
        for each in (path.parent, folder):
            _make_folder(each)
        name = path.name if version is None else f"{path.name}.{version}"
        temporary = folder / f".{name}.{uuid.uuid4().hex}.tmp"
        try:
            with temporary.open("xb") as stream:
                yield temporary, stream
        finally:
            temporary.unlink(missing_ok=True)

    def _publish(
        self, temporary: Path, stream: BinaryIO, path: Path, *, replace: bool = False, version: str | None = None
    ) -> bool:
        stream.flush()
        os.fsync(stream.fileno())
        if replace:
            temporary.replace(path)
        elif version is not None:
            if not self._replace_version(temporary, stream, path, version):
                return False
        else:
            try:
                os.link(temporary, path)
            except FileExistsError:
                # Over NFS a link that was made is reported as failed when the first reply was lost.
                if not temporary.samefile(path):
                    return False
        _sync_folder(path.parent)
        return True

    def _replace_version(self, temporary: Path, stream: BinaryIO, path: Path, version: str) -> bool:
        """Renames to `path` if `version` is there: a rename knows no such condition, but it fails without its source.

        Whoever is about to replace a version first removes the files of all others who are, then looks whether it is
        still there, then renames. Of two, the one whose file is the younger finds the other's and removes it; or that
        has been renamed, which it sees when it looks. So never do both succeed, however long each sleeps between two
        steps; both may fail, each by the other.
        """
        rivals = temporary.name.rsplit(".", 2)[0]  # without the id
        for other in temporary.parent.iterdir():
            if other.name.startswith(f"{rivals}.") and other != temporary:
                other.unlink(missing_ok=True)
        if _standing_version(path) != version:
            return False
        try:
            temporary.replace(path)
        except FileNotFoundError:
            # Removed by a rival; or renamed, and over NFS reported as failed when the first reply was lost.
            return _standing_version(path) == _version(stream)
        return True

    def _now(self, folder: Path) -> float:
        """The time by the clock of the disk, which on NFS is another machine's: that of a file made just now."""
        try:
            with tempfile.TemporaryFile(dir=folder) as probe:
                return os.fstat(probe.fileno()).st_mtime
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                return time.time()  # who may only look cannot act on the answer either
            raise


def _make_folder(path: Path) -> None:
    """Makes the folder and those above it that are not there, so that they outlast a power failure like a file in them.

    What is there already costs a look and no more: to sync it was for who made it.
    """
    try:
        path.mkdir()
    except FileNotFoundError:
        if path == path.parent:
            raise
        _make_folder(path.parent)
        path.mkdir(exist_ok=True)  # another writer may have been faster
    except OSError:
        if not path.is_dir():
            raise
        return
    _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    """Waits until the names in it are on the disk."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _standing_version(path: Path) -> str | None:
    """The version of what is there now, or None where there is nothing."""
    try:
        with path.open("rb") as stream:  # over NFS, to open is to ask the server
            return _version(stream)
    except FileNotFoundError:
        return None


def _version(stream: BinaryIO) -> str:
    """Of a file as our writes leave it: none of them changes a file in its place, and an inode may be used again."""
    stat = os.fstat(stream.fileno())
    return f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"


# What a file system says when the address is wrong, rather than the hour.
_UNUSABLE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}
_UNUSABLE |= {errno.ELOOP, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP}


@contextmanager
def _disk_errors(uri: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        what = os.strerror(error.errno) if error.errno else type(error).__name__
        if error.errno in _UNUSABLE:
            fix = "name a folder that this user, on every node, may write"
            raise failure(uri, f"cannot be used ({what})", fix, UnusableStorageError) from None
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            fix = "make room on that disk and run the same command again"
        else:
            fix = "see to that disk and run the same command again"
        raise failure(uri, what.lower(), fix) from None
