// Forward passes alone: predictions and losses of any number of rows, tile by tile in constant memory.
#pragma once
#include <algorithm>
#include <vector>

#include "engine/batch.h"
#include "engine/threads.h"

namespace gradstep {

template <class T>
class Inference {
public:
    explicit Inference(const Net<T>& net) : net_(net) {}

    // Writes the linked outputs (n, n_out) if out is not null; returns the sum of weight * loss if the data
    // has targets.
    double run(const Data<T>& data, const T* theta, T* out, int threads) {
        const bool worth_sharing = 2 * net_.plan().weights() * data.n > kSharedWork;
        const int tiles = static_cast<int>((data.n + kTileRows - 1) / kTileRows);
        threads = worth_sharing ? std::min(threads, tiles) : 1;
        prepare(data.n, threads, tiles);
        parallel_for(tiles, threads, [&](int t, int worker) {
            const Batch<T> tile{&data, nullptr, t * kTileRows, std::min<int64_t>(kTileRows, data.n - t * kTileRows)};
            losses_[static_cast<std::size_t>(t)] =
                run_tile(tile, workspaces_[static_cast<std::size_t>(worker)], theta, out);
        });
        double loss = 0;
        for (int t = 0; t < tiles; ++t) loss += losses_[static_cast<std::size_t>(t)];
        return loss;
    }

private:
    static constexpr int64_t kTileRows = 128;
    static constexpr int64_t kSharedWork = 1'000'000;

    void prepare(int64_t rows, int threads, int tiles) {
        if (losses_.size() < static_cast<std::size_t>(tiles)) losses_.resize(static_cast<std::size_t>(tiles));
        const ptrdiff_t capacity = net_.whole_lanes(std::min(rows, kTileRows));
        if (capacity <= capacity_ && static_cast<std::size_t>(threads) <= workspaces_.size()) return;
        const ptrdiff_t most = std::max(capacity, capacity_);
        capacity_ = 0;  // nothing fits until the new memory is there
        workspaces_.resize(std::max(static_cast<std::size_t>(threads), workspaces_.size()));
        arena_.allocate([&](Taker& take) {
            for (Workspace<T>& ws : workspaces_) net_.take_workspace(take, ws, most, false);
        });
        capacity_ = most;
    }

    double run_tile(const Batch<T>& tile, const Workspace<T>& ws, const T* theta, T* out) const {
        gather_x(net_, tile, ws.inputs.x, net_.tile_stride(tile.rows, ws.rows));
        net_.forward(ws, ws.inputs.x, theta, tile.rows);
        const double loss = tile.data->y || tile.data->labels ? loss_of(tile, ws) : 0;
        if (out) net_.copy_predictions(ws, tile.rows, out + tile.first * net_.plan().n_out());
        return loss;
    }

    double loss_of(const Batch<T>& tile, const Workspace<T>& ws) const {
        const ptrdiff_t stride = net_.tile_stride(tile.rows, ws.rows);
        gather_targets(net_, tile, ws.inputs.y, ws.inputs.weight, stride);
        LossBatch<T> batch = net_.loss_batch(tile.rows, stride);
        batch.z = net_.outputs_in_lanes(ws, tile.rows);
        batch.y = ws.inputs.y;
        batch.weight = ws.inputs.weight;
        return net_.loss().value(batch);
    }

    const Net<T>& net_;
    ptrdiff_t capacity_ = 0;
    Arena arena_;
    std::vector<Workspace<T>> workspaces_;
    std::vector<double> losses_;
};

}  // namespace gradstep
