"""Fit the polynomials of csrc/kernels/elementary.h and print them as C++ arrays.

Every polynomial is a Chebyshev interpolant in 60-digit arithmetic, converted to monomials: within a
factor of two of the minimax error, and reproducible from the formulas below alone. Needs mpmath.

    python csrc/tools/fit_polynomials.py
"""

from __future__ import annotations

from collections.abc import Callable

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
