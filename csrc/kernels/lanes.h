// Tiny networks, samples in the lanes: activations are [F][lanes] and weights row-major (I, O), broadcast. A
// pass runs a tile of samples through all layers in one call, because here a call costs as much as a layer.
#pragma once
#include "kernels/table.h"
#include "simd/vec.h"

namespace {

using gradstep::LanesLayer;
using gradstep::LanesPass;

// c (rows x lanes) = bias + A b, with A's element (m, k) at a[m * a_row + k * a_depth].
template <class T>
struct LanesProduct {
    ptrdiff_t depth, a_row, a_depth, lanes;
};

template <class T, int M, int NV>
inline void lanes_tile(const LanesProduct<T>& p, const T* a, const T* b, const T* bias, T* c) {
    constexpr ptrdiff_t L = kLanes<T>;
    const auto [depth, a_row, a_depth, lanes] = p;
    Vec<T> acc[M][NV];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) acc[m][v] = bias ? splat(bias[m]) : Vec<T>{};
    for (ptrdiff_t k = 0; k < depth; ++k) {
        Vec<T> right[NV];
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) right[v] = load(b + k * lanes + v * L);
#pragma GCC unroll 4
        for (int m = 0; m < M; ++m) {
            const Vec<T> left = splat(a[m * a_row + k * a_depth]);
#pragma GCC unroll 8
            for (int v = 0; v < NV; ++v) acc[m][v] = fma(left, right[v], acc[m][v]);
        }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < NV; ++v) store(c + m * lanes + v * L, acc[m][v]);
}

// Columns that fill no tile of NV + 1 vectors.
template <class T, int M, int NV>
inline void lanes_rest(const LanesProduct<T>& p, const T* a, const T* b, const T* bias, T* c, ptrdiff_t column) {
    if constexpr (NV > 0) {
        if (p.lanes - column == NV * kLanes<T>)
            lanes_tile<T, M, NV>(p, a, b + column, bias, c + column);
        else
            lanes_rest<T, M, NV - 1>(p, a, b, bias, c, column);
    }
}

template <class T, int M>
void lanes_rows(const LanesProduct<T>& p, const T* a, const T* b, const T* bias, T* c) {
    // As many as there are accumulators for, but no more than a row of 4: each number is compiled for each M.
    constexpr int most = kLaneAccumulators / M;
    constexpr int vectors = M == 1 ? 8 : most < 4 ? most : 4;
    constexpr ptrdiff_t width = vectors * kLanes<T>;
    ptrdiff_t column = 0;
    for (; column + width <= p.lanes; column += width) lanes_tile<T, M, vectors>(p, a, b + column, bias, c + column);
    lanes_rest<T, M, vectors - 1>(p, a, b, bias, c, column);
}

template <class T, int M = kLaneRows>
inline void lanes_product(const LanesProduct<T>& p, ptrdiff_t rows, const T* a, const T* b, const T* bias, T* c) {
    for (; rows >= M; rows -= M) {
        lanes_rows<T, M>(p, a, b, bias, c);
        a += M * p.a_row;
        c += M * p.lanes;
        if (bias) bias += M;
    }
    if constexpr (M > 1) lanes_product<T, M - 1>(p, rows, a, b, bias, c);
}

// Weight gradients are dot products over the lanes: each keeps a whole vector of partial sums, which is added
// up across its lanes once a step.
template <class T>
struct LanesSums {
    const T* x;
    const T* delta;
    ptrdiff_t inputs, outputs, lanes;
    T* weights;  // [inputs][outputs] vectors
    T* biases;   // [outputs] vectors
    bool keep;
};

// The first input's tile adds up the biases too.
template <class T, int NI, int NO, bool biases>
inline void lanes_sums_tile(const LanesSums<T>& sums, ptrdiff_t i0, ptrdiff_t o0) {
    constexpr ptrdiff_t L = kLanes<T>;
    const LanesSums<T> s = sums;
    Vec<T> acc[NI][NO], bias[NO];
    T* at = s.weights + (i0 * s.outputs + o0) * L;
#pragma GCC unroll 4
    for (int o = 0; o < NO; ++o) {
        bias[o] = biases && s.keep ? load(s.biases + (o0 + o) * L) : Vec<T>{};
#pragma GCC unroll 4
        for (int i = 0; i < NI; ++i) acc[i][o] = s.keep ? load(at + (i * s.outputs + o) * L) : Vec<T>{};
    }
    const T* x = s.x + i0 * s.lanes;
    const T* delta = s.delta + o0 * s.lanes;
    for (ptrdiff_t b = 0; b < s.lanes; b += L) {
        Vec<T> right[NO];
#pragma GCC unroll 4
        for (int o = 0; o < NO; ++o) {
            right[o] = load(delta + o * s.lanes + b);
            if constexpr (biases) bias[o] += right[o];
        }
#pragma GCC unroll 4
        for (int i = 0; i < NI; ++i) {
            const Vec<T> left = load(x + i * s.lanes + b);
#pragma GCC unroll 4
            for (int o = 0; o < NO; ++o) acc[i][o] = fma(left, right[o], acc[i][o]);
        }
    }
#pragma GCC unroll 4
    for (int o = 0; o < NO; ++o) {
        if constexpr (biases) store(s.biases + (o0 + o) * L, bias[o]);
#pragma GCC unroll 4
        for (int i = 0; i < NI; ++i) store(at + (i * s.outputs + o) * L, acc[i][o]);
    }
}

template <class T, int NI, int NO>
void lanes_sums_block(const LanesSums<T>& s, ptrdiff_t i, ptrdiff_t o) {
    if (i == 0)
        lanes_sums_tile<T, NI, NO, true>(s, i, o);
    else
        lanes_sums_tile<T, NI, NO, false>(s, i, o);
}

template <class T, int NO>
inline void lanes_sums_columns(const LanesSums<T>& s, ptrdiff_t o) {
    ptrdiff_t i = 0;
    for (; i + kDotRows <= s.inputs; i += kDotRows) lanes_sums_block<T, kDotRows, NO>(s, i, o);
    for (; i + 2 <= s.inputs; i += 2) lanes_sums_block<T, 2, NO>(s, i, o);
    for (; i < s.inputs; ++i) lanes_sums_block<T, 1, NO>(s, i, o);
}

template <class T>
inline void lanes_sums(const LanesSums<T>& s) {
    ptrdiff_t o = 0;
    for (; o + kDotColumns <= s.outputs; o += kDotColumns) lanes_sums_columns<T, kDotColumns>(s, o);
    for (; o + 2 <= s.outputs; o += 2) lanes_sums_columns<T, 2>(s, o);
    for (; o < s.outputs; ++o) lanes_sums_columns<T, 1>(s, o);
}

template <class T>
void lanes_forward(const LanesPass<T>& p) noexcept {
    const T* x = p.x;
    for (ptrdiff_t l = 0; l < p.depth; ++l) {
        const LanesLayer<T>& layer = p.layers[l];
        lanes_product<T>({layer.inputs, 1, layer.outputs, p.lanes}, layer.outputs, p.theta + layer.weights, x,
                         p.theta + layer.biases, layer.z);
        if (layer.activation->forward) layer.activation->forward(layer.z, layer.a, layer.outputs * p.lanes);
        x = layer.a;
    }
}

template <class T>
inline void end_phase(const LanesPass<T>& p, gradstep::Phase phase) {
    if (p.laps) p.laps->end(p.laps, phase);
}

template <class T>
void lanes_backward(const LanesPass<T>& p) noexcept {
    constexpr ptrdiff_t L = kLanes<T>;
    T* delta = p.delta;
    for (ptrdiff_t l = p.depth - 1; l >= 0; --l) {
        const LanesLayer<T>& layer = p.layers[l];
        if (layer.activation->backward) layer.activation->backward(layer.z, layer.a, delta, layer.outputs * p.lanes);
        lanes_sums<T>({l ? p.layers[l - 1].a : p.x, delta, layer.inputs, layer.outputs, p.lanes,
                       p.sums + layer.weights * L, p.sums + layer.biases * L, p.keep});
        end_phase(p, gradstep::Phase::weight_gradient);
        if (l == 0 && !p.input_gradient) return;
        T* below = p.below[l % 2];
        lanes_product<T>({layer.outputs, layer.outputs, 1, p.lanes}, layer.inputs, p.theta + layer.weights, delta,
                         nullptr, below);
        end_phase(p, gradstep::Phase::input_gradient);
        delta = below;
    }
}

// Ones in the first n lanes' bits.
template <class T>
inline Bits<T> first_lanes(int n) {
    Bits<T> lane{};
    for (int i = 0; i < kLanes<T>; ++i) lane[i] = i;
    return lane < n;
}

template <class T, int D, int... I>
inline Vec<T> add_neighbours(Vec<T> v, Indices<I...>) {
    return v + __builtin_shufflevector(v, v, (I ^ D)...);
}

// Lane j of the result is the sum of v[j % N]: neighbours exchange lanes and are added, then neighbours of those. Once
// a single vector is left, its lanes are added among themselves, in the same order.
template <class T, int N, int D = 1>
inline Vec<T> sums_of_vectors(Vec<T> (&v)[N]) {
    using Every = typename MakeIndices<kLanes<T>>::Type;
    if constexpr (D == kLanes<T>) {
        return v[0];
    } else {
        if constexpr (D >= N) v[0] = add_neighbours<T, D>(v[0], Every{});
#pragma GCC unroll 16
        for (int i = 0; i + D < N; i += 2 * D) {
            exchange<T, D>(v[i], v[i + D], Every{});
            v[i] += v[i + D];
        }
        return sums_of_vectors<T, N, 2 * D>(v);
    }
}

// At most N sums, by the smallest power of two that holds them: lanes beyond the last are zero. They are stored by
// whole vectors: the update loads them so, and a load that spans several smaller stores waits until they have left the
// processor's store queue.
template <class T, int N = kLanes<T>>
inline void sum_up_to(const T* acc, ptrdiff_t n, T* to) {
    if constexpr (N > 1)
        if (2 * n <= N) return sum_up_to<T, N / 2>(acc, n, to);
    Vec<T> v[N];
#pragma GCC unroll 16
    for (int j = 0; j < N; ++j) v[j] = j < n ? load(acc + j * kLanes<T>) : Vec<T>{};
    Vec<T> sums = sums_of_vectors<T, N>(v);
    if constexpr (N < kLanes<T>) sums = from_bits<T>(to_bits<T>(sums) & first_lanes<T>(N));
    store(to, sums);
}

template <class T>
void sum_vectors(const T* acc, ptrdiff_t n, T* to) noexcept {
    constexpr ptrdiff_t L = kLanes<T>;
    for (; n > 0; n -= L) {
        sum_up_to<T>(acc, n < L ? n : L, to);
        acc += L * L;
        to += L;
    }
}

}  // namespace
