"""What libvirt says, in our words: one table, at the edge.

A code alone says little: ``VIR_ERR_INTERNAL_ERROR`` is a lost connection where it comes from
the RPC layer, and a guest that is off where the hypervisor says it. Functions that call libvirt
therefore ask for the state where that answers more; what is left comes here.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from enum import Enum, auto
from typing import TYPE_CHECKING

from vagoth.errors import (
    GuestNotFound,
    HostError,
    HostUnreachable,
    HypervisorUnavailable,
    InvalidInput,
    JobFailed,
    NotSupported,
    OutcomeUnknown,
    VagothError,
)

if TYPE_CHECKING:
    import libvirt


class Meaning(Enum):
    """What an error of libvirt's comes to."""

    LOST = auto()
    REFUSED_USER = auto()
    WRONG_URI = auto()
    NO_GUEST = auto()
    NOT_SUPPORTED = auto()
    BAD_XML = auto()
    SAID_NO = auto()


# By code, and by where it comes from ("" is anywhere). What is not here said no.
_TABLE: Mapping[tuple[str, str], Meaning] = {
    ("VIR_ERR_RPC", ""): Meaning.LOST,
    ("VIR_ERR_SYSTEM_ERROR", "VIR_FROM_RPC"): Meaning.LOST,
    ("VIR_ERR_INTERNAL_ERROR", "VIR_FROM_RPC"): Meaning.LOST,
    ("VIR_ERR_SYSTEM_ERROR", "VIR_FROM_REMOTE"): Meaning.LOST,
    ("VIR_ERR_INTERNAL_ERROR", "VIR_FROM_REMOTE"): Meaning.LOST,
    ("VIR_ERR_INVALID_CONN", ""): Meaning.LOST,
    ("VIR_ERR_NO_CONNECT", ""): Meaning.WRONG_URI,
    ("VIR_ERR_INVALID_ARG", "VIR_FROM_REMOTE"): Meaning.WRONG_URI,
    ("VIR_ERR_AUTH_FAILED", ""): Meaning.REFUSED_USER,
    ("VIR_ERR_AUTH_CANCELLED", ""): Meaning.REFUSED_USER,
    ("VIR_ERR_AUTH_UNAVAILABLE", ""): Meaning.REFUSED_USER,
    ("VIR_ERR_ACCESS_DENIED", ""): Meaning.REFUSED_USER,
    ("VIR_ERR_OPERATION_DENIED", ""): Meaning.REFUSED_USER,
    ("VIR_ERR_NO_DOMAIN", ""): Meaning.NO_GUEST,
    ("VIR_ERR_NO_SUPPORT", ""): Meaning.NOT_SUPPORTED,
    ("VIR_ERR_CONFIG_UNSUPPORTED", ""): Meaning.NOT_SUPPORTED,
    ("VIR_ERR_ARGUMENT_UNSUPPORTED", ""): Meaning.NOT_SUPPORTED,
    ("VIR_ERR_OPERATION_UNSUPPORTED", ""): Meaning.NOT_SUPPORTED,
    ("VIR_ERR_XML_ERROR", ""): Meaning.BAD_XML,
    ("VIR_ERR_XML_DETAIL", ""): Meaning.BAD_XML,
    ("VIR_ERR_XML_INVALID_SCHEMA", ""): Meaning.BAD_XML,
}


@functools.cache
def _by_number() -> dict[tuple[int, int | None], Meaning]:
    import libvirt

    # An older libvirt-python lacks some names; then its libvirt does not send them either.
    return {
        (getattr(libvirt, code), getattr(libvirt, domain) if domain else None): meaning
        for (code, domain), meaning in _TABLE.items()
        if hasattr(libvirt, code)
    }


def meaning_of(error: libvirt.libvirtError) -> Meaning:
    """What an error of libvirt's comes to."""
    code, domain = error.get_error_code() or 0, error.get_error_domain()
    table = _by_number()
    return table.get((code, domain)) or table.get((code, None)) or Meaning.SAID_NO


def words_of(error: libvirt.libvirtError) -> str:
    """What libvirt said, on one line."""
    return " ".join(str(error.get_error_message() or error).split())


def translate(
    error: libvirt.libvirtError,
    host: str,
    *,
    what: str,
    was_sent: bool,
    uuid: str = "",
    xml: str | None = None,
) -> VagothError:
    """The error of ours that says what one of libvirt's means for a call.

    :param what: what was being done, as a noun: ``the start of web1``
    :param was_sent: whether a request that changes something was under way
    :param uuid: the guest that it was about
    :param xml: the user's own fragment of the guest's XML, which may be at fault
    """
    words = words_of(error)
    match meaning_of(error):
        case Meaning.LOST:
            return lost(host, f"the connection to libvirt was lost: {words}", what, was_sent)
        case Meaning.REFUSED_USER:
            return refused_user(host, words)
        case Meaning.WRONG_URI:
            return HypervisorUnavailable(host, f"libvirt has no such hypervisor: {words}")
        case Meaning.NO_GUEST:
            return GuestNotFound(host, uuid)
        case Meaning.NOT_SUPPORTED:
            return NotSupported(f"{host} cannot do {what}: {words}")
        case Meaning.BAD_XML if xml:
            return InvalidInput("xml", xml, "XML that libvirt takes", message=f"xml: {words}")
    return JobFailed(f"{host} refused {what}: {words}", cure=_cure(error))


def _cure(error: libvirt.libvirtError) -> str:
    import libvirt

    cures = {
        libvirt.VIR_ERR_MIGRATE_UNSAFE: "keep its disks where both hosts have them, and libvirt "
        "knows that they do: NFS, GFS2, CephFS, RBD, iSCSI",
        libvirt.VIR_ERR_OPERATION_TIMEOUT: "another job holds the guest: see virsh domjobinfo "
        "on the host, and try again",
    }
    return cures.get(error.get_error_code() or 0, "")


def lost(host: str, problem: str, what: str, was_sent: bool, cure: str = "") -> VagothError:
    """A call whose answer is not to be had: nothing was begun, or nobody knows."""
    if not was_sent:
        return HostUnreachable(host, problem, cure=cure)
    return OutcomeUnknown(
        f"{host}: {problem}, so the outcome of {what} is not known",
        cure="look again when the host answers",
    )


def refused_user(host: str, words: str, user: str = "") -> HostError:
    """libvirt is there, and this user may not use it."""
    return HypervisorUnavailable(
        host,
        f"libvirt does not let {user or 'this user'} manage guests: {words}",
        cure=f"on the host: usermod --append --groups libvirt {user or 'USER'}; then log in anew",
    )
