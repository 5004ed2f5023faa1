"""Asking for a restore or a rollback wrongly: sentences, and nothing is requested. There is no vCenter and no Redis."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.command import forgetting, run
from tests.test_cli import ready
from workers.catalogue import Catalogue
from workers.errors import BadInput, NotFound


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNDERSTUDY_CONFIG", "")
    with forgetting():
        yield


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("restore", "web-1"), "say where to"),
        (("restore", "web-1", "--to", "x", "--over-original", "--yes"), "say where to"),
        (("restore", "web-1", "--over-original"), "add --yes"),
        (("restore", "web-1", "--to", "x", "--network", "VM Network"), "write the source's network, ="),
        (("restore", "web-1", "--to", "x"), "no restore point of web-1 yet; `understudy backup web-1` makes one"),
        (("restore", "wbe-1", "--to", "x"), "near: web-1"),
        (("restore", "web-1", "--to", "x", "--plan"), "no restore point of web-1 yet"),
        (("rollback", "web-1"), "has no replica here"),
        (("rollback", "web-1", "--to-sync-point"), "has no replica here"),
        (("rollback", "web-1", "--to-sync-point", "--to", "newest"), "goes with none of --to, --plan and --full"),
        (("rollback", "web-1", "--target", "moon"), "has no replica to the recovery target moon"),
    ],
)
def test_a_sentence_and_no_run(
    arguments: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = ready(tmp_path)
    assert run(*arguments) == 1
    said = capsys.readouterr().err
    assert words in said and "Traceback" not in said
    assert Catalogue.open(conf.catalogue).runs() == []


@pytest.mark.parametrize(
    ("task", "given", "words"),
    [
        ("request", {"vm": 7}, "vm: Input should be a valid string"),
        ("request", {"vm": "web-1", "too": "x"}, "too: Extra inputs"),
        ("request", {"vm": "web-1", "over_original": True}, "say yes=true as well"),
        ("request", {"vm": "web-1", "over_original": True, "yes": "false"}, "say yes=true as well"),
        ("roll_back", {}, "vm is a text, not None"),
        ("roll_back", {"vm": "web-1", "to": 41}, "to is a text, not 41"),
        ("roll_back", {"vm": "web-1", "point": "x"}, "not point"),
        ("roll_back", {"vm": "web-1", "to_sync_point": "yes"}, "is true or false"),
        ("roll_back", {"vm": "web-1", "to_sync_point": True, "to": "newest"}, "goes without to"),
    ],
)
def test_what_a_program_asks_wrongly_is_a_sentence(
    task: str, given: dict[str, Any], words: str, tmp_path: Path
) -> None:
    ready(tmp_path)
    from tasks import restore

    with pytest.raises((BadInput, NotFound), match=words):
        getattr(restore, task).run(**given)
