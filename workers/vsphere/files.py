"""Small files on a datastore, through vCenter: for whoever has not mounted it. Not for disks."""

from __future__ import annotations

import base64
import hashlib
import ssl
from functools import lru_cache
from http.client import HTTPException
from urllib.parse import quote, urlencode

from pyVmomi import vim

from workers.errors import NotFound, Refused, VcenterUnreachable
from workers.vsphere.inventory import datastore_path
from workers.vsphere.session import Found, Session

#: a descriptor is some hundred bytes, NVRAM some hundred KB; what is larger is no file for this way
LARGEST = 4 << 20


class DatastoreFile:
    """One file, named as vCenter does: "[datastore] folder/name"."""

    def __init__(self, session: Session, file: str) -> None:
        self.file = file
        self._session = session
        datastore, path = datastore_path(file)
        query = urlencode({"dcPath": _datacenter(session, datastore), "dsName": datastore})
        self._url = f"/folder/{quote(path)}?{query}"

    def get(self) -> str:
        return self._ask("GET").decode("latin-1")

    def put(self, text: str) -> None:
        """Replace the whole file."""
        self._ask("PUT", text.encode("latin-1"))

    def _ask(self, method: str, body: bytes | None = None) -> bytes:
        site, connection = self._session.site, self._session.wire.open()
        login = base64.b64encode(f"{site.user}:{site.password()}".encode()).decode()
        try:
            connection.request(method, self._url, body, {"Authorization": f"Basic {login}"})
            answer = connection.getresponse()
            text = answer.read(LARGEST + 1)
        except (OSError, HTTPException) as err:
            raise VcenterUnreachable(f"{self._session} did not answer to a {method} of {self.file}: {err}") from err
        finally:
            connection.close()
        if answer.status == 404:
            _datacenter.cache_clear()  # the datastore may have been moved or renamed
            raise NotFound(f"{self.file} is not there, says {self._session}")
        if answer.status in (401, 403):
            raise Refused(
                f"{self._session} does not let {site.user} at {self.file}: the user needs the privileges "
                "Datastore.Browse and Datastore.FileManagement on its datastore"
            )
        if answer.status >= 300 or len(text) > LARGEST:
            raise VcenterUnreachable(f"{self._session} answers {answer.status} {answer.reason} to {method} {self.file}")
        return text


@lru_cache(64)
def _datacenter(session: Session, datastore: str) -> str:
    """The inventory path of the datacenter that the datastore is in."""
    kinds = {vim.Datacenter: ("name", "parent", "datastore"), vim.Folder: ("name", "parent"), vim.Datastore: ("name",)}
    found = {str(each.ref): each for each in session.read_all(kinds)}
    for each in found.values():
        stores = each.values.get("datastore", ()) if isinstance(each.ref, vim.Datacenter) else ()
        if any(str(ref) in found and found[str(ref)].values.get("name") == datastore for ref in stores):
            return "/".join(_path(each, found))
    raise NotFound(f"{session} has no datastore {datastore} that its user may see")


def _path(place: Found, found: dict[str, Found]) -> list[str]:
    """Names from the top; the top folder itself has none."""
    above = found.get(str(place.values.get("parent")))
    return [*(_path(above, found) if above is not None else ()), str(place.values["name"])]


def sha1(session: Session) -> str:
    """The SHA-1 thumbprint of vCenter's certificate, checked as configured: VMware's library knows no other."""
    connection = session.wire.open()
    try:
        assert isinstance(connection.sock, ssl.SSLSocket)
        digits = hashlib.sha1(connection.sock.getpeercert(True) or b"", usedforsecurity=False).hexdigest().upper()
    finally:
        connection.close()
    return ":".join(digits[at : at + 2] for at in range(0, len(digits), 2))
