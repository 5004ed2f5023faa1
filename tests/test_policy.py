"""The effective policy: which layer wins, key by key, and that the workers do what `config show` says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from workers import dispatch, policy
from workers.catalogue import Catalogue
from workers.configuration import remarks
from workers.destination import destination, of_member, of_pair
from workers.errors import ConfigError
from workers.models import Pair, VmIdentity, VmSummary
from workers.run import Here
from workers.settings import RecoveryTarget, Settings, VmOverride, shape

BASE: dict[str, Any] = {
    "redis": "redis://:hunter2@h/0",
    "catalogue": "sqlite:////c.db",
    "sites": {name: {"vcenter": "v", "user": "u", "password_env": "P"} for name in ("prod", "dr")},
    "stores": {"main": {"path": "/s"}},
    "targets": {"dr": {"site": "dr", "datastore": "ds1"}},
    "groups": {"web": {"source": "prod", "vms": ["web-*"], "store": "main", "target": "dr"}},
}


def configured(
    target: dict[str, Any] | None = None, group: dict[str, Any] | None = None, override: dict[str, Any] | None = None
) -> Settings:
    data = {**BASE, "targets": {"dr": BASE["targets"]["dr"] | (target or {})}}
    data["groups"] = {"web": BASE["groups"]["web"] | (group or {})}
    if override is not None:
        data["groups"]["web"]["overrides"] = {"web-1": override}
    return Settings.model_validate(data)


def pair(vm: str = "web-1", target: str = "dr") -> Pair:
    return Pair(
        id="p", source_site="prod", source="u-1", vm=vm, store="main", recovery_target=target, site="dr",
        replica_name="r",
    )  # fmt: skip


def shown(settings: Settings, vm: str | None = "web-1") -> dict[str, tuple[Any, str]]:
    return {each.key: (each.value, each.origin) for each in policy.of_vm(settings, "web", vm, "dr")}


OVERRIDE = "groups.web.overrides.web-1"


@pytest.mark.parametrize(
    ("layers", "key", "value", "origin"),
    [
        pytest.param({}, "datastore", "ds1", "targets.dr", id="the target's"),
        pytest.param({"override": {"datastore": "ds2"}}, "datastore", "ds2", OVERRIDE, id="the override's"),
        pytest.param({"override": {"name": "x"}}, "datastore", "ds1", "targets.dr", id="another key is overridden"),
        pytest.param({}, "pool", "", "default", id="nobody's"),
        pytest.param({"target": {"pool": "a/b"}}, "pool", "a/b", "targets.dr", id="the target's own"),
        pytest.param({"target": {"pool": ""}}, "pool", "", "targets.dr", id="the default, but somebody wrote it"),
        pytest.param({}, "store", "main", "groups.web", id="the group's"),
        pytest.param({}, "quiesce", True, "default", id="the group's default"),
        pytest.param({"group": {"quiesce": False}}, "quiesce", False, "groups.web", id="the group's own"),
        pytest.param({}, "target", "dr", "groups.web", id="the target itself"),
        pytest.param({"group": {"backup": {"every": "1h"}}}, "backup.every", "1h", "groups.web", id="inside a table"),
        pytest.param({"group": {"backup": {"every": "1h"}}}, "backup.jitter", "auto", "default", id="not in the table"),
        pytest.param({}, "replicate.after_backup", True, "default", id="a table that nobody wrote"),
        pytest.param({}, "backup", None, "default", id="a table that is not there"),
        pytest.param({"override": {"excluded_disks": ["a"]}}, "excluded_disks", ["a"], OVERRIDE, id="a list"),
        pytest.param({}, "networks", {}, "default", id="no mapping"),
        pytest.param({"target": {"networks": {"*": "N"}}}, 'networks."*"', "N", "targets.dr", id="a mapping"),
        pytest.param(
            {"target": {"networks": {"*": "N", "A": "B"}}, "override": {"networks": {"A": "C"}}},
            *("networks.A", "C", OVERRIDE),
            id="an entry is overridden",
        ),
        pytest.param(
            {"target": {"networks": {"*": "N", "A": "B"}}, "override": {"networks": {"A": "C"}}},
            *('networks."*"', "N", "targets.dr"),
            id="the other entries stay",
        ),
        pytest.param({}, "name", "web-1_replica", "default", id="the default suffix"),
        pytest.param({"target": {"suffix": "-x"}}, "name", "web-1-x", "targets.dr", id="a suffix"),
        pytest.param({"target": {"prefix": "x-"}}, "name", "x-web-1_replica", "targets.dr", id="a prefix"),
        pytest.param(
            {"override": {"name": "y", "targets": {"dr": {"name": "z"}}}},
            *("name", "z", f"{OVERRIDE}.targets.dr"),
            id="for one target",
        ),
        pytest.param({"override": {"existing": "old", "name": "y"}}, "name", "old", OVERRIDE, id="an existing VM"),
        pytest.param({"override": {"name": "y"}, "target": {"suffix": "-x"}}, "name", "y", OVERRIDE, id="a name"),
    ],
)
def test_which_layer_wins(layers: dict[str, Any], key: str, value: Any, origin: str) -> None:
    assert shown(configured(**layers))[key] == (value, origin)


def test_an_override_is_for_its_vm_alone() -> None:
    settings = configured(override={"datastore": "ds2", "name": "x"})
    for vm in ("web-2", None):
        assert shown(settings, vm)["datastore"] == ("ds1", "targets.dr")
    assert of_member(settings, "web", "web-2", "dr").name == "web-2_replica"
    assert "name" not in shown(settings, None)


def test_whom_a_group_is_for_is_no_policy() -> None:
    assert not {"vms", "overrides", "members"} & {each.split(".")[0] for each in shown(configured(override={}))}


@pytest.mark.parametrize("layers", [{}, {"override": {"datastore": "ds2", "networks": {"A": "C"}}}])
def test_the_workers_do_what_is_shown(layers: dict[str, Any]) -> None:
    settings = configured(target={"networks": {"*": "N", "A": "B"}, "folder": "f"}, **layers)
    found = of_pair(settings, pair(), ["web"])
    says = shown(settings)
    assert found.datastore == says["datastore"][0] == ("ds2" if layers else "ds1")
    assert found.networks == {"*": "N", "A": "C" if layers else "B"}
    assert {f'networks."{k}"' if k == "*" else f"networks.{k}": v for k, v in found.networks.items()} == {
        key: value for key, (value, _) in says.items() if key.startswith("networks")
    }
    assert found.folder == says["folder"][0] == "f"


#: a value for each key that an override may have, other than any default and than what the target says below
OTHERS: dict[str, Any] = {
    "networks": {"A": "other"},
    "datastores": {"A": "other"},
    "excluded_disks": ["other"],
    "provisioning": "eager",
    "keep_macs": True,
}


@pytest.mark.parametrize("key", sorted(set(shape.keys(VmOverride)) & set(shape.keys(RecoveryTarget))))
def test_every_key_of_both_is_layered(key: str) -> None:
    """Also one that is added later: if its kind is not a text, OTHERS has to know one of its values."""
    other = OTHERS.get(key, "other")
    fields = shape.keys(VmOverride)[key].annotation
    try:
        settings = configured(override={key: other})
    except ValueError:
        pytest.fail(f"OTHERS has no value for {key}: {fields}")
    assert getattr(of_pair(settings, pair(), ["web"]), key) == other
    assert any(origin == OVERRIDE for shown_key, (_, origin) in shown(settings).items() if shown_key.startswith(key))


def test_a_pair_whose_group_is_gone_has_its_targets_values() -> None:
    settings = configured(override={"datastore": "ds2"})
    found = of_pair(settings, pair("db-1"), [])
    assert found == destination(settings.targets["dr"], VmOverride(), "dr", "db-1") and found.datastore == "ds1"


def test_a_pair_whose_target_is_gone_is_a_sentence() -> None:
    with pytest.raises(ConfigError, match=r"target away of web-1 .* add targets\.away again \(configured: dr\)"):
        of_pair(configured(), pair(target="away"), [])


def test_of_several_groups_the_first_counts_that_says_something_of_the_vm() -> None:
    """An override that is in force nowhere, without a word, would be a disk too many or a network that is wrong."""
    data = {**BASE, "groups": dict(BASE["groups"])}
    data["groups"]["all"] = data["groups"]["web"] | {"vms": ["*"], "overrides": {"web-1": {"datastore": "second"}}}
    settings = Settings.model_validate(data)
    assert of_pair(settings, pair(), ["web", "all"]).datastore == "second"
    assert of_pair(settings, pair("web-2"), ["web", "all"]).datastore == "ds1"
    data["groups"]["web"] = data["groups"]["web"] | {"overrides": {"web-1": {"datastore": "first"}}}
    settings = Settings.model_validate(data)
    assert of_pair(settings, pair(), ["web", "all"]).datastore == "first"
    assert of_pair(settings, pair(), ["all"]).datastore == "second"
    (doubt,) = [each for each in remarks(settings) if "is before it" in each.sentence]
    assert doubt.key == ("groups", "all") and doubt.sentence.startswith("groups.all.overrides.web-1: groups.web is")
    assert policy.same_store(settings, ["web", "all"]) == {"main": ["web", "all"]}
    assert policy.same_store(settings, ["web"]) == {}


def test_a_vm_in_two_groups_has_one_name_for_its_replica(tmp_path: Path) -> None:
    """Each tick once gave the pair the name of the one group, and then that of the other."""
    data = {**BASE, "groups": dict(BASE["groups"])}
    data["groups"]["all"] = data["groups"]["web"] | {"vms": ["*"], "overrides": {"web-1": {"name": "own"}}}
    here = Here(Settings.model_validate(data), Catalogue.create(f"sqlite:///{tmp_path}/catalogue.db"))
    who = VmIdentity(site="prod", vcenter="v", instance_uuid="u1", bios_uuid="b", moref="vm-1", name="web-1")
    here.catalogue.record_inventory("prod", [VmSummary(identity=who, power="poweredOn", template=False, folder="")])
    found = [dispatch.pair_of(here, member) for member in dispatch.find(here, "web-1")]
    assert [each.replica_name for each in found if each is not None] == ["own", "own"]
    here.catalogue.close()


def test_the_whole_configuration_with_secrets_masked() -> None:
    found = {each.key: (each.value, each.table) for each in policy.of_all(configured(override={"name": "x"}))}
    assert found["redis"] == ("redis://***@h/0", ("redis",))
    assert found["catalogue"] == ("sqlite:////c.db", ("catalogue",))
    assert found["sites.prod.vcenter"] == ("v", ("sites", "prod"))
    assert found["sites.prod.insecure"] == (False, ())
    assert found["groups.web.overrides.web-1.name"] == ("x", ("groups", "web"))
    assert found["tuning.threads"] == (3, ())
    assert found["flower"] == (None, ())
    assert "hunter2" not in str(found)


def test_a_key_is_written_as_toml_writes_it() -> None:
    settings = Settings.model_validate({**BASE, "stores": {"main": {"path": "/s"}, "a.b c": {"path": "/t"}}})
    assert 'stores."a.b c".path' in {each.key for each in policy.of_all(settings)}
