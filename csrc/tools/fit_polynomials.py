"""Fit the polynomials of csrc/kernels/elementary.h and print them as C++ arrays.

Every polynomial is a Chebyshev interpolant in 60-digit arithmetic, converted to monomials: within a
factor of two of the minimax error, and reproducible from the formulas below alone. The two of tanh
are a minimax quotient, by Remez's exchange. Needs mpmath.

    python csrc/tools/fit_polynomials.py
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import mpmath as mp

mp.mp.dps = 60

Function = Callable[[mp.mpf], mp.mpf]


def fit(f: Function, low: mp.mpf, high: mp.mpf, degree: int) -> list[mp.mpf]:
    """Return monomial coefficients, lowest first, of the interpolant at the Chebyshev nodes."""
    n = degree + 1
    nodes = [mp.cos(mp.pi * (2 * k + 1) / (2 * n)) for k in range(n)]
    x = [(high + low) / 2 + (high - low) / 2 * t for t in nodes]
    vandermonde = mp.matrix(n, n)
    for i in range(n):
        for j in range(n):
            vandermonde[i, j] = x[i] ** j
    return list(mp.lu_solve(vandermonde, mp.matrix([f(v) for v in x])))


def largest_error(f: Function, c: list[mp.mpf], low: mp.mpf, high: mp.mpf) -> mp.mpf:
    """Return the largest relative error of the polynomial on 400 points."""
    points = [low + (high - low) * k / 400 for k in range(401)]
    return max(abs(mp.polyval(c[::-1], x) / f(x) - 1) for x in points)


class Quotient(NamedTuple):
    """P(t) / Q(t), coefficients lowest first; both begin with 1."""

    p: list[mp.mpf]
    q: list[mp.mpf]

    def __call__(self, t: mp.mpf) -> mp.mpf:
        """Return its value at t."""
        return mp.polyval(self.p[::-1], t) / mp.polyval(self.q[::-1], t)


def equioscillating(f: Function, points: list[mp.mpf], degree: int) -> Quotient:
    """Return the quotient whose relative error has one size and alternating signs at 2 degree + 1 points."""
    quotient = Quotient([mp.mpf(1)], [mp.mpf(1)])
    n = len(points)
    for _ in range(8):  # the error is multiplied by Q: by the one before
        system, right = mp.matrix(n, n), mp.matrix(n, 1)
        for row, t in enumerate(points):
            for power in range(1, degree + 1):
                system[row, power - 1] = t**power
                system[row, degree + power - 1] = -f(t) * t**power
            system[row, n - 1] = (-1) ** row * f(t) * mp.polyval(quotient.q[::-1], t)
            right[row] = f(t) - 1
        c = list(mp.lu_solve(system, right))
        quotient = Quotient([mp.mpf(1), *c[:degree]], [mp.mpf(1), *c[degree : 2 * degree]])
    return quotient


def fit_quotient(f: Function, high: mp.mpf, degree: int) -> Quotient:
    """Return the quotient with the least relative error on (0, high], by Remez's exchange."""
    grid = [high * (mp.mpf(k) / 3000) ** 2 for k in range(1, 3001)]
    count = 2 * degree + 1
    chosen = [int(2999 * mp.sin(mp.pi / 2 * (i + 1) / count)) for i in range(count)]
    for _ in range(50):
        quotient = equioscillating(f, [grid[i] for i in chosen], degree)
        errors = [quotient(t) / f(t) - 1 for t in grid]
        peaks: list[int] = []  # the largest error of each run of one sign
        for i, error in enumerate(errors):
            if not peaks or (error > 0) != (errors[peaks[-1]] > 0):
                peaks.append(i)
            elif abs(error) > abs(errors[peaks[-1]]):
                peaks[-1] = i
        assert len(peaks) >= count
        while len(peaks) > count:
            peaks.pop(0 if abs(errors[peaks[0]]) < abs(errors[peaks[-1]]) else -1)
        if peaks == chosen:
            return quotient
        chosen = peaks
    raise ArithmeticError("the exchange did not end")


def tanh_ratio(t: mp.mpf) -> mp.mpf:
    """tanh(x) / x as a function of t = x^2."""
    return mp.tanh(mp.sqrt(t)) / mp.sqrt(t)


def exp_tail(r: mp.mpf) -> mp.mpf:
    """(exp(r) - 1 - r) / r^2: the part of exp beyond its exact first two terms."""
    return (mp.expm1(r) - r) / r**2 if abs(r) > mp.mpf("1e-20") else mp.mpf(1) / 2


def log_tail(t: mp.mpf) -> mp.mpf:
    """(2 atanh(s) - 2 s) / s^3 as a function of t = s^2."""
    s = mp.sqrt(t)
    return (2 * mp.atanh(s) - 2 * s) / s**3 if t > mp.mpf("1e-30") else mp.mpf(2) / 3


def mills(c: mp.mpf) -> Function:
    """exp(t^2/2) Phi(-t) (t + c) as a function of u = (t - c) / (t + c), on [-1, 1)."""

    def f(u: mp.mpf) -> mp.mpf:
        if u >= 1:
            return 1 / mp.sqrt(2 * mp.pi)
        t = c * (1 + u) / (1 - u)
        if t > 3000:  # the asymptotic series; exp(t^2 / 2) would be astronomically large
            return (1 / t - 1 / t**3 + 3 / t**5) / mp.sqrt(2 * mp.pi) * (t + c)
        return mp.exp(t**2 / 2) * mp.erfc(t / mp.sqrt(2)) / 2 * (t + c)

    return f


def show(name: str, ctype: str, f: Function, low: mp.mpf, high: mp.mpf, degree: int) -> None:
    """Print one array with its largest relative error before rounding."""
    c = fit(f, low, high, degree)
    suffix, digits = ("f", 10) if ctype == "float" else ("", 18)
    print(f"// {name}<{ctype}>: relative error {mp.nstr(largest_error(f, c, low, high), 3)}")
    print(", ".join(mp.nstr(v, digits) + suffix for v in c))


if __name__ == "__main__":
    half_ln2 = mp.log(2) / 2 * mp.mpf("1.01")
    for ctype, exp_degree, log_degree, mills_degree in [("float", 4, 4, 11), ("double", 11, 14, 23)]:
        show("exp_tail", ctype, exp_tail, -half_ln2, half_ln2, exp_degree)
        show("log_tail", ctype, log_tail, mp.mpf(0), mp.mpf(1) / 9, log_degree)
        show("mills", ctype, mills(mp.mpf(3)), mp.mpf(-1), mp.mpf(1), mills_degree)
    # From 9.02 on tanh rounds to 1 in float32; with double's precision expm1 is the shorter way.
    high = mp.mpf("9.02") ** 2
    tanh = fit_quotient(tanh_ratio, high, 4)
    error = max(abs(tanh(high * k / 400) / tanh_ratio(high * k / 400) - 1) for k in range(1, 401))
    for name, c in zip(("tanh_p", "tanh_q"), tanh, strict=True):
        print(f"// {name}<float>: relative error of the quotient {mp.nstr(error, 3)}")
        print(", ".join(mp.nstr(v, 10) + "f" for v in c))
