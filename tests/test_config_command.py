"""`understudy config`: what it says of right, doubtful and wrong configurations, and the schema."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.configurations import FULL, alone_in, changed, document, understudy, write
from workers import settings
from workers.catalogue import Catalogue
from workers.models import VmIdentity, VmSummary
from workers.settings import manual, shape


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone_in(tmp_path, monkeypatch)


# --- check --------------------------------------------------------------------------------------------------------

CLEAN = changed(redis="redis://127.0.0.1:1/0")


def test_a_right_configuration_is_ok() -> None:
    write(CLEAN)
    said = understudy("config", "check", "--strict")
    assert said == (0, "ok: understudy.toml, 2 sites, 4 stores, 1 recovery targets, 3 groups\n", "")
    found = json.loads(understudy("config", "check", "--json").out)
    assert (found["ok"], found["mistakes"], found["warnings"]) == (True, [], [])


def test_a_wrong_one_is_a_sentence_per_mistake() -> None:
    write(changed(**{"tuning.threads": 0, "groups.web.keep.last": "many"}))
    said = understudy("config", "check")
    assert said.code == 1 and said.out == ""
    first, second = said.err.splitlines()
    assert first.startswith("understudy: understudy.toml: groups.web.keep.last = 'many': ")
    assert second.startswith("understudy: understudy.toml: tuning.threads = 0: ")
    found = json.loads((again := understudy("config", "check", "--json")).out)
    assert again.code == 1 and not found["ok"] and len(found["mistakes"]) == 2


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        pytest.param(
            {"targets.two": {"site": "dr", "datastore": "ds1"}},
            "targets.two: no group has this recovery target: nothing is replicated to it",
            id="a target that nobody uses",
        ),
        pytest.param({"stores.two": {"path": "x"}}, "stores.two: no group has this store", id="an unused store"),
        pytest.param(
            {"sites.two": {"vcenter": "v", "user": "u", "password_env": "P"}},
            "sites.two: no group and no recovery target has this site",
            id="an unused site",
        ),
        pytest.param(
            {"sites.prod.password_file": "absent"},
            "sites.prod.password_file: {}/absent cannot be read here: No such file or directory",
            id="a password file that is missing",
        ),
        pytest.param(
            {"sites.prod.password_file": "open"},
            "sites.prod.password_file: {}/open may be read by others: chmod o-r",
            id="a password file that others may read",
        ),
        pytest.param(
            {"flower.password_env": "NOT_SET"},
            "flower.password_env: the environment here has no NOT_SET",
            id="a variable that is missing",
        ),
        pytest.param(
            {"sites.prod.ca_file": "absent.pem"},
            "sites.prod.ca_file: {}/absent.pem is not there, or is not a file",
            id="a CA that is missing",
        ),
        pytest.param(
            {"targets.dr.datastore": "ds9"},
            "targets.dr.datastore = 'ds9': sites.dr.datastores does not say where it is mounted (it has ds1)",
            id="a datastore that is nowhere",
        ),
        pytest.param(
            {"groups.web.overrides.web-1.datastore": "ds9"},
            "groups.web.overrides.web-1.datastore = 'ds9': sites.dr.datastores does not say",
            id="an override's datastore that is nowhere",
        ),
        pytest.param(
            {"groups.web.overrides": {"db-1": {"name": "x"}}},
            "groups.web.overrides.db-1: the group does not cover a VM of that name",
            id="an override for nobody",
        ),
        pytest.param(
            {"tuning.vcenter_wait": "5m"}, "tuning: vcenter_wait (5m) should be below slice_time (4m)", id="timing"
        ),
        pytest.param(
            {"redis": "redis://:hunter2@127.0.0.1:1/0"},
            "redis holds a login: redis_file or redis_env keeps its password out of this file",
            id="a password in the file",
        ),
    ],
)
def test_what_is_probably_not_meant_is_a_warning(changes: dict[str, Any], warning: str, tmp_path: Path) -> None:
    write(changed(**({"redis": "redis://127.0.0.1:1/0"} | changes)))
    Path("open").write_text("x")
    Path("open").chmod(0o644)
    said = understudy("config", "check")
    assert (said.code, said.err.count("warning: ")) == (0, 1), said
    assert said.err.startswith(f"warning: understudy.toml: {warning.format(tmp_path)}")
    assert said.out.startswith("ok: ") and "hunter2" not in said.out + said.err
    assert understudy("config", "check", "--strict").code == 1


def test_a_warning_of_a_folder_names_the_file_that_the_key_is_in(tmp_path: Path) -> None:
    """Also of keys that are in no section, and of a section whose keys are in several files."""
    data = changed(**{"redis": None, "flower.password_env": "NOT_SET"}) | {"redis_file": "absent"}
    write(data)
    Path("conf").mkdir()
    top = {key: data.pop(key) for key in ("redis_file", "flower")}
    Path("conf/top.toml").write_text(document(top))
    Path("conf/rest.toml").write_text(document(data))
    said = understudy("--config", "conf", "config", "check").err.splitlines()
    for key in ("redis_file", "flower.password_env"):
        assert [line for line in said if line.startswith(f"warning: {tmp_path}/conf/top.toml: {key}: ")], said


def test_a_group_without_a_target_replicates_nothing() -> None:
    write(changed(**{"redis": "redis://h/0", "groups.web.target": None, "groups.web.overrides": None}))
    assert (
        "groups.web.replicate: the group has no target, so nothing is replicated" in understudy("config", "check").err
    )


def test_no_name_commands_the_terminal() -> None:
    write(changed(**{"sites.dr.datastores": {"\x1b[31m": "x"}, "targets.dr.folder": "\x9b31m"}))
    for arguments in (("check",), ("show",)):
        said = understudy("config", *arguments)
        assert said.code == 0 and "\x1b" not in said.out + said.err and "\x9b" not in said.out + said.err
    assert "(it has \\x1b[31m)" in understudy("config", "check").err


def test_an_address_that_no_catalogue_has_is_a_mistake() -> None:
    write(changed(catalogue="postgresql://u:hunter2@h:port/d"))
    said = understudy("config", "check")
    assert said.code == 1 and "understudy.toml: catalogue: the catalogue's address cannot be understood" in said.err
    assert "hunter2" not in said.err


# --- show ---------------------------------------------------------------------------------------------------------


def test_show_has_every_value_and_where_it_comes_from(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    names = ("sites", "stores", "links", "limits", "targets", "groups", "flower", "tuning")
    parts = {key: {key: FULL[key]} for key in names}
    parts["top"] = {"redis": FULL["redis"], "catalogue": FULL["catalogue"]}
    for name, part in parts.items():
        (tmp_path / "conf" / f"{name}.toml").write_text(document(part))
    said = understudy("--config", "conf", "config", "show", "--json")
    found = {each["key"]: each for each in json.loads(said.out)["values"]}
    assert found["redis"]["value"] == "redis://***@127.0.0.1:1/0" and found["redis"]["file"].endswith("conf/top.toml")
    assert found["sites.prod.datastores.ds1"]["value"] == f"{tmp_path}/conf/mnt/ds1"
    assert found["sites.prod.datastores.ds1"]["file"].endswith("conf/sites.toml")
    assert (found["tuning.attempts"]["value"], found["tuning.attempts"]["from"]) == (5, "default")
    assert found["tuning.attempts"]["file"] is None
    assert found["links.wan.windows"]["value"] == FULL["links"]["wan"]["windows"]
    table = understudy("--config", "conf", "config", "show").out
    assert "hunter2" not in table + said.out
    assert any(line.split() == ["tuning.threads", "2", "tuning.threads", "tuning.toml"] for line in table.splitlines())


def with_vms(*names: str) -> None:
    catalogue = Catalogue.create(settings.load().catalogue)
    vms = []
    for name in names:
        identity = VmIdentity(
            site="prod", vcenter="v", instance_uuid=f"u-{name}", bios_uuid="b", moref=f"vm-{name}", name=name
        )
        vms.append(VmSummary(identity=identity, power="poweredOn", template=False, folder=""))
    catalogue.record_inventory("prod", vms)
    catalogue.close()


def test_show_of_vms_is_the_policy_that_they_have() -> None:
    data = copy.deepcopy(FULL)
    data["groups"]["all"] = {"source": "prod", "vms": ["*"], "store": "main"}
    write(data)
    with_vms("web-1", "web-2", "db-1")
    said = json.loads(understudy("config", "show", "web-1", "web-2", "--json").out)
    assert [(each["vm"], each["group"], each["target"]) for each in said] == [
        *(("web-1", "web", "dr"), ("web-1", "all", None)),
        *(("web-2", "web", "dr"), ("web-2", "all", None)),
    ]
    first, second = ({each["key"]: each for each in one["values"]} for one in (said[0], said[2]))
    assert (first["name"]["value"], first["name"]["from"]) == ("n", "groups.web.overrides.web-1")
    assert (second["name"]["value"], second["name"]["from"]) == ("p-web-2-s", "targets.dr")
    assert first["networks.A"]["from"] == "groups.web.overrides.web-1" and "networks.A" not in second
    assert first['networks."*"']["from"] == "targets.dr" == second['networks."*"']["from"]
    table = understudy("config", "show", "web-1").out
    assert "web-1: group web, target dr" in table and "web-1: group all, backed up only" in table
    assert "one chain of restore points in the store main for web, all" in table
    assert "one replica" not in table
    data["groups"]["all"]["target"] = "dr"
    write(data)
    table = understudy("config", "show", "web-1").out
    assert "web-1 has one replica at dr for web, all: where and how it is made says web" in table
    unknown = understudy("config", "show", "web-9")
    assert unknown.code == 1 and "no VM 'web-9' is known" in unknown.err


# --- the schema ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def validator() -> Any:
    schema = manual.schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    return jsonschema.Draft202012Validator(schema)


def test_the_command_prints_the_schema() -> None:
    assert json.loads(understudy("config", "schema").out) == manual.schema()


def test_the_schema_takes_every_key(validator: Any) -> None:
    validator.validate(FULL)
    validator.validate(CLEAN)


@pytest.mark.parametrize(
    "changes",
    [
        {"sites.prod.user": None},
        {"sites.prod.password_env": "both"},
        {"sites.prod.unknown": 1},
        {"redis_file": "both"},
        {"catalogue": None},
        {"groups.web.backup": {"every": "soon"}},
        {"groups.web.backup": {}},
        {"groups.web.keep.last": -1},
        {"groups.web.vms": "web"},
        {"targets.dr.provisioning": "fat"},
        {"stores": None},
        {"tuning.sample": 2.0},
    ],
    ids=str,
)
def test_the_schema_refuses_what_the_reader_refuses(changes: dict[str, Any], validator: Any) -> None:
    data = changed(**changes)
    assert list(validator.iter_errors(data)) != []
    write(data)
    assert understudy("config", "check").code == 1


def test_every_key_is_described() -> None:
    """By the comment above its field: `#: ...`."""
    bare = [(model.__name__, key) for model in manual.models() for key in shape.keys(model)
            if len(manual.comment(model, key)) < 4]  # fmt: skip
    assert bare == []
    assert {model.__name__ for model in manual.models()} >= {"Settings", "Site", "Group", "Schedule", "Tuning"}


def test_full_has_every_key() -> None:
    """What is not in it is not fuzzed: add a new key to FULL."""
    either = {"redis_file", "redis_env", "catalogue_file", "catalogue_env"}
    tables = {"sites", "stores", "links", "limits", "targets", "groups", "flower", "tuning"}
    known = {key.split(".")[-1] for key in _paths_of(FULL)} | either | set(shape.keys(settings.Tuning)) | tables
    assert {key for model in manual.models() for key in shape.keys(model)} - known == set()


def _paths_of(value: Any, above: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"{above}{key}"
            yield from _paths_of(inner, f"{above}{key}.")
    elif isinstance(value, list):
        for inner in value:
            yield from _paths_of(inner, f"{above}[].")
