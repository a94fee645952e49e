// The rows of a sparse batch, sorted by input panel for the gradient of the first layer's weights.
#pragma once
#include <vector>

#include "engine/batch.h"

namespace gradstep {

template <class T>
class SparseBatch {
public:
    // Row r of the batch.
    static SparseRow<T> row(const Batch<T>& b, int64_t r) {
        const Csr<T>& x = b.data->sparse;
        const int64_t from = x.starts[b.row(r)];
        SparseRow<T> found{};
        found.columns = x.columns + from;
        found.values = x.values + from;
        found.n = x.starts[b.row(r) + 1] - from;
        return found;
    }

    void sort(const Batch<T>& b, ptrdiff_t panel_width, ptrdiff_t panels) {
        starts_.assign(static_cast<std::size_t>(panels) + 2, 0);
        for (int64_t r = 0; r < b.rows; ++r) {
            const SparseRow<T> x = row(b, r);
            for (int64_t k = 0; k < x.n; ++k) ++starts_[static_cast<std::size_t>(x.columns[k] / panel_width) + 2];
        }
        for (std::size_t p = 2; p < starts_.size(); ++p) starts_[p] += starts_[p - 1];
        entries_.resize(static_cast<std::size_t>(starts_.back()));
        for (int64_t r = 0; r < b.rows; ++r) {
            const SparseRow<T> x = row(b, r);
            for (int64_t k = 0; k < x.n; ++k) {
                const ptrdiff_t column = x.columns[k];
                const int64_t at = starts_[static_cast<std::size_t>(column / panel_width) + 1]++;
                entries_[static_cast<std::size_t>(at)] = {static_cast<int32_t>(r),
                                                          static_cast<int32_t>(column % panel_width), x.values[k]};
            }
        }
    }

    const SparseEntry<T>* begin(ptrdiff_t panel) const { return entries_.data() + starts_[at(panel)]; }
    int64_t count(ptrdiff_t panel) const { return starts_[at(panel) + 1] - starts_[at(panel)]; }
    int64_t size() const { return static_cast<int64_t>(entries_.size()); }

private:
    static std::size_t at(ptrdiff_t panel) { return static_cast<std::size_t>(panel); }

    std::vector<int64_t> starts_;  // of panel p in starts_[p], once sorted
    std::vector<SparseEntry<T>> entries_;
};

}  // namespace gradstep
