"""benchmarks/chaos.md: what was killed, what became of it."""

from __future__ import annotations

import os
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos import labels
from tests.chaos.campaign import Campaign


def machine() -> str:
    """Processor and memory, no name."""
    text = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
    model = models[0] if models else "unknown"
    return f"{os.cpu_count()} cores ({model}), {memory:.0f} GiB, load at the end {os.getloadavg()[0]:.1f}"


def write(path: Path, campaigns: dict[str, Campaign], *, seed: int, seconds: float, verdict: str) -> None:
    path.write_text("\n".join(_lines(campaigns, seed, seconds, verdict)) + "\n")


def _lines(campaigns: dict[str, Campaign], seed: int, seconds: float, verdict: str) -> list[str]:
    watches = [c.watch for c in campaigns.values()]
    judges = [c.judge for c in campaigns.values()]
    met, kills = sum((w.met for w in watches), Counter()), sum((w.kills for w in watches), Counter())
    sent = {uuid for w in watches for uuid in w.sent}
    started = sum((w.started for w in watches), Counter())
    commits = sum(sum(w.commits().values()) for w in watches)
    recoveries = sorted((r for w in watches for r in w.recoveries), reverse=True)
    ended = sum((j.ended for j in judges), Counter())
    failed = sum((j.failed for j in judges), Counter())
    none = "see the verdict" if verdict.startswith("FAILED") else "0"
    lines = [
        "# Chaos",
        "",
        "`make chaos` writes this page: a realm of real processes is killed at every protocol step and at random",
        'moments; how it is judged says docs/architecture.md, "Chaos".',
        "",
        "| | |",
        "|---|---|",
        f"| verdict | {verdict} |",
        f"| seed | {seed} |",
        f"| when, how long | {datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {seconds / 60:.0f} minutes |",
        f"| machine | {machine()} |",
        f"| rounds | {sum(c.rounds for c in campaigns.values())} |",
        f"| kills at steps | {sum(met.values())}, at {len(met)} of {len(labels.here())} steps |",
        f"| kills at random moments | {sum(kills.values())} |",
        f"| run messages seen | {len(sent)} |",
        f"| of them never started (lost with Redis or a worker) | {sum(1 for uuid in sent if not started[uuid])} |",
        f"| of them started more than once (doubled) | {sum(1 for count in started.values() if count > 1)} |",
        f"| runs lost | {none} of {sum(ended.values())} |",
        f"| runs and slices whose worker was killed, and which went on | {len(recoveries)} |",
        f"| longest time until it went on | {_longest(recoveries)} |",
        f"| median of it | {_median(recoveries)} |",
        f"| sync points in the ledger, each once | {sum(len(j.ledger) for j in judges)} |",
        f"| of them seen on the replicas by the way | {commits} |",
        f"| restore points judged byte for byte | {sum(j.points for j in judges)} |",
        f"| replicas judged byte for byte, mixtures | {sum(j.replicas for j in judges)}, {none} |",
        f"| doubled commits | {none} |",
        "",
        "## How runs ended",
        "",
        *(f"- {how}: {count}" for how, count in sorted(ended.items())),
        *(f"- failed, {how}: {count}" for how, count in sorted(failed.items())),
        "",
        "## Kills by step",
        "",
        "| step | killed |",
        "|---|---|",
        *(f"| {label} | {met[label]} |" for label in labels.here()),
        *(f"| {label} | killed in {file} |" for label, file in labels.ELSEWHERE.items()),
        "",
        "## Kills at random moments",
        "",
        "| what | how often |",
        "|---|---|",
        *(f"| {what.replace('_', ' ')} | {count} |" for what, count in sorted(kills.items())),
        "",
        "## Rounds",
        "",
        *(f"- {name}, {line}" for name, campaign in campaigns.items() for line in campaign.verdicts),
    ]
    return lines


def _longest(recoveries: list[tuple[float, str]]) -> str:
    return f"{recoveries[0][0]:.1f} s ({recoveries[0][1]})" if recoveries else "nobody was at work"


def _median(recoveries: list[tuple[float, str]]) -> str:
    return f"{recoveries[len(recoveries) // 2][0]:.1f} s" if recoveries else "nobody was at work"
