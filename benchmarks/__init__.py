"""Measured against others on the same disks; nothing here is part of the program."""
