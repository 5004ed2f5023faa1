"""What the lab writes for itself before anything starts: secrets, redis.conf, understudy.toml."""

from __future__ import annotations

import json
import os
import secrets
import socket
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError

from tasks.lab.processes import LabError
from workers.errors import BadInput
from workers.models import Model


class Vcenter(NamedTuple):
    """One simulated vCenter of the lab."""

    site: str
    datacenter: str
    datastores: tuple[str, ...]
    networks: tuple[str, ...]


VCENTERS = (
    Vcenter("prod", "Production", ("prod-ds1", "prod-ds2"), ("VM Network", "Backend")),
    Vcenter("dr", "Recovery", ("dr-ds1", "dr-ds2"), ("DR Network", "Isolated")),
)
#: in a folder's top: it is a lab
LAB_FILE = "lab.json"
USER = "understudy@vsphere.local"


class LabFile(Model):
    """lab.json: marks a folder as a lab, and what must stay the same from one `up` to the next."""

    format: int = 1
    #: service -> port; kept, so that what survived a crash finds what was started again
    ports: dict[str, int] = {}
    #: the datastores in words
    datastores: str = ""


def read(folder: Path) -> LabFile | None:
    """The lab in `folder`; None when there is none. Raises `BadInput` when something else is there."""
    try:
        return LabFile.model_validate_json((folder / LAB_FILE).read_bytes())
    except FileNotFoundError:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise BadInput(
                f"{folder} is not a lab (it has no {LAB_FILE}) and not empty; choose another folder"
            ) from None
        return None
    except ValidationError as err:
        raise LabError(f"{folder / LAB_FILE} is damaged; erase the lab (down --erase) and start anew") from err


def write(folder: Path, lab: LabFile) -> None:
    _write(folder / LAB_FILE, lab.model_dump_json(indent=2) + "\n")


def free_port() -> int:
    """A port that is free now. Who is to listen there may still find it taken, and is then given another."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def secret(folder: Path, name: str) -> str:
    """The password of `name`, made when it is first asked for."""
    path = secret_path(folder, name)
    if not path.exists():
        _write(path, secrets.token_urlsafe(18) + "\n")
    return path.read_text().strip()


def secret_path(folder: Path, name: str) -> Path:
    return folder / "secrets" / name


def write_login(folder: Path, site: str) -> Path:
    """The file by which a simulated vCenter learns its only login: an argument could be read by everybody."""
    path = folder / "vcenters" / site / "login"
    _write(path, f"{USER}:{secret(folder, site)}\n")
    return path


def redis_url(folder: Path, port: int) -> str:
    return f"redis://:{secret(folder, 'redis')}@127.0.0.1:{port}/0"


def write_redis(folder: Path, port: int) -> str:
    """redis.conf, written and returned."""
    text = f"""\
bind 127.0.0.1
port {port}
dir {_quoted(folder / "redis")}
requirepass {secret(folder, "redis")}
# A broker must survive a crash and may never evict: a message that is dropped is a run that waits for the reaper.
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
# The title would overwrite the environment by which the lab knows its processes.
set-proc-title no
"""
    _write(folder / "redis" / "redis.conf", text)
    return text


def write_understudy(folder: Path, ports: dict[str, int], extra: str | None) -> Path:
    """understudy.toml of the lab. `extra` is TOML appended to it, kept for later starts; None leaves what there is."""
    kept = folder / "extra.toml"
    if extra is not None:
        _write(kept, extra)
    secret(folder, "flower")
    sites = "".join(_site(vcenter, ports[vcenter.site]) for vcenter in VCENTERS)
    text = f"""\
# Written by the lab at each start; what is to stay belongs into extra.toml, which is appended here.
redis = "{redis_url(folder, ports["redis"])}"
catalogue = "sqlite:///catalogue.db"
{sites}
[stores.main]
path = "store"

[flower]
user = "{USER}"
password_file = "secrets/flower"

[targets.dr]
site = "dr"
datastore = "dr-ds1"
networks = {{ "*" = "DR Network" }}
"""
    if kept.exists():
        text += "\n" + kept.read_text()
    path = folder / "understudy.toml"
    _write(path, text)
    return path


def certificate_path(folder: Path, site: str) -> Path:
    return folder / "vcenters" / site / "cert.pem"


def _site(vcenter: Vcenter, port: int) -> str:
    datastores = "".join(f'{name} = "datastores/{vcenter.site}/{name}"\n' for name in vcenter.datastores)
    return f"""
[sites.{vcenter.site}]
vcenter = "127.0.0.1:{port}"
user = "{USER}"
password_file = "secrets/{vcenter.site}"
ca_file = "vcenters/{vcenter.site}/cert.pem"

[sites.{vcenter.site}.datastores]
{datastores}"""


def _write(path: Path, text: str) -> None:
    """Whole or not at all, readable by the owner alone."""
    unfinished = path.with_name(path.name + ".new")
    unfinished.unlink(missing_ok=True)
    with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    unfinished.rename(path)


def _quoted(path: Path) -> str:
    # redis.conf and JSON agree on quoted strings
    return json.dumps(str(path))
