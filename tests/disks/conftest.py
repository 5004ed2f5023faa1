"""Each test that starts processes has its own folder for sockets, registers and locks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks.standin import alone


@pytest.fixture
def apart() -> Iterator[Path]:
    with alone() as folder:
        yield folder
