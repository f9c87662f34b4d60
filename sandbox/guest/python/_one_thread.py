"""Locks and thread-local data for a machine with one thread. Imported before anything that imports `threading`.

`_thread.start_new_thread` runs the thread's function at once, so every lock is free when it is asked for; what the
classes here add to RustPython's stand-ins is that they know whether they are held.
"""

import _thread


class Local:
    """`threading.local`: one thread, one namespace."""


class RLock:
    """`threading.RLock`, which counts how often it is held."""

    def __init__(self):
        self._count = 0

    def acquire(self, blocking=True, timeout=-1):
        self._count += 1
        return True

    __enter__ = acquire

    def release(self):
        if self._count == 0:
            raise RuntimeError("cannot release un-acquired lock")
        self._count -= 1

    def __exit__(self, kind, value, trace):
        self.release()

    def locked(self):
        return self._count > 0

    def _is_owned(self):
        return self._count > 0

    def _release_save(self):
        count, self._count = self._count, 0
        return count

    def _acquire_restore(self, count):
        self._count = count

    def _recursion_count(self):
        return self._count


_thread._local = Local
_thread.RLock = RLock
