// Products of few rows. A tile of product.h has too few sums then: every multiply-add waits for the one before it. Here
// panels are computed side by side. Every sum runs in the same order, so that the bits are the same.
#pragma once
#include "kernels/product.h"

namespace {

using gradstep::FewRows;
using gradstep::kFewRows;

// M rows and N panels side by side.
template <class T, int M, int N, int PV>
inline void side_by_side(const Product<T>& p, ptrdiff_t b_panel, ptrdiff_t c_panel) {
    constexpr ptrdiff_t P = kPanel<T, PV>;
    Vec<T> acc[M][N * PV];
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < N * PV; ++v) acc[m][v] = load(p.bias + v * kLanes<T>);
    const T *a = p.a, *b = p.b;
    for (ptrdiff_t left = p.depth; left > 0; left -= P, a += p.a_segment, b += p.b_segment) {
        const ptrdiff_t depth = left < P ? left : P;
        for (ptrdiff_t k = 0; k < depth; ++k)
#pragma GCC unroll 4
            for (int m = 0; m < M; ++m) {
                const Vec<T> scalar = splat(a[m * P + k]);
#pragma GCC unroll 8
                for (int v = 0; v < N * PV; ++v)
                    acc[m][v] = fma(scalar, load(b + v / PV * b_panel + k * P + v % PV * kLanes<T>), acc[m][v]);
            }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < N * PV; ++v) store(p.c + v / PV * c_panel + m * P + v % PV * kLanes<T>, acc[m][v]);
}

// As many times N panels as there are, then half as many side by side, and so on.
template <class T, int M, int N, int PV>
inline void panels_of(Product<T> p, ptrdiff_t panels, ptrdiff_t b_panel, ptrdiff_t c_panel) {
    for (; panels >= N; panels -= N) {
        side_by_side<T, M, N, PV>(p, b_panel, c_panel);
        p.b += N * b_panel;
        p.c += N * c_panel;
        p.bias += N * kPanel<T, PV>;
    }
    if constexpr (N > 1)
        if (panels > 0) panels_of<T, M, N / 2, PV>(p, panels, b_panel, c_panel);
}

template <class T, int PV>
void product_few_rows(const FewRows<T>& f) noexcept {
    static_assert(kFewRows == 2);
    if (f.product.rows == 1)
        panels_of<T, 1, 8 / PV, PV>(f.product, f.panels, f.b_panel, f.c_panel);
    else
        panels_of<T, 2, 4 / PV, PV>(f.product, f.panels, f.b_panel, f.c_panel);
}

}  // namespace
