"""What people and programs enqueue: by Celery, by Flower's HTTP API; wisely or not."""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery.result import AsyncResult

from tests import services
from tests.integration.realm import ASKED_ONLY, LOOK, PATIENCE, Realm
from tests.integration.world import MIB, PASSWORD
from workers.errors import BadInput, NotFound
from workers.models import Run, RunKind, RunState, Trigger

FLOWER_PASSWORD = "only-for-flower"


class Flower:
    """`understudy flower`, and its HTTP API."""

    def __init__(self, realm: Realm) -> None:
        port = services.free_port()
        self.url = f"http://127.0.0.1:{port}"
        self.process = realm.program("flower", "--port", str(port))
        services.wait_for(self._answers, "an answer of Flower", PATIENCE)

    def _answers(self) -> bool:
        assert self.process.process.poll() is None, self.process.log.read_text()
        try:
            return self.call("/healthcheck", login=None)[0] == 200
        except urllib.error.URLError:
            return False

    def call(self, path: str, body: Any = None, *, login: str | None = f"ops:{FLOWER_PASSWORD}") -> tuple[int, str]:
        headers = {"Content-Type": "application/json"}
        if login is not None:
            headers["Authorization"] = f"Basic {base64.b64encode(login.encode()).decode()}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers=headers)
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=PATIENCE) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as err:
            return err.code, err.read().decode()

    def enqueue(self, task: str, kwargs: dict[str, Any]) -> str:
        """The id of the task."""
        status, text = self.call(f"/api/task/async-apply/{task}", {"kwargs": kwargs})
        assert status == 200, text
        return str(json.loads(text)["task-id"])


@pytest.fixture(scope="module")
def realm(make_realm: Callable[..., Realm], tmp_path_factory: pytest.TempPathFactory) -> Realm:
    """A control worker and no other: what is requested stays where it was put."""
    secret = tmp_path_factory.mktemp("flower") / "password"
    secret.write_text(FLOWER_PASSWORD + "\n")
    made = make_realm(vms=["web-*"], group=ASKED_ONLY, more=("[flower]", 'user = "ops"', f'password_file = "{secret}"'))
    made.worker(None, concurrency=4).ready()
    made.world.make_vm("web-01", 4 * MIB)
    return made


@pytest.fixture(scope="module")
def flower(realm: Realm) -> Flower:
    return Flower(realm)


@pytest.fixture(autouse=True)
def _clean(realm: Realm) -> Iterator[None]:
    """What a test requested is over when it ends."""
    yield
    from workers.run import give_up

    for run in realm.world.catalogue.live_runs():
        give_up(realm.world.here, run, "given up by the test")
    realm.redis.delete(*realm.keys("adhoc.prod"), *realm.keys("adhoc.dr"))


def fences(realm: Realm, run: Run) -> int:
    return realm.world.catalogue.fence(run.target)


@pytest.mark.parametrize("task, queue", [("understudy.sync", "adhoc.dr"), ("understudy.backup", "adhoc.prod")])
def test_twenty_requests_at_once_make_one_run(realm: Realm, task: str, queue: str) -> None:
    asked = [realm.ask(task, vm="web-01") for _ in range(20)]
    answers = [one for result in asked for one in result.get(**LOOK)]
    assert len(answers) == 20
    assert len({answer["run"] for answer in answers}) == 1
    assert [answer["joined"] for answer in answers].count(False) == 1
    (run,) = realm.world.catalogue.live_runs()
    assert (run.id, run.trigger, run.state) == (answers[0]["run"], Trigger.AD_HOC, RunState.QUEUED)
    assert fences(realm, run) == run.fence
    (message,) = realm.waiting(queue)
    assert message.kwargs == {"run": run.id, "vm": "web-01"}
    assert {q: len(m) for q, m in realm.queued_work().items()} == {queue: 1}


def test_flower_enqueues_a_sync_for_who_has_its_password(realm: Realm, flower: Flower) -> None:
    order = {"kwargs": {"vm": "web-01"}}
    for login in (None, "ops:wrong", f"operator:{PASSWORD}"):
        assert flower.call("/api/task/async-apply/understudy.sync", order, login=login)[0] == 401
    assert realm.world.catalogue.live_runs() == []

    task = flower.enqueue("understudy.sync", {"vm": "web-01"})
    (answer,) = realm.client.AsyncResult(task).get(**LOOK)
    (run,) = realm.world.catalogue.live_runs()
    assert (answer["run"], answer["vm"], answer["joined"], run.kind) == (run.id, "web-01", False, RunKind.SYNC)
    assert [message.kwargs["run"] for message in realm.waiting("adhoc.dr")] == [run.id]
    (again,) = realm.client.AsyncResult(flower.enqueue("understudy.sync", {"vm": "web-01"})).get(**LOOK)
    assert (again["run"], again["joined"]) == (run.id, True)
    assert len(realm.waiting("adhoc.dr")) == 1

    status, text = flower.call(f"/api/task/result/{task}?timeout=30")
    assert status == 200 and json.loads(text)["result"][0]["run"] == run.id
    argv = Path(f"/proc/{flower.process.process.pid}/cmdline").read_text()
    assert "flower" in argv and FLOWER_PASSWORD not in argv
    for path in ("/api/workers", "/api/tasks", f"/api/task/info/{task}"):
        status, text = flower.call(path)
        assert status in (200, 404) and PASSWORD not in text and FLOWER_PASSWORD not in text


#: what is asked for -> words of the sentence that comes back
WRONG = {
    "a VM that nobody knows": ({"vm": "web-1"}, "no VM 'web-1' is known at any site"),
    "no VM": ({}, "a VM's name is needed"),
    "an empty name": ({"vm": ""}, "a VM's name is needed"),
    "a number": ({"vm": 7}, "a VM's name is needed, not 7"),
    "a list": ({"vm": ["web-01"]}, "a VM's name is needed"),
    "nothing": ({"vm": None}, "a VM's name is needed, not None"),
    "an unknown argument": ({"vm": "web-01", "discard": True}, "discard"),
    "a word for a truth": ({"vm": "web-01", "discard_changes": "false"}, "discard_changes"),
    "a target that it has not": ({"vm": "web-01", "target": "nowhere"}, "target"),
    "a number for a truth": ({"vm": "web-01", "discard_changes": 1}, "discard_changes"),
}


@pytest.mark.parametrize("task", ["understudy.sync", "understudy.backup"])
@pytest.mark.parametrize("kwargs, words", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_request_is_answered_with_a_sentence_and_requests_nothing(
    realm: Realm, flower: Flower, task: str, kwargs: dict[str, Any], words: str
) -> None:
    result = AsyncResult(flower.enqueue(task, kwargs), app=realm.client)
    with pytest.raises(BadInput) as told:  # NotFound is one
        result.get(**LOOK)
    assert result.state == "FAILURE"
    sentence = str(told.value)
    assert words in sentence and "Traceback" not in sentence and "\n" not in sentence
    assert realm.world.catalogue.live_runs() == [] and realm.queued_work() == {}
    (failure,) = [f for f in realm.world.catalogue.failures() if f.task == result.id]
    assert (failure.message, failure.kind, failure.run) == (sentence, task, None)
    assert failure.family in (BadInput.family, NotFound.family)


def test_a_vm_under_no_policy_can_not_be_synced(realm: Realm) -> None:
    realm.world.make_vm("left-out", 4 * MIB)
    with pytest.raises(BadInput, match="under no group's policy"):
        realm.ask("understudy.sync", vm="left-out").get(**LOOK)


def test_flower_pauses_resumes_disables_and_enables(realm: Realm, flower: Flower) -> None:
    def asked(verb: str, **kwargs: Any) -> list[tuple[str, bool]]:
        result = realm.client.AsyncResult(flower.enqueue(f"understudy.{verb}", kwargs)).get(**LOOK)
        return [(answer["what"], answer["done"]) for answer in result]

    catalogue = realm.world.catalogue
    pair = realm.world.pair("web-01")
    replica, backups = f"the replica dr/{pair.replica_name}", "the backups to main"
    assert asked("pause", vm="web-01", reason="moving", who="ann") == [(replica, True)]
    (held,) = catalogue.holds(f"pair:{pair.id}")[f"pair:{pair.id}"].values()
    assert (held.kind, held.who, held.reason) == ("paused", "ann", "moving")
    assert asked("resume", vm="web-01") == [(backups, False), (replica, True)]
    assert asked("disable", group="all", backups=True, now=True) == [(backups, True)]
    assert asked("enable", vm="web-01", target="recovery") == [(replica, False)]
    assert asked("enable", group="all") == [(backups, True), (replica, False)]
    assert catalogue.holds() == {}


#: what is asked for -> words of the sentence that comes back
WRONG_HOLDS = {
    "nothing is named": ({}, "nothing is named"),
    "a number": ({"vm": 7}, "vm is a text, not 7"),
    "an unknown VM": ({"vm": "web-1"}, "no VM 'web-1' is known"),
    "an unknown group": ({"group": "none"}, "is not configured"),
    "an unknown word": ({"vm": "web-01", "discard": True}, "discard"),
    "a word for a truth": ({"vm": "web-01", "backups": "false"}, "backups is true or false"),
}


@pytest.mark.parametrize("kwargs, words", WRONG_HOLDS.values(), ids=WRONG_HOLDS.keys())
def test_a_wrong_pause_is_answered_with_a_sentence(realm: Realm, kwargs: dict[str, Any], words: str) -> None:
    for verb in ("pause", "enable"):
        with pytest.raises(BadInput) as told:
            realm.ask(f"understudy.{verb}", **kwargs).get(**LOOK)
        assert words in str(told.value) and "\n" not in str(told.value)
    assert realm.world.catalogue.holds() == {}
