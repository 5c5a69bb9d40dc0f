"""A second thread for what can be done while an encoder is at work: steps enter, and are done in order, one at a time.

After a step that failed none is begun any more, so that nothing is written behind the back of an error. Knows no index.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Aside:
    """Use it in a `with`: on leaving, also by an error, the steps that were asked for are done, and what went wrong in
    one is raised unless the block itself did."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._error: BaseException | None = None

    def do(self, step: Callable[[], T]) -> Future[T]:
        """Have a step done after those before it. Its result is the future's, or its error, or that of a step before
        it."""
        return self._pool.submit(self._done, step)

    def _done(self, step: Callable[[], T]) -> T:
        if self._error is not None:
            raise self._error
        try:
            return step()
        except BaseException as error:
            self._error = error
            raise

    def __enter__(self) -> Aside:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        self._pool.shutdown(wait=True)
        if error is None and self._error is not None:
            raise self._error
