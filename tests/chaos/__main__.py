"""`make chaos`: each step five times or more over SQLite, then 200 random kills over PostgreSQL; writes the report."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

from tests.chaos import labels, report
from tests.chaos.campaign import Campaign
from tests.chaos.place import CHURN, RESTORED, STEADY, place
from tests.integration.world import ROOT

#: random kills in a round
KILLS = 20


def main() -> int:
    asked = arguments()
    print(f"seed {asked.seed}", flush=True)
    began, verdict = time.monotonic(), "nothing lost, no mixture, nothing committed twice, nothing left behind"
    campaigns: dict[str, Campaign] = {}
    folder = Path(tempfile.mkdtemp(prefix="understudy-chaos-"))
    try:
        if asked.times:
            _steps(folder, campaigns, asked)
        if asked.rounds:
            _moments(folder, campaigns, asked)
    except AssertionError as err:
        traceback.print_exc()
        print(f"seed {asked.seed}; everything is kept in {folder}", flush=True)
        verdict = f"FAILED: {str(err).strip().splitlines()[-1]}"
    report.write(asked.report, campaigns, seed=asked.seed, seconds=time.monotonic() - began, verdict=verdict)
    print(f"{verdict}\n{asked.report}", flush=True)
    if verdict.startswith("FAILED"):
        return 1
    shutil.rmtree(folder)
    return 0


def arguments() -> argparse.Namespace:
    given = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    given.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 30))
    given.add_argument("--times", type=int, default=5, help="kills at each step; 0 leaves the steps out")
    given.add_argument("--rounds", type=int, default=10, help=f"rounds of {KILLS} kills at random moments")
    given.add_argument("--report", type=Path, default=ROOT / "benchmarks" / "chaos.md")
    return given.parse_args()


def tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _steps(folder: Path, campaigns: dict[str, Campaign], asked: argparse.Namespace) -> None:
    home = folder / "steps"
    home.mkdir()
    with place(home, each=2) as here:
        here.settle_in(asked.seed, (*STEADY, *CHURN, RESTORED), pause=0.5)
        campaign = campaigns["SQLite"] = Campaign(here, asked.seed, tell)
        campaign.watch.start()
        try:
            left = campaign.every_step(labels.here(), asked.times, at_once=20, seconds=35, rounds=12 * asked.times)
            assert not left, f"nobody died often enough at {left}: they are never passed, or this realm must lead there"
        finally:
            campaign.watch.stop()


def _moments(folder: Path, campaigns: dict[str, Campaign], asked: argparse.Namespace) -> None:
    home = folder / "moments"
    home.mkdir()
    with place(home, each=2, postgres=True) as here:
        here.settle_in(asked.seed, (*STEADY, *CHURN, RESTORED), pause=0.5)
        campaign = campaigns["PostgreSQL"] = Campaign(here, asked.seed, tell)
        campaign.watch.start()
        try:
            for _ in range(asked.rounds):
                campaign.at_random(KILLS, pause=1)
        finally:
            campaign.watch.stop()


if __name__ == "__main__":
    sys.exit(main())
