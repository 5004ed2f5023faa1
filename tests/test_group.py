"""`understudy group`: who is in a group and why, who left, and letting go; and the sentences of `status` about it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from tests.command import forgetting, run
from workers import settings
from workers.catalogue import Catalogue, schema
from workers.errors import ConfigError
from workers.members import Roll, settle
from workers.models import VmIdentity, VmSummary
from workers.run import Here

CONFIG = """
redis = "redis://127.0.0.1:1/0"
catalogue = "sqlite:///catalogue.db"
[sites.prod]
vcenter = "127.0.0.1:1"
user = "u"
password_env = "X"
[stores.main]
path = "store"
[groups.web]
source = "prod"
members = { any = [{ name = "web-*" }, { tag = "gold" }], not = { folder = "DC/Test" } }
store = "main"
grace = "7d"
[groups.db]
source = "prod"
vms = ["db-*"]
store = "main"
"""


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_CONFIG", "")
    (tmp_path / "understudy.toml").write_text(CONFIG)
    with forgetting():
        yield


@pytest.fixture
def here(tmp_path: Path) -> Here:
    conf = settings.load(tmp_path / "understudy.toml")
    return Here(conf, Catalogue.create(conf.catalogue))


def seen(here: Here, **tags: tuple[str, ...] | None) -> None:
    """The inventory of prod is exactly these."""
    found = []
    for name, own in tags.items():
        vm = name.replace("_", "-")
        who = VmIdentity(site="prod", vcenter="v", instance_uuid=f"u-{vm}", bios_uuid="b", moref=vm, name=vm)
        found.append(VmSummary(identity=who, power="poweredOn", template=False, folder="DC/Web", tags=own))
    here.catalogue.record_inventory("prod", found)
    settle(here)


def output(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[str, str]:
    capsys.readouterr()
    assert run(*arguments) == code
    said = capsys.readouterr()
    return said.out, said.err


def as_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(output(capsys, *arguments, "--json")[0])


def test_who_is_in_a_group_and_who_left(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    seen(here, web_1=(), web_2=(), other=("x:gold",), db_1=())
    seen(here, web_1=(), other=("x:gold",), db_1=())
    text, problems = output(capsys, "group", "show", "web")
    assert "web: ((name web-*) or (tag gold)) and not (folder DC/Test)" in text
    assert "tag x:gold matches gold" in text and "name web-1 matches web-*" in text
    assert "web-2" in text.split("\nleft")[1] and "gone from its vCenter" in text and problems == ""
    found = as_json(capsys, "group", "show", "web")
    assert [each["vm"] for each in found["members"]] == ["other", "web-1"]
    (left,) = found["left"]
    assert left["vm"] == "web-2" and left["until"] > left["left"]

    text, _ = output(capsys, "group", "list")
    assert "web" in text and "db" in text
    counts = {each["name"]: (len(each["members"]), len(each["left"])) for each in as_json(capsys, "group", "list")}
    assert counts == {"web": (2, 1), "db": (1, 0)}


def test_why_a_vm_is_or_is_not_in_a_group(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    seen(here, web_1=None)
    answers = {each["group"]: each for each in as_json(capsys, "group", "why", "web-1")}
    assert answers["web"]["inside"] and not answers["db"]["inside"]
    assert answers["db"]["why"] == "name web-1 is not db-*"
    assert "not in it" in output(capsys, "group", "why", "u-web-1")[0]
    assert "near: web-1" in output(capsys, "group", "why", "web-l", code=1)[1]
    assert "there is no group 'wbe'; there are web, db" in output(capsys, "group", "show", "wbe", code=1)[1]


def test_letting_many_go(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    names = {f"web_{number}": () for number in range(6)}
    seen(here, **names)
    assert "nobody waits to be let go" in output(capsys, "group", "accept", "web", code=1)[1]
    seen(here)
    text, problems = output(capsys, "group", "show", "web")
    assert "kept until somebody decides" in text and "`understudy group accept web`" in problems
    assert "6 VMs would leave the group web" in output(capsys, "status")[1]
    assert "6 VMs would leave the group web" in output(capsys, "group", "list")[1]
    assert "kept until somebody decides" in output(capsys, "group", "why", "web-0")[0]
    text, _ = output(capsys, "group", "accept", "web")
    assert text.count("left the group web: it is gone from its vCenter") == 6
    assert output(capsys, "status")[1] == ""
    assert len(as_json(capsys, "group", "show", "web")["left"]) == 6


def test_an_inventory_that_is_old_or_fails_is_said(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the inventory of prod was never read: no answer has come" in output(capsys, "status")[1]
    seen(here, web_1=())
    assert output(capsys, "status")[1] == ""
    here.catalogue.inventory_failed("prod", "it does not answer")
    _, problems = output(capsys, "status", "--json")
    assert re.search(r"last read \d+ s ago: it does not answer. Until it is read completely again, nobody", problems)
    seen(here, web_1=())
    with here.catalogue.write() as conn:
        known = conn.execute(sa.select(schema.inventories.c.complete)).scalar_one()
        conn.execute(sa.update(schema.inventories).values(complete=known - timedelta(hours=3, minutes=1)))
    assert "was last read 3 h ago: no answer has come since" in output(capsys, "status")[1]
    assert "was last read 3 h ago" in output(capsys, "group", "show", "db")[1]


@pytest.mark.parametrize(("age", "said"), [(29 * 60, ""), (31 * 60, "31 min ago"), (50 * 3600, "2 d ago")])
def test_how_old_an_inventory_may_be(here: Here, age: int, said: str) -> None:
    seen(here)
    now = here.catalogue.now() + timedelta(seconds=age)
    found = "".join(Roll(here).concerns(now))
    assert said in found and bool(said) == bool(found)


def test_a_rarely_read_inventory_is_not_called_old_at_once(here: Here) -> None:
    seen(here)
    tuning = here.settings.tuning.model_copy(update={"inventory_every": "1h"})
    rare = Here(here.settings.model_copy(update={"tuning": tuning}), here.catalogue)
    now = here.catalogue.now()
    assert not Roll(rare).concerns(now + timedelta(minutes=119)) and Roll(rare).concerns(now + timedelta(minutes=121))


def test_nothing_to_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "understudy.toml").write_text(CONFIG.split("[groups.web]")[0])
    conf = settings.load(tmp_path / "understudy.toml")
    Catalogue.create(conf.catalogue).close()
    assert "no group is configured yet" in output(capsys, "group", "list")[0]
    assert "there are none" in output(capsys, "group", "show", "web", code=1)[1]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ('{ nmae = "web" }', "groups.web.members.nmae is not a key that is known here (allowed: all, any, cluster, "),
        ('{ nmae = "web" }', "did you mean 'name'?"),
        ('{ any = [{ name = "a" }, { tga = "b" }] }', "did you mean 'tag'?"),
        ('{ not = { folde = "b" } }', "did you mean 'folder'?"),
        ('{ power = "up" }', "groups.web.members.power = 'up': Input should be 'on' or 'off'"),
        ("{}", "groups.web.members: an empty rule"),
        ("{ tag = [] }", "groups.web.members.tag = []: a name or pattern, or a list of them"),
        ("{ tag = 7 }", "groups.web.members.tag = 7: Input should be"),
        ('"web-*"', "groups.web.members = 'web-*': "),
        ('{ name = "a" }\nvms = ["b"]', "groups.web: either 'vms' (names) or 'members' (a rule), exactly one"),
        ('{ name = "a" }\ngrace = "long"', "groups.web.grace = 'long': a number and a unit"),
    ],
)
def test_a_wrong_rule_is_a_sentence(members: str, words: str, tmp_path: Path) -> None:
    start, rest = CONFIG.split("members = ")
    after = rest.split("\n", 1)[1].replace('grace = "7d"\n', "")
    (tmp_path / "understudy.toml").write_text(f"{start}members = {members}\n{after}")
    with pytest.raises(ConfigError) as caught:
        settings.load(tmp_path / "understudy.toml")
    assert words in str(caught.value)


def test_who_is_in_no_group_and_why(here: Here, capsys: pytest.CaptureFixture[str]) -> None:
    seen(here, web_1=("gold",), old_1=("x:silver",), app_1=None)
    why = {each["vm"]: each["why"] for each in as_json(capsys, "group", "unprotected")}
    assert why["old-1"] == {
        "web": "none of: (name old-1 is not web-*), (tag x:silver is not gold)",
        "db": "name old-1 is not db-*",
    }
    assert "tag is not known" in why["app-1"]["web"] and set(why) == {"app-1", "old-1"}
    table, _ = output(capsys, "group", "unprotected")
    assert "app-1  prod  DC/Web  web: " in table and "; db: name app-1 is not db-*" in table
    told = "2 VMs are in no group (app-1, old-1): `understudy group unprotected` has them all, and why"
    assert output(capsys, "status")[0].splitlines()[-1] == told
    assert "in no group" not in output(capsys, "status", "--group", "web")[0]
    seen(here, web_1=("gold",), db_1=("gold",))
    assert "every VM that is known is in a group" in output(capsys, "group", "unprotected")[0]
    assert "in no group" not in output(capsys, "status")[0]


def test_the_vms_of_a_site_that_is_no_groups_source_are_listed_but_are_no_news(
    here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    seen(here, web_1=("gold",))
    who = VmIdentity(site="dr", vcenter="w", instance_uuid="u-own", bios_uuid="b", moref="m", name="own")
    here.catalogue.record_inventory("dr", [VmSummary(identity=who, power="poweredOn", template=False, folder="DR")])
    assert "own  dr    DR      no group has its VMs at this site" in output(capsys, "group", "unprotected")[0]
    assert "in no group" not in output(capsys, "status")[0]
