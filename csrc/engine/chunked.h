// Gradients of small networks: a batch is cut into chunks of rows, each chunk goes tile by tile through
// all layers, forward and backward, inside the cache. How a batch is cut depends on the network
// and the batch size alone and the chunks' gradients are summed in order, so that the result has the
// same bits for every number of threads.
#pragma once
#include <algorithm>
#include <vector>

#include "engine/batch.h"
#include "engine/threads.h"

namespace gradstep {

template <class T>
class ChunkedGradient {
public:
    explicit ChunkedGradient(const Net<T>& net) : net_(net) {
        const int64_t per_row = 2 * net.plan().products_per_row();
        least_chunk_ = std::max<int64_t>(32, kChunkWork / per_row);
        tile_ = net.whole_lanes(kTileRows);
    }

    // Memory for batches of up to `rows` rows on up to `threads` threads; before any compute.
    void prepare(int64_t rows, int threads) {
        const int parts = chunks(rows);
        threads = std::min(threads, parts);
        const ptrdiff_t tile = std::min<ptrdiff_t>(kTileRows, net_.whole_lanes(rows));
        if (threads <= static_cast<int>(workspaces_.size()) && parts <= parts_ && tile <= tile_capacity_) return;
        parts_ = std::max(parts, parts_);
        tile_capacity_ = std::max(tile, tile_capacity_);
        workspaces_.resize(std::max(static_cast<std::size_t>(threads), workspaces_.size()));
        losses_.resize(static_cast<std::size_t>(parts_));
        tile_ = tile_capacity_;
        partition_.rows = -1;
        arena_.allocate([&](Taker& take) {
            gradients_ = take.template take<T>(net_.parameters().total * static_cast<std::size_t>(parts_));
            for (Workspace<T>& ws : workspaces_) net_.take_workspace(take, ws, tile_, true);
        });
    }

    int chunks(int64_t rows) const {
        return static_cast<int>(std::clamp<int64_t>(rows / least_chunk_, 1, kMostChunks));
    }

    // Keeps the gathered inputs of a batch that does not change from step to step (full batch, small
    // enough); compute then skips its gather.
    void keep_inputs(const Batch<T>& b) {
        kept_ = nullptr;
        partition_ = partition_of(b.rows);
        const int parts = partition_.parts;
        // The first chunk may be a row shorter than the longest.
        tiles_kept_ = static_cast<int>(tiles(partition_.start[1] + 1));
        const std::size_t slots = static_cast<std::size_t>(parts) * static_cast<std::size_t>(tiles_kept_);
        const std::size_t size = net_.x_size(tile_) + net_.y_size(tile_) + static_cast<std::size_t>(tile_);
        if (slots * size * sizeof(T) > kMostKept) return;
        kept_arena_.allocate([&](Taker& take) { kept_ = take.template take<T>(slots * size); });
        for (int c = 0; c < parts; ++c)
            for_each_tile(b, c, [&](const Batch<T>& tile, int t) { gather(tile, kept_slot(c, t)); });
    }
    void forget_inputs() { kept_ = nullptr; }

    // The sum of weight * loss; the gradient of scale * that sum is left in parts. input_gradient, if not
    // null, is (rows, n_in) of the batch.
    double compute(const Batch<T>& b, const T* theta, T scale, int threads, T* input_gradient = nullptr) {
        if (b.rows != partition_.rows) partition_ = partition_of(b.rows);
        const int parts = partition_.parts;
        parallel_for(
            parts, partition_.worth_sharing ? std::min(threads, static_cast<int>(workspaces_.size())) : 1,
            [&](int c, int worker) { compute_chunk(b, c, workspaces_[worker], theta, scale, input_gradient); });
        used_parts_ = parts;
        double loss = 0;
        for (int c = 0; c < parts; ++c) loss += losses_[c];
        return loss;
    }

    const T* gradient() const { return gradients_; }
    T* gradient() { return gradients_; }
    int parts() const { return used_parts_; }
    ptrdiff_t part_stride() const { return static_cast<ptrdiff_t>(net_.parameters().total); }

private:
    static constexpr ptrdiff_t kTileRows = 128;
    static constexpr int kMostChunks = 16;
    static constexpr int64_t kChunkWork = 250'000;   // floating-point operations of a chunk, at least
    static constexpr int64_t kSharedWork = 500'000;  // of a batch that is worth a second thread
    static constexpr std::size_t kMostKept = std::size_t{8} << 20;

    // How a batch is cut: a function of its size, kept because tiny steps feel a division.
    struct Partition {
        int64_t rows = -1;
        int parts = 1;
        bool worth_sharing = false;
        int64_t start[kMostChunks + 1] = {};  // of each chunk, and the end of the last
        int64_t tile_rows[kMostChunks] = {};  // equal whole lanes but for the last tile
    };

    Partition partition_of(int64_t rows) const {
        Partition p;
        p.rows = rows;
        p.parts = chunks(rows);
        p.worth_sharing = 2 * net_.plan().products_per_row() * rows > kSharedWork;
        for (int c = 0; c <= p.parts; ++c) p.start[c] = rows * c / p.parts;
        for (int c = 0; c < p.parts; ++c) {
            const int64_t chunk = p.start[c + 1] - p.start[c], n = tiles(chunk);
            p.tile_rows[c] = net_.whole_lanes((chunk + n - 1) / n);
        }
        return p;
    }

    int64_t tiles(int64_t rows) const { return (rows + tile_ - 1) / tile_; }

    // Calls f(tile, number) for the tiles of a chunk.
    template <class F>
    void for_each_tile(const Batch<T>& b, int c, F&& f) const {
        const int64_t end = partition_.start[c + 1], rows = partition_.tile_rows[c];
        int t = 0;
        for (int64_t r = partition_.start[c]; r < end; r += rows) f(b.part(r, std::min(r + rows, end)), t++);
    }

    TileInputs<T> kept_slot(int c, int t) const {
        const std::size_t x = net_.x_size(tile_), y = net_.y_size(tile_), w = static_cast<std::size_t>(tile_);
        T* at = kept_ + static_cast<std::size_t>(c * tiles_kept_ + t) * (x + y + w);
        return {at, at + x, at + x + y};
    }

    // y lanes are as far apart as the tile is wide in LanesNet, and as its capacity in PanelNet: the stride
    // of the workspace's own lanes.
    void gather(const Batch<T>& tile, const TileInputs<T>& to) const {
        gather_x(net_, tile, to.x, net_.tile_stride(tile.rows, tile_));
        gather_targets(net_, tile, to.y, to.weight, net_.tile_stride(tile.rows, tile_));
    }

    void compute_chunk(const Batch<T>& b, int c, const Workspace<T>& ws, const T* theta, T scale, T* input_gradient) {
        T* gradient = gradients_ + static_cast<std::size_t>(c) * net_.parameters().total;
        double loss = 0;
        for_each_tile(b, c, [&](const Batch<T>& tile, int t) {
            const TileInputs<T> in = kept_ ? kept_slot(c, t) : ws.inputs;
            if (!kept_) gather(tile, in);
            net_.forward(ws, in.x, theta, tile.rows);
            loss +=
                net_.loss().value({net_.outputs_in_lanes(ws, tile.rows), in.y, in.weight, ws.lanes_delta, nullptr,
                                   net_.plan().n_out(), net_.whole_lanes(tile.rows), net_.tile_stride(tile.rows, tile_),
                                   scale, static_cast<T>(net_.plan().loss_option)});
            net_.backward(ws, in.x, theta, tile.rows, gradient, t > 0, input_gradient != nullptr);
            if (input_gradient)
                net_.copy_input_gradient(ws, tile.rows, input_gradient + (tile.first - b.first) * net_.plan().n_in());
        });
        net_.finish_gradient(ws, gradient);
        losses_[c] = loss;
    }

    const Net<T>& net_;
    int64_t least_chunk_;
    ptrdiff_t tile_, tile_capacity_ = 0;
    Partition partition_;
    int parts_ = 0, used_parts_ = 0, tiles_kept_ = 0;
    Arena arena_, kept_arena_;
    std::vector<Workspace<T>> workspaces_;
    std::vector<double> losses_;
    T* gradients_ = nullptr;
    T* kept_ = nullptr;
};

}  // namespace gradstep
