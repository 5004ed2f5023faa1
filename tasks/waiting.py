"""Which runs have a message that no worker has taken yet: read from the queues on Redis, nothing is taken out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Iterator

import redis
from kombu.exceptions import OperationalError

from tasks.app import app
from workers.errors import BrokerUnreachable

#: messages read at once, of about 1.5 KiB each
PAGE = 1000


def runs_in(queues: Iterable[str]) -> set[str]:
    """The runs named by messages in these queues. A message that a worker has taken is not in its queue any more."""
    found = set()
    try:
        with app.connection_for_read() as connection:
            channel = connection.default_channel
            # A client without kombu's own: that one puts the prefix before some commands' keys, LRANGE not among them.
            client = redis.Redis(connection_pool=channel.pool)
            for queue in queues:
                for priority in channel.priority_steps:  # a queue is a list per priority
                    key = f"{channel.global_keyprefix}{channel._q_for_pri(queue, priority)}"
                    found |= {run for raw in _messages(client, key) if (run := _run(raw)) is not None}
    except (OperationalError, redis.RedisError, OSError) as err:
        raise BrokerUnreachable(f"Redis does not answer ({err}); what waits in its queues is not known") from err
    return found


def _messages(client: redis.Redis, key: str) -> Iterator[bytes | str]:
    """From the left, where new ones are put: what comes or goes meanwhile hides none that stays."""
    start = 0
    while page := client.lrange(key, start, start + PAGE - 1):
        yield from page
        start += PAGE


def _run(raw: bytes | str) -> str | None:
    """The run that a message names. None for messages of another kind, also for what is no message of ours at all."""
    try:
        _, kwargs, _ = json.loads(base64.b64decode(json.loads(raw)["body"]))
        run = kwargs.get("run")
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return run if isinstance(run, str) else None
