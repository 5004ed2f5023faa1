"""A store in a bucket, between two vCenters: the same job, byte for byte; killed on the way, and taken up again."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests import s3
from tests.integration.world import MIB, World
from workers import backup, replicate
from workers.models import RunState
from workers.store import Store


@pytest.fixture(scope="module")
def server() -> Iterator[s3.S3]:
    with s3.running() as found:
        yield found


@pytest.fixture
def world(make_world: Callable[..., World], server: s3.S3, tmp_path: Path) -> World:
    tmp_path.joinpath("s3.key").write_text(f"{s3.KEY}\n{s3.SECRET}\n")
    keys = {"bucket": server.bucket(), "prefix": "a", "endpoint": server.endpoint, "region": "us-east-1"}
    table = ", ".join(f'{key} = "{value}"' for key, value in keys.items())
    return make_world(place=f's3 = {{ {table}, access_key_file = "s3.key" }}\ncache = "copies"')


def test_backup_and_sync_through_a_bucket(world: World, server: s3.S3) -> None:
    """With a backup and a sync that are killed on the way, and a server that was away."""
    name = "bucket"
    world.make_vm(name, 8 * MIB, 4 * MIB)
    world.scribble(name, 1)
    first = world.backup(name)
    world.assert_point_is_readable(name, first.point)
    assert world.sync(name).outcome == "succeeded"
    world.assert_replica_is(name, first.point)
    world.scribble(name, 2)
    run = world.request_backup(name)
    world.killed_at(run, "store.checked")
    report = backup.run(world.here, run.id)
    assert report.outcome in ("succeeded", RunState.SUCCEEDED), report
    world.keep(name, report)
    server.fault("GET .*packs", "503 SlowDown", times=1)
    run = world.request_sync(name)
    world.killed_at(run, "slice.written")
    assert replicate.run(world.here, run.id).point == report.point
    world.assert_replica_is(name, report.point)
    world.store.close()
    vm = world.state(name).identity.instance_uuid
    store = Store.at(world.settings.stores["main"])
    store.retire(vm, first.point)
    store.close()
    assert store.verify(deep=True) == [] and store.runs() == []
    store.close()
