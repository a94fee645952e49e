// Steps of networks that are too large for a tile's gradients to stay in the cache: what their two schedules share.
#pragma once
#include <algorithm>
#include <vector>

#include "engine/batch.h"
#include "engine/panel_net.h"
#include "engine/threads.h"

namespace gradstep {

template <class T>
class PanelStep {
public:
    virtual ~PanelStep() = default;

    // Rows that one pass takes; larger batches take several, but where the loss or a normalisation wants to see them
    // whole.
    int64_t most_rows() const { return net_.custom_loss() || net_.plan().normalises_batches() ? kAllRows : kMostRows; }

    void prepare(int64_t rows, int threads, bool sparse) {
        const ptrdiff_t capacity = net_.whole_lanes(std::min(rows, most_rows()));
        const auto workers = static_cast<std::size_t>(threads);
        if (capacity <= capacity_ && workers <= workers_.size() && (sparse || x_)) return;
        const ptrdiff_t most = std::max(capacity, capacity_);
        capacity_ = 0;  // nothing fits until the new memory is there
        workers_.resize(std::max(workers, workers_.size()));
        losses_.resize(static_cast<std::size_t>((most + loss_rows_ - 1) / loss_rows_));
        arena_.allocate([&](Taker& take) {
            x_ = sparse ? nullptr : take.template take<T>(net_.x_size(most));
            net_.take_activations(take, ws_, most, true, all_errors_);
            for (Worker& w : workers_) {
                const auto lanes = static_cast<std::size_t>(loss_rows_);
                const auto outputs = static_cast<std::size_t>(net_.padded(net_.plan().n_out())) * lanes;
                w.scratch = take.template take<T>(net_.scratch_size());
                w.z = take.template take<T>(outputs);
                w.delta = take.template take<T>(outputs);
                w.y = take.template take<T>(net_.y_size(loss_rows_));
                w.weight = take.template take<T>(lanes);
            }
        });
        capacity_ = most;
    }

    // The outputs that the steps to come drop.
    void set_dropout(const DropStep& drop) { ws_.drop = drop; }

    // Gathers up to most_rows() rows and runs them forward; returns the sum of weight * loss and leaves the errors of
    // the outputs. The caller says whether backward will be asked for the gradient of the inputs.
    virtual double forward(const Batch<T>& b, const T* theta, T scale, int threads, bool input_gradient) = 0;

    // After forward: the gradients of all layers, into the sink.
    virtual void backward(int64_t rows, const T* theta, const GradientSink<T>& sink, int threads,
                          bool input_gradient) = 0;

    // After forward: what column normalisation l found, [n_out] each.
    const T* mean(std::size_t l) const { return ws_.mean[l]; }
    const T* variance(std::size_t l) const { return ws_.variance[l]; }

    void copy_input_gradient(int64_t rows, T* to) const { net_.copy_input_gradient(ws_, rows, to); }

protected:
    struct Worker {
        T *scratch, *z, *delta, *y, *weight;
    };
    static constexpr int kTasksPerThread = 4;

    PanelStep(const PanelNet<T>& net, Profile& profile, bool all_errors)
        : net_(net), profile_(profile), all_errors_(all_errors || !net.plan().is_chain()) {
        // The loss's lanes of a block of rows stay in the second-level cache.
        const int64_t per_row = 3 * net.padded(net.plan().n_out()) * static_cast<int64_t>(sizeof(T));
        loss_rows_ = net.whole_lanes(static_cast<ptrdiff_t>(std::clamp<int64_t>(kLossBytes / per_row, 1, 64)));
    }

    int threads_for(int64_t work, int threads) const {
        return work < kSharedWork ? 1 : std::min(threads, static_cast<int>(workers_.size()));
    }

    const Worker& worker_of(int worker) const { return workers_[static_cast<std::size_t>(worker)]; }

    void gather_rows(const Batch<T>& b, int64_t from, int64_t to) const {
        gather_x(net_, b.part(from, to), x_ + from * net_.panel_width(), ws_.rows);
    }

    int loss_blocks(int64_t rows) const { return static_cast<int>((rows + loss_rows_ - 1) / loss_rows_); }

    // Block t of the rows: their losses are added up block by block, whoever does them.
    void loss_block(const Batch<T>& b, int t, T scale, const Worker& w) {
        const int64_t from = t * loss_rows_, to = std::min(from + loss_rows_, b.rows);
        net_.outputs_to_lanes(ws_, from, to, w.z, loss_rows_);
        gather_targets(net_, b.part(from, to), w.y, w.weight, loss_rows_);
        losses_[static_cast<std::size_t>(t)] = net_.loss().value({.z = w.z,
                                                                  .y = w.y,
                                                                  .weight = w.weight,
                                                                  .delta = w.delta,
                                                                  .link = nullptr,
                                                                  .outputs = net_.plan().n_out(),
                                                                  .lanes = net_.whole_lanes(to - from),
                                                                  .stride = loss_rows_,
                                                                  .scale = scale,
                                                                  .option = net_.loss_option()});
        net_.output_error(ws_, w.delta, loss_rows_, from, to);
    }

    // The mean loss of all rows, from the caller.
    double custom_loss(const Batch<T>& b, const Worker& w) {
        const ptrdiff_t width = net_.plan().n_out();
        outputs_.resize(static_cast<std::size_t>(b.rows * width));
        gradient_.resize(outputs_.size());
        for (int64_t from = 0; from < b.rows; from += loss_rows_) {
            const int64_t rows = std::min<int64_t>(loss_rows_, b.rows - from);
            net_.outputs_to_lanes(ws_, from, from + rows, w.z, loss_rows_);
            T* to = outputs_.data() + from * width;
            for (int64_t r = 0; r < rows; ++r)
                for (ptrdiff_t o = 0; o < width; ++o) to[r * width + o] = w.z[o * loss_rows_ + r];
        }
        const CustomLoss<T>& custom = b.data->custom;
        const double loss = custom.compute(custom.context, b, width, outputs_.data(), gradient_.data());
        for (int64_t from = 0; from < b.rows; from += loss_rows_) {
            const int64_t rows = std::min<int64_t>(loss_rows_, b.rows - from);
            const T* gradient = gradient_.data() + from * width;
            for (ptrdiff_t o = 0; o < width; ++o)
                for (int64_t r = 0; r < loss_rows_; ++r)
                    w.delta[o * loss_rows_ + r] = r < rows ? gradient[r * width + o] : T(0);
            net_.output_error(ws_, w.delta, loss_rows_, from, from + rows);
        }
        return loss;
    }

    double sum_of_losses(int64_t rows) const {
        double sum = 0;
        for (int t = 0; t < loss_blocks(rows); ++t) sum += losses_[static_cast<std::size_t>(t)];
        return sum;
    }

    const PanelNet<T>& net_;
    Profile& profile_;
    ptrdiff_t loss_rows_ = 0;
    Workspace<T> ws_;
    T* x_ = nullptr;

private:
    static constexpr int64_t kMostRows = 4096, kAllRows = int64_t{1} << 40;
    static constexpr int64_t kLossBytes = 128 * 1024;
    static constexpr int64_t kSharedWork = 1'000'000;  // operations of a phase that is worth a second thread

    bool all_errors_;
    ptrdiff_t capacity_ = 0;
    Arena arena_;
    std::vector<Worker> workers_;
    std::vector<double> losses_;
    std::vector<T> outputs_, gradient_;  // of a custom loss, (rows, n_out)
};

}  // namespace gradstep
