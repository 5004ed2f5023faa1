"""Any configuration at all, through the real command: settings or sentences, never a traceback."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, note
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tasks.app import configuration as celery_configuration
from tests.configurations import FULL, alone_in, document, understudy
from workers import policy, settings
from workers.errors import ConfigError


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone_in(tmp_path, monkeypatch)


NASTY = [
    "", " ", "\0", "\x1b[31m", "²h", "1" * 5000 + "h", "9" * 14 + "w", "../..", "/",
    "[bold]", "%s{}", "ß\u2028", "a" * 300,
    "redis://:hunter2@h:99999/0", "redis://[", "rediss://h", "sqlite:///", "sqlite:////", "sqlite:////tmp",
    "postgresql://u:hunter2@127.0.0.1:1/d", "postgresql+psycopg://u:hunter2@127.0.0.1:x/d", "postgresql:nothing",
    "* * * * *", "0 0 31 2 *", "0 0 * * 8", "*/0 * * * *", "L * * * *", "UTC",
    "..", "posix", "auto", "none", "1s", "100w",
]  # fmt: skip

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(NASTY)
scalars = (
    text
    | st.integers(-(10**25), 10**25)
    | st.floats()
    | st.booleans()
    | st.dates()
    | st.times()
    | st.datetimes(allow_imaginary=False)
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(text, inner, max_size=3), max_leaves=6
)


def places(value: Any, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*above, key)
            yield from places(inner, (*above, key))


PLACES = list(places(FULL))


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """FULL with a few keys changed, removed, renamed or added; some of them more than once."""
    data = copy.deepcopy(FULL)
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(PLACES))
        table: Any = data
        for key in above:
            table = table.get(key) if isinstance(table, dict) else None
        if not isinstance(table, dict):
            continue
        what = draw(st.sampled_from(["value", "value", "nasty", "remove", "rename", "add"]))
        if what == "value":
            table[last] = draw(values)
        elif what == "nasty":
            table[last] = draw(st.sampled_from(NASTY))
        elif what == "add":
            table[draw(text)] = draw(values)
        elif last in table:
            old = table.pop(last)
            if what == "rename":
                table[draw(text)] = old
    return document(data)


@st.composite
def torn(draw: st.DrawFn) -> str:
    """The text of FULL with a piece taken out, doubled or replaced."""
    whole = document(FULL)
    start, end = sorted((draw(st.integers(0, len(whole))), draw(st.integers(0, len(whole)))))
    end = min(end, start + 200)
    middle = draw(st.sampled_from(["", whole[start:end] * 2]) | st.text(max_size=20))
    return whole[:start] + middle + whole[end:]


def is_settings_or_sentences(content: str) -> None:
    """Through the real command; and what is taken can be worked with."""
    note(content)
    Path("understudy.toml").write_bytes(content.encode(errors="surrogateescape"))
    said = understudy("config", "check")
    assert said.code in (0, 1), said
    assert not any(line.startswith(("understudy: unexpected ", "Traceback (")) for line in said.err.splitlines()), said
    assert not list(Path.cwd().glob("understudy-error-*")), said
    lines = said.err.splitlines()
    assert all(line.isprintable() and len(line) > 20 for line in lines), said
    if said.code == 1:
        assert said.out == "" and any(line.startswith("understudy: ") for line in lines), said
        return
    conf = settings.load()
    celery_configuration(conf)
    for group in conf.groups:
        for vm in (None, "web-1", "\x1b"):
            for aim in conf.groups[group].targets or (None,):
                policy.of_vm(conf, group, vm, aim)
    assert understudy("config", "show").code == 0


fuzzed = hypothesis_settings(
    deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@fuzzed
@given(mutated())
def test_a_mutated_configuration_is_settings_or_sentences(content: str) -> None:
    is_settings_or_sentences(content)


@fuzzed
@given(torn() | st.text(st.characters(), max_size=100).filter(lambda text: text.isascii()))
def test_a_torn_file_is_settings_or_sentences(content: str) -> None:
    is_settings_or_sentences(content)


@pytest.mark.slow
@hypothesis_settings(fuzzed, max_examples=1500)
@given(mutated() | torn())
def test_many_more(content: str) -> None:
    is_settings_or_sentences(content)


def nasty_at(nasty: str, where: list[tuple[str, ...]]) -> None:
    for place in where:
        data: Any = copy.deepcopy(FULL)
        table = data
        for key in place[:-1]:
            table = table[key]
        table[place[-1]] = nasty
        Path("understudy.toml").write_bytes(document(data).encode())
        try:
            settings.load()
        except ConfigError as err:
            assert all(line.isprintable() for line in str(err).splitlines())


@pytest.mark.parametrize("number", range(len(NASTY)))
def test_a_nasty_text_at_some_keys(number: int) -> None:
    """Each text at every seventh key, each key with some of the texts."""
    nasty_at(NASTY[number], PLACES[number % 7 :: 7])


@pytest.mark.slow
def test_a_nasty_text_at_every_key() -> None:
    for nasty in NASTY:
        nasty_at(nasty, PLACES)
