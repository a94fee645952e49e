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

// Memory that is fetched into the cache while computing, a little in every iteration: demand alone would wait for
// it now and leave the memory idle then.
struct Stream {
    const char* at;
    ptrdiff_t step, jump;  // bytes; the jump follows a segment

    void fetch() {
        __builtin_prefetch(at);
        at += step;
    }
    void end_segment() { at += jump; }
};

// The blocks that a product is asked to fetch: every tile fetches its share of each.
template <class T, ptrdiff_t P>
struct Ahead {
    Stream blocks[2];
    ptrdiff_t share = 0;  // bytes

    // Without blocks: the same line for ever, which costs nothing.
    Ahead(const Product<T>& p, ptrdiff_t tiles) {
        const auto here = reinterpret_cast<const char*>(p.b);
        blocks[0] = blocks[1] = {here, 0, 0};
        if (!p.ahead[0]) return;
        constexpr auto bytes = static_cast<uint32_t>(P * P * static_cast<ptrdiff_t>(sizeof(T)));
        const auto n = static_cast<uint32_t>(tiles), segment = static_cast<uint32_t>(p.segment);
        const ptrdiff_t step = bytes / (n * segment) + 1;
        const ptrdiff_t jump = p.ahead_segment * static_cast<ptrdiff_t>(sizeof(T)) - step * p.segment;
        share = bytes / n;
        for (int i = 0; i < 2; ++i)
            if (p.ahead[i]) blocks[i] = {reinterpret_cast<const char*>(p.ahead[i]), step, jump};
    }

    void end_tile() {
        blocks[0].at += share;
        blocks[1].at += share;
    }
};

// Where A's element (row m, depth k) lies. A panel's width is known here, so that the loop over a whole
// segment of rows has a constant trip count.
template <class T, int PV>
struct RowPanels {
    static constexpr ptrdiff_t row = kPanel<T, PV>, depth = 1;
    static constexpr ptrdiff_t whole_segment(const Product<T>&) { return kPanel<T, PV>; }

    // The rows of the next tile.
    static Stream second_stream(const Product<T>& p, const T* a, ptrdiff_t rows, const Stream&) {
        const ptrdiff_t step = rows * static_cast<ptrdiff_t>(sizeof(T));
        return {reinterpret_cast<const char*>(a + rows * row), step,
                p.a_segment * static_cast<ptrdiff_t>(sizeof(T)) - step * p.segment};
    }
};
template <class T, int PV>
struct TransposedPanels {
    static constexpr ptrdiff_t row = 1, depth = kPanel<T, PV>;
    static ptrdiff_t whole_segment(const Product<T>& p) { return p.segment; }
    static Stream second_stream(const Product<T>&, const T*, ptrdiff_t, const Stream& block) { return block; }
};

// acc += A B over `depth` columns of A and rows of B. Every sum runs in the order of the depth, whatever the number
// of rows: what a row gives does not depend on the rows beside it.
template <class T, int M, int NV, int PV, class A>
inline void multiply_add(const T* a, const T* b, ptrdiff_t depth, Stream (&ahead)[2], Vec<T> (&acc)[M][NV]) {
#pragma GCC unroll 2
    for (ptrdiff_t k = 0; k < depth; ++k) {
        if constexpr (PV == 2) {  // large networks
            ahead[0].fetch();
            ahead[1].fetch();
        }
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
    for (; left >= p.segment; left -= p.segment, a += p.a_segment, b += p.b_segment) {
        multiply_add<T, M, NV, PV, A>(a, b, A::whole_segment(p), ahead, acc);
        ahead[0].end_segment();
        ahead[1].end_segment();
    }
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
        tiles.by_rows[p.rows](p, p.a, p.c, {p, 1});
        return;
    }
    const ptrdiff_t n_tiles = (p.rows + most - 1) / most;
    const ptrdiff_t rows = p.rows / n_tiles, longer = p.rows % n_tiles;
    Ahead<T, kPanel<T, PV>> ahead(p, n_tiles);
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
