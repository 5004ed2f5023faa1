"""Which VMs are replicas: those that pairs know, and those that runs may have made without living to say so."""

from __future__ import annotations

from tests.catalogue.some import claimed, pair, syncing
from workers.catalogue import Catalogue
from workers.models import RunKind, RunState


def test_replicas_that_their_pairs_do_not_know_yet(catalogue: Catalogue) -> None:
    """A run chose a UUID, made the VM and died: until a pair knows it, nobody else says that it is a replica."""
    one, run = syncing(catalogue)
    assert catalogue.replicas_being_built() == set()
    catalogue.remember(run.id, "a", replica="uuid-of-one", planned="yes")
    other = pair(catalogue, "uuid-2")
    second = claimed(catalogue, f"pair:{other.id}", kind=RunKind.SYNC, pair=other.id)
    catalogue.remember(second.id, "a", replica="uuid-of-other")
    assert catalogue.replicas_being_built() == {"uuid-of-one", "uuid-of-other"}
    catalogue.finish(second.id, "a", RunState.FAILED, error="died", family="transient")
    assert catalogue.replicas_being_built() == {"uuid-of-one", "uuid-of-other"}
    catalogue.set_replica(one.id, "uuid-of-one")
    assert catalogue.replicas_being_built() == {"uuid-of-other"}


def test_a_vm_that_became_a_replica_keeps_its_name(catalogue: Catalogue) -> None:
    known = pair(catalogue)
    assert catalogue.set_replica(known.id, "uuid-of-one", "its name there").replica_name == "its name there"
    assert catalogue.pair(known.id).replica_name == "its name there"
    assert catalogue.set_replica(known.id, "uuid-of-one").replica_name == "its name there"
