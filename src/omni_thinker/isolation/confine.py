"""What a candidate of the sandbox may reach: namespaces, a file system of its own, no capabilities.

Loaded by the sandbox's script, so the standard library alone.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import NamedTuple

_NO_NEW_PRIVS, _CAPBSET_DROP = 38, 24
_NEWNET, _NEWPID, _NEWUSER, _NEWIPC, _NEWNS = 0x40000000, 0x20000000, 0x10000000, 0x08000000, 0x00020000
_MS_NOSUID, _MS_NODEV, _MS_BIND, _MS_REC, _MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
_MOUNT_SETATTR, _AT_FDCWD, _AT_RECURSIVE, _MNT_DETACH = 442, -100, 0x8000, 2
_ATTR_RDONLY, _ATTR_NOSUID, _ATTR_NODEV = 1, 2, 4
_SYSTEM = ("/usr", "/bin", "/lib", "/lib32", "/lib64", "/nix/store", "/gnu/store")
_DEVICES = ("/dev/null", "/dev/zero", "/dev/random", "/dev/urandom")
_WORK = "/work"
_DISK = b"size=16m,nr_inodes=8k,mode=755"
_libc = ctypes.CDLL(None, use_errno=True)


class Mode(NamedTuple):
    """uid: a user to become. view: with a file system of its own. user_ns: in a user namespace."""

    uid: int | None
    view: bool
    user_ns: bool


def _must(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _view() -> None:
    """Make a file system of nothing but the system's libraries, the standard library and an empty folder the root."""
    _must(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "make mounts private")
    top = "/proc"  # any folder will do: nobody else sees this mount
    _must(_libc.mount(b"tmpfs", top.encode(), b"tmpfs", _MS_NOSUID | _MS_NODEV, _DISK), "mount a tmpfs")
    root = top + "/root"
    python = [sys.base_prefix, sys.base_exec_prefix, os.path.dirname(os.__file__)]
    done: list[str] = ["/"]
    for path in [*_SYSTEM, *python, *map(os.path.realpath, python)]:
        if not os.path.isdir(path) or any(path == known or path.startswith(known + "/") for known in done):
            continue
        os.makedirs(os.path.dirname(root + path), exist_ok=True)
        if os.path.islink(path) and path in _SYSTEM:
            os.symlink(os.readlink(path), root + path)
        else:
            os.makedirs(root + path, exist_ok=True)
            _bind(path, root + path, _ATTR_RDONLY | _ATTR_NOSUID | _ATTR_NODEV)
        done.append(path)
    os.mkdir(root + "/dev")
    for path in filter(os.path.exists, _DEVICES):
        with open(root + path, "w"):
            _bind(path, root + path, _ATTR_RDONLY | _ATTR_NOSUID)
    os.mkdir(root + _WORK, 0o700)
    os.chdir(top)
    _must(_libc.pivot_root(b".", b"."), "pivot_root")
    _must(_libc.umount2(b".", _MNT_DETACH), "detach the host's files")
    os.chdir("/")
    os.chroot("/root")  # below the root of its mounts a process can't make user namespaces
    os.chdir(_WORK)


def _bind(source: str, target: str, attributes: int) -> None:
    _must(_libc.mount(source.encode(), target.encode(), None, _MS_BIND | _MS_REC, None), f"bind {source}")
    change = (ctypes.c_uint64 * 4)(attributes, 0, 0, 0)
    arguments = (_AT_FDCWD, ctypes.c_char_p(target.encode()), _AT_RECURSIVE, change, ctypes.c_size_t(32))
    _must(_libc.syscall(_MOUNT_SETATTR, *arguments), f"protect {source}")


def _map_user(uid: int, gid: int) -> None:
    """The user itself, so that it may own files in its new namespace."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
        with open(f"/proc/self/{name}", "w") as stream:
            stream.write(text)


def enter(mode: Mode) -> bool:
    """Give up what can be given up. True where processes are counted for this candidate alone.

    Raises OSError where a view that was asked for can't be had.
    """
    apart = _NEWPID | _NEWNET | _NEWIPC
    counted = mode.uid is not None or mode.user_ns
    if mode.view:
        user, group = os.geteuid(), os.getegid()
        _must(_libc.unshare(apart | _NEWNS | (_NEWUSER if mode.user_ns else 0)), "new namespaces")
        if mode.user_ns:
            _map_user(user, group)
        _view()
        for capability in range(64):
            _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    elif not mode.user_ns or _libc.unshare(apart | _NEWUSER) != 0:
        _libc.unshare(apart)  # root, or in a container that has capabilities but no user namespaces
        counted = mode.uid is not None
    if mode.uid is not None:
        if mode.view:
            os.chown(".", mode.uid, mode.uid)
        os.setgroups([])
        os.setresgid(mode.uid, mode.uid, mode.uid)
        os.setresuid(mode.uid, mode.uid, mode.uid)
    return counted


def disarm() -> None:
    """No capabilities from here on, and none through programs that grant them."""
    _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())


def _works(mode: Mode) -> bool:
    """Whether a candidate could be run like this, tried out."""
    pid = os.fork()
    if pid == 0:
        try:
            enter(mode)
            disarm()
            os._exit(0 if os.access(os.__file__, os.R_OK) and os.access(".", os.X_OK) else 1)
        finally:
            os._exit(1)
    return os.waitpid(pid, 0)[1] == 0


def best_mode() -> Mode | None:
    """The best way to run candidates here; None where root's candidates would have root's files."""
    if os.geteuid() != 0:
        return next(filter(_works, [Mode(None, True, True)]), Mode(None, False, True))
    uid = 60000 + os.getpid() % 5000
    modes = [Mode(uid, True, False), Mode(None, True, False), Mode(None, True, True), Mode(uid, False, False)]
    return next(filter(_works, modes), None)
