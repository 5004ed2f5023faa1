"""vCenter, and the only importer of pyVmomi: functions that take a `Session` first and give our own models back.

Every call that changes something may be repeated after its answer was lost: it looks before it leaps, by name, UUID or
nonce. Faults leave this folder as `workers.errors`, never as pyVmomi's.
"""
