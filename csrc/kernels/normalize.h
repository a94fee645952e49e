// Layers without products, on panels: normalisation of rows and of columns, gain and shift, sums. A layer's inputs,
// outputs and errors have the same stride. Pads of gains, shifts and errors are zero, those of inputs are anything.
#pragma once
#include "kernels/table.h"
#include "simd/vec.h"

namespace {

using gradstep::Affine;
using gradstep::AffineSums;
using gradstep::ColumnNorm;
using gradstep::RowNorm;

// out (+)= in * gain + shift
template <class T, int NV>
void affine_panel(const Affine<T>& panel) noexcept {
    constexpr ptrdiff_t L = kLanes<T>, P = NV * L;
    const Affine<T> p = panel;
    for (int v = 0; v < NV; ++v) {
        const Vec<T> gain = load(p.gain + v * L), shift = p.shift ? load(p.shift + v * L) : Vec<T>{};
        for (ptrdiff_t i = v * L; i < p.rows * P; i += P) {
            const Vec<T> value = fma(load(p.in + i), gain, shift);
            store(p.out + i, p.keep ? load(p.out + i) + value : value);
        }
    }
}

// Column sums of f(row, vector of the panel), in blocks of rows so that rounding errors do not pile up.
template <class T, class F>
inline Vec<T> sum_of_rows(ptrdiff_t rows, F&& f) {
    constexpr ptrdiff_t chains = 4, block = 64;  // additions that do not wait for each other
    Vec<T> total{};
    for (ptrdiff_t from = 0; from < rows; from += block) {
        const ptrdiff_t end = from + block < rows ? from + block : rows;
        Vec<T> sum[chains] = {};
        ptrdiff_t r = from;
        for (; r + chains <= end; r += chains)
#pragma GCC unroll 4
            for (ptrdiff_t c = 0; c < chains; ++c) sum[c] += f(r + c);
        for (; r < end; ++r) sum[0] += f(r);
        total += (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
    return total;
}

// The gradients of gain and shift.
template <class T, int NV>
void affine_sums(const AffineSums<T>& panel) noexcept {
    constexpr ptrdiff_t L = kLanes<T>, P = NV * L;
    const AffineSums<T> p = panel;
    for (int v = 0; v < NV; ++v) {
        const T *in = p.in + v * L, *delta = p.delta + v * L;
        const Vec<T> gain = sum_of_rows<T>(p.rows, [=](ptrdiff_t r) { return load(delta + r * P) * load(in + r * P); });
        store(p.gain + v * L, p.keep ? load(p.gain + v * L) + gain : gain);
        if (!p.shift) continue;
        const Vec<T> shift = sum_of_rows<T>(p.rows, [=](ptrdiff_t r) { return load(delta + r * P); });
        store(p.shift + v * L, p.keep ? load(p.shift + v * L) + shift : shift);
    }
}

// to = x + y, or x where y is null; to may be x or y.
template <class T>
void add_panels(const T* x, const T* y, T* to, ptrdiff_t n) noexcept {
    for (ptrdiff_t i = 0; i < n; i += kLanes<T>) store(to + i, y ? load(x + i) + load(y + i) : load(x + i));
}

template <class T>
inline T inverse_root(T x) {
    return T(1) / square_root(splat(x))[0];
}

// v, which begins at a column, with zeros beyond the last of them.
template <class T>
inline Vec<T> without_pads(Vec<T> v, ptrdiff_t column, ptrdiff_t columns) {
    if (columns - column >= kLanes<T>) return v;
    T kept[kLanes<T>] = {};
    for (ptrdiff_t i = 0; i < columns - column; ++i) kept[i] = v[i];
    return load(kept);
}

// f(offset of a vector in the row, its first column) for all whole panels of a row.
template <class T, int NV, class F>
inline void for_row(ptrdiff_t columns, ptrdiff_t stride, F&& f) {
    constexpr ptrdiff_t L = kLanes<T>, P = NV * L;
    for (ptrdiff_t c = 0; c < columns; c += P)
        for (ptrdiff_t v = 0; v < P; v += L) f(c * stride + v, c + v);
}

// hat = (x - mean) / sqrt(variance + epsilon), of every row. Ba, Kiros and Hinton 2016.
template <class T, int NV>
void normalize_rows(const RowNorm<T>& norm) noexcept {
    constexpr ptrdiff_t L = kLanes<T>, P = NV * L;
    const RowNorm<T> n = norm;
    const T share = T(1) / static_cast<T>(n.columns);
    for (ptrdiff_t r = 0; r < n.rows; ++r) {
        const T* x = n.x + r * P;
        T* hat = n.hat + r * P;
        Vec<T> sum{}, squares{};
        for_row<T, NV>(n.columns, n.stride, [&](ptrdiff_t at, ptrdiff_t column) {
            sum += without_pads<T>(load(x + at), column, n.columns);
        });
        const T mean = sum_lanes<T>(sum) * share;
        Vec<T> rest{};  // of large numbers, whose mean is rounded: has a mean of its own
        for_row<T, NV>(n.columns, n.stride, [&](ptrdiff_t at, ptrdiff_t column) {
            const Vec<T> d = without_pads<T>(load(x + at) - mean, column, n.columns);
            rest += d;
            store(hat + at, d);
        });
        const T correction = sum_lanes<T>(rest) * share;
        for_row<T, NV>(n.columns, n.stride, [&](ptrdiff_t at, ptrdiff_t column) {
            const Vec<T> d = without_pads<T>(load(hat + at) - correction, column, n.columns);
            squares = fma(d, d, squares);
            store(hat + at, d);
        });
        const T inverse = inverse_root<T>(sum_lanes<T>(squares) * share + n.epsilon);
        for_row<T, NV>(n.columns, n.stride,
                       [&](ptrdiff_t at, ptrdiff_t) { store(hat + at, load(hat + at) * inverse); });
        n.inverse[r] = inverse;
    }
}

// below (+)= inverse (g - mean of g - hat * mean of g hat) with g = delta * gain, of every row.
template <class T, int NV>
void normalize_rows_backward(const RowNorm<T>& norm) noexcept {
    constexpr ptrdiff_t L = kLanes<T>, P = NV * L;
    const RowNorm<T> n = norm;
    const T share = T(1) / static_cast<T>(n.columns);
    for (ptrdiff_t r = 0; r < n.rows; ++r) {
        const T *hat = n.hat + r * P, *delta = n.delta + r * P, *gain = n.gain;
        const ptrdiff_t stride = n.stride;
        T* below = n.below + r * P;
        const auto error = [=](ptrdiff_t at, ptrdiff_t column) { return load(delta + at) * load(gain + column); };
        Vec<T> sum{}, products{};
        for_row<T, NV>(n.columns, stride, [&](ptrdiff_t at, ptrdiff_t column) {
            const Vec<T> g = error(at, column);
            sum += g;
            products = fma(g, load(hat + at), products);
        });
        const T mean = sum_lanes<T>(sum) * share, product = sum_lanes<T>(products) * share, inverse = n.inverse[r];
        for_row<T, NV>(n.columns, stride, [&](ptrdiff_t at, ptrdiff_t column) {
            const Vec<T> d = (error(at, column) - mean - load(hat + at) * product) * inverse;
            const Vec<T> kept = without_pads<T>(d, column, n.columns);
            store(below + at, n.keep ? load(below + at) + kept : kept);
        });
    }
}

// The same for the columns of a panel, whose rows have shares that sum to 1. Ioffe and Szegedy 2015. The mean is
// corrected by the mean of what is left: both statistics are as good as one rounding.
template <class T, int NV>
void normalize_columns(const ColumnNorm<T>& norm) noexcept {
    constexpr ptrdiff_t L = kLanes<T>, P = NV * L;
    const ColumnNorm<T> n = norm;
    for (int v = 0; v < NV; ++v) {
        const T *x = n.x + v * L, *share = n.share;
        const Vec<T> first = sum_of_rows<T>(n.rows, [=](ptrdiff_t r) { return share[r] * load(x + r * P); });
        const Vec<T> rest = sum_of_rows<T>(n.rows, [=](ptrdiff_t r) { return share[r] * (load(x + r * P) - first); });
        const Vec<T> mean = first + rest;
        const Vec<T> variance = sum_of_rows<T>(n.rows, [=](ptrdiff_t r) {
            const Vec<T> d = load(x + r * P) - mean;
            return share[r] * d * d;
        });
        const Vec<T> inverse = T(1) / square_root(variance + n.epsilon);
        for (ptrdiff_t r = 0; r < n.rows; ++r) store(n.hat + r * P + v * L, (load(x + r * P) - mean) * inverse);
        store(n.mean + v * L, mean);
        store(n.variance + v * L, variance);
        store(n.inverse + v * L, inverse);
    }
}

// below (+)= inverse gain (delta - share * sum of delta - share * hat * sum of delta hat)
template <class T, int NV>
void normalize_columns_backward(const ColumnNorm<T>& norm) noexcept {
    constexpr ptrdiff_t L = kLanes<T>, P = NV * L;
    const ColumnNorm<T> n = norm;
    for (int v = 0; v < NV; ++v) {
        const Vec<T> factor = load(n.inverse + v * L) * load(n.gain + v * L);
        const Vec<T> sum = load(n.delta_sum + v * L), product = load(n.product_sum + v * L);
        for (ptrdiff_t i = v * L, r = 0; r < n.rows; ++r, i += P) {
            const Vec<T> d = (load(n.delta + i) - n.share[r] * fma(load(n.hat + i), product, sum)) * factor;
            store(n.below + i, n.keep ? load(n.below + i) + d : d);
        }
    }
}

}  // namespace
