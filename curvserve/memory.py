"""What becomes of memory that is freed."""

import ctypes

# of <malloc.h>; an option is called by its number
_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8


def keep_freed() -> bool:
    """Have malloc keep what this process frees, for its next request.

    glibc gives large blocks back to the system at once and takes the next ones anew, with a page
    fault for every 4 KiB: steps allocate the same sizes again and again, and a fifth of the time of
    one can be page faults. One arena for all threads, because the others consist of 64 MiB pieces
    that are given back whole. The process stays as large as it once was.

    Call it before there are threads.

    Returns:
        Whether malloc knows these options; another one has its own ways.
    """
    try:
        option = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return bool(
        option(_ARENA_MAX, 1) and option(_MMAP_MAX, 0) and option(_TRIM_THRESHOLD, 2**31 - 1)
    )
