// The one kernel form of all matrix products: C += A B with vectors from a contiguous panel of B and
// scalars of A broadcast. Forward (A = X), dX (A = dY) and dW (A = transposed X) differ in strides only.
#pragma once
#include "kernels/table.h"
#include "simd/vec.h"

namespace {

using gradstep::Init;
using gradstep::Product;

template <class T, int NV>
constexpr ptrdiff_t kPanel = NV * kLanes<T>;

// Where A's element (row m, depth k) lies. A panel's width is known here, so that the loop over a whole
// segment of rows has a constant trip count.
template <class T, int NV>
struct RowPanels {
    static constexpr ptrdiff_t row = kPanel<T, NV>, depth = 1;
    static constexpr ptrdiff_t whole_segment(const Product<T>&) { return kPanel<T, NV>; }
};
template <class T, int NV>
struct TransposedPanels {
    static constexpr ptrdiff_t row = 1, depth = kPanel<T, NV>;
    static ptrdiff_t whole_segment(const Product<T>& p) { return p.segment; }
};

template <class T, int M, int NV>
inline void start_tile(const Product<T>& p, const T* c, Vec<T> (&acc)[M][NV]) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            if (p.init == Init::keep)
                acc[m][v] = load(c + m * kPanel<T, NV> + v * kLanes<T>);
            else if (p.init == Init::bias)
                acc[m][v] = load(p.bias + v * kLanes<T>);
            else
                acc[m][v] = Vec<T>{};
        }
}

// acc += A B over `depth` columns of A and rows of B.
template <class T, int M, int NV, class A>
inline void multiply_add(const T* a, const T* b, ptrdiff_t depth, Vec<T> (&acc)[M][NV]) {
#pragma GCC unroll 2
    for (ptrdiff_t k = 0; k < depth; ++k) {
        Vec<T> right[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) right[v] = load(b + k * kPanel<T, NV> + v * kLanes<T>);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const Vec<T> left = splat(a[m * A::row + k * A::depth]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[m][v] = fma(left, right[v], acc[m][v]);
        }
    }
}

template <class T, int M, int NV, class A>
void product_tile(const Product<T>& p, const T* a, T* c) {
    Vec<T> acc[M][NV];
    start_tile<T, M, NV>(p, c, acc);
    const T* b = p.b;
    ptrdiff_t left = p.depth;
    for (; left >= p.segment; left -= p.segment, a += p.a_segment, b += p.b_segment)
        multiply_add<T, M, NV, A>(a, b, A::whole_segment(p), acc);
    if (left > 0) multiply_add<T, M, NV, A>(a, b, left, acc);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(c + m * kPanel<T, NV> + v * kLanes<T>, acc[m][v]);
}

// The tile of each number of rows, from 1 on.
template <class T, int Most, int NV, class A>
struct Tiles {
    using Tile = void (*)(const Product<T>&, const T*, T*);
    Tile by_rows[Most + 1];
    template <int... I>
    static constexpr Tiles make(Indices<I...>) {
        return {{nullptr, &product_tile<T, I + 1, NV, A>...}};
    }
};

// Rows are split evenly: 32 = 11 + 11 + 10 runs at the speed of a full tile, 14 + 14 + 4 does not.
template <class T, int NV, class A>
inline void product_rows(const Product<T>& p) {
    constexpr int most = kTileRows[NV];
    static constexpr auto tiles = Tiles<T, most, NV, A>::make(typename MakeIndices<most>::Type{});
    if (p.rows <= most) {
        tiles.by_rows[p.rows](p, p.a, p.c);
        return;
    }
    const ptrdiff_t n_tiles = (p.rows + most - 1) / most;
    const ptrdiff_t rows = p.rows / n_tiles, longer = p.rows % n_tiles;
    const T* a = p.a;
    T* c = p.c;
    for (ptrdiff_t t = 0; t < n_tiles; ++t) {
        const ptrdiff_t m = rows + (t < longer);
        tiles.by_rows[m](p, a, c);
        a += m * A::row;
        c += m * kPanel<T, NV>;
    }
}

template <class T, int NV>
void product_panel(const Product<T>& p) noexcept {
    product_rows<T, NV, RowPanels<T, NV>>(p);
}

template <class T, int NV>
void product_transposed_panel(const Product<T>& p) noexcept {
    product_rows<T, NV, TransposedPanels<T, NV>>(p);
}

}  // namespace
