"""The configuration: TOML files and the environment, and the only reader of either.

The models' comments are the operator's manual: `places` says where things are, `policy` what is done with VMs,
`model` is the whole. `read` finds and checks it, `complaints` says what is wrong with it, `current` notices that it has
changed, `manual` makes its JSON Schema.
"""

import os

from workers.settings import shape
from workers.settings.model import Settings, Tuning
from workers.settings.places import (
    BucketSettings,
    Flower,
    Hotadd,
    Limits,
    Link,
    RecoveryTarget,
    Site,
    StoreSettings,
    Vddk,
    Window,
)
from workers.settings.policy import Group, Keep, ReplicaOverride, ReplicateWhen, Schedule, VmOverride
from workers.settings.read import DEFAULT_PATHS, Loaded, find, load, load_with_origins
from workers.settings.rules import Rule
from workers.settings.values import seconds, size

__all__ = [
    "DEFAULT_PATHS",
    "FAULT",
    "BucketSettings",
    "Flower",
    "Group",
    "Hotadd",
    "Keep",
    "Limits",
    "Link",
    "Loaded",
    "RecoveryTarget",
    "ReplicaOverride",
    "ReplicateWhen",
    "Rule",
    "Schedule",
    "Settings",
    "Site",
    "StoreSettings",
    "Tuning",
    "Vddk",
    "VmOverride",
    "Window",
    "find",
    "load",
    "load_with_origins",
    "seconds",
    "shape",
    "size",
]

#: For tests only, see workers/faults.py.
FAULT = os.environ.get("UNDERSTUDY_FAULT", "")
