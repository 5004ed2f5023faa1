"""A vCenter's VMs as the two days need them: made, renamed, removed and read by the same calls as in any vCenter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pyVmomi import vim

from tests.integration.vcenter import PASSWORD, USER, Vcenter
from workers import dispatch, settings
from workers.catalogue import Catalogue
from workers.errors import UnderstudyError
from workers.models import VmIdentity
from workers.run import Here
from workers.vsphere.session import Session, connect

#: the recovery site is never asked: nobody there has an inventory that decides
PLACES = """
redis = "redis://127.0.0.1:1/0"
catalogue = "sqlite:///catalogue.db"
[sites.prod]
vcenter = "{url}"
user = "{user}"
password_file = "{secret}"
ca_file = "{certificate}"
[sites.dr]
vcenter = "127.0.0.1:2"
user = "u"
password_env = "X"
[stores.main]
path = "store"
scrub = 0
"""

#: how each call is answered that an inventory is read by
AWAY = {"Count": -1, "Fault": "HostCommunication"}


def configured(folder: Path, vcenter: Vcenter, policy: str) -> Here:
    """A new catalogue over this vCenter and this policy."""
    secret = folder / "password"
    secret.write_text(PASSWORD + "\n")
    file = folder / "understudy.toml"
    file.write_text(PLACES.format(url=vcenter.url, user=USER, secret=secret, certificate=vcenter.certificate) + policy)
    conf = settings.load(file)
    return Here(conf, Catalogue.create(conf.catalogue))


class Machines:
    """The VMs of the site, and how they are read into the catalogue."""

    def __init__(self, here: Here, vcenter: Vcenter) -> None:
        self.here, self.vcenter = here, vcenter
        self._vms: dict[str, Any] = {}
        self._away = False
        places = self._session.read_all({vim.Datacenter: ("vmFolder",), vim.ResourcePool: ("name",)})
        self._folder = next(f.values["vmFolder"] for f in places if isinstance(f.ref, vim.Datacenter))
        self._pool = next(f.ref for f in places if isinstance(f.ref, vim.ResourcePool))

    @property
    def _session(self) -> Session:
        return connect("prod", self.here.settings.sites["prod"])

    def are(self, names: list[str]) -> None:
        """There are just these from now on. Who makes and deletes them has no trouble with vCenter."""
        self.vcenter.control(clear=True)
        for name in names:
            if name not in self._vms:
                files = vim.vm.FileInfo(vmPathName="[ds1]")
                spec = vim.vm.ConfigSpec(name=name, guestId="debian10_64Guest", numCPUs=1, memoryMB=64, files=files)
                self._vms[name] = self._session.wait(self._folder.CreateVM_Task(spec, self._pool))
        for name in self._vms.keys() - set(names):
            self._session.wait(self._vms.pop(name).Destroy_Task())
        self.away(self._away)

    def rename(self, old: str, new: str) -> None:
        self._vms[new] = self._vms.pop(old)
        self._session.wait(self._vms[new].Rename_Task(new))

    def away(self, away: bool) -> None:
        """Whether vCenter fails to answer what an inventory is read by."""
        self._away = away
        self.vcenter.control(clear=True)
        if away:
            self.vcenter.fault("RetrievePropertiesEx", **AWAY)

    def read(self) -> bool:
        """The inventory into the catalogue, as the task does it; whether that went well."""
        try:
            dispatch.discover(self.here, "prod")
        except UnderstudyError:
            return False
        return True

    def identity(self, uuid: str) -> VmIdentity:
        return next(vm.identity for vm in self.here.catalogue.inventory() if vm.identity.instance_uuid == uuid)
