"""A configuration with every key, as TOML, and the command in this process: what the tests of `config` share."""

from __future__ import annotations

import copy
import io
import json
import math
from contextlib import redirect_stderr, redirect_stdout
from datetime import date, datetime, time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.command import forgetting, run

#: every key that there is, as it may be
FULL: dict[str, Any] = {
    "redis": "redis://:hunter2@127.0.0.1:1/0",
    "catalogue": "sqlite:///catalogue.db",
    "sites": {
        "prod": {
            "vcenter": "v", "user": "u", "password_file": "p", "ca_file": "ca.pem", "insecure": False,
            "thumbprint": "AA", "link": "wan", "datastores": {"ds1": "mnt/ds1"}, "worker_rate": "145MB",
            "carriers": ["file", "hotadd", "nbd"],
            "hotadd": {"vm": "4210f3ae-5f0b-4c57-9f1d-8d5d9c2c1a11", "devices": "/dev/disk/by-id"},
            "vddk": {"libdir": "vddk", "plugin": "vddk", "transports": "nbd", "compression": "skipz"},
        },
        "dr": {"vcenter": "v", "user": "u", "password_env": "P", "datastores": {"ds1": "mnt/ds1"}},
    },
    "stores": {
        "main": {
            "path": "store", "site": "dr", "scrub": 0.1, "compact_below": 0.4, "compact_rate": "50MB", "key_file": "p",
        },
        "cloud": {
            "s3": {
                "bucket": "b", "prefix": "p/", "endpoint": "https://s3.example.com", "region": "r",
                "access_key_file": "p", "ca_file": "ca.pem",
            },
            "cache": "cache", "cache_size": "20GiB", "key_env": "P",
        },
        "cold": {"s3": {"bucket": "c", "access_key_env": "P"}},
        "far": {"path": "far", "link": "wan"},
    },
    "limits": {"host": 8, "datastore": 4, "vcenter": 0},
    "links": {
        "wan": {
            "rate": "50MB",
            "windows": [{"from": "08:00", "to": "18:00", "days": "mon-fri", "rate": "10MB", "timezone": "UTC"}],
        },
    },
    "targets": {
        "dr": {
            "site": "dr", "datastore": "ds1", "compute": "c", "pool": "a/b", "folder": "a/b",
            "networks": {"*": "N"}, "prefix": "p-", "suffix": "-s", "provisioning": "thin", "keep_macs": False,
            "datastores": {"*": "ds1"}, "undo": "always",
        },
    },
    "groups": {
        "web": {
            "source": "prod", "vms": ["web-*"], "store": "main", "target": "dr", "quiesce": True,
            "rpo": "4h", "full": "ask", "full_budget": "500GB", "scrub": 0.1, "scrub_repair": True,
            "keep": {
                "last": 3, "hourly": 24, "daily": 7, "weekly": 4, "monthly": 12, "yearly": 2, "timezone": "UTC",
            },
            "sources": ["far", "main"],
            "copy": {"to": "far", "after_backup": True, "schedule": {"every": "1d"}, "keep": {"daily": 30}},
            "backup": {"cron": "30 1 * * *", "timezone": "Europe/Berlin", "jitter": "5m"},
            "replicate": {"after_backup": True, "schedule": {"every": "4h", "jitter": "auto"}},
            "overrides": {
                "web-1": {"name": "n", "datastore": "ds1", "excluded_disks": ["Hard disk 2"], "networks": {"A": "B"},
                    "existing": "old", "overwrite_existing": True, "disks": {"Hard disk 1": "Hard disk 1"},
                    "targets": {"dr": {"seed": "[ds1] seed"}}},
            },
        },
        "rest": {
            "source": "prod", "store": "cloud", "grace": "10d",
            "members": {
                "name": "*", "folder": "DC0/Production", "tag": ["tier:web", "sla"], "datastore": "ds*",
                "cluster": "C1", "power": "on", "template": False, "all": [{"name": "a*"}], "any": [{"name": "b*"}],
                "not": {"power": "off"},
            },
        },
        "cold": {"source": "prod", "vms": ["cold-*"], "store": "cold"},
    },
    "grace": "30d",
    "flower": {"user": "operator", "password_env": "F"},
    "tuning": {"threads": 2, "slice_time": "4m", "sample": 0.5},
}  # fmt: skip

#: a small one: a store at a site that nobody asks. What a test adds goes on with the store's own keys
ONE_STORE = """
redis = "redis://127.0.0.1:1/0"
catalogue = "sqlite:///catalogue.db"
[sites.a]
vcenter = "127.0.0.1:1"
user = "u"
password_env = "UNDERSTUDY_TEST_PASSWORD"
[stores.main]
path = "store"
"""


def alone_in(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an empty folder, with nothing configured but the secrets that FULL names."""
    monkeypatch.chdir(folder)
    monkeypatch.setenv("UNDERSTUDY_CONFIG", "")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)  # Python keeps its first answer
    for variable in ("P", "F"):
        monkeypatch.setenv(variable, "hunter2")


class Said(NamedTuple):
    code: int
    out: str
    err: str


def understudy(*arguments: str) -> Said:
    out, err = io.StringIO(), io.StringIO()
    with forgetting(), redirect_stdout(out), redirect_stderr(err):
        code = run(*arguments)
    return Said(code, out.getvalue(), err.getvalue())


def toml(value: Any) -> str:
    """A value as TOML, tables inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{toml(str(key))} = {toml(inner)}' for key, inner in value.items())}}}"
    return str(value)


def document(data: dict[str, Any]) -> str:
    return "".join(f"{toml(key)} = {toml(value)}\n" for key, value in data.items())


def write(data: dict[str, Any]) -> None:
    Path("understudy.toml").write_text(document(data))
    Path("p").write_text("hunter2\n")
    Path("p").chmod(0o600)
    Path("ca.pem").touch()


def changed(**changes: Any) -> dict[str, Any]:
    """FULL with other values, by dotted keys; None removes one."""
    data = copy.deepcopy(FULL)
    for dotted, value in changes.items():
        *above, last = dotted.split(".")
        table = data
        for key in above:
            table = table[key]
        if value is None:
            del table[last]
        else:
            table[last] = value
    return data
