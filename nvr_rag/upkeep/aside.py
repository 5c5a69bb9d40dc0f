"""A second thread for what can be done while an encoder is at work: steps enter, and are done in order, one at a time.

After a step that failed none is begun any more, so that nothing is written behind the back of an error. Knows no index.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Aside:
    """Use it in a `with`: on leaving, the steps that were asked for are done, or none of them after an error."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._broken = False

    def do(self, step: Callable[[], T]) -> Future[T]:
        """Have a step done after those before it. Its result, or its error, is the future's."""
        return self._pool.submit(self._done, step)

    def _done(self, step: Callable[[], T]) -> T:
        if self._broken:
            raise RuntimeError("a step before this one has failed")
        try:
            return step()
        except BaseException:
            self._broken = True
            raise

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if error is not None and not isinstance(error, GeneratorExit):  # that is how a generator is ended in order
            self._broken = True
        self._pool.shutdown(wait=True)
