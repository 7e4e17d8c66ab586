"""An event loop on a clock of its own, for tests of what is said in seconds: a busy machine changes nothing."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


class VirtualLoop(asyncio.SelectorEventLoop):
    """Waits for nothing: where nothing is ready, it is the time of the next timer. What goes to a thread is done at
    once, so that a script runs the same way every time."""

    def __init__(self) -> None:
        self.clock = _Clock()
        super().__init__(self.clock)
        self.set_default_executor(_Inline(1))

    def time(self) -> float:
        return self.clock.now

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:  # noqa: ASYNC109 - its signature
        """There is nothing to wait for; asyncio's own would wait for a thread, which has another clock."""


class _Clock(selectors.SelectSelector):
    now = 0.0
    num_steps = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        assert timeout is not None, "all wait, and for nothing"
        self.now += max(timeout, 0)
        self.num_steps += 1
        return super().select(0)


class _Inline(ThreadPoolExecutor):
    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **options))
        except Exception as error:
            future.set_exception(error)
        return future


def run(main: Coroutine[Any, Any, None]) -> None:
    """Runs `main` on a virtual clock; nothing may be left running."""

    async def checked() -> None:
        await main
        await asyncio.sleep(1000)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(checked())
