"""A vCenter for tests: a process of the simulator."""

from __future__ import annotations

import json
import ssl
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SIMULATOR = ROOT / ".build" / "vcenter-simulator"
USER, PASSWORD = "operator", "secret-of-the-lab"


class Vcenter:
    """A simulator process."""

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        user: str = USER,
        center: str = "",
        datastores: str = "ds1,ds2",
        networks: str = "VM Network,DR Network",
        lasting: bool = False,
    ) -> None:
        """`lasting`: its inventory is on disk, so that `restart` brings it back."""
        self.name = name
        self.folder = folder
        self.datastores = folder / f"{name}-datastores"
        self.certificate = folder / f"{name}.pem"
        subprocess.run([str(ROOT / "deploy/simulator/build.sh"), str(SIMULATOR)], check=True)
        self._flags = [
            *("-u", f"{user}:{PASSWORD}", "-name", name, "-dc", center or name.upper(), "-dir", str(self.datastores)),
            *("-datastores", datastores, "-networks", networks),
            *("-cert", str(self.certificate), "-key", str(self.certificate.with_suffix(".key"))),
            *(("-state", str(folder / f"{name}.state")) if lasting else ()),
        ]
        self._start("127.0.0.1:0")

    def _start(self, listen: str) -> None:
        self.log = open(self.folder / f"{self.name}.log", "ab")
        self.process = subprocess.Popen(
            [str(SIMULATOR), "-l", listen, *self._flags], stdout=subprocess.PIPE, stderr=self.log
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, (self.folder / f"{self.name}.log").read_text()
        self.url: str = json.loads(line)["url"]

    def restart(self, down: float = 0) -> None:
        """It ends after the change under way, as the hosts of a vCenter that dies finish what they do; calls get no
        answer. It comes back at its address, without sessions and with new generations of change tracking."""
        self.stop()
        time.sleep(down)
        self.start()

    def start(self) -> None:
        """Again, where it was."""
        self._start(self.url.removeprefix("https://").removesuffix("/sdk"))

    def control(self, **order: Any) -> Any:
        """The simulator's control endpoint: faults, delays, guest writes, lost change tracking."""
        context = ssl._create_unverified_context()
        request = urllib.request.Request(
            self.url.replace("/sdk", "/_ctl"), data=json.dumps(order).encode() if order else None
        )
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )
        with opener.open(request, timeout=30) as answer:
            return json.load(answer)

    def fault(self, method: str, **rule: Any) -> None:
        self.control(rules=[{"Method": method, "Count": 1, **rule}])

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(20)
        self.log.close()
