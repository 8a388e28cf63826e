"""Locks a folder for one run at a time; the lock ends with the process that holds it."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import socket
from pathlib import Path

LOCK = ".lock"
_HELD = {errno.EACCES, errno.EAGAIN}

logger = logging.getLogger(__name__)


class FolderLock:
    """The lock of a folder, taken on a file in it that stays there and means nothing by itself.

    The system gives it back when the process ends, whatever ends it; workers forked from the
    process do not hold it (POSIX record locks, not flock). Several machines that share the folder
    see it where their file system has such locks, as NFS has. Where it has none, a warning says so
    and nothing is locked.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor: int | None = None

    def check(self) -> None:
        """Find out whether another process holds the lock, and touch nothing.

        Raises:
            ValueError: If one does.
        """
        if self._descriptor is not None:
            return  # to open and close the file once more would give the lock back
        try:
            descriptor = os.open(self.path, os.O_RDWR)
        except OSError:
            return  # no file, no lock; one that cannot be opened is told when it is taken
        try:
            self._lock(descriptor)
        finally:
            os.close(descriptor)

    def take(self) -> None:
        """Hold the lock until `release` or the end of the process.

        Raises:
            ValueError: If another process holds it.
        """
        if self._descriptor is not None:
            return
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            if not self._lock(descriptor):
                logger.warning(
                    "the file system of '%s' has no locks: see that no second run uses the folder",
                    self.path.parent,
                )
            # For the error of whoever finds the folder locked.
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except BaseException:
            os.close(descriptor)
            raise
        self._descriptor = descriptor

    def __enter__(self) -> FolderLock:
        """Take nothing yet; leaving gives back what was taken."""
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def release(self) -> None:
        """Give the lock back."""
        if self._descriptor is not None:
            # The file stays: to delete it could take it from a process that has just locked it.
            os.close(self._descriptor)
            self._descriptor = None

    def _lock(self, descriptor: int) -> bool:
        """Lock an open file; False where the file system has no locks.

        Raises:
            ValueError: If another process holds the lock.
        """
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in _HELD:
                return False
            holder = os.read(descriptor, 200).decode(errors="replace") or "another process"
            raise ValueError(
                f"`output_dir` must not be in use, but {holder} trains in '{self.path.parent}'; "
                "wait for it or take another folder."
            ) from error
        return True
