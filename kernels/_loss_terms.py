"""Terms of adversarial losses with their derivatives; the formulas of reference/adversarial.py."""

import triton
import triton.language as tl
from dgm_fast.kernels._math import exp_accurate, expm1, log1p, tanh

# From here on exponentials continue along their tangent.
_EXP_LIMIT = tl.constexpr(64.0)
_EXP_OF_LIMIT = tl.constexpr(6.235149080811617e27)
# Beyond it softplus(-v) is e^-v.
_TAIL = tl.constexpr(40.0)
_NEWTON_STEPS = tl.constexpr(8)
_LOG_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _expm1(x, exp_x):
    """e^x - 1 for any x, given e^x."""
    return tl.where(x > 0.5, exp_x - 1.0, expm1(tl.where(x > 0.5, 0.5, x), exp_x))


@triton.jit
def _softplus(v):
    """log(1 + e^v) and its derivative."""
    e = exp_accurate(-tl.abs(v))
    return tl.maximum(v, 0.0) + log1p(e), tl.where(v > 0.0, 1.0, e) / (1.0 + e)


@triton.jit
def _softplus_negative(v):
    value, slope = _softplus(-v)
    return value, -slope


@triton.jit
def _tangent_exp(v):
    e = exp_accurate(tl.where(v > _EXP_LIMIT, _EXP_LIMIT, v))
    return tl.where(v > _EXP_LIMIT, e * (1.0 + (v - _EXP_LIMIT)), e), e


@triton.jit
def _tangent_expm1(v):
    near = tl.where(v > _EXP_LIMIT, _EXP_LIMIT, v)
    e = exp_accurate(near)
    return tl.where(v > _EXP_LIMIT, e * (1.0 + (v - _EXP_LIMIT)), _expm1(near, e)), e


@triton.jit
def _jeffrey_conjugate(v):
    """Newton's method from above on y = -log u for expm1(y) + y + v = 0."""
    a = 1.0 - v
    y = tl.where(a > 1.0, tl.log(tl.maximum(a, 1.0)), a)
    for _ in tl.static_range(_NEWTON_STEPS):
        e = _expm1(y, exp_accurate(y))
        y = y - (e + y + v) / (e + 2.0)
    value, slope = _tangent_expm1(-y)
    return value - y, slope


@triton.jit
def _weighted_js_conjugate(v, PI: tl.constexpr, LOG_PI: tl.constexpr, LOG_REST: tl.constexpr):
    beyond = v > _TAIL
    near, rise = _softplus(-tl.where(beyond, _TAIL, v))
    z = near / PI
    e = exp_accurate(-z)
    log_rest = tl.where(beyond, -v - LOG_PI, tl.log(-expm1(-z, e)))
    # 1 / (e^z - 1) = e^-z / (1 - e^-z)
    slope = tl.where(beyond, 1.0, rise * e / (-expm1(-z, e) * PI))
    return (LOG_REST - log_rest) * (1.0 - PI), slope * (1.0 - PI)


@triton.jit
def _alpha_conjugate(v, ALPHA: tl.constexpr, LOG_BASE: tl.constexpr):
    """LOG_BASE is log(1 - alpha) for alpha < 1, and not used above."""
    EXPONENT: tl.constexpr = ALPHA / (ALPHA - 1.0)
    if ALPHA < 1.0:
        beyond = v > _TAIL
        near, rise = _softplus(-tl.where(beyond, _TAIL, v))
        log_base = tl.where(beyond, -v, tl.log(near)) + LOG_BASE
        drop = tl.where(beyond, 1.0, rise / near)
        power, of_power = _tangent_exp(log_base * EXPONENT)
        value = (power - 1.0) * (1.0 / ALPHA)
        slope = of_power * drop * (-EXPONENT / ALPHA)
    else:
        base = v * (ALPHA - 1.0) + 1.0
        outside = base <= 0.0
        # A power is its logarithm's exponential, whose rounding is that of the logarithm times its size.
        wide = tl.where(outside, 1.0, base).to(tl.float64)
        log_power = tl.log(wide) * EXPONENT
        beyond = log_power > _EXP_LIMIT
        power = tl.exp(tl.where(beyond, _EXP_LIMIT, log_power))
        rise = power / wide
        power = tl.where(beyond, (1.0 + (log_power - _EXP_LIMIT)) * _EXP_OF_LIMIT, power)
        value = (tl.where(outside, 0.0, power) - 1.0) * (1.0 / ALPHA)
        slope = tl.where(outside, 0.0, rise) * ((ALPHA - 1.0) * EXPONENT / ALPHA)
        value = value.to(v.dtype)
        slope = slope.to(v.dtype)
    return value, slope


@triton.jit
def loss_term(
    v,
    TERM: tl.constexpr,
    ALPHA: tl.constexpr,
    PI: tl.constexpr,
    LOG_BASE: tl.constexpr,
    LOG_PI: tl.constexpr,
    LOG_REST: tl.constexpr,
):
    """Value and derivative of entry TERM of reference/adversarial.py: TERMS.

    LOG_BASE, LOG_PI and LOG_REST are log(1 - alpha), log pi and log(1 - pi).
    """
    value = v
    slope = tl.zeros_like(v) + 1.0
    if TERM == 1 or TERM == 27:  # softplus, gan.conjugate
        value, slope = _softplus(v)
    elif TERM == 2:  # softplus_negative
        value, slope = _softplus_negative(v)
    elif TERM == 3:  # hinge_real
        value = tl.where(v >= 1.0, 0.0, 1.0 - v)
        slope = tl.where(v < 1.0, -1.0, tl.zeros_like(v))
    elif TERM == 4:  # hinge_fake
        value = tl.where(v <= -1.0, 0.0, 1.0 + v)
        slope = tl.where(v > -1.0, 1.0, tl.zeros_like(v))
    elif TERM == 5:  # square_to_one
        value = 0.5 * (v - 1.0) * (v - 1.0)
        slope = v - 1.0
    elif TERM == 6:  # square
        value = 0.5 * v * v
        slope = v
    elif TERM == 7 or TERM == 18:  # total_variation, both
        t = tanh(v)
        value = 0.5 * t
        slope = 0.5 * (1.0 - t * t)
    elif TERM == 9:  # reverse_kl.activation
        value, slope = _tangent_exp(-v)
        value = -value
    elif TERM == 11 or TERM == 12:  # neyman.activation, squared_hellinger.activation
        value, slope = _tangent_expm1(-v)
        value = -value
    elif TERM >= 14 and TERM <= 16:  # jensen_shannon, weighted_jensen_shannon and gan: activation
        value, slope = _softplus_negative(v)
        SHIFT: tl.constexpr = _LOG_2 if TERM == 14 else (-PI * LOG_PI if TERM == 15 else 0.0)
        value = SHIFT - value
        slope = -slope
    elif TERM == 17:  # alpha.activation
        if ALPHA < 1.0:
            value, slope = _softplus_negative(v)
            value = 1.0 / (1.0 - ALPHA) - value
            slope = -slope
    elif TERM == 19:  # kl.conjugate
        value, slope = _tangent_exp(v - 1.0)
    elif TERM == 20:  # reverse_kl.conjugate
        value = v - 1.0
    elif TERM == 21:  # pearson.conjugate
        half = 0.5 * v
        value = tl.where(v <= -2.0, -1.0, half * half + v)
        slope = tl.where(v <= -2.0, 0.0, half + 1.0)
    elif TERM == 22:  # neyman.conjugate
        value, slope = _tangent_expm1(-0.5 * v)
        value = -2.0 * value
    elif TERM == 23:  # squared_hellinger.conjugate
        value, slope = _tangent_expm1(v)
    elif TERM == 24:  # jeffrey.conjugate
        value, slope = _jeffrey_conjugate(v)
    elif TERM == 25:  # jensen_shannon.conjugate
        value, slope = _softplus(v)
        value = value - _LOG_2
    elif TERM == 26:  # weighted_jensen_shannon.conjugate
        value, slope = _weighted_js_conjugate(v, PI, LOG_PI, LOG_REST)
    elif TERM == 28:  # alpha.conjugate
        value, slope = _alpha_conjugate(v, ALPHA, LOG_BASE)
    return value, slope
