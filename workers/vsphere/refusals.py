"""vCenter's faults as our errors: one table, and vCenter's own words in the sentence."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pyVmomi import vim, vmodl

from workers.errors import BadInput, Conflict, LoginFailed, NoSpace, NotFound, Refused, Transient, UnderstudyError

#: First match wins, so that a fault stands before the one it derives from.
_TABLE: tuple[tuple[tuple[Any, ...], type[UnderstudyError], str], ...] = (
    ((vim.fault.InvalidLogin,), LoginFailed, "check the user and the password of the site"),
    ((vim.fault.NoPermission,), BadInput, "give the site's user this privilege there"),
    ((vmodl.fault.ManagedObjectNotFound,), NotFound, "it is gone, or it never was in this vCenter"),
    ((vim.fault.ConcurrentAccess,), Conflict, "somebody changed the VM meanwhile"),
    ((vim.fault.DuplicateName, vim.fault.AlreadyExists), Conflict, "the name is taken"),
    (
        (vim.fault.NoDiskSpace, vim.fault.InsufficientStorageSpace),
        NoSpace,
        "free space on the datastore or choose another one",
    ),
    (
        (
            vim.fault.FileLocked,
            vim.fault.TaskInProgress,
            vim.fault.ResourceInUse,
            vim.fault.Timedout,
            vim.fault.HostConnectFault,
            vim.fault.InsufficientResourcesFault,
            vmodl.fault.HostCommunication,
            vmodl.fault.RequestCanceled,
            vmodl.fault.SystemError,
        ),
        Transient,
        "it is tried again",
    ),
)


def as_error(fault: Any, doing: str) -> UnderstudyError:
    """`doing` completes "vCenter refused to ..."."""
    for kinds, error, advice in _TABLE:
        if isinstance(fault, kinds):
            return error(f"vCenter refused to {doing}: {words(fault)}; {advice}")
    return Refused(f"vCenter refused to {doing}: {words(fault)}")


def words(fault: Any) -> str:
    """The fault's kind, then what vCenter says about it."""
    kind = type(fault).__name__.rpartition(".")[2]
    details = [str(fault.msg).strip().rstrip(".")] if getattr(fault, "msg", None) else []
    for name in ("privilegeId", "invalidProperty", "file", "existingState", "reason", "name"):
        value = getattr(fault, name, None)
        if isinstance(value, str) and value:
            details.append(f"{name} {value}")
    for message in getattr(fault, "faultMessage", None) or ():
        if getattr(message, "message", None):
            details.append(message.message.strip().rstrip("."))
    return f"{kind} ({'; '.join(dict.fromkeys(details))})" if details else kind


@contextmanager
def refused_to(doing: str) -> Iterator[None]:
    """A fault that leaves the block becomes a sentence: "vCenter refused to <doing>: ..."."""
    try:
        yield
    except vmodl.MethodFault as err:
        raise as_error(err, doing) from err
