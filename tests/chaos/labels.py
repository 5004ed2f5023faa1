"""Which protocol steps there are, read from the sources, so that a new one cannot be forgotten."""

from __future__ import annotations

import re

from tests.integration.world import ROOT

#: Steps that this realm does not lead to, and the test that kills a process there.
ELSEWHERE = {
    "adopt.claimed": "tests/integration/test_pairs.py",
    "adopt.unsealed": "tests/integration/test_pairs.py",
    "copy.after": "tests/integration/test_copy.py",
    "copy.before": "tests/integration/test_copy.py",
    "copy.pinned": "tests/integration/test_copy.py",
    "copy.unpinned": "tests/integration/test_copy.py",
    "forget.forgotten": "tests/integration/test_pairs.py",
    "forget.released": "tests/integration/test_pairs.py",
    "forget.removing": "tests/integration/test_pairs.py",
    "forget.unpinned": "tests/integration/test_pairs.py",
    "forget.unsealed": "tests/integration/test_pairs.py",
    "intake.arrived": "tests/integration/test_copy.py",
    "intake.durable": "tests/store/test_intake.py",
    "intake.noted": "tests/store/test_intake.py",
    "scrub.read": "tests/integration/test_store_verify.py",
    "takeover.after": "tests/integration/test_beginnings.py",
    "takeover.before": "tests/integration/test_beginnings.py",
    "undo.begun": "tests/integration/test_undo.py",
    "undo.cleared": "tests/integration/test_undo.py",
    "undo.clearing": "tests/integration/test_undo.py",
    "undo.reserved": "tests/integration/test_undo.py",
    "undo.restored": "tests/integration/test_undo.py",
    "undo.saved": "tests/integration/test_undo.py",
    "undo.synced": "tests/integration/test_undo.py",
    "undo.written": "tests/integration/test_undo.py",
    "verify.found": "tests/integration/test_verify.py",
    "verify.locked": "tests/integration/test_verify.py",
    "verify.mended": "tests/integration/test_verify.py",
}


def every() -> list[str]:
    """All labels of `faults.at` in the sources."""
    text = "".join(path.read_text() for path in sorted((ROOT / "workers").rglob("*.py")))
    found = sorted(set(re.findall(r'faults\.at\(\s*"([^"]+)"', text)))
    computed = re.findall(r"faults\.at\((?!\s*\")[^)]*\)", text)
    assert not computed, f"a label must be a literal, else nobody finds it: {computed}"
    return found


def here() -> list[str]:
    """Those that the harness kills at."""
    known = every()
    unknown = set(ELSEWHERE) - set(known)
    assert not unknown, f"these steps are not in the sources any more: {sorted(unknown)}"
    return [label for label in known if label not in ELSEWHERE]
