"""Tags in a simulated vCenter, put there as an administrator does: by its REST API."""

from __future__ import annotations

import base64
import json
import ssl
import urllib.request
from typing import Any
from urllib.parse import urlsplit


class Tagging:
    def __init__(self, url: str, login: str) -> None:
        parts = urlsplit(url)
        self._root = f"{parts.scheme}://{parts.netloc}/rest/com/vmware/cis"
        self._login = base64.b64encode(login.encode()).decode()
        self._open = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=ssl._create_unverified_context())
        ).open
        self._session = ""
        self._categories: dict[str, str] = {}
        self._tags: dict[str, str] = {}

    def attach(self, tag: str, moref: str) -> None:
        """`tag` is 'category:name'; it is made when it is new."""
        self._associate("attach", tag, moref)

    def detach(self, tag: str, moref: str) -> None:
        self._associate("detach", tag, moref)

    def _associate(self, action: str, tag: str, moref: str) -> None:
        thing = {"object_id": {"id": moref, "type": "VirtualMachine"}}
        self._ask("POST", f"/tagging/tag-association/id:{self._tag(tag)}?~action={action}", thing)

    def _tag(self, tag: str) -> str:
        category, _, name = tag.partition(":")
        if category not in self._categories:
            spec = {"name": category, "description": "", "cardinality": "MULTIPLE", "associable_types": []}
            self._categories[category] = self._ask("POST", "/tagging/category", {"create_spec": spec})
        if tag not in self._tags:
            spec = {"name": name, "description": "", "category_id": self._categories[category]}
            self._tags[tag] = self._ask("POST", "/tagging/tag", {"create_spec": spec})
        return self._tags[tag]

    def _ask(self, method: str, path: str, body: Any) -> Any:
        if not self._session:
            self._session = self._send("POST", "/session", None, {"Authorization": f"Basic {self._login}"})
        return self._send(method, path, body, {"vmware-api-session-id": self._session})

    def _send(self, method: str, path: str, body: Any, headers: dict[str, str]) -> Any:
        data = json.dumps(body).encode() if body is not None else b""
        with self._open(urllib.request.Request(self._root + path, data, headers, method=method), timeout=30) as answer:
            text = answer.read()
        return json.loads(text).get("value") if text else None
