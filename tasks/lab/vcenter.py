"""The lab's hand in its vCenters: build source VMs, find them, and use the simulator's control endpoint."""

from __future__ import annotations

import http.client
import json
import ssl
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

from workers.models import Controller, Disk, Nic, VmConfig, VmState
from workers.vsphere import inventory, power, replica
from workers.vsphere.building import ReplicaSpec
from workers.vsphere.session import Session


def build(session: Session, name: str, sizes: Sequence[int], *, datastore: str, network: str) -> VmState:
    """A VM with empty disks of so many bytes, powered off; one that is there already is left as it is."""
    disks = tuple(
        Disk(
            id=f"lab-{number}",
            key=2000 + number,
            label=f"Hard disk {number + 1}",
            capacity=size,
            controller=1000,
            unit=number,
            file="",
        )
        for number, size in enumerate(sizes)
    )
    config = VmConfig(
        name=name,
        guest_id="debian10_64Guest",
        hardware_version="vmx-13",
        cpus=2,
        memory_mib=1024,
        controllers=(Controller(kind="pvscsi", key=1000, bus=0),),
        disks=disks,
        nics=(Nic(kind="vmxnet3", key=4000, network=network, mac=""),),
    )
    spec = ReplicaSpec(name=name, mark="lab", config=config, datastore=datastore, mac="generate")
    built = replica.create(session, spec)
    return inventory.vm_state(session, built.moref)


def power_on(session: Session, state: VmState) -> None:
    power.power_on(session, state.identity.moref)


def find(session: Session, name: str) -> VmState:
    return inventory.vm_state(session, inventory.find_vm(session, name).identity.moref)


def control(url: str, order: dict[str, Any]) -> Any:
    """What the simulator does on demand (deploy/simulator/README.md): guest writes, faults, lost change tracking."""
    with controlled(url) as tell:
        return tell(order)


@contextmanager
def controlled(url: str) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """The same for many orders, over one connection."""
    # Loopback, and the lab's own process: nothing to verify. Not the default context: reading the machine's
    # certificates takes 10 ms each time.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    where = urllib.parse.urlsplit(url)
    with closing(http.client.HTTPSConnection(where.netloc, timeout=60, context=context)) as connection:

        def tell(order: dict[str, Any]) -> Any:
            connection.request("POST", where.path, json.dumps(order))
            answer = connection.getresponse()
            said = answer.read()
            if answer.status >= 400:
                raise OSError(f"the simulator refused {next(iter(order))}: {answer.status} {said.decode()[:200]}")
            return json.loads(said)

        yield tell
