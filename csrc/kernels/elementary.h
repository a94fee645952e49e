// exp, expm1, log, log1p, tanh and the normal distribution function, for whole vectors.
// Polynomials: csrc/tools/fit_polynomials.py. Reductions: Cody and Waite (1980). The activations'
// tests measure the errors in units in the last place over the whole float range.
#pragma once
#include "simd/vec.h"

namespace {

template <class T>
struct Constants;

template <>
struct Constants<float> {
    static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    static constexpr int kMantissaBits = 23, kExponentBias = 127, kSplitBits = 12;
    static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
    // Below least also x exp(x) is zero; above most exp is infinite.
    static constexpr float kExpMost = 89.0f, kExpLeast = -110.0f;
    static constexpr float kSmallestNormal = 1.17549435e-38f;
    static constexpr float kExpTail[] = {0.5f, 0.1666657338f, 0.04166655011f, 0.008363773874f, 0.001392692661f};
    static constexpr float kLogTail[] = {0.6666666732f, 0.3999970633f, 0.2859235799f, 0.217065758f, 0.2322432922f};
    static constexpr float kTanhMost = 9.02f;  // tanh rounds to 1 from here on
    static constexpr float kTanhP[] = {1.0f, 0.1338268741f, 0.003497457847f, 2.063582512e-5f, 1.338429453e-8f};
    static constexpr float kTanhQ[] = {1.0f, 0.4671600866f, 0.02588436159f, 3.288517622e-4f, 7.790250677e-7f};
    static constexpr float kMills[] = {0.7290836956f,     -0.5093319821f,   0.2300173265f,   -0.04726300929f,
                                       -0.0104581947f,    0.006972461452f,  0.001006919625f, -0.001045380628f,
                                       -0.0002139047556f, 0.0001544794084f, 3.530219982e-5f, -1.542909379e-5f};
};

template <>
struct Constants<double> {
    static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
    static constexpr int kMantissaBits = 52, kExponentBias = 1023, kSplitBits = 27;
    static constexpr double kLn2High = 6.93147180369123816490e-01, kLn2Low = 1.90821492927058770002e-10;
    static constexpr double kExpMost = 710.0, kExpLeast = -760.0;
    static constexpr double kSmallestNormal = 2.2250738585072014e-308;
    static constexpr double kExpTail[] = {0.5,
                                          0.166666666666666667,
                                          0.0416666666666666778,
                                          0.00833333333333333408,
                                          0.0013888888888878269,
                                          0.000198412698412627626,
                                          0.0000248015873385653456,
                                          2.75573192486338255e-6,
                                          2.75572610293437687e-7,
                                          2.50520695947956848e-8,
                                          2.09189618377957781e-9,
                                          1.60871772343807823e-10};
    static constexpr double kLogTail[] = {0.666666666666666667,  0.4,
                                          0.285714285714285718,  0.222222222222221327,
                                          0.181818181818305711,  0.153846153835842783,
                                          0.133333333892395982,  0.117647038087278297,
                                          0.105263699681991578,  0.0952279740024325127,
                                          0.0870920163717238461, 0.0787151298762770662,
                                          0.0824431315383657809, 0.033881660770545914,
                                          0.146015374610331619};
    static constexpr double kMills[] = {
        0.729083690133372786,      -0.50933198191748959,    0.230017719974663551,     -0.0472630251429187273,
        -0.0104628670261079472,    0.00697262123779896866,  0.00102759230982747063,   -0.00104582857213431209,
        -0.000256575816217607721,  0.000154393974620384618, 0.0000788152051824561222, -0.0000132432505788503273,
        -0.0000206976490659473344, -3.52764569707435881e-6, 3.65846519299972841e-6,   2.2794005145699816e-6,
        -1.78495796695254522e-8,   -6.2717075964575189e-7,  -2.50412221704121031e-7,  7.44574725591872155e-8,
        8.35893001192179436e-8,    7.6734294868658766e-9,   -1.07236304156941188e-8,  -2.84354162133835532e-9};
};

// Horner's rule, coefficients lowest first.
template <class T, int N>
inline Vec<T> polynomial(const T (&c)[N], Vec<T> x) {
    Vec<T> p = splat(c[N - 1]);
#pragma GCC unroll 32
    for (int i = N - 2; i >= 0; --i) p = fma(p, x, splat(c[i]));
    return p;
}

// x = n ln 2 + r with |r| <= ln(2) / 2.
template <class T>
struct Reduced {
    Bits<T> n;
    Vec<T> n_value;
    Vec<T> r;
};

template <class T>
inline Reduced<T> reduce_by_ln2(Vec<T> x) {
    using C = Constants<T>;
    const Vec<T> round = splat(C::kRound);
    const Vec<T> shifted = fma(x, splat(T(1.44269504088896340736)), round);
    const Vec<T> n = shifted - round;
    const Vec<T> r = fma(n, splat(-C::kLn2Low), fma(n, splat(-C::kLn2High), x));
    return {to_bits<T>(shifted) - to_bits<T>(round), n, r};
}

template <class T>
inline Vec<T> power_of_two(Bits<T> n) {
    return from_bits<T>((n + Constants<T>::kExponentBias) << Constants<T>::kMantissaBits);
}

// exp(r) - 1 for reduced r.
template <class T>
inline Vec<T> expm1_reduced(Vec<T> r) {
    return fma(r * r, polynomial(Constants<T>::kExpTail, r), r);
}

// exp as value * factor, a power of two, both normal numbers: what multiplies the value first is not
// rounded twice where the result is below the normal range.
template <class T>
struct ScaledExp {
    Vec<T> value, factor;
};

// exp(x + low) for |low| much below 1: twice the argument's precision where x itself is exact.
template <class T>
inline ScaledExp<T> scaled_exp(Vec<T> x, Vec<T> low = Vec<T>{}) {
    using C = Constants<T>;
    const Vec<T> bounded = minimum(maximum(x, splat(C::kExpLeast)), splat(C::kExpMost));
    const Reduced<T> q = reduce_by_ln2<T>(bounded);
    // Two factors: 2^n alone leaves the range of normal numbers at both ends.
    const Bits<T> half = q.n >> 1;
    const Vec<T> e = expm1_reduced<T>(q.r + low) + T(1);
    return {e * power_of_two<T>(half), power_of_two<T>(q.n - half)};
}

template <class T>
inline Vec<T> exp(Vec<T> x, Vec<T> low = Vec<T>{}) {
    const ScaledExp<T> e = scaled_exp<T>(x, low);
    return e.value * e.factor;
}

template <class T>
inline Vec<T> expm1(Vec<T> x) {
    using C = Constants<T>;
    // Below -(mantissa bits + 2) ln 2 the result is -1; above, one power of two stays normal.
    const Vec<T> least = splat(T(-(C::kMantissaBits + 3) * 0.6931));
    const Vec<T> bounded = minimum(maximum(x, least), splat(C::kExpMost));
    const Reduced<T> q = reduce_by_ln2<T>(bounded);
    const Bits<T> half = q.n >> 1;
    const Vec<T> scale = power_of_two<T>(half);
    const Vec<T> rest = power_of_two<T>(q.n - half);
    const Vec<T> e = fma(expm1_reduced<T>(q.r) * rest, scale, fma(rest, scale, splat(T(-1))));
    return x == T(0) ? x : e;
}

// 2 atanh(s) for |s| <= 1/3.
template <class T>
inline Vec<T> twice_atanh(Vec<T> s) {
    const Vec<T> t = s * s;
    return fma(s * t, polynomial(Constants<T>::kLogTail, t), s + s);
}

// log(1 + x) for 0 <= x <= 1.
template <class T>
inline Vec<T> log1p_unit(Vec<T> x) {
    return twice_atanh<T>(x / (x + T(2)));
}

// log(x) for normal x > 0; infinity and NaN give themselves.
template <class T>
inline Vec<T> log(Vec<T> x) {
    using C = Constants<T>;
    // n = the exponent that brings the mantissa into [sqrt(1/2), sqrt(2)).
    const Bits<T> sqrt_half = to_bits<T>(splat(T(0.70710678118654752)));
    const Bits<T> n = (to_bits<T>(x) - sqrt_half) >> C::kMantissaBits;
    const Vec<T> m = from_bits<T>(to_bits<T>(x) - (n << C::kMantissaBits));
    const Vec<T> n_value = from_bits<T>(n + to_bits<T>(splat(C::kRound))) - C::kRound;
    const Vec<T> log_m = twice_atanh<T>((m - T(1)) / (m + T(1)));
    const Vec<T> result = fma(n_value, splat(C::kLn2High), fma(n_value, splat(C::kLn2Low), log_m));
    return x < T(__builtin_inf()) ? result : x;
}

// x P(x^2) / Q(x^2), a minimax quotient, held at +-1, so that no slope 1 - a^2 is negative, and exactly that beyond the
// bound, where it would end a unit below: a saturated unit has no slope.
inline Vec<float> tanh_of(Vec<float> x) {
    using C = Constants<float>;
    const Vec<float> one = splat(1.0f), t = x * x;
    const Vec<float> ratio = x * polynomial(C::kTanhP, t) / polynomial(C::kTanhQ, t);
    const Vec<float> bounded = minimum(maximum(ratio, -one), one);
    return x > C::kTanhMost ? one : x < -C::kTanhMost ? -one : bounded;
}

// expm1(2x) / (expm1(2x) + 2), accurate near zero because expm1 is. The result is +-1 beyond the bounds, within which
// one power of two stays normal.
inline Vec<double> tanh_of(Vec<double> x) {
    using T = double;
    const Vec<T> bound = splat(T(Constants<T>::kMantissaBits + 3));
    const Reduced<T> q = reduce_by_ln2<T>(minimum(maximum(x + x, -bound), bound));
    const Vec<T> scale = power_of_two<T>(q.n);
    const Vec<T> e = fma(expm1_reduced<T>(q.r), scale, scale - T(1));
    return e / (e + T(2));
}

template <class T>
inline Vec<T> tanh(Vec<T> x) {
    return tanh_of(x);
}

// 1 / (1 + exp(-x)), accurate in both tails.
template <class T>
inline Vec<T> sigmoid(Vec<T> x) {
    const Vec<T> e = exp<T>(-absolute<T>(x));
    return (x < T(0) ? e : splat(T(1))) / (e + T(1));
}

// log(1 + exp(x)).
template <class T>
inline Vec<T> softplus(Vec<T> x) {
    return maximum(x, Vec<T>{}) + log1p_unit<T>(exp<T>(-absolute<T>(x)));
}

// exp(-t^2 / 2): t is split so that the square of its high part is exact.
template <class T>
inline Vec<T> gauss(Vec<T> t) {
    const Bits<T> high_mask = (Bits<T>{} - 1) << Constants<T>::kSplitBits;
    const Vec<T> high = from_bits<T>(to_bits<T>(t) & high_mask);
    return exp<T>(high * high * T(-0.5), (t - high) * (t + high) * T(-0.5));
}

// The standard normal distribution function Phi(x), relative accuracy in the lower tail.
// Phi(-t) = exp(-t^2/2) p(u) / (t + 3) with u = (t - 3) / (t + 3), t = |x|.
template <class T>
inline Vec<T> normal_cdf(Vec<T> x) {
    const Vec<T> t = minimum(absolute<T>(x), splat(T(40)));
    const Vec<T> inverse = T(1) / (t + T(3));
    const Vec<T> u = (t - T(3)) * inverse;
    const Vec<T> tail = gauss<T>(t) * (polynomial(Constants<T>::kMills, u) * inverse);
    return x > T(0) ? T(1) - tail : tail;
}

// The standard normal density.
template <class T>
inline Vec<T> normal_pdf(Vec<T> x) {
    return gauss<T>(minimum(absolute<T>(x), splat(T(40)))) * T(0.39894228040143267794);
}

}  // namespace
