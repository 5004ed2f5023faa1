"""Reading the configuration: one file or a folder of them, where relative paths start, and what mistakes look like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from workers import settings
from workers.errors import ConfigError
from workers.settings import complaints, values

TOP = 'redis = "redis://127.0.0.1:1/0"\ncatalogue = "sqlite:///catalogue.db"\n'
SITE = '[sites.prod]\nvcenter = "v"\nuser = "u"\npassword_file = "password"\n'
STORE = '[stores.main]\npath = "store"\n'
GROUP = '[groups.web]\nsource = "prod"\nvms = ["web-*"]\nstore = "main"\n'
WHOLE = TOP + SITE + STORE + GROUP


def written(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        file = folder / f"{name.replace('__', '/')}.toml"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return folder


def refused(where: Path) -> list[str]:
    """The sentences, each without the folder's name."""
    with pytest.raises(ConfigError) as caught:
        settings.load(where)
    return str(caught.value).replace(f"{where}/", "").splitlines()


# --- a folder -----------------------------------------------------------------------------------------------------


def test_a_folder_is_the_same_as_one_file(tmp_path: Path) -> None:
    one = settings.load(written(tmp_path / "d", one=WHOLE) / "one.toml")
    os.remove(tmp_path / "d" / "one.toml")
    many = written(tmp_path / "d", **{"00-top": TOP, "10-sites": SITE, "20-stores": STORE, "30-groups": GROUP})
    assert settings.load(many) == one


def test_the_sections_of_several_files_are_merged(tmp_path: Path) -> None:
    folder = written(
        tmp_path, a=WHOLE + "[tuning]\nthreads = 3\n", b=GROUP.replace("web", "db"), c="[tuning]\nattempts = 2\n"
    )
    loaded = settings.load_with_origins(folder)
    assert list(loaded.settings.groups) == ["web", "db"]
    assert (loaded.settings.tuning.threads, loaded.settings.tuning.attempts) == (3, 2)
    assert loaded.file_of(("groups", "db", "vms")).name == "b.toml"
    assert loaded.file_of(("tuning", "attempts")).name == "c.toml"
    assert loaded.file_of(("redis",)).name == "a.toml"


def test_other_files_of_the_folder_are_not_read(tmp_path: Path) -> None:
    written(tmp_path, a=WHOLE)
    (tmp_path / ".a.toml").write_text("an editor's")
    (tmp_path / "a.toml~").write_text("an editor's")
    (tmp_path / "README").write_text("not TOML")
    assert list(settings.load(tmp_path).groups) == ["web"]


@pytest.mark.parametrize(
    ("other", "key"),
    [
        pytest.param(TOP.splitlines()[0], "redis", id="a key"),
        pytest.param(GROUP, "groups.web", id="a group"),
        pytest.param('[groups.web.overrides.db]\nname = "x"', "groups.web", id="a part of a group"),
        pytest.param(SITE, "sites.prod", id="a site"),
        pytest.param("[tuning]\nthreads = 4", "tuning.threads", id="a key of a section"),
        pytest.param("groups = 3", "groups", id="a section that is a number elsewhere"),
    ],
)
def test_twice_is_an_error_that_names_both_files(other: str, key: str, tmp_path: Path) -> None:
    written(tmp_path, a=WHOLE + "[tuning]\nthreads = 3\n", b=other)
    assert set(refused(tmp_path)) == {f"{key} is in a.toml and in b.toml; it may be in one file only"}


def test_an_error_names_the_file_that_the_key_came_from(tmp_path: Path) -> None:
    written(tmp_path, a=TOP + SITE + STORE, b=GROUP + "kep = 3\n", c="[tuning]\nthreads = 0\n")
    first, second = refused(tmp_path)
    assert first.startswith("b.toml: groups.web.kep is not a key") and "did you mean 'keep'?" in first
    assert second.startswith("c.toml: tuning.threads = 0: ")


def test_a_name_that_is_not_configured_is_of_the_file_that_says_it(tmp_path: Path) -> None:
    written(tmp_path, a=TOP + SITE + STORE, b=GROUP.replace('"main"', '"mian"').replace('"prod"', '"dev"'))
    assert refused(tmp_path) == [
        "b.toml: groups.web.source = 'dev' names nothing that is configured; allowed: prod",
        "b.toml: groups.web.store = 'mian' names nothing that is configured; allowed: main",
    ]


def test_relative_paths_start_at_their_own_files_folder(tmp_path: Path) -> None:
    there = written(tmp_path, conf__all=WHOLE + '[sites.prod.datastores]\nds1 = "mnt/ds1"\nds2 = "/mnt/ds2"\n') / "conf"
    linked = tmp_path / "d"
    linked.mkdir()
    (linked / "all.toml").symlink_to(there / "all.toml")
    for where in (there, there / "all.toml", linked):
        found = settings.load(where)
        assert found.sites["prod"].password_file == there / "password"
        assert found.sites["prod"].datastores == {"ds1": there / "mnt/ds1", "ds2": Path("/mnt/ds2")}
        assert found.stores["main"].path == there / "store"
        assert found.catalogue == f"sqlite:///{there}/catalogue.db"


def test_an_empty_folder_is_a_sentence(tmp_path: Path) -> None:
    assert "has no *.toml; run `understudy init`" in refused(tmp_path)[0]


# --- sentences ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        pytest.param(
            ('"main"', "7", GROUP), "groups.web.store = 7: Input should be a valid string", id="another kind of value"
        ),
        pytest.param(
            ("", 'backup = { every = "1h", jitter = "much" }', GROUP),
            "groups.web.backup.jitter = 'much': a number and a unit: 90s, 15m, 4h, 1d or 1w "
            "or Input should be 'auto' or 'none'",
            id="one sentence for a value of several kinds",
        ),
        pytest.param(
            ("", 'backup = { every = "99999999999w" }', GROUP),
            "groups.web.backup.every = '99999999999w': a hundred years at most",
            id="a time that no clock has",
        ),
        pytest.param(
            ("", 'backup = { every = "²h" }', GROUP),
            "groups.web.backup.every = '²h': a number and a unit: 90s, 15m, 4h, 1d or 1w",
            id="a digit that is no number",
        ),
        pytest.param(
            ("", '"a\\u001bb" = 1', GROUP),
            'groups.web."a\\u001bb" is not a key that is known here',
            id="a key that would command the terminal",
        ),
    ],
)
def test_a_mistake_is_one_sentence(change: tuple[str, str, str], sentence: str, tmp_path: Path) -> None:
    old, new, part = change
    text = WHOLE.replace(part, part.replace(old, new) if old else f"{part}{new}\n")
    (found,) = refused(written(tmp_path, a=text))
    assert found.removeprefix("a.toml: ").startswith(sentence)


def test_a_long_value_is_cut(tmp_path: Path) -> None:
    (found,) = refused(written(tmp_path, a=WHOLE.replace('["web-*"]', f'"{"x" * 5000}"')))
    assert len(found) < 300


@pytest.mark.parametrize(
    "text",
    [
        "x = " + "[" * 3000,
        "x = " + "1" * 5000,
        "\0",
        'redis = "\\ud800"',
        "x = 2026-99-99",
        ".".join("a" * 3000) + " = 1",
    ],
    ids=["deep", "long number", "null", "half a character", "no day", "many dots"],
)
def test_what_no_person_writes_is_a_sentence_too(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    assert all(line.startswith(("a.toml", str(tmp_path))) for line in refused(tmp_path))


def test_a_path_with_a_null_in_it(tmp_path: Path) -> None:
    site = settings.load(written(tmp_path, a=WHOLE.replace('"password"', '"pass\\u0000word"'))).sites["prod"]
    with pytest.raises(ConfigError, match="cannot be read; write the password of u at v"):
        site.password()


# --- secrets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["redis", "catalogue"])
@pytest.mark.parametrize("whence", ["file", "env"])
def test_an_address_from_elsewhere(key: str, whence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = {"redis": "redis://:hunter2@h:1/0", "catalogue": "postgresql+psycopg://u:hunter2@h/d"}[key]
    lines = [line for line in TOP.splitlines() if not line.startswith(key)]
    lines.append(f'{key}_file = "address"' if whence == "file" else f'{key}_env = "THE_ADDRESS"')
    conf = settings.load(written(tmp_path, a="\n".join([*lines, SITE, STORE])))
    with pytest.raises(ConfigError, match=r"cannot be read; write|is not set; it should hold"):
        getattr(conf, key)
    for text, says in [("hunter2", "should hold"), (address, None)]:
        (tmp_path / "address").write_text(f"{text}\n")
        monkeypatch.setenv("THE_ADDRESS", text)
        if says is None:
            assert getattr(conf, key) == address
            continue
        with pytest.raises(ConfigError, match=says) as caught:
            getattr(conf, key)
        assert "hunter2" not in str(caught.value)


def test_a_relative_catalogue_from_elsewhere_has_no_folder_to_start_at(tmp_path: Path) -> None:
    text = WHOLE.replace('catalogue = "sqlite:///catalogue.db"', 'catalogue_file = "address"')
    conf = settings.load(written(tmp_path, a=text))
    (tmp_path / "address").write_text("sqlite:///catalogue.db")
    with pytest.raises(ConfigError, match="should hold an absolute path"):
        conf.catalogue  # noqa: B018


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (('redis = "redis://127.0.0.1:1/0"', ""), "redis is missing: give 'redis', 'redis_file' or 'redis_env'"),
        (('redis = "', 'redis_env = "X"\nredis = "'), "redis has several origins"),
        (("redis://127.0.0.1:1/0", "http://:hunter2@h/0"), "redis: an address such as redis://host:6379/0"),
        (("redis://127.0.0.1:1/0", "redis://:hunter2@h:port/0"), "redis: an address such as redis://host:6379/0"),
        (("redis://127.0.0.1:1/0", "redis://:hunter2@h:1/name"), "redis: an address such as redis://host:6379/0"),
        (('"redis://127.0.0.1:1/0"', '["redis://:hunter2@h:1/0"]'), "redis: Input should be a valid string"),
        (("sqlite:///catalogue.db", "mysql://u:hunter2@h/d"), "catalogue: sqlite:////path/to/catalogue.db or"),
        (('password_file = "password"', 'password = "hunter2"'), "sites.prod.password is not a key"),
    ],
)
def test_no_mistake_shows_a_secret(change: tuple[str, str], sentence: str, tmp_path: Path) -> None:
    found = refused(written(tmp_path, a=WHOLE.replace(*change)))
    assert any(line.removeprefix("a.toml: ").removeprefix(f"{tmp_path}: ").startswith(sentence) for line in found), (
        found
    )
    assert "hunter2" not in "\n".join(found)


def test_nothing_that_shows_settings_shows_a_secret(tmp_path: Path) -> None:
    text = WHOLE.replace("redis://", "redis://:hunter2@").replace(
        "sqlite:///catalogue.db", "postgresql://u:hunter2@h/d"
    )
    conf = settings.load(written(tmp_path, a=text))
    assert "hunter2" in conf.redis and "hunter2" in conf.catalogue
    assert "hunter2" not in repr(conf) and "hunter2" not in str(conf)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://h:1/0", "redis://h:1/0"),
        ("redis://:hunter2@h:1/0", "redis://***@h:1/0"),
        ("redis://hunter2@h:1/0", "redis://***@h:1/0"),
        ("redis://:hun/ter2@h:1/0?password=hunter2&db=1", "redis://***@h:1/0?password=***&db=1"),
        ("postgresql+psycopg://u:hun@ter2@h/d", "postgresql+psycopg://u:***@h/d"),
        ("postgresql://h/d?sslpassword=hunter2&sslmode=require", "postgresql://h/d?sslpassword=***&sslmode=require"),
        ("postgresql://u@h/d", "postgresql://u@h/d"),
        ("sqlite:////a:b@c/b.db", "sqlite:////a:b@c/b.db"),
    ],
)
def test_masked(address: str, shown: str) -> None:
    assert values.masked(address) == shown


def test_a_printable_line_is_left_alone() -> None:
    assert complaints.printable("größer: 'ok' [a]") == "größer: 'ok' [a]"
    assert complaints.printable("\x1b[31m\n") == "\\x1b[31m\\n"


def test_a_lease_is_shorter_than_what_counts_as_a_wrong_clock(tmp_path: Path) -> None:
    """Of a longer one the catalogue would think that a clock had been wrong, and give running slices to others."""
    written(tmp_path, a=WHOLE + '[tuning]\nlease = "60m"\n')
    assert settings.load(tmp_path).tuning.lease == "60m"
    written(tmp_path, a=WHOLE + '[tuning]\nlease = "3h"\n')
    (said,) = refused(tmp_path)
    assert said.startswith("a.toml: tuning.lease = ") and "an hour at most" in said
