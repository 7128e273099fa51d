from __future__ import annotations

import threading
import time

import pytest

from veneer.data.parallel import map_in_order


@pytest.mark.parametrize("workers", [1, 2, 7])
def test_results_are_in_order(workers: int) -> None:
    def slow(number: int) -> int:
        time.sleep(0.002 * (number % 3))
        return number * number

    assert list(map_in_order(slow, range(40), workers)) == [number * number for number in range(40)]


def test_few_are_begun_before_they_are_asked_for() -> None:
    begun: list[int] = []
    results = map_in_order(lambda number: begun.append(number), range(1000), 2)
    for _ in range(10):
        next(results)
    results.close()
    assert len(begun) <= 20


def test_what_a_thread_raises_is_raised_and_the_rest_is_left() -> None:
    begun: list[int] = []

    def fail(number: int) -> int:
        begun.append(number)
        return 1 // (number - 5)

    with pytest.raises(ZeroDivisionError):
        list(map_in_order(fail, range(1000), 2))
    assert len(begun) < 20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("pictures")]
