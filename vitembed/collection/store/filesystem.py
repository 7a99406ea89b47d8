"""On which kind of file system a path lies: SQLite's write-ahead log needs one that a single machine has to itself."""

from __future__ import annotations

import os
import re

MOUNT_TABLE = "/proc/mounts"

# The log's index is memory shared by all processes of one machine; two machines would each have their own.
NETWORK_TYPES = frozenset(
    """
    nfs nfs4 cifs smb2 smb3 smbfs ncpfs afs coda ceph ceph.fuse glusterfs lustre gpfs beegfs pvfs2 ocfs2 gfs gfs2 9p
    v9fs virtiofs vboxsf vmhgfs prl_fs drvfs acfs panfs orangefs davfs
    """.split()  # noqa: SIM905
)
_NETWORK_FUSE = re.compile(
    rb"fuse\.(?!(?:ext|ntfs|exfat|fuseblk|zfs|overlay|unionfs|mergerfs|bindfs|encfs|gocryptfs))."
)
_OCTAL = re.compile(rb"\\([0-7]{3})")


def is_network(path: str | os.PathLike[str], mounts: bytes | None = None) -> bool:
    r"""Whether several machines might see the file, as on NFS or SMB; unknown counts as no.

    Args:
        path: Of a file or folder, which need not exist.
        mounts: The text of ``/proc/mounts``; read from there by default. Systems without one (macOS) say no; on Windows
            a path ``\\server\share`` tells.
    """
    real = os.path.realpath(os.fsencode(path))
    if real.startswith(b"\\\\"):
        return os.name == "nt"
    kind = _type_of(real, _mounts() if mounts is None else mounts)
    return kind.decode("ascii", "replace") in NETWORK_TYPES or _NETWORK_FUSE.match(kind) is not None


def _mounts() -> bytes:
    try:
        with open(MOUNT_TABLE, "rb") as file:
            return file.read()
    except OSError:
        return b""


def _type_of(path: bytes, mounts: bytes) -> bytes:
    best, kind = b"", b""
    for line in mounts.splitlines():
        fields = line.split(b" ")
        if len(fields) < 3:
            continue
        point = _OCTAL.sub(lambda match: bytes([int(match[1], 8) & 255]), fields[1])
        below = path == point or path.startswith(point.rstrip(b"/") + b"/")
        if below and len(point) >= len(best):  # of two on the same point the later one lies on top
            best, kind = point, fields[2]
    return kind
