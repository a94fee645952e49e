// The one kernel form of all matrix products: C += A B with vectors from a contiguous panel of B and
// scalars of A broadcast. Forward (A = X), dX (A = dY) and dW (A = transposed X) differ in strides only.
#pragma once
#include "kernels/table.h"
#include "simd/vec.h"

namespace {

using gradstep::Init;
using gradstep::Product;

// Where A's element (row m, depth k) and the rows of B and C lie.
template <class T, int NV>
struct RowPanel {
    static constexpr ptrdiff_t P = NV * kLanes<T>;
    explicit RowPanel(const Product<T>&) {}
    static constexpr ptrdiff_t row = P, depth = 1, b_depth = P, c_row = P;
    static constexpr ptrdiff_t whole_segment(const Product<T>&) { return P; }
};
template <class T, int NV>
struct TransposedPanel {
    static constexpr ptrdiff_t P = NV * kLanes<T>;
    explicit TransposedPanel(const Product<T>&) {}
    static constexpr ptrdiff_t row = 1, depth = P, b_depth = P, c_row = P;
    static ptrdiff_t whole_segment(const Product<T>& p) { return p.segment; }
};
template <class T, int NV>
struct Strided {
    explicit Strided(const Product<T>& p) : row(p.a_row), depth(p.a_depth), b_depth(p.b_depth), c_row(p.c_row) {}
    const ptrdiff_t row, depth, b_depth, c_row;
    static ptrdiff_t whole_segment(const Product<T>& p) { return p.segment; }
};

template <class T, int M, int NV, class Strides>
inline void start_tile(const Product<T>& p, const Strides& s, const T* bias, const T* c, Vec<T> (&acc)[M][NV]) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            if (p.init == Init::keep)
                acc[m][v] = load(c + m * s.c_row + v * kLanes<T>);
            else if (p.init == Init::lanes)
                acc[m][v] = load(bias + v * kLanes<T>);
            else if (p.init == Init::rows)
                acc[m][v] = splat(bias[m]);
            else
                acc[m][v] = Vec<T>{};
        }
}

// acc += A B over `depth` columns of A and rows of B.
template <class T, int M, int NV, class Strides>
inline void multiply_add(const Strides& s, const T* a, const T* b, ptrdiff_t depth, Vec<T> (&acc)[M][NV]) {
#pragma GCC unroll 2
    for (ptrdiff_t k = 0; k < depth; ++k) {
        Vec<T> right[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) right[v] = load(b + k * s.b_depth + v * kLanes<T>);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const Vec<T> left = splat(a[m * s.row + k * s.depth]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[m][v] = fma(left, right[v], acc[m][v]);
        }
    }
}

template <class T, int M, int NV, template <class, int> class Strides>
void product_tile(const Product<T>& p, const T* a, const T* b, const T* bias, T* c) {
    const Strides<T, NV> s(p);
    Vec<T> acc[M][NV];
    start_tile<T, M, NV>(p, s, bias, c, acc);
    ptrdiff_t left = p.depth;
    for (; left >= p.segment; left -= p.segment, a += p.a_segment, b += p.b_segment)
        multiply_add<T, M, NV>(s, a, b, Strides<T, NV>::whole_segment(p), acc);
    if (left > 0) multiply_add<T, M, NV>(s, a, b, left, acc);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(c + m * s.c_row + v * kLanes<T>, acc[m][v]);
}

template <class T>
using Tile = void (*)(const Product<T>&, const T*, const T*, const T*, T*);

template <class T, int Most, int NV, template <class, int> class Strides>
struct Tiles {
    Tile<T> by_rows[Most + 1];
    template <int... I>
    static constexpr Tiles make(Indices<I...>) {
        return {{nullptr, &product_tile<T, I + 1, NV, Strides>...}};
    }
};

// Rows are split evenly: 32 = 11 + 11 + 10 runs at the speed of a full tile, 14 + 14 + 4 does not.
template <class T, int Most, int NV, template <class, int> class Strides>
inline void product_rows(const Product<T>& p, const T* b, T* c) {
    static constexpr Tiles<T, Most, NV, Strides> tiles =
        Tiles<T, Most, NV, Strides>::make(typename MakeIndices<Most>::Type{});
    const Strides<T, NV> s(p);
    const T* a = p.a;
    const T* bias = p.bias;
    if (p.rows <= Most) {
        tiles.by_rows[p.rows](p, a, b, bias, c);
        return;
    }
    const ptrdiff_t n_tiles = (p.rows + Most - 1) / Most;
    const ptrdiff_t rows = p.rows / n_tiles, longer = p.rows % n_tiles;
    for (ptrdiff_t t = 0; t < n_tiles; ++t) {
        const ptrdiff_t m = rows + (t < longer);
        tiles.by_rows[m](p, a, b, bias, c);
        a += m * s.row;
        c += m * s.c_row;
        if (p.init == Init::rows) bias += m;
    }
}

template <class T, int NV>
void product_panel(const Product<T>& p) noexcept {
    product_rows<T, kTileRows[NV], NV, RowPanel>(p, p.b, p.c);
}

template <class T, int NV>
void product_transposed_panel(const Product<T>& p) noexcept {
    product_rows<T, kTileRows[NV], NV, TransposedPanel>(p, p.b, p.c);
}

// Samples in the lanes: few rows of C (features), many columns, four vectors of them at a time.
template <class T>
void product_lanes(const Product<T>& p) noexcept {
    constexpr int rows = kSumTile;
    constexpr ptrdiff_t L = kLanes<T>;
    ptrdiff_t column = 0;
    for (; column + 4 * L <= p.columns; column += 4 * L)
        product_rows<T, rows, 4, Strided>(p, p.b + column, p.c + column);
    if (column + 2 * L <= p.columns) {
        product_rows<T, rows, 2, Strided>(p, p.b + column, p.c + column);
        column += 2 * L;
    }
    if (column < p.columns) product_rows<T, rows, 1, Strided>(p, p.b + column, p.c + column);
}

}  // namespace
