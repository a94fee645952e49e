// Products of few rows. In a tile of product.h every multiply-add would wait for the one before it; here panels are
// computed side by side. Every sum runs in the same order, so that the bits are the same.
#pragma once
#include "kernels/product.h"

namespace {

using gradstep::FewRows;

// M rows, and N panels side by side.
template <class T, int M, int N, int PV>
inline void side_by_side(const FewRows<T>& p) {
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
                    acc[m][v] = fma(scalar, load(b + v / PV * P * P + k * P + v % PV * kLanes<T>), acc[m][v]);
            }
    }
#pragma GCC unroll 4
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 8
        for (int v = 0; v < N * PV; ++v) store(p.c + v / PV * p.c_panel + m * P + v % PV * kLanes<T>, acc[m][v]);
}

// N panels at a time while there are so many, then half as many, and so on.
template <class T, int M, int N, int PV>
inline void panels_of(FewRows<T> p) {
    constexpr ptrdiff_t P = kPanel<T, PV>;
    for (; p.panels >= N; p.panels -= N) {
        side_by_side<T, M, N, PV>(p);
        p.b += N * P * P;
        p.c += N * p.c_panel;
        p.bias += N * P;
    }
    if constexpr (N > 1)
        if (p.panels > 0) panels_of<T, M, N / 2, PV>(p);
}

template <class T, int PV>
void product_few_rows(const FewRows<T>& p) noexcept {
    static_assert(gradstep::kFewRows == 2);
    if (p.rows == 1) panels_of<T, 1, 8 / PV, PV>(p);
    if (p.rows == 2) panels_of<T, 2, 4 / PV, PV>(p);
}

}  // namespace
