"""The lab: a whole realm in one folder. Redis, two simulated vCenters, workers of both sites, Beat and Flower.

    state = up(folder)      # starts, repairs or leaves alone, each as needed; returns when all have proved to be ready
    status(folder)          # what runs
    down(folder)            # ends all of it, also what a crash has left; the data stay unless erase=True

Everything listens on 127.0.0.1 and on ports that were free; nothing outside the folder is changed.
"""

from tasks.lab.lifecycle import LabState, ServiceState, VcenterState, down, status, up
from tasks.lab.processes import LabError

__all__ = ["LabError", "LabState", "ServiceState", "VcenterState", "down", "status", "up"]
