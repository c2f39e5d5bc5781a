"""Trying again what a network may have failed."""

from collections.abc import Callable
from typing import TypeVar

from .errors import EspalierError

Result = TypeVar("Result")
_LONGEST = 60  # seconds


def retried(call: Callable[[], Result], times: int, progress: Callable[[str], None]) -> Result:
    """Call, and up to so many `times` again, after 1, 2, 4, ... 60 seconds, while it raises an
    EspalierError that is `passing`; `progress` is told why. The last error goes through.
    """
    if not times:
        return call()
    import tenacity  # 30 ms

    def say(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None and state.next_action is not None
        progress(
            f"{state.outcome.exception()} Trying again in {state.next_action.sleep:.0f} s "
            f"({state.attempt_number} of {times})."
        )

    return tenacity.Retrying(
        stop=tenacity.stop_after_attempt(times + 1),
        wait=tenacity.wait_exponential(max=_LONGEST),
        retry=tenacity.retry_if_exception(lambda e: isinstance(e, EspalierError) and e.passing),
        before_sleep=say,
        reraise=True,
    )(call)
