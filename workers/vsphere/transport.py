"""The wire to one vCenter: TLS, time limits, what is repeated after a lost connection, and logging in again."""

from __future__ import annotations

import hashlib
import select
import ssl
import threading
import time
from collections.abc import Callable
from http.client import HTTPException, HTTPSConnection
from typing import Any, NamedTuple
from urllib.parse import urlsplit
from xml.etree import ElementTree
from xml.parsers.expat import ExpatError

from pyVmomi import vim
from pyVmomi.SoapAdapter import SoapStubAdapter
from pyVmomi.VmomiSupport import versionMap

from workers.errors import ConfigError, LoginFailed, VcenterUnreachable
from workers.settings import Site

#: Seconds for TCP and TLS together. A dead address must not hold a slice for the two minutes of the kernel.
CONNECT_TIMEOUT = 15.0

#: Seconds without a byte of an answer. Long work is a vCenter task and is waited for apart; what remains long is
#: QueryChangedDiskAreas of a big disk, up to a minute or two.
ANSWER_TIMEOUT = 180.0

#: Seconds that an unused connection is kept: below the keep-alive of proxies in front of vCenter, because a
#: connection closed by the other end turns the next changing call into one of unknown outcome.
IDLE = 30.0

#: Connections kept per session: one for each thread that usually works at once.
POOL = 8

#: Calls that change nothing a repetition could double. After a lost connection they are repeated once; of any other
#: call it is not known whether vCenter carried it out, so its caller has to look.
REPEATABLE = frozenset(
    {
        "Fetch",
        "RetrieveServiceContent",
        "RetrievePropertiesEx",
        "CreateContainerView",
        "CreatePropertyCollector",
        "CreateFilter",
        "WaitForUpdatesEx",
        "QueryChangedDiskAreas",
        "QueryConfigOptionDescriptor",
        "FindByUuid",
        "FindChild",
        "CurrentTime",
        "Login",
        "Logout",
    }
)

_LOST = (OSError, HTTPException, ExpatError)


class Address(NamedTuple):
    host: str
    port: int
    path: str

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def address(vcenter: str) -> Address:
    """'vc.example', 'vc.example:8443' or 'https://vc.example:8443/sdk'."""
    try:
        parts = urlsplit(vcenter if "://" in vcenter else f"https://{vcenter}")
        port = parts.port or 443
    except ValueError as err:
        raise ConfigError(
            f"vcenter = {vcenter!r} is no address: give a host name, host:port or https://host/sdk"
        ) from err
    if parts.scheme != "https" or not parts.hostname:
        raise ConfigError(f"vcenter = {vcenter!r}: vCenter is reached by https only; give a host name or host:port")
    return Address(parts.hostname, port, parts.path if parts.path not in ("", "/") else "/sdk")


def thumbprint(text: str) -> str:
    """A SHA-256 thumbprint as 64 lower-case hexadecimal digits."""
    digits = text.replace(":", "").replace(" ", "").lower()
    if len(digits) != 64 or any(c not in "0123456789abcdef" for c in digits):
        raise ConfigError(
            f"thumbprint = {text!r} is no SHA-256 thumbprint: 64 hexadecimal digits, with or without colons "
            "(openssl x509 -noout -fingerprint -sha256)"
        )
    return digits


def tls(site: Site) -> tuple[ssl.SSLContext, str | None]:
    """The context, and the thumbprint that the server's certificate must have, if any."""
    if site.thumbprint is not None or site.insecure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        return context, thumbprint(site.thumbprint) if site.thumbprint is not None else None
    if site.ca_file is None:
        return ssl.create_default_context(), None
    try:
        return ssl.create_default_context(cafile=str(site.ca_file)), None
    except OSError as err:  # ssl.SSLError is one
        raise ConfigError(
            f"ca_file = {site.ca_file} cannot be used: {err}; it should hold the certificate of the CA in PEM form"
        ) from err


class _WrongCertificate(ssl.SSLError):
    pass


class _Connection(HTTPSConnection):
    """http.client asks no environment for proxies; the pin is checked before a byte of a request is sent."""

    def __init__(self, to: Address, context: ssl.SSLContext, pin: str | None) -> None:
        super().__init__(to.host, to.port, timeout=CONNECT_TIMEOUT, context=context)
        self._pin = pin

    def connect(self) -> None:
        super().connect()
        assert isinstance(self.sock, ssl.SSLSocket)
        if self._pin is not None:
            found = hashlib.sha256(self.sock.getpeercert(True) or b"").hexdigest()
            if found != self._pin:
                self.close()
                raise _WrongCertificate(f"the certificate's SHA-256 thumbprint is {found}")
        self.sock.settimeout(ANSWER_TIMEOUT)


class Wire:
    """Opens connections to one site's vCenter."""

    def __init__(self, name: str, site: Site) -> None:
        self.name = name
        self.to = address(site.vcenter)
        self._context, self._pin = tls(site)

    def open(self) -> _Connection:
        connection = _Connection(self.to, self._context, self._pin)
        try:
            connection.connect()
        except _WrongCertificate as err:
            raise LoginFailed(
                f"{self}: {err.args[0]}, not the configured one; if the certificate was renewed on purpose, "
                f"set sites.{self.name}.thumbprint to it, otherwise somebody stands between"
            ) from err
        except ssl.SSLCertVerificationError as err:
            raise LoginFailed(
                f"{self}: its certificate is not trusted: {err.verify_message}; set sites.{self.name}.ca_file to its "
                f"CA's certificate, or sites.{self.name}.thumbprint to its SHA-256 thumbprint"
            ) from err
        except OSError as err:
            connection.close()
            raise VcenterUnreachable(f"{self} cannot be reached: {err}") from err
        return connection

    def version(self) -> str:
        """The newest API version that both sides speak, as pyVmomi names it."""
        connection = self.open()
        try:
            connection.request("GET", f"{self.to.path}/vimServiceVersions.xml")
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != 200:
                raise VcenterUnreachable(f"{self} answers {answer.status} {answer.reason} instead of its API versions")
            for space in ElementTree.fromstring(text).iter("namespace"):
                if space.findtext("name") == "urn:vim25":
                    spoken = [space.findtext("version"), *(v.text for v in space.findall("priorVersions/version"))]
                    return str(next(versionMap[f"vim25/{v}"] for v in spoken if f"vim25/{v}" in versionMap))
        except (*_LOST, ElementTree.ParseError, StopIteration) as err:
            raise VcenterUnreachable(f"{self} does not say which API versions it speaks: {_short(err)}") from err
        finally:
            connection.close()
        raise VcenterUnreachable(f"{self} does not speak vCenter's API; is it a vCenter?")

    def __str__(self) -> str:
        return f"the vCenter of site {self.name} ({self.to})"


class Stub(SoapStubAdapter):  # type: ignore[misc]
    """pyVmomi's adapter, for several threads: logs in again when the session is gone, repeats what may be repeated."""

    def __init__(self, wire: Wire, version: str, login: Callable[[Stub], None]) -> None:
        super().__init__(host=wire.to.host, port=wire.to.port, path=wire.to.path, version=version, poolSize=POOL)
        self._wire = wire
        self._login = login
        self._logging_in = threading.RLock()
        self._logins = 0

    def login(self, seen: int | None = None) -> None:
        """Log in, unless another thread did since the caller saw login number `seen`."""
        with self._logging_in:
            if seen is None or seen == self._logins:
                # A login within a session that still lives is refused like a wrong password: begin without its cookie.
                self.SetSessionId(None)
                self._login(self)
                self._logins += 1

    @property
    def logins(self) -> int:
        return self._logins

    def InvokeMethod(self, mo: Any, info: Any, args: Any, outerStub: Any = None) -> Any:
        seen = self._logins
        try:
            return self._carefully(mo, info, args, outerStub)
        except vim.fault.NotAuthenticated:
            # Refused before anything was done, so that any call may be repeated.
            if info.wsdlName in ("Login", "Logout"):
                raise
        self.login(seen)
        try:
            return self._carefully(mo, info, args, outerStub)
        except vim.fault.NotAuthenticated as err:
            raise VcenterUnreachable(f"{self._wire} ended the session again right after a new login") from err

    def _carefully(self, mo: Any, info: Any, args: Any, outer: Any) -> Any:
        try:
            return super().InvokeMethod(mo, info, args, outer)
        except _LOST as err:
            if info.wsdlName not in REPEATABLE:
                raise VcenterUnreachable(
                    f"the connection to {self._wire} was lost during {info.wsdlName} ({_short(err)}); "
                    "whether it was carried out is not known, so look before repeating it"
                ) from err
        try:
            return super().InvokeMethod(mo, info, args, outer)
        except _LOST as err:
            raise VcenterUnreachable(
                f"the connection to {self._wire} was lost twice during {info.wsdlName} ({_short(err)})"
            ) from err

    def GetConnection(self) -> _Connection:
        while True:
            with self.lock:
                held = self.pool.pop(0) if self.pool else None
            if held is None:
                return self._wire.open()
            connection, since = held
            if time.time() - since < IDLE and not _closed(connection):
                return connection  # type: ignore[no-any-return]
            connection.close()


def _closed(connection: Any) -> bool:
    """Whether the other end hung up: an idle connection with something to read holds the end of the stream."""
    if connection.sock is None:
        return True
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))


def _short(err: BaseException) -> str:
    return str(err) or type(err).__name__
