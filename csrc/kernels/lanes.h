// Weight gradients of tiny networks: samples lie in the lanes, so a gradient is a dot product. Each
// keeps a whole vector of partial sums, which is added up across its lanes once a step.
#pragma once
#include "kernels/table.h"
#include "simd/vec.h"

namespace {

using gradstep::LaneSums;

template <class T, int NI, int NO>
void lane_sums_tile(const LaneSums<T>& s, ptrdiff_t i0, ptrdiff_t o0) {
    constexpr ptrdiff_t L = kLanes<T>;
    Vec<T> acc[NI][NO];
    T* at = s.weights + (i0 * s.outputs + o0) * L;
#pragma GCC unroll 4
    for (int i = 0; i < NI; ++i)
#pragma GCC unroll 4
        for (int o = 0; o < NO; ++o) acc[i][o] = s.keep ? load(at + (i * s.outputs + o) * L) : Vec<T>{};
    const T* x = s.x + i0 * s.stride;
    const T* dy = s.dy + o0 * s.stride;
    for (ptrdiff_t b = 0; b < s.lanes; b += L) {
        Vec<T> right[NO];
#pragma GCC unroll 4
        for (int o = 0; o < NO; ++o) right[o] = load(dy + o * s.stride + b);
#pragma GCC unroll 4
        for (int i = 0; i < NI; ++i) {
            const Vec<T> left = load(x + i * s.stride + b);
#pragma GCC unroll 4
            for (int o = 0; o < NO; ++o) acc[i][o] = fma(left, right[o], acc[i][o]);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < NI; ++i)
#pragma GCC unroll 4
        for (int o = 0; o < NO; ++o) store(at + (i * s.outputs + o) * L, acc[i][o]);
}

template <class T, int NO>
void lane_sums_columns(const LaneSums<T>& s, ptrdiff_t o0) {
    ptrdiff_t i = 0;
    for (; i + kSumTile <= s.inputs; i += kSumTile) lane_sums_tile<T, kSumTile, NO>(s, i, o0);
    for (; i + 2 <= s.inputs; i += 2) lane_sums_tile<T, 2, NO>(s, i, o0);
    for (; i < s.inputs; ++i) lane_sums_tile<T, 1, NO>(s, i, o0);
}

template <class T>
void lane_sums_bias(const LaneSums<T>& s) {
    constexpr ptrdiff_t L = kLanes<T>;
    for (ptrdiff_t o = 0; o < s.outputs; ++o) {
        T* at = s.biases + o * L;
        Vec<T> acc = s.keep ? load(at) : Vec<T>{};
        for (ptrdiff_t b = 0; b < s.lanes; b += L) acc += load(s.dy + o * s.stride + b);
        store(at, acc);
    }
}

template <class T>
void lane_sums(const LaneSums<T>& s) noexcept {
    ptrdiff_t o = 0;
    for (; o + kSumTile <= s.outputs; o += kSumTile) lane_sums_columns<T, kSumTile>(s, o);
    for (; o + 2 <= s.outputs; o += 2) lane_sums_columns<T, 2>(s, o);
    for (; o < s.outputs; ++o) lane_sums_columns<T, 1>(s, o);
    lane_sums_bias(s);
}

// Sums are stored by whole vectors: the update loads them so, and a load that spans several smaller stores
// waits until they have left the processor's store queue.
template <class T>
void sum_vectors(const T* acc, ptrdiff_t n, T* to) noexcept {
    constexpr int L = kLanes<T>;
    Bits<T> lane;
    for (int j = 0; j < L; ++j) lane[j] = j;
    for (ptrdiff_t i = 0; i < n; i += L) {
        const int count = n - i < L ? static_cast<int>(n - i) : L;
        Vec<T> sums{};
        for (int j = 0; j < count; ++j) sums = lane == j ? splat(sum_lanes<T>(load(acc + (i + j) * L))) : sums;
        store(to + i, sums);
    }
}

}  // namespace
