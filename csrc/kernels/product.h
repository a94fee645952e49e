// The one kernel form of all matrix products: C += A B with vectors from a contiguous panel of B and
// scalars of A broadcast. Forward (A = X), dX (A = dY) and dW (A = transposed X) differ in strides only.
// Panels are PV vectors wide, of which NV are computed: the last panel of a layer may need its first vector only.
#pragma once
#include "kernels/table.h"
#include "simd/vec.h"

namespace {

using gradstep::Init;
using gradstep::Product;

template <class T, int PV>
constexpr ptrdiff_t kPanel = PV * kLanes<T>;

template <class T, int M, int NV, int PV>
inline void start_tile(const Product<T>& p, const T* c, Vec<T> (&acc)[M][NV]) {
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) {
            if (p.init == Init::keep)
                acc[m][v] = load(c + m * kPanel<T, PV> + v * kLanes<T>);
            else if (p.init == Init::bias)
                acc[m][v] = load(p.bias + v * kLanes<T>);
            else
                acc[m][v] = Vec<T>{};
        }
}

// Memory that is fetched into the cache while computing, a little before every stretch of the depth: demand alone would
// wait for it now and leave the memory idle then. Fetching takes the place of loads: a line is fetched once, or by
// each stretch whose part of it is smaller.
struct Stream {
    const char* at;
    ptrdiff_t size, step;  // bytes of a stretch, and from one to the next

    void fetch() {
        for (ptrdiff_t i = 0; i < size; i += 64) __builtin_prefetch(at + i);
        at += step;
    }
};

// The blocks that a product is asked to fetch: every tile fetches its share of each.
template <class T, ptrdiff_t P>
struct Ahead {
    Stream blocks[2] = {};
    ptrdiff_t share = 0;  // bytes

    // A tile fetches its share of one block in so many stretches, or in each of one block after the other.
    Ahead(const Product<T>& p, ptrdiff_t tiles, ptrdiff_t stretches) {
        if (!p.ahead[0]) return;
        constexpr auto block = static_cast<uint32_t>(P * P * static_cast<ptrdiff_t>(sizeof(T)));
        const uint32_t part = block / static_cast<uint32_t>(tiles);
        share = part;
        const ptrdiff_t size = part / static_cast<uint32_t>(stretches) + 1;
        const ptrdiff_t step = stretches > 1 ? size : p.ahead_segment * static_cast<ptrdiff_t>(sizeof(T));
        for (int i = 0; i < 2; ++i)
            if (p.ahead[i]) blocks[i] = {reinterpret_cast<const char*>(p.ahead[i]), size, step};
    }

    void end_tile() {
        for (Stream& block : blocks)
            if (block.size) block.at += share;
    }
};

// Where A's element (row m, depth k) lies, and how far a stretch of the depth goes: a constant, so that the loop over
// it has a constant trip count.
template <class T, int PV>
struct RowPanels {
    static constexpr ptrdiff_t row = kPanel<T, PV>, depth = 1;
    static constexpr ptrdiff_t stretch = kPanel<T, PV>;  // a segment
    static ptrdiff_t stretches(const Product<T>&) { return 1; }
    static ptrdiff_t a_step(const Product<T>& p) { return p.a_segment; }
    static ptrdiff_t b_step(const Product<T>& p) { return p.b_segment; }

    // The rows of the next tile.
    static Stream second_stream(const Product<T>& p, const T* a, ptrdiff_t rows, const Stream&) {
        constexpr auto element = static_cast<ptrdiff_t>(sizeof(T));
        return {reinterpret_cast<const char*>(a + rows * row), rows * row * element, p.a_segment * element};
    }
};
template <class T, int PV>
struct TransposedPanels {
    static constexpr ptrdiff_t row = 1, depth = kPanel<T, PV>;
    static constexpr ptrdiff_t stretch = 64;
    static ptrdiff_t stretches(const Product<T>& p) { return (p.depth + stretch - 1) / stretch; }
    static ptrdiff_t a_step(const Product<T>&) { return stretch * depth; }
    static ptrdiff_t b_step(const Product<T>&) { return stretch * depth; }
    static Stream second_stream(const Product<T>&, const T*, ptrdiff_t, const Stream& block) { return block; }
};

// acc += A B over `depth` columns of A and rows of B. Every sum runs in the order of the depth, whatever the number
// of rows: what a row gives does not depend on the rows beside it.
template <class T, int M, int NV, int PV, class A>
inline void multiply_add(const T* a, const T* b, ptrdiff_t depth, Stream (&ahead)[2], Vec<T> (&acc)[M][NV]) {
    if constexpr (PV == 2) {  // large networks
        ahead[0].fetch();
        ahead[1].fetch();
    }
#pragma GCC unroll 4
    for (ptrdiff_t k = 0; k < depth; ++k) {
        Vec<T> right[NV];
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) right[v] = load(b + k * kPanel<T, PV> + v * kLanes<T>);
#pragma GCC unroll 16
        for (int m = 0; m < M; ++m) {
            const Vec<T> left = splat(a[m * A::row + k * A::depth]);
#pragma GCC unroll 4
            for (int v = 0; v < NV; ++v) acc[m][v] = fma(left, right[v], acc[m][v]);
        }
    }
}

template <class T, int M, int NV, int PV, class A>
void product_tile(const Product<T>& p, const T* a, T* c, const Ahead<T, kPanel<T, PV>>& blocks) {
    Vec<T> acc[M][NV];
    start_tile<T, M, NV, PV>(p, c, acc);
    Stream ahead[2] = {blocks.blocks[0], A::second_stream(p, a, M, blocks.blocks[1])};
    const T* b = p.b;
    ptrdiff_t left = p.depth;
    for (; left >= A::stretch; left -= A::stretch, a += A::a_step(p), b += A::b_step(p))
        multiply_add<T, M, NV, PV, A>(a, b, A::stretch, ahead, acc);
    if (left > 0) multiply_add<T, M, NV, PV, A>(a, b, left, ahead, acc);
#pragma GCC unroll 16
    for (int m = 0; m < M; ++m)
#pragma GCC unroll 4
        for (int v = 0; v < NV; ++v) store(c + m * kPanel<T, PV> + v * kLanes<T>, acc[m][v]);
    if constexpr (NV < PV)
        for (int m = 0; p.init != Init::keep && m < M; ++m)
            for (int v = NV; v < PV; ++v) store(c + m * kPanel<T, PV> + v * kLanes<T>, Vec<T>{});
}

// The tile of each number of rows, from 1 on.
template <class T, int Most, int NV, int PV, class A>
struct Tiles {
    using Tile = void (*)(const Product<T>&, const T*, T*, const Ahead<T, kPanel<T, PV>>&);
    Tile by_rows[Most + 1];
    template <int... I>
    static constexpr Tiles make(Indices<I...>) {
        return {{nullptr, &product_tile<T, I + 1, NV, PV, A>...}};
    }
};

// Rows are split evenly: 32 = 11 + 11 + 10 runs at the speed of a full tile, 14 + 14 + 4 does not.
template <class T, int NV, int PV, class A>
inline void product_rows(const Product<T>& p) {
    constexpr int most = kTileRows[NV];
    static constexpr auto tiles = Tiles<T, most, NV, PV, A>::make(typename MakeIndices<most>::Type{});
    if (p.rows <= most) {
        tiles.by_rows[p.rows](p, p.a, p.c, {p, 1, A::stretches(p)});
        return;
    }
    const ptrdiff_t n_tiles = (p.rows + most - 1) / most;
    const ptrdiff_t rows = p.rows / n_tiles, longer = p.rows % n_tiles;
    Ahead<T, kPanel<T, PV>> ahead(p, n_tiles, A::stretches(p));
    const T* a = p.a;
    T* c = p.c;
    for (ptrdiff_t t = 0; t < n_tiles; ++t) {
        const ptrdiff_t m = rows + (t < longer);
        tiles.by_rows[m](p, a, c, ahead);
        ahead.end_tile();
        a += m * A::row;
        c += m * kPanel<T, PV>;
    }
}

template <class T, int PV, class A>
inline void product_columns(const Product<T>& p) {
    if constexpr (PV == 2)
        if (p.half) return product_rows<T, 1, 2, A>(p);
    product_rows<T, PV, PV, A>(p);
}

template <class T, int PV>
void product_panel(const Product<T>& p) noexcept {
    product_columns<T, PV, RowPanels<T, PV>>(p);
}

template <class T, int PV>
void product_transposed_panel(const Product<T>& p) noexcept {
    product_columns<T, PV, TransposedPanels<T, PV>>(p);
}

}  // namespace
