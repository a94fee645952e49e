// The first layer on sparse rows: only what is there is multiplied.
#pragma once
#include "kernels/table.h"
#include "simd/vec.h"

namespace {

using gradstep::SparseEntry;
using gradstep::SparseRow;

// One row of z = b + x W, for all output panels.
template <class T, int V>
void sparse_forward(const SparseRow<T>& row) noexcept {
    constexpr ptrdiff_t P = kLanes<T> * V;
    const SparseRow<T> s = row;
    for (ptrdiff_t o = 0; o < s.panels; ++o) {
        Vec<T> sum[V];
        for (int v = 0; v < V; ++v) sum[v] = load(s.bias + o * P + v * kLanes<T>);
        for (int64_t k = 0; k < s.n; ++k) {
            const ptrdiff_t column = s.columns[k];
            const T* weights = s.weights + ((column / P * s.panels + o) * P + column % P) * P;
            for (int v = 0; v < V; ++v) sum[v] = fma(splat(s.values[k]), load(weights + v * kLanes<T>), sum[v]);
        }
        for (int v = 0; v < V; ++v) store(s.z + o * s.stride * P + v * kLanes<T>, sum[v]);
    }
}

// to (P x P) (+)= the entries of one input panel times the errors of one output panel.
template <class T, int V>
void sparse_gradient(const SparseEntry<T>* entries, int64_t n, const T* delta, T* to, bool keep) noexcept {
    constexpr ptrdiff_t P = kLanes<T> * V;
    for (ptrdiff_t i = 0; !keep && i < P * P; i += kLanes<T>) store(to + i, Vec<T>{});
    for (int64_t k = 0; k < n; ++k) {
        const SparseEntry<T> e = entries[k];
        for (int v = 0; v < V; ++v) {
            T* at = to + e.column * P + v * kLanes<T>;
            store(at, fma(splat(e.value), load(delta + e.row * P + v * kLanes<T>), load(at)));
        }
    }
}

}  // namespace
