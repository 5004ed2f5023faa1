"""An older catalogue is brought up to this version with everything in it."""

from __future__ import annotations

from workers.catalogue import Catalogue, migrations

VM = "INSERT INTO vms VALUES ('prod', 'u-1', 'v', 'b', 'vm-1', 'web-1', 'poweredOn', {no}, 'DC', {now}, NULL)"


def test_vms_that_were_known_before_rules_are_known_after_them(url: str) -> None:
    old = Catalogue(url)
    if old.file is not None:
        old.file.touch()
    with old.write() as conn:
        migrations.upgrade(conn, url, "0001")
        false = "0" if old.is_sqlite else "false"
        conn.exec_driver_sql(VM.format(no=false, now="CURRENT_TIMESTAMP"))
    old.close()
    new = Catalogue.create(url)
    (vm,) = new.inventory()
    assert (vm.identity.name, vm.folder, vm.gone_since) == ("web-1", "DC", None)
    assert (vm.datastores, vm.cluster, vm.tags) == (None, None, None)  # not known until the next inventory
    assert new.memberships() == [] and new.inventories() == []
    new.close()
