"""Scalar mathematics of the kernels: what Triton's fast functions round away."""

import triton
import triton.language as tl

LOG_2PI = tl.constexpr(1.8378770664093453)
# In place of -inf as the highest of no exponents, so that -inf relative to it is -inf.
LOWEST = tl.constexpr(-3.0e38)
_LOG2E_HIGH = tl.constexpr(1.44269502162933349609375)
_LOG2E_LOW = tl.constexpr(1.92596299112661746887e-8)
_LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def exp_accurate(x):
    """e^x to a few ulp.

    ``tl.exp`` is 2^(x log2 e) with the product rounded to float32, a relative error of |x| 2^-24. Here
    the rounding error of the product is kept and applied as a factor 1 + error ln 2.
    """
    if x.dtype == tl.float64:
        y = tl.exp(x)
    else:
        high = x * _LOG2E_HIGH
        low = tl.fma(x, _LOG2E_LOW, tl.fma(x, _LOG2E_HIGH, -high))
        y = tl.exp2(high)
        # Where y is inf, its product with the error would be inf - inf, or inf times 0.
        y += tl.where(tl.abs(high) < 128.0, y * (low * _LN2), 0.0)
    return y


@triton.jit
def wide_sum(x):
    """Sum of each row of [BR, BD] in float64 -> [BR].

    Log-likelihoods enter exponentials as importance weights: a rounding error of theirs is a relative
    error of the weight. Summing the few partial sums of a row in float64 leaves the final rounding.
    """
    return tl.sum(x.to(tl.float64), 1)


@triton.jit
def log1p(x):
    """log(1 + x) for x >= -1/2, with the rounding error of 1 + x put back."""
    u = 1.0 + x
    return tl.log(u) + (x - (u - 1.0)) / u


@triton.jit
def expm1(x, exp_x):
    """e^x - 1 without cancellation for x <= 0, given e^x: x (1 + x/2 (1 + x/3 ...)) above -1/2."""
    # The first term left out is below half an ulp of the sum at x = -1/2.
    TERMS: tl.constexpr = 14 if x.dtype == tl.float64 else 8
    series = 1.0 + x * (1.0 / TERMS)
    for i in tl.static_range(TERMS - 2):
        series = 1.0 + series * x * (1.0 / (TERMS - 1 - i))
    return tl.where(x > -0.5, x * series, exp_x - 1.0)


@triton.jit
def tanh(x):
    """(1 - e)/(1 + e), e = e^(-2|x|): neither cancels around 0 nor rounds twice near 1."""
    twice = -2.0 * tl.abs(x)
    e = tl.exp(twice)
    inverse = 1.0 / (1.0 + e)
    positive = tl.where(e < 0.25, 1.0 - 2.0 * e * inverse, -expm1(twice, e) * inverse)
    return tl.where(x < 0.0, -positive, positive)


@triton.jit
def expm1_remainder(x):
    """e^x - 1 - x without cancellation: x^2/2 (1 + x/3 (1 + x/4 ...)) where |x| < 1."""
    # The first term left out is below half an ulp of the sum at |x| = 1.
    TERMS: tl.constexpr = 19 if x.dtype == tl.float64 else 12
    series = 1.0 + x * (1.0 / TERMS)
    for i in tl.static_range(TERMS - 3):
        series = 1.0 + series * x * (1.0 / (TERMS - 1 - i))
    return tl.where(tl.abs(x) < 1.0, 0.5 * x * x * series, exp_accurate(x) - 1.0 - x)
