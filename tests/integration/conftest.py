"""Two simulator processes per module; a realm of its own (catalogue, store) per test, or per module under Celery."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests import services
from tests.integration import realm as realms
from tests.integration.realm import Realm
from tests.integration.world import Vcenter, World, two_vcenters


@pytest.fixture(scope="module")
def vcenters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Vcenter, Vcenter]]:
    with two_vcenters(tmp_path_factory.mktemp("vcenters")) as both:
        yield both


@pytest.fixture
def make_world(vcenters: tuple[Vcenter, Vcenter], tmp_path: Path) -> Callable[..., World]:
    def make(**settings: Any) -> World:
        for vcenter in vcenters:
            vcenter.control(clear=True)
        return World(tmp_path, *vcenters, **settings)

    return make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world()


@pytest.fixture(scope="module")
def redis_server() -> Iterator[services.Redis]:
    with services.Redis() as server:
        yield server


@pytest.fixture(scope="module")
def make_realm(
    vcenters: tuple[Vcenter, Vcenter], redis_server: services.Redis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., Realm]]:
    """Realms with quick timings, one after the other: each begins with an empty Redis. Processes end with the module,
    or with the next realm."""
    with ExitStack() as stack:

        def make(*, tuning: dict[str, Any] | None = None, **settings: Any) -> Realm:
            stack.close()
            for vcenter in vcenters:
                vcenter.control(clear=True)
            folder = tmp_path_factory.mktemp("realm")
            tuned = {**realms.QUICK, **(tuning or {})}
            world = World(folder, *vcenters, redis=redis_server.url, tuning=tuned, **settings)
            return stack.enter_context(realms.realm(world, redis_server))

        yield make
