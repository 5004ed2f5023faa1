"""What an Understudy worker does. Imports no Celery: it runs from a REPL, a test or a script."""

import contextlib
import ctypes
import os

# numpy's linear algebra, which nothing here uses, would start a thread a core, and these spin at first.
os.putenv("OPENBLAS_NUM_THREADS", "1")

# glibc gives a batch's memory back to the kernel and gets it again, zeroed, for the next one: a fifth of the CPU of an
# incremental backup. M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of malloc.h; other C libraries do without.
with contextlib.suppress(AttributeError, OSError):
    for _option, _bytes in ((-1, 64 << 20), (-3, 32 << 20)):
        ctypes.CDLL(None).mallopt(_option, _bytes)
