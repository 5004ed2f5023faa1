"""Which links bytes cross, and how fast they may: pure, `now` is an argument."""

from __future__ import annotations

from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

from workers.settings import Link, Settings, Window, size


def rate(link: Link, now: datetime) -> int | None:
    """Bytes a second that may cross the link now, all workers together; None = no limit. The first window that is
    open decides."""
    limit = next((window.rate for window in link.windows if is_open(window, now)), link.rate)
    return size(limit) if limit is not None else None


def is_open(window: Window, now: datetime) -> bool:
    """By the clock on the wall of its time zone. One that ends the next morning belongs to the day when it begins."""
    local = now.astimezone(ZoneInfo(window.timezone))
    at, begin, end = local.hour * 60 + local.minute, window.begins, window.ends
    if begin < end:
        return begin <= at < end and local.weekday() in window.weekdays
    if at >= begin:
        return local.weekday() in window.weekdays
    return at < end and (local - timedelta(days=1)).weekday() in window.weekdays


def crossed(settings: Settings, store: str, site: str) -> tuple[str, ...]:
    """The links between a store and the workers of a site: the store's (or its site's), and that site's. None within
    a site; where a store does not say where it stands, its own link alone."""
    place = settings.store(store)
    if place.site == site and site:
        return ()
    at = settings.sites.get(place.site)
    near = place.link or (at.link if at is not None else None)
    far = settings.sites[site].link if place.site and site in settings.sites else None
    return tuple(dict.fromkeys(name for name in (near, far) if name is not None))
