// Steps of large networks, layer by layer: all threads share one layer at a time. Every output element
// is summed by one thread in one order, so nothing here depends on the number of threads; the optimizer
// runs on each block of weights as soon as its gradient is there.
#pragma once
#include <algorithm>
#include <vector>

#include "engine/batch.h"
#include "engine/panel_net.h"
#include "engine/threads.h"

namespace gradstep {

template <class T>
class LayeredStep {
public:
    LayeredStep(const PanelNet<T>& net, Profile& profile) : net_(net), profile_(profile) {
        // The loss's lanes of a block of rows stay in the second-level cache.
        const int64_t per_row = 3 * net.padded(net.plan().n_out()) * static_cast<int64_t>(sizeof(T));
        loss_rows_ = net.whole_lanes(static_cast<ptrdiff_t>(std::clamp<int64_t>(kLossBytes / per_row, 1, 64)));
    }

    // Rows that one pass takes; larger batches take several.
    static constexpr int64_t kMostRows = 4096;

    void prepare(int64_t rows, int threads) {
        const ptrdiff_t capacity = net_.whole_lanes(std::min(rows, kMostRows));
        const auto workers = static_cast<std::size_t>(threads);
        if (capacity <= capacity_ && workers <= workers_.size()) return;
        const ptrdiff_t most = std::max(capacity, capacity_);
        capacity_ = 0;  // nothing fits until the new memory is there
        workers_.resize(std::max(workers, workers_.size()));
        losses_.resize(static_cast<std::size_t>((most + loss_rows_ - 1) / loss_rows_));
        arena_.allocate([&](Taker& take) {
            x_ = take.template take<T>(net_.x_size(most));
            net_.take_activations(take, ws_, most, true);
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

    // Gathers up to kMostRows rows and runs them forward; returns the sum of weight * loss and leaves the
    // errors of the outputs.
    double forward(const Batch<T>& b, const T* theta, T scale, int threads) {
        gather(b, threads);
        for (std::size_t l = 0; l < net_.plan().layers.size(); ++l) forward_layer(b.rows, theta, l, threads);
        return loss(b, scale, threads);
    }

    // After forward: the gradients of all layers, into the sink.
    void backward(int64_t rows, const T* theta, const GradientSink<T>& sink, int threads, bool input_gradient) {
        for (std::size_t l = net_.plan().layers.size(); l-- > 0;)
            backward_layer(rows, theta, l, sink, threads, l > 0 || input_gradient);
    }

    void copy_input_gradient(int64_t rows, T* to) const { net_.copy_input_gradient(ws_, rows, to); }

private:
    struct Worker {
        T *scratch, *z, *delta, *y, *weight;
    };
    static constexpr int64_t kLossBytes = 512 * 1024;
    static constexpr int64_t kGatherRows = 32;
    static constexpr int64_t kSharedWork = 1'000'000;  // operations of a phase that is worth a second thread
    static constexpr int kTasksPerThread = 4;
    static constexpr int64_t kLeastTaskRows = 28;  // two product tiles

    int threads_for(int64_t work, int threads) const {
        return work < kSharedWork ? 1 : std::min(threads, static_cast<int>(workers_.size()));
    }

    void gather(const Batch<T>& b, int threads) {
        const int n = static_cast<int>((b.rows + kGatherRows - 1) / kGatherRows);
        parallel_for(n, threads_for(16 * b.rows * net_.plan().n_in(), threads), [&](int t, int worker) {
            Laps* laps = profile_.begin(worker);
            const int64_t from = t * kGatherRows;
            gather_x(net_, b.part(from, std::min(from + kGatherRows, b.rows)), x_ + from * net_.panel_width(),
                     ws_.rows);
            end_phase(laps, Phase::gather);
        });
    }

    void forward_layer(int64_t rows, const T* theta, std::size_t l, int threads) {
        const DensePlan& d = net_.plan().layers[l];
        const ptrdiff_t panels = net_.panels(d.n_out);
        threads = threads_for(2 * rows * d.n_in * d.n_out, threads);
        const ptrdiff_t wanted = threads > 1 ? kTasksPerThread * threads : 1;
        const ptrdiff_t by_panel = std::min(panels, wanted);
        const ptrdiff_t by_row =
            std::clamp<ptrdiff_t>(wanted / by_panel, 1, (rows + kLeastTaskRows - 1) / kLeastTaskRows);
        parallel_for(static_cast<int>(by_panel * by_row), threads, [&](int t, int worker) {
            Laps* laps = profile_.begin(worker);
            const ptrdiff_t p = t % by_panel, r = t / by_panel;
            net_.forward_panels(ws_, x_, theta, l, panels * p / by_panel, panels * (p + 1) / by_panel,
                                rows * r / by_row, rows * (r + 1) / by_row);
            end_phase(laps, Phase::forward);
        });
    }

    double loss(const Batch<T>& b, T scale, int threads) {
        const int n = static_cast<int>((b.rows + loss_rows_ - 1) / loss_rows_);
        parallel_for(n, threads_for(64 * b.rows * net_.plan().n_out(), threads), [&](int t, int worker) {
            Laps* laps = profile_.begin(worker);
            const Worker& w = workers_[static_cast<std::size_t>(worker)];
            const int64_t from = t * loss_rows_, to = std::min(from + loss_rows_, b.rows);
            net_.outputs_to_lanes(ws_, from, to, w.z, loss_rows_);
            gather_targets(net_, b.part(from, to), w.y, w.weight, loss_rows_);
            losses_[static_cast<std::size_t>(t)] =
                net_.loss().value({.z = w.z,
                                   .y = w.y,
                                   .weight = w.weight,
                                   .delta = w.delta,
                                   .link = nullptr,
                                   .outputs = net_.plan().n_out(),
                                   .lanes = net_.whole_lanes(to - from),
                                   .stride = loss_rows_,
                                   .scale = scale,
                                   .option = static_cast<T>(net_.plan().loss_option)});
            net_.output_error(ws_, w.delta, loss_rows_, from, to);
            end_phase(laps, Phase::loss);
        });
        double sum = 0;
        for (int t = 0; t < n; ++t) sum += losses_[static_cast<std::size_t>(t)];
        return sum;
    }

    void backward_layer(int64_t rows, const T* theta, std::size_t l, const GradientSink<T>& sink, int threads,
                        bool need_dx) {
        const DensePlan& d = net_.plan().layers[l];
        const ptrdiff_t inputs = net_.panels(d.n_in), outputs = net_.panels(d.n_out);
        threads = threads_for(4 * rows * d.n_in * d.n_out, threads);
        if (need_dx && threads > 1 && inputs < 2 * threads) {
            input_errors(rows, theta, l, threads);
            need_dx = false;
        }
        // dX of an input panel needs all output panels; dW alone can be cut finer.
        const ptrdiff_t wanted = threads > 1 ? kTasksPerThread * threads : 1;
        const ptrdiff_t groups = need_dx ? 1 : std::clamp<ptrdiff_t>((wanted + inputs - 1) / inputs, 1, outputs);
        parallel_for(static_cast<int>(inputs * groups), threads, [&](int t, int worker) {
            const ptrdiff_t i = t / groups, g = t % groups;
            GradientSink<T> to = sink;
            to.laps = profile_.begin(worker);
            net_.backward_panel(ws_, x_, theta, l, i, outputs * g / groups, outputs * (g + 1) / groups, rows, to,
                                workers_[static_cast<std::size_t>(worker)].scratch, need_dx);
        });
    }

    void input_errors(int64_t rows, const T* theta, std::size_t l, int threads) {
        const ptrdiff_t inputs = net_.panels(net_.plan().layers[l].n_in);
        const ptrdiff_t by_row =
            std::clamp<ptrdiff_t>(kTasksPerThread * threads / inputs, 1, (rows + kLeastTaskRows - 1) / kLeastTaskRows);
        parallel_for(static_cast<int>(inputs * by_row), threads, [&](int t, int worker) {
            Laps* laps = profile_.begin(worker);
            const ptrdiff_t i = t % inputs, r = t / inputs;
            net_.input_error_rows(ws_, theta, l, i, rows * r / by_row, rows * (r + 1) / by_row,
                                  workers_[static_cast<std::size_t>(worker)].scratch);
            end_phase(laps, Phase::input_gradient);
        });
    }

    const PanelNet<T>& net_;
    Profile& profile_;
    ptrdiff_t loss_rows_, capacity_ = 0;
    Arena arena_;
    Workspace<T> ws_;
    T* x_ = nullptr;
    std::vector<Worker> workers_;
    std::vector<double> losses_;
};

}  // namespace gradstep
