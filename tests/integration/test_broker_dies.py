"""Redis dies between two messages of one process: whoever sends is told so in a sentence."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from celery import Celery

from tasks import dispatch
from tests import services
from workers.errors import BrokerUnreachable
from workers.models import Run, RunKind, RunState, Trigger

RUN = Run(
    id="r1",
    kind=RunKind.BACKUP,
    target="chain:main:vm-1",
    vm="web",
    site="prod",
    trigger=Trigger.SCHEDULE,
    slot=None,
    state=RunState.RUNNING,
    fence=1,
    attempts=1,
    created=datetime(2026, 11, 22, tzinfo=UTC),
)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[services.Redis]:
    """A process's own broker; what the catalogue notes of messages is none of this test's business."""
    with services.Redis() as server, Celery("client", set_as_current=False, broker=server.url) as client:
        client.conf.broker_transport_options = {"socket_connect_timeout": 2}
        monkeypatch.setattr(dispatch, "app", client)
        monkeypatch.setattr(dispatch, "here", lambda: SimpleNamespace(catalogue=SimpleNamespace(mark_sent=len)))
        yield server


def _asked() -> str:
    try:
        dispatch.call_helpers(RUN, 2)
    except BrokerUnreachable as err:
        return str(err)
    return "sent"


def test_helpers_that_can_not_be_called_are_a_sentence_wherever_kombu_trips(server: services.Redis) -> None:
    """The run that calls them goes on alone: what is no sentence would end it as failed."""
    assert _asked() == "sent"
    server.kill()
    for _ in range(3):  # kombu meets the lost connection at another place each time
        assert "go on by themselves when it is back" in _asked()
    server.start()
    assert services.wait_for(lambda: _asked() == "sent", "a message that is sent again", 30)
