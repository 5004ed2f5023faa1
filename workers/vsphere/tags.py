"""vCenter's tags, which only its REST API has: the tags of VMs, all of them or an error.

vCenter leaves out without a word what its user may not read, and an answer may be cut short on the way. So the tags are
asked for from both ends, by VM and by tag, and count only when the two answers agree. What the user may not read at
all shows in neither: against that there is the question that is asked before many leave a group.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from http.client import HTTPException
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import quote

from workers.errors import BadInput, LoginFailed, NotFound, Transient, UnderstudyError, VcenterUnreachable
from workers.models import VmSummary
from workers.vsphere.session import Session

#: Objects or tags in one question. vCenter takes 2,000; an answer of 500 VMs with ten tags each is some 400 KB.
BATCH = 500

T = TypeVar("T")


class _Dialect(NamedTuple):
    """vCenter 7.0 U2 and later have /api; before it was /rest, which wraps answers and was removed since."""

    root: str
    session: str
    one: str
    action: str
    unwrap: Callable[[Any], Any]


_API = _Dialect("/api/cis/tagging", "/api/session", "{}/{}", "{}?action={}", lambda answer: answer)
_REST = _Dialect(
    "/rest/com/vmware/cis/tagging",
    "/rest/com/vmware/cis/session",
    "{}/id:{}",
    "{}?~action={}",
    lambda answer: answer.get("value") if isinstance(answer, dict) else answer,
)


def with_tags(s: Session, vms: Sequence[VmSummary]) -> list[VmSummary]:
    """The same VMs, with their tags. Any doubt about completeness is an error."""
    if not vms:
        return []
    with _Client(s) as client:
        for last in (False, True):
            by_vm = client.tags_of({vm.identity.moref for vm in vms})
            by_tag = client.vms_of(client.tags(), within=by_vm.keys())
            if by_vm == by_tag:
                break
            if last:  # once may be somebody who tags at this moment
                raise Transient(f"{s} contradicts itself about {_differing(vms, by_vm, by_tag)}; no tag is believed")
        names = client.names({tag for found in by_vm.values() for tag in found})
    return [vm.model_copy(update={"tags": tuple(sorted(names[tag] for tag in by_vm[vm.identity.moref]))}) for vm in vms]


def _differing(vms: Iterable[VmSummary], one: Mapping[str, set[str]], other: Mapping[str, set[str]]) -> str:
    names = [vm.identity.name for vm in vms if one[vm.identity.moref] != other[vm.identity.moref]]
    return f"the tags of {len(names)} VMs ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"


class _Client:
    """A login at the REST API, on one connection, for one reading. Nothing here changes anything in vCenter."""

    def __init__(self, s: Session) -> None:
        self._s = s
        self._connection = s.wire.open()
        self._session = ""
        self._dialect = _API

    def __enter__(self) -> _Client:
        try:
            self._login()
        except BaseException:
            self._connection.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, at: TracebackType | None) -> None:
        try:
            if err is None:
                self._ask("DELETE", self._dialect.session)
        except UnderstudyError:
            pass  # the session ends by itself, and what was read is complete
        finally:
            self._connection.close()

    def _login(self) -> None:
        site = self._s.site
        word = base64.b64encode(f"{site.user}:{site.password()}".encode()).decode()
        for self._dialect in (_API, _REST):
            try:
                self._session = self._text(self._ask("POST", self._dialect.session, basic=word))
                return
            except NotFound:
                continue
        raise BadInput(f"{self._s} has neither /api nor /rest, so no tag can be read; a rule uses some")

    # --- what is asked -------------------------------------------------------------------------------------------

    def tags(self) -> list[str]:
        """The ids of all tags."""
        return [self._text(tag) for tag in self._list(self._ask("GET", f"{self._dialect.root}/tag"))]

    def tags_of(self, morefs: Iterable[str]) -> dict[str, set[str]]:
        """moref -> ids of its tags. An object that is not in the answer has none: `vms_of` knows if that is wrong."""
        found: dict[str, set[str]] = {moref: set() for moref in morefs}
        for part in _batches(sorted(found)):
            asked = {"object_ids": [{"id": moref, "type": "VirtualMachine"} for moref in part]}
            for line in self._list(self._associations("list-attached-tags-on-objects", asked)):
                moref = self._moref(self._field(line, "object_id"))
                if moref not in found:
                    raise self._odd(f"it was not asked about {moref}")
                found[moref] |= {self._text(tag) for tag in self._list(line.get("tag_ids"))}
        return found

    def vms_of(self, tags: Iterable[str], within: Iterable[str]) -> dict[str, set[str]]:
        """The same from the other end, about the VMs `within`."""
        found: dict[str, set[str]] = {moref: set() for moref in within}
        for part in _batches(sorted(tags)):
            for line in self._list(self._associations("list-attached-objects-on-tags", {"tag_ids": part})):
                tag = self._text(self._field(line, "tag_id"))
                for thing in self._list(line.get("object_ids")):
                    moref = self._moref(thing)
                    if self._field(thing, "type") == "VirtualMachine" and moref in found:
                        found[moref].add(tag)
        return found

    def names(self, tags: Iterable[str]) -> dict[str, str]:
        """Tag id -> 'category:name'."""
        found = {tag: self._one("tag", tag) for tag in sorted(tags)}
        ids = {self._text(self._field(tag, "category_id")) for tag in found.values()}
        categories = {each: self._one("category", each) for each in sorted(ids)}
        return {
            tag: f"{self._field(categories[one['category_id']], 'name')}:{self._field(one, 'name')}"
            for tag, one in found.items()
        }

    def _one(self, kind: str, identity: str) -> Any:
        try:
            return self._ask("GET", self._dialect.one.format(f"{self._dialect.root}/{kind}", quote(identity, safe=":")))
        except NotFound as err:
            raise Transient(f"{self._s} does not know the {kind} {identity} that it named just now") from err

    def _associations(self, action: str, asked: Mapping[str, Any]) -> Any:
        return self._ask("POST", self._dialect.action.format(f"{self._dialect.root}/tag-association", action), asked)

    # --- how -----------------------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, basic: str = "") -> Any:
        headers = {"Accept": "application/json", "Content-Type": "application/json"}
        headers |= {"Authorization": f"Basic {basic}"} if basic else {"vmware-api-session-id": self._session}
        try:
            self._connection.request(method, path, json.dumps(body) if body is not None else None, headers)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, HTTPException) as err:
            raise VcenterUnreachable(
                f"the connection to {self._s} was lost while tags were read: {str(err) or type(err).__name__}"
            ) from err
        if not 200 <= answer.status < 300:
            raise self._refusal(answer.status, f"{method} {path.partition('?')[0]}: {answer.status} {answer.reason}")
        try:
            return self._dialect.unwrap(json.loads(text)) if text else None
        except ValueError as err:
            raise self._odd("it is no JSON, or it was cut short") from err

    def _refusal(self, status: int, said: str) -> UnderstudyError:
        if status == 401:
            return LoginFailed(
                f"{self._s} does not let {self._s.site.user} read tags ({said}); check sites.{self._s.name}.user and "
                "its password"
            )
        if status == 403:
            return BadInput(f"{self._s} forbids {self._s.site.user} to read tags ({said}); give it the right to read")
        if status == 404:
            return NotFound(f"{self._s} has no such thing ({said})")
        return Transient(f"{self._s} did not answer a question about tags ({said})")

    def _odd(self, what: str) -> Transient:
        return Transient(f"{self._s} gave an answer about tags that cannot be used: {what}")

    def _list(self, value: Any) -> list[Any]:
        """Where there is nothing to tell, vCenter may leave the list out."""
        if value is not None and not isinstance(value, list):
            raise self._odd(f"a list was expected, not {str(value)[:80]!r}")
        return value or []

    def _field(self, value: Any, name: str) -> Any:
        if not isinstance(value, dict) or name not in value:
            raise self._odd(f"{name} is missing")
        return value[name]

    def _moref(self, value: Any) -> str:
        return self._text(self._field(value, "id"))

    def _text(self, value: Any) -> str:
        if not isinstance(value, str) or not value:
            raise self._odd(f"a text was expected, not {str(value)[:80]!r}")
        return value


def _batches(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))
