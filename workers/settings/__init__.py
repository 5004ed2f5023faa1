"""The configuration: one TOML file and the environment, and the only reader of either.

The models' comments are the operator's manual: `places` says where things are, `policy` what is done with VMs,
`model` is the whole, `read` finds and checks it.
"""

import os

from workers.settings.model import Settings, Tuning
from workers.settings.places import Flower, RecoveryTarget, Site, StoreSettings
from workers.settings.policy import Group, ReplicaOverride, ReplicateWhen, Schedule, VmOverride
from workers.settings.read import DEFAULT_PATHS, find, load
from workers.settings.values import seconds, size

__all__ = [
    "DEFAULT_PATHS",
    "FAULT",
    "Flower",
    "Group",
    "RecoveryTarget",
    "ReplicaOverride",
    "ReplicateWhen",
    "Schedule",
    "Settings",
    "Site",
    "StoreSettings",
    "Tuning",
    "VmOverride",
    "find",
    "load",
    "seconds",
    "size",
]

#: For tests only, see workers/faults.py.
FAULT = os.environ.get("UNDERSTUDY_FAULT", "")
