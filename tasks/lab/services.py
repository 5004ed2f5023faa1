"""The lab's services as data: how each is started, and how it proves that it is ready."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from tasks.lab import configuration
from tasks.lab.configuration import VCENTERS, Vcenter
from tasks.lab.processes import LabError, Ready, Service, Started
from workers.errors import Transient
from workers.settings import Site
from workers.vsphere.session import Session

#: the checkout, or site-packages
ROOT = Path(__file__).resolve().parents[2]
SIMULATOR = ROOT / ".build" / "vcenter-simulator"

#: what comes first; the others need it
FOUNDATION = ("redis", *(vcenter.site for vcenter in VCENTERS))
WORKERS = (*(f"worker-{vcenter.site}" for vcenter in VCENTERS), "worker-control")
NAMES = (*FOUNDATION, *WORKERS, "beat", "flower")
#: in this order they end, each group at once: who gives work, who does it, what it is done with
ENDING = (("beat", "flower", *WORKERS), tuple(vcenter.site for vcenter in VCENTERS), ("redis",))
#: those that listen
LISTENERS = (*FOUNDATION, "flower")


def build_simulator() -> None:
    """Build the vCenter simulator unless the one that is there is up to date."""
    script = ROOT / "deploy" / "simulator" / "build.sh"
    if not script.exists():
        raise LabError(f"the lab needs a checkout of the project: {script}, which builds its vCenters, is not there")
    done = subprocess.run([str(script), str(SIMULATOR)], capture_output=True, text=True)
    if done.returncode != 0:
        raise LabError(f"{script} failed; `make setup` installs what it needs. It said:\n{done.stderr[-2000:]}")


def describe(name: str, folder: Path, ports: dict[str, int], *, concurrency: int) -> Service:
    """The service `name` as it should run now; writes the configuration of its own that it reads."""
    if name == "redis":
        return _redis(folder, ports["redis"])
    for vcenter in VCENTERS:
        if name == vcenter.site:
            return _vcenter(vcenter, folder, ports[name])
        if name == f"worker-{vcenter.site}":
            return _worker(name, folder, "--site", vcenter.site, "--concurrency", str(concurrency))
    if name == "worker-control":
        return _worker(name, folder, "--control")
    if name == "beat":
        return _python(name, folder, "beat", ready=_logged("beat: Starting"))
    if name == "flower":
        return _python(name, folder, "flower", "--port", str(ports[name]), ready=_flower_answers(ports[name]))
    raise LabError(f"the lab has no service {name!r}; it has {', '.join(NAMES)}")


# --- the foundation ---------------------------------------------------------------------------------------------


def _redis(folder: Path, port: int) -> Service:
    text = configuration.write_redis(folder, port)
    url = configuration.redis_url(folder, port)

    def ready(_: Started) -> dict[str, Any] | None:
        try:
            with redis.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=5) as client:
                return {"port": port} if client.ping() else None
        except redis.RedisError:  # refused, or still loading what it had kept
            return None

    return Service("redis", ("redis-server", str(folder / "redis" / "redis.conf")), ready, depends=text)


def _vcenter(vcenter: Vcenter, folder: Path, port: int) -> Service:
    home = folder / "vcenters" / vcenter.site
    certificate = configuration.certificate_path(folder, vcenter.site)
    login = configuration.write_login(folder, vcenter.site)
    site = Site(
        vcenter=f"127.0.0.1:{port}",
        user=configuration.USER,
        password_file=configuration.secret_path(folder, vcenter.site),
        ca_file=certificate,
    )

    def ready(started: Started) -> dict[str, Any] | None:
        line = next((line for line in started.said().splitlines() if line.startswith("{")), None)
        if line is None:
            return None
        try:
            with Session(vcenter.site, site):  # the workers' own way in: address, certificate and password are right
                said: dict[str, Any] = json.loads(line)
                return said
        except Transient:
            return None

    return Service(
        vcenter.site,
        (
            str(SIMULATOR),
            "-l", f"127.0.0.1:{port}",
            "-u", f"@{login}",
            "-name", vcenter.site,
            "-dc", vcenter.datacenter,
            "-dir", str(folder / "datastores" / vcenter.site),
            "-datastores", ",".join(vcenter.datastores),
            "-networks", ",".join(vcenter.networks),
            "-cert", str(certificate),
            "-key", str(certificate.with_name("key.pem")),
            "-state", str(home / "state.json"),
        ),
        ready,
        depends=str(SIMULATOR.stat().st_mtime_ns),
    )  # fmt: skip


# --- understudy's own -------------------------------------------------------------------------------------------


def _worker(name: str, folder: Path, *arguments: str) -> Service:
    # SIGTERM ends a worker as SIGQUIT does: it stops at its next checkpoint instead of finishing its slice of minutes.
    service = _python(name, folder, "worker", *arguments, ready=_logged(" ready."))
    return service._replace(env={**service.env, "REMAP_SIGTERM": "SIGQUIT"}, grace=45)


def _python(name: str, folder: Path, *arguments: str, ready: Ready) -> Service:
    config = folder / "understudy.toml"
    # -P: a stray tasks.py in the current folder must not win. PYTHONPATH: this very code, installed or not.
    argv = (sys.executable, "-P", "-m", "tasks.cli", "--config", str(config), *arguments)
    env = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return Service(name, argv, ready, depends=config.read_text() + _code(), env=env)


def _code() -> str:
    """Changes with the project's code: a lab left over from before must not run the old one."""
    files = [*ROOT.glob("workers/**/*.py"), *ROOT.glob("tasks/**/*.py"), ROOT / "beat_schedule.py"]
    return str(sorted((str(file), file.stat().st_mtime_ns) for file in files if file.exists()))


def _logged(text: str) -> Callable[[Started], dict[str, Any] | None]:
    return lambda started: {} if text in started.said() else None


def _flower_answers(port: int) -> Callable[[Started], dict[str, Any] | None]:
    def ready(_: Started) -> dict[str, Any] | None:
        # No proxy may come between: the address is this machine.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://127.0.0.1:{port}/healthcheck", timeout=5):
                return {"url": f"http://127.0.0.1:{port}"}
        except (urllib.error.URLError, OSError):
            return None

    return ready
