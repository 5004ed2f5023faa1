"""`python -m tasks.lab up|status|down FOLDER`, for the Makefile."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tasks.lab import LabState, down, status, up
from workers.errors import UnderstudyError


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tasks.lab", description="a whole realm in one folder")
    parser.add_argument("verb", choices=("up", "status", "down"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--concurrency", type=int, default=2, help="up: processes of each site's worker")
    parser.add_argument("--erase", action="store_true", help="down: remove the folder and all data in it")
    asked = parser.parse_args()
    try:
        if asked.verb == "up":
            _tell(up(asked.folder, concurrency=asked.concurrency))
        elif asked.verb == "status":
            _tell(status(asked.folder))
        else:
            down(asked.folder, erase=asked.erase)
    except UnderstudyError as err:
        print(err, file=sys.stderr)
        return 1
    return 0


def _tell(state: LabState) -> None:
    print(f"configuration   {state.config}")
    print(f"flower          {state.flower}")
    for vcenter in state.vcenters.values():
        print(f"vCenter {vcenter.site:7} https://{vcenter.address}  user {vcenter.user}")
        print(f"                password in {vcenter.password_file}")
    print(f"datastores      {state.datastores}")
    for service in state.services:
        print(f"{service.name:15} {'not running' if service.pid is None else f'pid {service.pid}'}  {service.log}")


if __name__ == "__main__":
    sys.exit(main())
