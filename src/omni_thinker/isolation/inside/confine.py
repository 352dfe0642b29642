"""What a candidate of the sandbox may reach and use up. Loaded by the sandbox's script: the standard library alone."""

import ctypes
import math
import os
import resource
import struct
import tempfile
from typing import Any

BOX = "/box"
"""Inside bubblewrap: the root that candidates get."""
_WORK = "/work"
_NO_NEW_PRIVS, _CAPBSET_DROP, _PDEATHSIG, _DUMPABLE = 38, 24, 1, 4
_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE = 2, 4, 16384, 1 << 18
_DISK = b"size=16m,nr_inodes=4k,mode=700"
_FILE_BYTES = 1 << 20
_PROCESSES = 5
_SECCOMP, _FILTER, _EPERM, _EAFNOSUPPORT, _AF_UNIX = 22, 2, 1, 97, 1
# By machine: the kernel's name of it, socket(2), and what a program has no business with: ptrace, process_vm_readv and
# writev, mount, umount2, pivot_root, unshare, setns, bpf, perf_event_open, userfaultfd, the three of keys, opening by
# handle.
_SYSTEM_CALLS = {
    "x86_64": (0xC000003E, 41, (101, 310, 311, 165, 166, 155, 272, 308, 321, 298, 323, 248, 249, 250, 304)),
    "aarch64": (0xC00000B7, 198, (117, 270, 271, 40, 39, 41, 97, 268, 280, 241, 282, 217, 218, 219, 265)),
}
_IO_URING = (425, 426, 427)
_libc = ctypes.CDLL(None, use_errno=True)


def enter(folder: str) -> bool:
    """Give this process and its children to come namespaces of their own, where the kernel allows it.

    Inside bubblewrap: a root of nothing but the system's libraries and an empty /work that vanishes with it. Elsewhere
    the working folder is `folder`. True where processes are counted for this candidate alone."""
    boxed = os.path.isdir(BOX)
    user, group = os.geteuid(), os.getegid()
    apart: bool = _libc.unshare(_NEWUSER | _NEWPID | _NEWIPC | (_NEWNS if boxed else _NEWNET)) == 0
    if apart:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            with open(f"/proc/self/{name}", "w") as stream:
                stream.write(text)
    if boxed:
        if not apart:
            raise OSError("bubblewrap's user may not make namespaces of its own")
        _mount(None, "/", None, _MS_REC | _MS_PRIVATE, None)
        _mount(b"tmpfs", BOX + _WORK, b"tmpfs", _MS_NOSUID | _MS_NODEV, _DISK)
        os.chroot(BOX)  # a process whose root isn't its mounts' root can't make user namespaces any more
        folder = _WORK
    os.chdir(folder)
    tempfile.tempdir = folder
    for capability in range(64 if apart else 0):
        _libc.prctl(_CAPBSET_DROP, capability, 0, 0, 0)
    return apart


def leave_root() -> None:
    """Become a user without files where this process is root: root's processes could not even be counted."""
    if os.geteuid() == 0:
        uid = 60000 + os.getppid() % 5000
        if not os.path.isdir(BOX):
            os.chown(".", uid, uid)
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
        _libc.prctl(_DUMPABLE, 1, 0, 0, 0)  # else /proc/self stays root's, and user namespaces can't be set up


def _mount(source: bytes | None, target: str, kind: bytes | None, flags: int, options: bytes | None) -> None:
    if _libc.mount(source, target.encode(), kind, flags, options) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {target}: {os.strerror(number)}")


def limit(request: dict[str, Any], processes: int | None = _PROCESSES) -> None:
    """Bounds on memory (address space, MiB), processor time, files and processes, and `drop_rights`."""
    limits = [
        (resource.RLIMIT_AS, int(request["memory_mb"]) << 20),
        (resource.RLIMIT_CPU, math.ceil(request["timeout"]) + 1),
        (resource.RLIMIT_FSIZE, _FILE_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
    ]
    if processes is not None:
        limits.append((resource.RLIMIT_NPROC, processes))
    for which, value in limits:
        hard = resource.getrlimit(which)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (value, value))
    drop_rights()


def drop_rights() -> None:
    """No capabilities from here on, and no way to new ones."""
    _libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
    _libc.capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)())


def forbid() -> None:
    """No sockets but between processes here, and no system calls that only attacks use: a seccomp filter.

    Namespaces alone leave a virtual machine's own sockets open (AF_VSOCK). After `drop_rights`."""
    machine = os.uname().machine
    if machine not in _SYSTEM_CALLS:
        return
    kernel, sockets, others = _SYSTEM_CALLS[machine]
    forbidden = (*others, *_IO_URING)
    refuse, allow = 0x00050000 | _EPERM, 0x7FFF0000
    last = len(forbidden)
    steps = [
        (0x20, 0, 0, 4),  # load the architecture
        (0x15, 0, last + 7, kernel),  # another one: refuse
        (0x20, 0, 0, 0),  # load the call's number
        (0x35, last + 5, 0, 0x40000000),  # the x32 interface: refuse
        (0x15, 0, 3, sockets),  # a socket?
        (0x20, 0, 0, 16),  # load its family
        (0x15, last + 1, 0, _AF_UNIX),  # between processes: allow
        (0x06, 0, 0, 0x00050000 | _EAFNOSUPPORT),
        *((0x15, last - place, 0, number) for place, number in enumerate(forbidden)),
        (0x06, 0, 0, allow),
        (0x06, 0, 0, refuse),
    ]
    code = b"".join(struct.pack("HBBI", *step) for step in steps)
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HxxxxxxQ", len(steps), ctypes.addressof(buffer))
    if _libc.prctl(_SECCOMP, _FILTER, ctypes.c_char_p(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "no seccomp filter")


def hide() -> None:
    """Let no other process of this user read this one's memory or trace it."""
    _libc.prctl(_DUMPABLE, 0, 0, 0, 0)


def die_with_parent(signal: int) -> None:
    """After any change of user, which would undo it."""
    _libc.prctl(_PDEATHSIG, signal, 0, 0, 0)


def adopt_orphans() -> None:
    """What a child of this process leaves behind becomes a child of this process."""
    _libc.prctl(36, 1, 0, 0, 0)
