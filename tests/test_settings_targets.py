"""Recovery targets and overrides in the configuration: how they may be written, and what is said otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.errors import ConfigError
from workers.settings import Group, load

CONFIG = """
redis = "redis://127.0.0.1:1/0"
catalogue = "sqlite:///catalogue.db"
[sites.prod]
vcenter = "vc"
user = "u"
password_env = "P"
[stores.main]
path = "store"
[targets.dr]
site = "prod"
datastore = "ds1"
{target}
[targets.far]
site = "prod"
datastore = "ds2"
[groups.web]
source = "prod"
vms = ["*"]
store = "main"
{group}
[groups.web.overrides.web-01]
{override}
"""


def loaded(folder: Path, target: str = "", group: str = "", override: str = "") -> Group:
    file = folder / "understudy.toml"
    file.write_text(CONFIG.format(target=target, group=group, override=override))
    return load(file).groups["web"]


@pytest.mark.parametrize(
    ("group", "targets"),
    [
        ("", ()),
        ('target = "dr"', ("dr",)),
        ('target = ["dr", "far"]', ("dr", "far")),
        ('target = ["far", "dr", "far"]', ("far", "dr")),
        ("target = []", ()),
    ],
)
def test_one_target_or_several(tmp_path: Path, group: str, targets: tuple[str, ...]) -> None:
    assert loaded(tmp_path, group=group).targets == targets


def test_an_override_for_one_target_alone(tmp_path: Path) -> None:
    override = 'name = "w"\n[groups.web.overrides.web-01.targets.far]\nseed = "[ds2] seeds/web-01"'
    found = loaded(tmp_path, group='target = ["dr", "far"]', override=override).overrides["web-01"]
    assert (found.name, found.targets["far"].seed, found.targets["far"].name) == ("w", "[ds2] seeds/web-01", None)


@pytest.mark.parametrize(
    ("target", "group", "override", "words"),
    [
        (
            "",
            'target = ["dr", "fr"]',
            "",
            "groups.web.target = 'fr' names nothing that is configured; allowed: dr, far",
        ),
        ("", "target = 7", "", "groups.web.target = 7: a recovery target's name, or a list of them"),
        ("", "target = [7]", "", "a recovery target's name, or a list of them"),
        ('provisioning = "lazy"', "", "", "'original', 'thin', 'thick' or 'eager'"),
        ('datastore_map = { "*" = "ds1" }', "", "", "targets.dr.datastore_map is not a key that is known here"),
        ("", "", 'seeds = "[ds1] x"', "did you mean 'seed'?"),
        (
            "",
            "",
            'seed = "[ds1] x"\nexisting = "y"',
            "either 'existing' (a VM) or 'seed' (a folder of disks), not both",
        ),
        ("", 'target = "dr"', 'targets.far.name = "x"', "overrides.web-01.targets = 'far' names nothing"),
        ("", 'target = "dr"', "targets.dr.nam = 1", "did you mean 'name'?"),
    ],
)
def test_what_is_wrong_is_a_sentence(tmp_path: Path, target: str, group: str, override: str, words: str) -> None:
    with pytest.raises(ConfigError) as told:
        loaded(tmp_path, target, group, override)
    assert words in str(told.value)
    assert len(str(told.value).splitlines()) == 1
