"""What happens to bad data values around an op call (range of x, class indices)."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from dgm_fast import ops
from dgm_fast.functional._checks import mark_invalid, raise_unless_valid, values_visible


def check_before_kernel(x: Tensor, valid: Callable[[], Tensor], needs: str) -> None:
    """CPU kernels check in their own pass; others only when ``check_values(True)`` asks for it."""
    if ops.values_checked() and not x.is_cpu and values_visible():
        raise_unless_valid(x, valid(), needs)


def reference_with_checks(
    call: Callable[[Tensor], Tensor],
    x: Tensor,
    valid: Tensor,
    needs: str,
    event_ndim: int,
    safe: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The reference formula under the value rules: raise where values are visible, else mark as NaN.

    ``safe`` maps x to values the formula accepts, where a bad one would crash it.
    """
    if values_visible() and (x.is_cpu or ops.values_checked()):
        raise_unless_valid(x, valid, needs)
        return call(x)
    return mark_invalid(call(safe(x) if safe else x), valid, event_ndim)


def check_given(values: Tensor, given: Tensor, valid: Tensor, needs: str) -> None:
    """Raise for given values that are not valid, where values are looked at."""
    if values_visible() and (values.is_cpu or ops.values_checked()):
        raise_unless_valid(values, valid | ~given, needs)
