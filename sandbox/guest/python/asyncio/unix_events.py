"""The event loop of a machine without sockets: timers, tasks and futures work, waiting for input and output does not."""

import time

from . import base_events, events

__all__ = ("SelectorEventLoop", "EventLoop")


class _Timer:
    """Waits as a selector would that no file is registered with."""

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("every task waits for something that can never happen")
        if timeout > 0:
            time.sleep(timeout)
        return []

    def close(self):
        pass


class SelectorEventLoop(base_events.BaseEventLoop):
    def __init__(self):
        super().__init__()
        self._selector = _Timer()

    def _process_events(self, event_list):
        pass

    def _write_to_self(self):
        pass

    def run_in_executor(self, executor, func, *args):
        future = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:
            future.set_exception(error)
        return future


EventLoop = SelectorEventLoop


class _DefaultEventLoopPolicy(events._BaseDefaultEventLoopPolicy):
    _loop_factory = SelectorEventLoop
