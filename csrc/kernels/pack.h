// Between row-major user data, panels [F/P][stride][P] and lanes [F][stride].
#pragma once
#include "kernels/table.h"
#include "simd/vec.h"

namespace {

using gradstep::Gather;

template <class T>
inline const T* row_of(const Gather<T>& g, ptrdiff_t r) {
    return g.x + (g.index ? g.index[r] : r) * g.columns;
}

template <class T, int NV>
void gather_panels(const Gather<T>& rows) noexcept {
    const Gather<T> g = rows;
    constexpr ptrdiff_t L = kLanes<T>, P = NV * L;
    constexpr ptrdiff_t ahead = 8;  // rows; a shuffled row is a cache miss
    const ptrdiff_t padded = (g.columns + P - 1) / P * P;
    for (ptrdiff_t r = 0; r < g.rows; ++r) {
        const T* from = row_of(g, r);
        if (g.index && r + ahead < g.rows) {
            const T* next = row_of(g, r + ahead);
            for (ptrdiff_t c = 0; c < g.columns; c += 64 / sizeof(T)) __builtin_prefetch(next + c);
            __builtin_prefetch(next + g.columns - 1);  // rows need not begin with a line
        }
        for (ptrdiff_t c = 0; c < padded; c += L) {
            const ptrdiff_t left = g.columns - c;
            Vec<T> v = left >= L ? load(from + c) : load_first(from + c, left);
            if (g.shift) v = (v - load(g.shift + c)) * load(g.scale + c);
            store(g.to + (c / P) * g.stride * P + r * P + c % P, v);
        }
    }
}

// One square of samples and columns, transposed in registers; samples beyond the last are zero.
template <class T>
inline void gather_square(const Gather<T>& g, ptrdiff_t r, ptrdiff_t c) {
    constexpr ptrdiff_t L = kLanes<T>;
    Vec<T> v[L];
    for (ptrdiff_t i = 0; i < L; ++i) {
        v[i] = r + i < g.rows ? load(row_of(g, r + i) + c) : Vec<T>{};
        if (g.shift && r + i < g.rows) v[i] = (v[i] - load(g.shift + c)) * load(g.scale + c);
    }
    transpose_in_registers<T>(v);
    for (ptrdiff_t i = 0; i < L; ++i) store(g.to + (c + i) * g.stride + r, v[i]);
}

template <class T>
void gather_lanes(const Gather<T>& rows) noexcept {
    const Gather<T> g = rows;
    constexpr ptrdiff_t L = kLanes<T>;
    const ptrdiff_t lanes = (g.rows + L - 1) / L * L;
    ptrdiff_t c = 0;
    for (; c + L <= g.columns; c += L)
        for (ptrdiff_t r = 0; r < lanes; r += L) gather_square(g, r, c);
    for (; c < g.columns; ++c) {
        const T shift = g.shift ? g.shift[c] : T(0), scale = g.shift ? g.scale[c] : T(1);
        T* to = g.to + c * g.stride;
        for (ptrdiff_t r = 0; r < g.rows; ++r) to[r] = (row_of(g, r)[c] - shift) * scale;
        for (ptrdiff_t r = g.rows; r < lanes; ++r) to[r] = T(0);
    }
}

template <class T, int NV>
void transpose_block(const T* from, T* to) noexcept {
    constexpr ptrdiff_t L = kLanes<T>, P = NV * L;
    for (int i = 0; i < NV; ++i)
        for (int o = 0; o < NV; ++o) transpose_square<T>(from + i * L * P + o * L, P, to + o * L * P + i * L, P);
}

// Whole squares: rows are rounded up to lanes on both sides, columns to lanes in the transposed one.
template <class T, int NV>
void panels_to_lanes(const T* from, ptrdiff_t panel_stride, ptrdiff_t rows, ptrdiff_t columns, T* to,
                     ptrdiff_t lane_stride) noexcept {
    constexpr ptrdiff_t L = kLanes<T>, P = NV * L;
    for (ptrdiff_t c = 0; c < columns; c += L)
        for (ptrdiff_t r = 0; r < rows; r += L)
            transpose_square<T>(from + (c / P) * panel_stride * P + r * P + c % P, P, to + c * lane_stride + r,
                                lane_stride);
}

template <class T, int NV>
void lanes_to_panels(const T* from, ptrdiff_t lane_stride, ptrdiff_t rows, ptrdiff_t columns, T* to,
                     ptrdiff_t panel_stride) noexcept {
    constexpr ptrdiff_t L = kLanes<T>, P = NV * L;
    const ptrdiff_t padded = (columns + P - 1) / P * P;
    for (ptrdiff_t c = 0; c < padded; c += L)
        for (ptrdiff_t r = 0; r < rows; r += L)
            transpose_square<T>(from + c * lane_stride + r, lane_stride,
                                to + (c / P) * panel_stride * P + r * P + c % P, P);
}

template <class T, int NV>
void column_sums(const T* from, ptrdiff_t rows, T* sums, bool keep) noexcept {
    constexpr ptrdiff_t L = kLanes<T>, P = NV * L;
    constexpr int chains = 4;  // additions that do not wait for each other
    Vec<T> sum[chains][NV] = {};
    ptrdiff_t r = 0;
    for (; r + chains <= rows; r += chains)
#pragma GCC unroll 4
        for (int c = 0; c < chains; ++c)
            for (int v = 0; v < NV; ++v) sum[c][v] += load(from + (r + c) * P + v * L);
    for (; r < rows; ++r)
        for (int v = 0; v < NV; ++v) sum[0][v] += load(from + r * P + v * L);
    for (int v = 0; v < NV; ++v) {
        const Vec<T> total = (sum[0][v] + sum[1][v]) + (sum[2][v] + sum[3][v]);
        store(sums + v * L, keep ? load(sums + v * L) + total : total);
    }
}

template <class T>
double sum_squares(const T* from, ptrdiff_t n) noexcept {
    constexpr ptrdiff_t block = 1024;
    double total = 0;
    for (ptrdiff_t start = 0; start < n; start += block) {
        Vec<T> sum{};
        const ptrdiff_t end = start + block < n ? start + block : n;
        for (ptrdiff_t i = start; i < end; i += kLanes<T>) {
            const Vec<T> v = load(from + i);
            sum = fma(v, v, sum);
        }
        total += static_cast<double>(sum_lanes<T>(sum));
    }
    return total;
}

// x * 0 is NaN for every x that is not finite.
template <class T>
bool all_finite(const T* from, ptrdiff_t n) noexcept {
    Vec<T> probe{};
    for (ptrdiff_t i = 0; i < n; i += kLanes<T>) probe += load(from + i) * T(0);
    return sum_lanes<T>(probe) == T(0);
}

// Whether the squares of all are finite.
template <class T>
bool squares_finite(const T* from, ptrdiff_t n) noexcept {
    Vec<T> probe{};
    for (ptrdiff_t i = 0; i < n; i += kLanes<T>) {
        const Vec<T> v = load(from + i);
        probe += v * v * T(0);
    }
    return sum_lanes<T>(probe) == T(0);
}

// Independent chains of fused multiply-adds in registers: the most that this machine can do.
template <class T>
double fma_peak(int64_t repeats) noexcept {
    constexpr int chains = 12;
    Vec<T> acc[chains];
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) acc[i] = splat(T(i));
    Vec<T> factor = splat(T(0.999)), term = splat(T(0.001));
    for (int64_t r = 0; r < repeats; ++r) {
#pragma GCC unroll 12
        for (int i = 0; i < chains; ++i) acc[i] = fma(acc[i], factor, term);
        asm volatile("" : "+r"(r));  // keeps the loop
    }
    Vec<T> sum{};
#pragma GCC unroll 12
    for (int i = 0; i < chains; ++i) sum += acc[i];
    volatile T sink = sum_lanes<T>(sum);
    static_cast<void>(sink);
    return 2.0 * chains * kLanes<T> * static_cast<double>(repeats);
}

}  // namespace
