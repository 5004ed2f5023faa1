"""`understudy check`: the broker and its workers are looked at here, all else in workers/check.py."""

from __future__ import annotations

from collections.abc import Sequence

from kombu.exceptions import OperationalError

from tasks.app import CONTROL, adhoc_queue, app, configured, data_queue
from workers import check, settings
from workers.check import Finding
from workers.configuration import last_in_force, notices
from workers.errors import BrokerUnreachable, ConfigError, NotFound
from workers.run import Here

#: seconds that workers have to answer
ANSWER = 1.0


def findings(only: Sequence[str]) -> list[Finding]:
    """Everything that can be looked at, whatever else fails; without a configuration, nothing can: `ConfigError`."""
    try:
        conf = configured()
    except ConfigError as err:
        if (kept := last_in_force(settings.find(), err)) is None:
            raise
        raise ConfigError(f"{kept.sentence}\n{err}") from err
    for name in only:
        if name not in conf.sites:
            raise NotFound(f"there is no site {name!r} in the configuration; it has {', '.join(sorted(conf.sites))}")
    names = [name for name in conf.sites if not only or name in only]
    opened, catalogue = check.catalogue(conf)
    here = Here(conf, catalogue) if catalogue is not None else None
    redis = check.probe("redis", _redis)
    found = [check.intervals(conf), redis, opened, *check.stores(conf)]
    found += [*check.sites(conf, names, here), *check.targets(conf, names)]
    if here is not None:
        refused = [Finding(what="configuration", result="failed", sentence=said) for said in notices(here.catalogue)]
        found = [*refused, *found, *check.groups(here)]
        here.catalogue.close()
    if redis.result == "ok":
        found += [_keeps_messages(), *_workers(names)]
    return found


def _redis() -> str:
    try:
        with app.connection() as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=5)
            version = connection.default_channel.client.info("server")["redis_version"]
            return f"{connection.as_uri()}, version {version}"
    except (OperationalError, OSError) as err:
        raise BrokerUnreachable(
            f"Redis at {app.connection().as_uri()} does not answer ({_first_line(err)}); start it, or correct `redis`"
        ) from err


def _keeps_messages() -> Finding:
    """A Redis that forgets or evicts loses messages: the reaper brings them back, late."""
    with app.connection() as connection:
        client = connection.default_channel.client
        try:
            aof = client.config_get("appendonly").get("appendonly")
            policy = client.config_get("maxmemory-policy").get("maxmemory-policy")
        except Exception as err:  # an ACL may forbid CONFIG; which error says so depends on the server
            return Finding(
                what="redis persistence", result="note", sentence=f"Redis does not tell ({_first_line(err)})"
            )
    wrong = [] if aof == "yes" else ["appendonly should be yes: a restart loses the queues"]
    wrong += [] if policy == "noeviction" else [f"maxmemory-policy should be noeviction, not {policy}"]
    sentence = "; ".join(wrong) or "AOF, noeviction"
    return Finding(what="redis persistence", result="note" if wrong else "ok", sentence=sentence)


def _workers(names: Sequence[str]) -> list[Finding]:
    """Which queues somebody listens to. None yet is worth knowing, no failure: `check` comes before the workers."""
    answers = app.control.inspect(timeout=ANSWER).active_queues() or {}
    heard = {queue["name"] for queues in answers.values() for queue in queues}
    found = []
    for what, queues, start in [
        ("control worker", [CONTROL], "understudy worker --control"),
        *(
            (f"workers of {name}", [adhoc_queue(name), data_queue(name)], f"understudy worker --site {name}")
            for name in names
        ),
    ]:
        there = sum(any(queue["name"] == queues[-1] for queue in mine) for mine in answers.values())
        if set(queues) <= heard:
            found.append(Finding(what=what, result="ok", sentence=f"{there} answered"))
        else:
            found.append(Finding(what=what, result="note", sentence=f"none answered; start one: `{start}`"))
    return found


def _first_line(err: Exception) -> str:
    return (str(err).strip().splitlines() or [type(err).__name__])[0]
