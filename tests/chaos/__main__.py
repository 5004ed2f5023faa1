"""`make chaos`: each step five times or more over SQLite, then 200 random kills over PostgreSQL; writes the report."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos import labels, report
from tests.chaos.campaign import Campaign
from tests.chaos.place import CHURN, RESTORED, STEADY, place
from tests.integration.world import ROOT

#: random kills in a round
KILLS = 20
Tell = Callable[[str], None]
WELL = "nothing lost, no mixture, nothing committed twice, nothing left behind"


def main() -> int:
    asked = arguments()
    print(f"seed {asked.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing of the realm survives
    began, failed = time.monotonic(), list[str]()
    campaigns: dict[str, Campaign] = {}
    folder = Path(tempfile.mkdtemp(prefix="understudy-chaos-"))

    def tell(text: str, verdict: str = "it goes on") -> None:
        print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)
        seconds = time.monotonic() - began
        report.write(asked.report, campaigns, seed=asked.seed, seconds=seconds, verdict="; ".join([*failed, verdict]))

    for part in (_steps, _moments):
        try:
            part(folder / part.__name__, campaigns, asked, tell)
        except Exception as err:
            traceback.print_exc()
            failed.append(f"FAILED: {str(err).strip().splitlines()[-1]}")
    if failed:
        tell(f"seed {asked.seed}; everything is kept in {folder}", "the rest went well")
        return 1
    tell(str(asked.report), WELL)
    shutil.rmtree(folder)
    return 0


def arguments() -> argparse.Namespace:
    given = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    given.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    given.add_argument("--times", type=int, default=5, help="kills at each step; 0 leaves the steps out")
    given.add_argument("--rounds", type=int, default=10, help=f"rounds of {KILLS} kills at random moments")
    given.add_argument("--report", type=Path, default=ROOT / "benchmarks" / "chaos.md")
    return given.parse_args()


def _steps(home: Path, campaigns: dict[str, Campaign], asked: argparse.Namespace, tell: Tell) -> None:
    if not asked.times:
        return
    with _campaign(home, asked.seed, tell, postgres=False) as campaign:
        campaigns["SQLite"] = campaign
        left = campaign.every_step(labels.here(), asked.times, at_once=40, seconds=70, rounds=4 * asked.times)
        assert not left, f"nobody died often enough at {left}: they are never passed, or this realm must lead there"


def _moments(home: Path, campaigns: dict[str, Campaign], asked: argparse.Namespace, tell: Tell) -> None:
    if not asked.rounds:
        return
    with _campaign(home, asked.seed, tell, postgres=True) as campaign:
        campaigns["PostgreSQL"] = campaign
        for _ in range(asked.rounds):
            campaign.at_random(KILLS, pause=1)


@contextmanager
def _campaign(home: Path, seed: int, tell: Tell, *, postgres: bool) -> Iterator[Campaign]:
    home.mkdir()
    with place(home, each=2, postgres=postgres) as here:
        here.settle_in(seed, (*STEADY, *CHURN, RESTORED), pause=0.5)
        campaign = Campaign(here, seed, tell)
        campaign.watch.start()
        try:
            yield campaign
        finally:
            campaign.watch.stop()


if __name__ == "__main__":
    sys.exit(main())
