// Gradients of small networks: a batch is cut into chunks of rows, each chunk goes tile by tile through
// all layers, forward and backward, inside the cache. How a batch is cut depends on the network
// and the batch size alone and the chunks' gradients are summed in order, so that the result has the
// same bits for every number of threads.
#pragma once
#include <algorithm>
#include <bit>
#include <vector>

#include "engine/batch.h"
#include "engine/net.h"
#include "engine/threads.h"

namespace gradstep {

template <class T>
class ChunkedGradient {
public:
    ChunkedGradient(const Net<T>& net, Profile& profile) : net_(net), profile_(profile) {
        const int64_t per_row = 2 * net.plan().products_per_row();
        least_chunk_ = std::max(net.least_chunk(), kChunkWork / per_row);
        tile_ = net.tile_rows();
    }

    // Memory for batches of up to `rows` rows on up to `threads` threads; before any compute.
    void prepare(int64_t rows, int threads) {
        const int parts = chunks(rows);
        threads = std::min(threads, parts);
        const ptrdiff_t tile = std::min(net_.tile_rows(), net_.whole_lanes(rows));
        if (threads <= static_cast<int>(workspaces_.size()) && parts <= parts_ && tile <= tile_capacity_) return;
        const int most_parts = std::max(parts, parts_);
        tile_ = std::max(tile, tile_capacity_);
        parts_ = 0;  // nothing fits until the new memory is there
        partition_.rows = -1;
        workspaces_.resize(std::max(static_cast<std::size_t>(threads), workspaces_.size()));
        losses_.resize(static_cast<std::size_t>(most_parts));
        arena_.allocate([&](Taker& take) {
            gradients_ = take.template take<T>(net_.parameters().total * static_cast<std::size_t>(most_parts));
            for (Workspace<T>& ws : workspaces_) net_.take_workspace(take, ws, tile_, true);
        });
        parts_ = most_parts;
        tile_capacity_ = tile_;
    }

    int chunks(int64_t rows) const {
        const auto most = static_cast<uint64_t>(std::clamp<int64_t>(rows / least_chunk_, 1, kMostChunks));
        return static_cast<int>(std::bit_floor(most));  // what two or four threads can share evenly
    }

    // Keeps the gathered inputs of a batch that does not change from step to step (full batch, small
    // enough); compute then skips its gather.
    void keep_inputs(const Batch<T>& b) {
        forget_inputs();
        partition_ = partition_of(b.rows);
        const int parts = partition_.parts;
        tiles_kept_ = *std::max_element(partition_.tiles, partition_.tiles + parts);
        kept_.resize(static_cast<std::size_t>(parts) * static_cast<std::size_t>(tiles_kept_));
        const std::size_t x = net_.x_size(tile_), y = net_.y_size(tile_), weight = static_cast<std::size_t>(tile_);
        if (kept_.size() * (x + y + weight) * sizeof(T) > kMostKept) return forget_inputs();
        kept_arena_.allocate([&](Taker& take) {
            for (TileInputs<T>& to : kept_)
                to = {take.template take<T>(x), take.template take<T>(y), take.template take<T>(weight)};
        });
        for (int c = 0; c < parts; ++c)
            for (int t = 0; t < partition_.tiles[c]; ++t) gather(tile_of(b, c, t), kept_slot(c, t));
    }
    void forget_inputs() { kept_.clear(); }

    // The sum of weight * loss; the gradient of scale * that sum is left in parts. input_gradient, if not
    // null, is (rows, n_in) of the batch.
    double compute(const Batch<T>& b, const T* theta, T scale, int threads, const DropStep& drop,
                   T* input_gradient = nullptr) {
        if (b.rows != partition_.rows) partition_ = partition_of(b.rows);
        const int parts = partition_.parts;
        parallel_for(parts, partition_.worth_sharing ? std::min(threads, static_cast<int>(workspaces_.size())) : 1,
                     [&](int c, int worker) {
                         Workspace<T>& ws = workspaces_[static_cast<std::size_t>(worker)];
                         ws.laps = profile_.begin(worker);
                         compute_chunk(b, c, ws, theta, scale, drop, input_gradient);
                     });
        used_parts_ = parts;
        double loss = 0;
        for (int c = 0; c < parts; ++c) loss += losses_[c];
        return loss;
    }

    GradientParts<T> gradient() const {
        return {gradients_, static_cast<ptrdiff_t>(net_.parameters().total), used_parts_};
    }

private:
    static constexpr int kMostChunks = 16;
    static constexpr int64_t kChunkWork = 560'000;  // floating-point operations of a chunk, at least: some 2.5 us
    static constexpr std::size_t kMostKept = std::size_t{8} << 20;

    // How a batch is cut: a function of its size, kept because tiny steps feel a division.
    struct Partition {
        int64_t rows = -1;
        int parts = 1;
        bool worth_sharing = false;
        int64_t start[kMostChunks + 1] = {};  // of each chunk, and the end of the last
        int tiles[kMostChunks] = {};
        int64_t tile_rows[kMostChunks] = {};  // equal whole lanes but for the last tile
    };

    Partition partition_of(int64_t rows) const {
        Partition p;
        p.rows = rows;
        p.parts = chunks(rows);
        p.worth_sharing = net_.plan().operations(rows) > kSharedOperations;
        for (int c = 0; c <= p.parts; ++c) p.start[c] = rows * c / p.parts;
        for (int c = 0; c < p.parts; ++c) {
            const int64_t chunk = p.start[c + 1] - p.start[c], n = quotient(chunk, tile_);
            p.tile_rows[c] = net_.whole_lanes(quotient(chunk, n));
            p.tiles[c] = static_cast<int>(quotient(chunk, p.tile_rows[c]));
        }
        return p;
    }

    static int64_t quotient(int64_t a, int64_t b) { return (a + b - 1) / b; }  // rounded up

    Batch<T> tile_of(const Batch<T>& b, int c, int t) const {
        const int64_t from = partition_.start[c] + t * partition_.tile_rows[c];
        return b.part(from, std::min(from + partition_.tile_rows[c], partition_.start[c + 1]));
    }

    const TileInputs<T>& kept_slot(int c, int t) const { return kept_[static_cast<std::size_t>(c * tiles_kept_ + t)]; }

    // y lanes are as far apart as the tile is wide in LanesNet, and as its capacity in PanelNet: the stride
    // of the workspace's own lanes.
    void gather(const Batch<T>& tile, const TileInputs<T>& to) const {
        gather_x(net_, tile, to.x, net_.tile_stride(tile.rows, tile_));
        gather_targets(net_, tile, to.y, to.weight, net_.tile_stride(tile.rows, tile_));
    }

    void compute_chunk(const Batch<T>& b, int c, Workspace<T>& ws, const T* theta, T scale, const DropStep& drop,
                       T* input_gradient) {
        T* gradient = gradients_ + static_cast<std::size_t>(c) * net_.parameters().total;
        double loss = 0;
        for (int t = 0; t < partition_.tiles[c]; ++t) {
            const Batch<T> tile = tile_of(b, c, t);
            const TileInputs<T>& in = kept_.empty() ? ws.inputs : kept_slot(c, t);
            if (kept_.empty()) gather(tile, in);
            end_phase(ws.laps, Phase::gather);
            ws.drop = drop.at(tile.first - b.first);
            loss += net_.gradient(ws, in, theta, tile.rows, {scale, gradient, t > 0, input_gradient != nullptr});
            if (input_gradient)
                net_.copy_input_gradient(ws, tile.rows, input_gradient + (tile.first - b.first) * net_.plan().n_in());
        }
        net_.finish_gradient(ws, gradient);
        losses_[static_cast<std::size_t>(c)] = loss;
    }

    const Net<T>& net_;
    Profile& profile_;
    int64_t least_chunk_;
    ptrdiff_t tile_, tile_capacity_ = 0;
    Partition partition_;
    int parts_ = 0, used_parts_ = 0, tiles_kept_ = 0;
    Arena arena_, kept_arena_;
    std::vector<Workspace<T>> workspaces_;
    std::vector<double> losses_;
    T* gradients_ = nullptr;
    std::vector<TileInputs<T>> kept_;  // tiles_kept_ a chunk; empty: nothing is kept
};

}  // namespace gradstep
