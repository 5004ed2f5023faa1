"""Up, down and status of the lab. Each may be repeated at any time, and after any crash."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from tasks.lab import configuration, datastores, processes, services
from tasks.lab.configuration import VCENTERS, LabFile
from tasks.lab.processes import LabError, Record, Service
from workers.catalogue import Catalogue
from workers.errors import NotFound
from workers.models import Model
from workers.settings import load
from workers.store import Store

#: seconds to wait for another `up` or `down` of the same folder
LOCK_WAIT = 300


class ServiceState(Model):
    name: str
    #: None: it does not run
    pid: int | None
    log: Path


class VcenterState(Model):
    """How to reach one of the lab's vCenters."""

    site: str
    address: str
    user: str
    password_file: Path
    ca_file: Path
    #: POST here to inject faults, write as the guest, ... (deploy/simulator/README.md)
    control: str
    #: datastore name -> its folder
    datastores: dict[str, Path]


class LabState(Model):
    folder: Path
    #: understudy.toml: pass it as --config. It holds Redis' address with its password, so this model does not
    config: Path
    flower: str
    vcenters: dict[str, VcenterState]
    #: what the datastores are, in words
    datastores: str
    services: tuple[ServiceState, ...]

    @property
    def running(self) -> bool:
        return all(service.pid is not None for service in self.services)


def up(
    folder: Path, *, only: Collection[str] = services.NAMES, concurrency: int = 2, extra: str | None = None
) -> LabState:
    """Have the lab in `folder` run, and return when it is proved to.

    What runs as it should is left alone; what has died, hangs, or was started from other code or another configuration
    is started again. `only` names the services that are wanted (others are left as they are); `extra` is TOML for
    understudy.toml (groups, tuning), kept for later starts. Raises `LabError` with the end of the log that tells why.
    """
    if unknown := set(only) - set(services.NAMES):
        raise LabError(f"the lab has no {', '.join(sorted(unknown))}; it has {', '.join(services.NAMES)}")
    folder = folder.resolve()
    lab = configuration.read(folder) or LabFile()
    services.build_simulator()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(folder):
        lab = configuration.read(folder) or lab
        for name in ("logs", "redis", "run", "secrets", *(f"vcenters/{vcenter.site}" for vcenter in VCENTERS)):
            (folder / name).mkdir(mode=0o700, parents=True, exist_ok=True)
        ports = {name: lab.ports.get(name) or configuration.free_port() for name in services.LISTENERS}
        lab = lab.model_copy(update={"ports": ports})
        configuration.write(folder, lab)
        lab = lab.model_copy(update={"datastores": datastores.attach(folder)})
        configuration.write(folder, lab)
        lab = _bring_up(folder, lab, [name for name in services.FOUNDATION if name in only], concurrency)
        settings = load(configuration.write_understudy(folder, lab.ports, extra))
        Catalogue.create(settings.catalogue).close()
        Store.make(settings.stores["main"])
        _bring_up(
            folder, lab, [name for name in services.NAMES[len(services.FOUNDATION) :] if name in only], concurrency
        )
    return status(folder)


def down(folder: Path, *, erase: bool = False) -> None:
    """End everything that belongs to the lab in `folder`, whatever state it is in; with `erase` remove the folder too.

    No lab there is fine. Goes on after a failure, and raises `LabError` with all of them at the end.
    """
    folder = folder.resolve()
    if not (folder / configuration.LAB_FILE).exists():
        return
    problems: list[str] = []
    with _locked(folder):
        for group in services.ENDING:
            grace = max(45 if name in services.WORKERS else 15 for name in group)
            try:
                processes.end(folder, [(name, _record(folder, name)) for name in group], grace=grace)
            except LabError as err:
                problems.append(str(err))
        try:
            datastores.detach(folder)
        except LabError as err:
            problems.append(str(err))
        if not problems:
            shutil.rmtree(folder / "run", ignore_errors=True)
            if erase:
                shutil.rmtree(folder)
    if problems:
        raise LabError("\n".join(problems))


def status(folder: Path) -> LabState:
    """What runs, and where. Raises `NotFound` when there is no lab in `folder`."""
    folder = folder.resolve()
    lab = configuration.read(folder) if folder.exists() else None
    if lab is None or not lab.ports:
        raise NotFound(f"there is no lab in {folder}; `make lab-up` starts one")
    records = {name: _record(folder, name) for name in services.NAMES}
    return LabState(
        folder=folder,
        config=folder / "understudy.toml",
        flower=f"http://127.0.0.1:{lab.ports['flower']}",
        vcenters={
            vcenter.site: VcenterState(
                site=vcenter.site,
                address=f"127.0.0.1:{lab.ports[vcenter.site]}",
                user=configuration.USER,
                password_file=configuration.secret_path(folder, vcenter.site),
                ca_file=configuration.certificate_path(folder, vcenter.site),
                control=f"https://127.0.0.1:{lab.ports[vcenter.site]}/_ctl",
                datastores={name: folder / "datastores" / vcenter.site / name for name in vcenter.datastores},
            )
            for vcenter in VCENTERS
        },
        datastores=lab.datastores,
        services=tuple(
            ServiceState(
                name=name,
                pid=record.pid if record is not None and processes.alive(record) else None,
                log=processes.log_path(folder, name),
            )
            for name, record in records.items()
        ),
    )


# --- one service after the other ----------------------------------------------------------------------------------


def _bring_up(folder: Path, lab: LabFile, names: Sequence[str], concurrency: int) -> LabFile:
    """Have the named services run: started all at once, then waited for. Returns the lab with the ports they got."""
    for _ in range(3):
        wanted = [services.describe(name, folder, lab.ports, concurrency=concurrency) for name in names]
        records = [_started(folder, service) for service in wanted]
        taken: dict[str, int] = {}
        for service, record in zip(wanted, records, strict=True):
            try:
                _keep(folder, service.name, processes.wait_ready(service, folder, record))
            except LabError as err:
                # Between choosing a free port and listening on it somebody else can take it; after a crash, for long.
                if service.name not in lab.ports or "ddress already in use" not in str(err):
                    raise
                taken[service.name] = configuration.free_port()
        if not taken:
            return lab
        lab = lab.model_copy(update={"ports": {**lab.ports, **taken}})
        configuration.write(folder, lab)
    raise LabError(f"three times in a row somebody else took the ports meant for {', '.join(taken)}; try again")


def _started(folder: Path, service: Service) -> Record:
    """The service's record: of the one that runs and proves to be well, else of a new one."""
    fingerprint = hashlib.sha256(repr((service.argv, service.env, service.depends)).encode()).hexdigest()
    record = _record(folder, service.name)
    if record is not None and record.fingerprint == fingerprint and processes.alive(record):
        started = processes.Started(record.process, processes.log_path(folder, service.name), record.log_start)
        if service.ready(started) is not None:
            return record
    processes.end(folder, [(service.name, record)], grace=service.grace)
    record = processes.start(service, folder, fingerprint=fingerprint)
    _keep(folder, service.name, record)
    return record


def _record(folder: Path, name: str) -> Record | None:
    try:
        return Record.model_validate_json((folder / "run" / f"{name}.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None  # a half-written record is none: the process is found by its mark all the same


def _keep(folder: Path, name: str, record: Record) -> None:
    path = folder / "run" / f"{name}.json"
    unfinished = path.with_suffix(".new")
    unfinished.write_text(record.model_dump_json())
    unfinished.rename(path)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One `up` or `down` at a time. The lock is on the folder itself, which `down` may have removed meanwhile."""
    deadline = time.monotonic() + LOCK_WAIT
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise LabError(f"another `up` or `down` has been at work in {folder} for {LOCK_WAIT} s") from None
                time.sleep(0.1)
        if not folder.exists() or os.stat(folder).st_ino != os.fstat(handle).st_ino:
            raise LabError(f"{folder} was erased by somebody else while this waited for it; try again")
        yield
    finally:
        os.close(handle)
