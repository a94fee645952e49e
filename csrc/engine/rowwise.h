// Steps of medium networks, whose weights every core can hold: chunks of rows go forward through all layers and their
// errors back to the first, without waiting for each other; then the threads share the blocks of all weight
// gradients, each followed by its update. Two meetings a step instead of two a layer, and a row's activations stay
// with one core. Every element is summed by one thread in one order.
#pragma once
#include "engine/layered.h"

namespace gradstep {

template <class T>
class RowwiseStep final : public LayeredStep<T> {
public:
    RowwiseStep(const PanelNet<T>& net, Profile& profile) : LayeredStep<T>(net, profile, true) {}

    double forward(const Batch<T>& b, const T* theta, T scale, int threads, bool input_gradient) override {
        threads = this->threads_for(4 * b.rows * net_.plan().weights(), threads);
        if (!b.data->x || too_few(b.rows, threads))
            return LayeredStep<T>::forward(b, theta, scale, threads, input_gradient);
        this->is_sparse_ = false;
        const int64_t chunk = chunk_rows(b.rows, threads);
        const auto chunks = static_cast<int>((b.rows + chunk - 1) / chunk);
        parallel_for(chunks, threads, [&](int t, int worker) {
            const int64_t from = t * chunk;
            forth_and_back(b, from, std::min(from + chunk, b.rows), theta, scale, worker, input_gradient);
        });
        return this->sum_of_losses(b.rows);
    }

    void backward(int64_t rows, const T* theta, const GradientSink<T>& sink, int threads,
                  bool input_gradient) override {
        threads = this->threads_for(4 * rows * net_.plan().weights(), threads);
        if (this->is_sparse_ || too_few(rows, threads))
            return LayeredStep<T>::backward(rows, theta, sink, threads, input_gradient);
        const ptrdiff_t group = columns_of_a_task(threads);
        int tasks = 0;
        for (std::size_t l = 0; l < net_.plan().layers.size(); ++l) tasks += tasks_of(l, group);
        parallel_for(tasks, threads, [&](int t, int worker) {
            std::size_t l = 0;
            for (; t >= tasks_of(l, group); ++l) t -= tasks_of(l, group);
            const ptrdiff_t outputs = net_.panels(net_.plan().layers[l].n_out);
            const ptrdiff_t groups = (outputs + group - 1) / group, i = t / groups, o = t % groups * group;
            GradientSink<T> to = sink;
            to.laps = this->profile_.begin(worker);
            net_.backward_panel(ws_, x_, theta, l, i, o, std::min(o + group, outputs), rows, to,
                                this->worker_of(worker).scratch, false);
        });
    }

private:
    using LayeredStep<T>::net_;
    using LayeredStep<T>::ws_;
    using LayeredStep<T>::x_;
    static constexpr int64_t kMostChunkRows = 128;

    // Every chunk transposes all weights once, which few rows do not repay. The bits are the same either way.
    static bool too_few(int64_t rows, int threads) { return rows < 64 * threads; }

    // Whole blocks of the loss, as many chunks as threads or a multiple of that.
    int64_t chunk_rows(int64_t rows, int threads) const {
        const int64_t rounds = (rows + kMostChunkRows * threads - 1) / (kMostChunkRows * threads);
        const int64_t chunks = rounds * threads, share = (rows + chunks - 1) / chunks;
        return (share + this->loss_rows_ - 1) / this->loss_rows_ * this->loss_rows_;
    }

    void forth_and_back(const Batch<T>& b, int64_t from, int64_t to, const T* theta, T scale, int worker,
                        bool input_gradient) {
        Laps* laps = this->profile_.begin(worker);
        this->gather_rows(b, from, to);
        end_phase(laps, Phase::gather);
        const std::size_t depth = net_.plan().layers.size();
        for (std::size_t l = 0; l < depth; ++l)
            net_.forward_panels(ws_, x_, theta, l, 0, net_.panels(net_.plan().layers[l].n_out), from, to);
        end_phase(laps, Phase::forward);
        const auto first = static_cast<int>(from / this->loss_rows_);
        for (int t = first; t < this->loss_blocks(to); ++t) this->loss_block(b, t, scale, this->worker_of(worker));
        end_phase(laps, Phase::loss);
        for (std::size_t l = depth; l-- > (input_gradient ? 0 : 1);)
            for (ptrdiff_t i = 0; i < net_.panels(net_.plan().layers[l].n_in); ++i)
                net_.input_error_rows(ws_, theta, l, i, i + 1, from, to, this->worker_of(worker).scratch);
        end_phase(laps, Phase::input_gradient);
    }

    // Output panels of one task of dW: enough tasks for an even share.
    ptrdiff_t columns_of_a_task(int threads) const {
        ptrdiff_t blocks = 0;
        for (const LayerPlan& d : net_.plan().layers) blocks += net_.panels(d.n_in) * net_.panels(d.n_out);
        return threads > 1 ? std::max<ptrdiff_t>(1, blocks / (2 * this->kTasksPerThread * threads)) : blocks;
    }

    int tasks_of(std::size_t l, ptrdiff_t group) const {
        const LayerPlan& d = net_.plan().layers[l];
        return static_cast<int>(net_.panels(d.n_in) * ((net_.panels(d.n_out) + group - 1) / group));
    }
};

}  // namespace gradstep
