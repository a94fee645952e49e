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
        losses_.resize(static_cast<std::size_t>(loss_blocks(most) * losses_a_block()));
        arena_.allocate([&](Taker& take) {
            x_ = sparse ? nullptr : take.template take<T>(net_.x_size(most));
            net_.take_activations(take, ws_, most, true, all_errors_);
            for (Worker& w : workers_) {
                const auto lanes = static_cast<std::size_t>(loss_rows_);
                w.scratch = take.template take<T>(net_.scratch_size());
                if (loss_on_panels_) continue;
                const auto outputs = static_cast<std::size_t>(net_.padded(net_.plan().n_out())) * lanes;
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
        T *scratch, *z, *delta, *y, *weight;  // all but the first: of a loss that is not computed panel by panel
    };
    static constexpr int64_t kLossRows = 64;
    static_assert(PanelNet<T>::kRowBlock % kLossRows == 0);
    static constexpr int kTasksPerThread = 4;

    PanelStep(const PanelNet<T>& net, Profile& profile, bool all_errors)
        : net_(net),
          profile_(profile),
          loss_on_panels_(net.takes_loss_of_panels()),
          output_panels_(net.panels(net.plan().n_out())),
          all_errors_(all_errors || !net.plan().is_chain()) {
        // The loss's lanes of a block of rows stay in the second-level cache.
        const int64_t per_row = 3 * net_.padded(net_.plan().n_out()) * static_cast<int64_t>(sizeof(T));
        const int64_t fitting = std::clamp<int64_t>(kLossBytes / per_row, 1, kLossRows);
        loss_rows_ = loss_on_panels_ ? kLossRows : net.whole_lanes(static_cast<ptrdiff_t>(fitting));
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
        if (loss_on_panels_)
            for (ptrdiff_t o = 0; o < output_panels_; ++o) losses_of_panel(b, o, from, to, scale);
        else
            losses_[static_cast<std::size_t>(t)] = loss_in_lanes(b.part(from, to), from, scale, w);
    }

    // Whole blocks of rows of one panel: nothing is transposed, and the targets are read where they lie.
    void losses_of_panel(const Batch<T>& b, ptrdiff_t o, int64_t from, int64_t to, T scale) {
        LossPanel<T> panel{};
        panel.scale = scale;
        for (int64_t r = from; r < to; r += loss_rows_) {
            panel.rows = std::min<int64_t>(loss_rows_, to - r);
            const int64_t first = b.index ? 0 : b.first + r;
            panel.index = b.index ? b.index + b.first + r : nullptr;
            panel.y = b.data->y + first * net_.targets();
            panel.weight = b.data->weight ? b.data->weight + first : nullptr;
            losses_[static_cast<std::size_t>(r / loss_rows_ * output_panels_ + o)] =
                net_.loss_of_panel(ws_, o, r, panel);
        }
    }

    double loss_in_lanes(const Batch<T>& block, int64_t from, T scale, const Worker& w) const {
        const int64_t to = from + block.rows;
        net_.outputs_to_lanes(ws_, from, to, w.z, loss_rows_);
        gather_targets(net_, block, w.y, w.weight, loss_rows_);
        LossBatch<T> batch = net_.loss_batch(block.rows, loss_rows_);
        batch.z = w.z;
        batch.y = w.y;
        batch.weight = w.weight;
        batch.delta = w.delta;
        batch.scale = scale;
        const double loss = net_.loss().value(batch);
        net_.output_error(ws_, w.delta, loss_rows_, from, to);
        return loss;
    }

    // The mean loss of all rows, from the caller.
    double custom_loss(const Batch<T>& b, const Worker& w) {
        const ptrdiff_t width = net_.plan().n_out();
        prediction_.resize(static_cast<std::size_t>(b.rows * width));
        gradient_.resize(prediction_.size());
        for (int64_t from = 0; from < b.rows; from += loss_rows_) {
            const int64_t rows = std::min<int64_t>(loss_rows_, b.rows - from);
            net_.outputs_to_lanes(ws_, from, from + rows, w.z, loss_rows_);
            T* to = prediction_.data() + from * width;
            for (int64_t r = 0; r < rows; ++r)
                for (ptrdiff_t o = 0; o < width; ++o) to[r * width + o] = w.z[o * loss_rows_ + r];
        }
        const CustomLoss<T>& custom = b.data->custom;
        const double loss = custom.compute(custom.context, b, width, prediction_.data(), gradient_.data());
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
        for (int64_t i = 0; i < loss_blocks(rows) * losses_a_block(); ++i) sum += losses_[static_cast<std::size_t>(i)];
        return sum;
    }

    const PanelNet<T>& net_;
    Profile& profile_;
    const bool loss_on_panels_;
    const ptrdiff_t output_panels_;
    ptrdiff_t loss_rows_ = 0;
    Workspace<T> ws_;
    T* x_ = nullptr;

private:
    static constexpr int64_t kMostRows = 4096, kAllRows = int64_t{1} << 40;
    static constexpr int64_t kLossBytes = 128 * 1024;
    static constexpr int64_t kSharedWork = 1'000'000;  // operations of a phase that is worth a second thread

    int64_t losses_a_block() const { return loss_on_panels_ ? output_panels_ : 1; }

    bool all_errors_;
    ptrdiff_t capacity_ = 0;
    Arena arena_;
    std::vector<Worker> workers_;
    std::vector<double> losses_;
    std::vector<T> prediction_, gradient_;  // of a custom loss, (rows, n_out)
};

}  // namespace gradstep
