"""How a replica comes to be: built, built around seeds, or a VM that is there taken over. Each in one call to vCenter,
with the cursor in it: there is no moment at which the VM is nobody's.
"""

from __future__ import annotations

from collections.abc import Iterable
from uuid import uuid4

from workers import beginning, faults, plan
from workers.destination import datastore_for, macs, provisioned
from workers.errors import ConfigError, Transient
from workers.models import Cursor, Disk
from workers.replica import CURSOR, read_cursor
from workers.replica_held import HeldReplica
from workers.vsphere import replica
from workers.vsphere.building import DISKS, MARK, NewDisk, ReplicaSpec, disk_places, place_of

#: of the reason to compare that the cursor keeps: the cursor has 4 KiB, and a reason may quote names of snapshots
COMPARE_WORDS = 300


class NewReplica(HeldReplica):
    def _create(self) -> None:
        """The replica is there afterwards, `applying`."""
        if self.beginning is not None and self.beginning.vm is not None:
            self._take_over()
        else:
            self._build()

    def _first_cursor(self, uuid: str, *, disks: str = "", content: str = "") -> Cursor:
        assert self.goal is not None
        compare = self.beginning.reason[:COMPARE_WORDS] if self.beginning is not None else ""
        targets = (self.goal.id,)
        return self._cursor(
            state="applying", base=None, targets=targets, vm=uuid, disks=disks, content=content, compare=compare
        )

    def _build(self) -> None:
        uuid = self.live.recall("replica") or str(uuid4())
        self.live.remember(replica=uuid)
        cursor = self._first_cursor(uuid)
        faults.at("create.before")
        built = replica.create(self.session, self._spec(uuid, cursor), wait=self._patience())
        faults.at("create.after")
        self.live.note(*built.notes)
        if self.same_vcenter():
            self._note(
                "source and replica are in one vCenter: the replica has a BIOS UUID of its own. A guest whose licences "
                "are bound to it may ask for them again when the replica takes over"
            )
        self._reread(built.moref)
        assert self.state is not None
        self.evidence = replica.content_evidence(self.state)
        self.cursor = read_cursor(self.state)
        if self.cursor != cursor:
            raise Transient(f"{self.pair.replica_name} was built by another run just now; looked at again")

    def _spec(self, uuid: str, cursor: Cursor) -> ReplicaSpec:
        assert self.goal is not None
        config, place, same = self.goal.config, self.place, self.same_vcenter()
        return ReplicaSpec(
            name=self.pair.replica_name,
            instance_uuid=uuid,
            mark=self._mark(),
            bios_uuid="" if same else self.goal.vm.bios_uuid,
            annotation=f"Replica of {self.pair.vm}, kept by Understudy: leave it off",
            config=config.model_copy(update={"nics": tuple(macs(config.nics, place, same_vcenter=same))}),
            datastore=place.datastore,
            compute=place.compute,
            pool=place.pool,
            folder=place.folder,
            networks=place.networks,
            new_disks=self._new_disks(
                [part.disk for part in plan.protected(self.goal, place.excluded_disks)], home=place.datastore
            ),
            excluded_disks=place.excluded_disks,
            notes={CURSOR: cursor.model_dump_json(exclude_defaults=True)},
        )

    def _mark(self) -> str:
        return f"{self.here.catalogue.realm}/{self.pair.id}"

    def _new_disks(self, disks: Iterable[Disk], *, home: str) -> dict[str, NewDisk]:
        """How and where each disk of the source is made on a replica whose own files are on the datastore `home`.

        Raises `ConfigError` before anything is made on a datastore that this site's workers do not have.
        """
        seeds = self.beginning.seeds if self.beginning is not None else {}
        made = {}
        for disk in disks:
            there = datastore_for(disk, self.place.datastores)
            if disk.id not in seeds and not self.site.reaches(there or home):
                raise ConfigError(
                    f"{disk.label} of {self.pair.vm} would go to the datastore {there or home}, which is not among "
                    f"sites.{self.pair.site}.datastores ({', '.join(sorted(self.site.datastores)) or 'none'}); nothing "
                    "was made. Say there where its workers have it mounted, or name another datastore"
                )
            made[disk.id] = NewDisk(
                provisioning=provisioned(disk, self.place.provisioning),
                datastore="" if there == home else there,
                attach=seeds.get(disk.id, ""),
            )
        return made

    def _take_over(self) -> None:
        """A VM that somebody made for this becomes the replica; nothing of its disks is written yet."""
        assert self.beginning is not None and self.beginning.vm is not None
        vm, copies = self.beginning.vm, self.beginning.copies
        beginning.consent(self.pair, self.place, vm)
        beginning.check_files(self.site.datastores, vm.config.disks)
        self._note(f"{self.beginning.reason}; allowed by overwrite_existing")
        cursor = self._first_cursor(
            vm.identity.instance_uuid, disks=replica.disk_binding(vm), content=replica.content_evidence(vm)
        )
        places = {source: place_of(disk, vm.config.controllers) for source, disk in copies.items()}
        notes = {
            CURSOR: cursor.model_dump_json(exclude_defaults=True),
            MARK: self._mark(),
            DISKS: disk_places(places),
        }
        faults.at("takeover.before")
        replica.take_over(
            self.session, vm.identity.moref, notes, vm.change_version, nonce_in=CURSOR, wait=self._patience()
        )
        faults.at("takeover.after")
        self._reread(vm.identity.moref)
        # What it held when it was looked at: who opened it since is found out before a byte is written.
        self.evidence = cursor.content
        self.cursor = cursor
