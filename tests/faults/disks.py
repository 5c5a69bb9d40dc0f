"""Small disks that can be filled, and that can fail: a tmpfs, an ext4 in a file, a folder seen read-only.

All of them need the right to mount; `mountable` says whether there is one.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

MB = 10**6
_FILLER = "filler"


def _mount(*arguments: str) -> bool:
    return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0


def _unmount(folder: Path) -> None:
    subprocess.run(["umount", "--lazy", folder], check=True, capture_output=True)


@cache
def mountable() -> bool:
    """Whether this process may mount a tmpfs."""
    return _tried(["-t", "tmpfs", "-o", "size=1m", "nvr-faults"])


@cache
def loopable() -> bool:
    """Whether this process may make a file system in a file and mount it."""
    if not mountable() or shutil.which("mkfs.ext4") is None:
        return False
    with tempfile.TemporaryDirectory() as folder:
        return _tried(["-o", "loop", str(_image(Path(folder), 8 * MB))])


def _tried(arguments: list[str]) -> bool:
    folder = Path(tempfile.mkdtemp())
    try:
        if os.geteuid() != 0 or not _mount(*arguments, str(folder)):
            return False
        _unmount(folder)
        return True
    finally:
        folder.rmdir()


class Disk:
    """A mounted folder of a few hundred megabytes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def free(self) -> int:
        """Bytes."""
        return shutil.disk_usage(self.folder).free

    def fill(self, left: int = 0) -> None:
        """Write a file until so many bytes are free; more than that are free at the moment, or nothing is done."""
        with (self.folder / _FILLER).open("ab", buffering=0) as file:
            while (more := self.free - left) > 0:
                try:
                    os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, more)
                except OSError:  # what a file takes besides its bytes
                    if more < 4096 or file.write(bytes(min(more // 2, MB))) == 0:
                        return

    def make_room(self) -> None:
        """Delete that file."""
        (self.folder / _FILLER).unlink(missing_ok=True)


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Disk]:
    """A new disk of so many bytes, in memory, mounted on a new folder."""
    folder.mkdir(parents=True)
    assert _mount("-t", "tmpfs", "-o", f"size={size}", "nvr-faults", str(folder))
    try:
        yield Disk(folder)
    finally:
        _unmount(folder)


class Failing(Disk):
    """An ext4 that can stop to be written to, as the kernel does with a disk that fails."""

    def __init__(self, folder: Path, image: Path) -> None:
        super().__init__(folder)
        self._image = image

    def fail(self) -> None:
        """From now on it can only be read, whoever has files open."""
        subprocess.run(["mount", "-o", "remount,abort", self.folder], capture_output=True)

    def mend(self) -> None:
        """Check it and mount it again; nobody has files open."""
        subprocess.run(["umount", self.folder], check=True, capture_output=True)
        subprocess.run(["e2fsck", "-p", "-f", self._image], capture_output=True)
        assert _mount("-o", "loop", str(self._image), str(self.folder))


@contextmanager
def ext4(folder: Path, size: int) -> Iterator[Failing]:
    """A new disk of so many bytes in a file beside the folder that it is mounted on."""
    folder.mkdir(parents=True)
    image = _image(folder.parent, size)
    assert _mount("-o", "loop", str(image), str(folder))
    try:
        yield Failing(folder, image)
    finally:
        _unmount(folder)


def _image(folder: Path, size: int) -> Path:
    image = folder / "disk.img"
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True, capture_output=True)
    return image


@contextmanager
def read_only(folder: Path) -> Iterator[None]:
    """Nothing below the folder can be written while the block runs; nobody has a file there open for writing."""
    assert _mount("--bind", str(folder), str(folder))
    assert _mount("-o", "remount,bind,ro", str(folder))
    try:
        yield
    finally:
        _unmount(folder)
