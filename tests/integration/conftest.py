"""Two simulator processes per module; a realm of its own (catalogue, store) per test."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

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
