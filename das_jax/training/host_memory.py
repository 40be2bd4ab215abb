"""The host's memory, where the computing is done on a CPU."""

import ctypes
import sys

# glibc's malloc.h.
TRIM_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Lets the process keep the memory that it frees, for the next array of that size.

    XLA's CPU programs allocate their arrays anew in every step. glibc takes large ones from the operating
    system and gives them back at once, and the system clears every page of them before it hands it out:
    that is a quarter to a half of a small model's step. Other C libraries are left as they are.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(MMAP_MAX, 0)
    mallopt(TRIM_THRESHOLD, -1)
    # Any but the main arena is cut into heaps of 64 MB, which larger arrays do not fit into.
    mallopt(ARENA_MAX, 1)
