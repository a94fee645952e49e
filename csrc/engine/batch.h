// The user's arrays, and the rows of them that make a batch.
#pragma once
#include <algorithm>
#include <cstdint>

#include "engine/net.h"

namespace gradstep {

// Sparse rows: those of row r are starts[r] to starts[r + 1].
template <class T>
struct Csr {
    const int64_t* starts = nullptr;
    const int32_t* columns = nullptr;
    const T* values = nullptr;
};

template <class T>
struct Batch;

// The mean loss of a batch whose outputs are (rows, width); writes its gradient with respect to them. May throw.
template <class T>
struct CustomLoss {
    double (*compute)(void* context, const Batch<T>& batch, int64_t width, const T* outputs, T* gradient) = nullptr;
    void* context = nullptr;
};

template <class T>
struct Data {
    const T* x = nullptr;  // (n, n_in); null where the rows are sparse
    Csr<T> sparse;
    const T* y = nullptr;             // (n, targets), or
    const int32_t* labels = nullptr;  // (n,), or
    CustomLoss<T> custom;             // which knows its targets
    const T* weight = nullptr;        // (n,) or null
    int64_t n = 0;
    const T* shift = nullptr;  // (x - shift) * scale per column, padded; null: x as it is
    const T* scale = nullptr;
};

// Rows first, first + 1, ... of the data, through index if there is one.
template <class T>
struct Batch {
    const Data<T>* data;
    const int64_t* index;
    int64_t first, rows;

    int64_t row(int64_t r) const { return index ? index[first + r] : first + r; }
    Batch part(int64_t from, int64_t to) const { return {data, index, first + from, to - from}; }

    double weight_sum() const {
        if (!data->weight) return static_cast<double>(rows);
        double sum = 0;
        for (int64_t r = 0; r < rows; ++r) sum += static_cast<double>(data->weight[row(r)]);
        return sum;
    }
};

template <class T>
Gather<T> gather_of(const Batch<T>& b, const T* matrix, ptrdiff_t columns, T* to, ptrdiff_t stride) {
    const T* from = b.index ? matrix : matrix + b.first * columns;
    return {from, b.index ? b.index + b.first : nullptr, b.rows, columns, nullptr, nullptr, to, stride};
}

template <class T>
void gather_x(const Net<T>& net, const Batch<T>& b, T* to, ptrdiff_t stride) {
    Gather<T> g = gather_of(b, b.data->x, net.plan().n_in(), to, stride);
    g.shift = b.data->shift;
    g.scale = b.data->scale;
    net.gather_x(g);
}

// Targets and weights in lanes `stride` apart, weight zero beyond the last row.
template <class T>
void gather_targets(const Net<T>& net, const Batch<T>& b, T* y, T* weight, ptrdiff_t stride) {
    const ptrdiff_t lanes = net.whole_lanes(b.rows);
    if (b.data->labels) {
        for (int64_t r = 0; r < b.rows; ++r) y[r] = static_cast<T>(b.data->labels[b.row(r)]);
        std::fill(y + b.rows, y + lanes, T(0));
    } else {
        net.kernels().gather_lanes(gather_of(b, b.data->y, net.targets(), y, stride));
    }
    if (b.data->weight)
        for (int64_t r = 0; r < b.rows; ++r) weight[r] = b.data->weight[b.row(r)];
    else
        std::fill(weight, weight + b.rows, T(1));
    std::fill(weight + b.rows, weight + lanes, T(0));
}

}  // namespace gradstep
