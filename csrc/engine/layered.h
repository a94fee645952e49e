// Steps of large networks, layer by layer: all threads share one layer at a time. Every output element
// is summed by one thread in one order, so nothing here depends on the number of threads; the optimizer
// runs on each block of weights as soon as its gradient is there. Sparse rows are never gathered: the first layer takes
// their elements as they are.
#pragma once
#include "engine/panel_step.h"
#include "engine/sparse.h"

namespace gradstep {

template <class T>
class LayeredStep : public PanelStep<T> {
public:
    LayeredStep(const PanelNet<T>& net, Profile& profile, bool all_errors = false)
        : PanelStep<T>(net, profile, all_errors) {}

    double forward(const Batch<T>& b, const T* theta, T scale, int threads, bool) override {
        is_sparse_ = !b.data->x;
        if (is_sparse_)
            sparse_forward(b, theta, threads);
        else
            gather(b, threads);
        if (ws_.share) share(b);
        const std::size_t first = is_sparse_ ? 1 : 0, last = net_.plan().layers.size() - 1;
        for (std::size_t l = first; l < last; ++l) forward_layer(b.rows, theta, l, threads);
        if (loss_on_panels_ && last >= first && net_.plan().layers[last].is_dense())
            return forward_with_loss(b, theta, last, scale, threads);
        if (last >= first) forward_layer(b.rows, theta, last, threads);
        return loss(b, scale, threads);
    }

    void backward(int64_t rows, const T* theta, const GradientSink<T>& sink, int threads,
                  bool input_gradient) override {
        for (std::size_t l = net_.plan().layers.size(); l-- > (is_sparse_ ? 1 : 0);)
            if (net_.plan().layers[l].is_dense())
                backward_layer(rows, theta, l, sink, threads, net_.first_input_error(l, input_gradient));
            else
                backward_other(rows, theta, l, sink, threads, input_gradient);
        if (is_sparse_) sparse_backward(rows, sink, threads);
    }

protected:
    bool is_sparse_ = false;  // the batch at work

    using PanelStep<T>::net_;
    using PanelStep<T>::ws_;
    using PanelStep<T>::x_;
    using PanelStep<T>::loss_on_panels_;
    using PanelStep<T>::kTasksPerThread;

private:
    static constexpr int64_t kGatherRows = 32;
    static constexpr int64_t kLeastTaskRows = 28;  // two product tiles
    static constexpr int kRowTasks = 2;            // a thread: each transposes all weights
    static constexpr int64_t kLossWork = 64;       // operations that an output is worth
    static constexpr int64_t kOtherWork = 16;      // operations that an element of a layer without products is worth

    SparseBatch<T> sparse_;

    void gather(const Batch<T>& b, int threads) {
        const int n = static_cast<int>((b.rows + kGatherRows - 1) / kGatherRows);
        parallel_for(n, this->threads_for(16 * b.rows * net_.plan().n_in(), threads), [&](int t, int worker) {
            Laps* laps = this->profile_.begin(worker);
            const int64_t from = t * kGatherRows;
            this->gather_rows(b, from, std::min(from + kGatherRows, b.rows));
            end_phase(laps, Phase::gather);
        });
    }

    // What each row contributes to the statistics of the batch: nothing where all weights are zero.
    void share(const Batch<T>& b) {
        const double sum = b.weight_sum(), factor = sum > 0 ? 1 / sum : 0.0;
        for (int64_t r = 0; r < b.rows; ++r)
            ws_.share[r] =
                static_cast<T>(factor * (b.data->weight ? static_cast<double>(b.data->weight[b.row(r)]) : 1));
    }

    // Layers without products go by panels if they need all rows of one, else by rows.
    void forward_other(int64_t rows, const T* theta, std::size_t l, int threads) {
        const LayerPlan& d = net_.plan().layers[l];
        const ptrdiff_t panels = net_.panels(d.n_out);
        const bool by_panel = d.kind == Kind::batch_norm;
        threads = this->threads_for(kOtherWork * rows * d.n_out, threads);
        const ptrdiff_t wanted = threads > 1 ? kTasksPerThread * threads : 1;
        const ptrdiff_t tasks = std::min<ptrdiff_t>(by_panel ? panels : rows, wanted);
        parallel_for(static_cast<int>(tasks), threads, [&](int t, int worker) {
            Laps* laps = this->profile_.begin(worker);
            const ptrdiff_t all = by_panel ? panels : rows, from = all * t / tasks, to = all * (t + 1) / tasks;
            if (by_panel)
                net_.forward_panels(ws_, x_, theta, l, from, to, 0, rows);
            else
                net_.forward_panels(ws_, x_, theta, l, 0, panels, from, to);
            end_phase(laps, Phase::forward);
        });
    }

    void backward_other(int64_t rows, const T* theta, std::size_t l, const GradientSink<T>& sink, int threads,
                        bool input_gradient) {
        const LayerPlan& d = net_.plan().layers[l];
        threads = this->threads_for(kOtherWork * rows * d.n_out, threads);
        parallel_for(static_cast<int>(net_.panels(d.n_out)), threads, [&](int o, int worker) {
            GradientSink<T> to = sink;
            to.laps = this->profile_.begin(worker);
            net_.other_gradients(ws_, x_, theta, l, o, rows, to);
        });
        const ptrdiff_t tasks = std::min<ptrdiff_t>(threads > 1 ? kTasksPerThread * threads : 1, rows);
        parallel_for(static_cast<int>(tasks), threads, [&](int t, int worker) {
            Laps* laps = this->profile_.begin(worker);
            net_.other_errors(ws_, theta, l, rows * t / tasks, rows * (t + 1) / tasks, laps, input_gradient);
        });
    }

    // Also sorts the batch, which backward needs.
    void sparse_forward(const Batch<T>& b, const T* theta, int threads) {
        Laps* laps = this->profile_.begin(0);
        sparse_.sort(b, net_.panel_width(), net_.panels(net_.plan().n_in()));
        end_phase(laps, Phase::gather);
        threads = this->threads_for(2 * sparse_.size() * net_.plan().layers[0].n_out, threads);
        const ptrdiff_t tasks = std::min<ptrdiff_t>(threads > 1 ? kTasksPerThread * threads : 1, b.rows);
        parallel_for(static_cast<int>(tasks), threads, [&](int t, int worker) {
            Laps* mine = this->profile_.begin(worker);
            net_.sparse_forward_rows(ws_, theta, b.rows * t / tasks, b.rows * (t + 1) / tasks,
                                     [&](ptrdiff_t r) { return SparseBatch<T>::row(b, r); });
            end_phase(mine, Phase::forward);
        });
    }

    void sparse_backward(int64_t rows, const GradientSink<T>& sink, int threads) {
        const LayerPlan& d = net_.plan().layers[0];
        const ptrdiff_t inputs = net_.panels(d.n_in), outputs = net_.panels(d.n_out);
        threads = this->threads_for(8 * d.n_in * d.n_out, threads);  // the update of every weight
        const ptrdiff_t tasks = std::min<ptrdiff_t>(threads > 1 ? kTasksPerThread * threads : 1, inputs);
        parallel_for(static_cast<int>(tasks), threads, [&](int t, int worker) {
            GradientSink<T> to = sink;
            to.laps = this->profile_.begin(worker);
            for (ptrdiff_t i = inputs * t / tasks; i < inputs * (t + 1) / tasks; ++i)
                net_.sparse_backward_panel(ws_, i, 0, outputs, rows, sparse_.begin(i), sparse_.count(i), to,
                                           this->worker_of(worker).scratch);
        });
    }

    // Into how many parts the threads cut a layer's outputs.
    struct Cut {
        ptrdiff_t panels, rows;
    };

    Cut cut_outputs(int64_t rows, std::size_t l, int threads) const {
        const ptrdiff_t wanted = threads > 1 ? kTasksPerThread * threads : 1;
        const ptrdiff_t by_panel = std::min(net_.panels(net_.plan().layers[l].n_out), wanted);
        return {by_panel, std::clamp<ptrdiff_t>(wanted / by_panel, 1, (rows + kLeastTaskRows - 1) / kLeastTaskRows)};
    }

    void forward_layer(int64_t rows, const T* theta, std::size_t l, int threads) {
        const LayerPlan& d = net_.plan().layers[l];
        if (!d.is_dense()) return forward_other(rows, theta, l, threads);
        threads = this->threads_for(2 * rows * d.n_in * d.n_out, threads);
        const Cut cut = cut_outputs(rows, l, threads);
        const ptrdiff_t panels = net_.panels(d.n_out);
        parallel_for(static_cast<int>(cut.panels * cut.rows), threads, [&](int t, int worker) {
            Laps* laps = this->profile_.begin(worker);
            const ptrdiff_t p = t % cut.panels, r = t / cut.panels;
            net_.forward_panels(ws_, x_, theta, l, panels * p / cut.panels, panels * (p + 1) / cut.panels,
                                rows * r / cut.rows, rows * (r + 1) / cut.rows);
            end_phase(laps, Phase::forward);
        });
    }

    // Outputs that are many become losses and errors while they are in the cache.
    double forward_with_loss(const Batch<T>& b, const T* theta, std::size_t l, T scale, int threads) {
        const LayerPlan& d = net_.plan().layers[l];
        const int sharing = this->threads_for((2 * d.n_in + kLossWork) * b.rows * d.n_out, threads);
        const Cut cut = cut_outputs(b.rows, l, sharing);
        if (cut.rows > 1) {
            forward_layer(b.rows, theta, l, threads);
            return loss(b, scale, threads);
        }
        const ptrdiff_t panels = net_.panels(d.n_out);
        parallel_for(static_cast<int>(cut.panels), sharing, [&](int p, int worker) {
            Laps* laps = this->profile_.begin(worker);
            const auto loss_of_rows = [&](ptrdiff_t o, ptrdiff_t r, ptrdiff_t rows) {
                end_phase(laps, Phase::forward);
                this->losses_of_panel(b, o, r, r + rows, scale);
                end_phase(laps, Phase::loss);
            };
            net_.dense_panels(ws_, x_, theta, l, panels * p / cut.panels, panels * (p + 1) / cut.panels, 0, b.rows,
                              loss_of_rows);
        });
        return this->sum_of_losses(b.rows);
    }

    double loss(const Batch<T>& b, T scale, int threads) {
        if (net_.custom_loss()) {
            Laps* laps = this->profile_.begin(0);
            const double mean = this->custom_loss(b, this->worker_of(0));
            end_phase(laps, Phase::loss);
            return mean;
        }
        threads = this->threads_for(kLossWork * b.rows * net_.plan().n_out(), threads);
        parallel_for(this->loss_blocks(b.rows), threads, [&](int t, int worker) {
            Laps* laps = this->profile_.begin(worker);
            this->loss_block(b, t, scale, this->worker_of(worker));
            end_phase(laps, Phase::loss);
        });
        return this->sum_of_losses(b.rows);
    }

    void backward_layer(int64_t rows, const T* theta, std::size_t l, const GradientSink<T>& sink, int threads,
                        ptrdiff_t first_error) {
        const LayerPlan& d = net_.plan().layers[l];
        const ptrdiff_t inputs = net_.panels(d.n_in), outputs = net_.panels(d.n_out);
        threads = this->threads_for(4 * rows * d.n_in * d.n_out, threads);
        if (threads > 1 && inputs < 2 * threads) {
            if (first_error < inputs) input_errors(rows, theta, l, first_error, threads);
            return weight_gradients(rows, l, sink, threads);
        }
        // dX of an input panel needs all output panels; dW alone can be cut finer.
        const ptrdiff_t wanted = threads > 1 ? kTasksPerThread * threads : 1;
        const ptrdiff_t finer = std::clamp<ptrdiff_t>((wanted + inputs - 1) / inputs, 1, outputs);
        const ptrdiff_t groups = first_error < inputs ? 1 : finer;
        parallel_for(static_cast<int>(inputs * groups), threads, [&](int t, int worker) {
            const ptrdiff_t i = t / groups, g = t % groups;
            GradientSink<T> to = sink;
            to.laps = this->profile_.begin(worker);
            net_.backward_panel(ws_, x_, theta, l, i, outputs * g / groups, outputs * (g + 1) / groups, rows, to,
                                this->worker_of(worker).scratch, i >= first_error);
        });
    }

    // Of a layer with few input panels: the threads share the rows, if there are enough, and read their errors once.
    void input_errors(int64_t rows, const T* theta, std::size_t l, ptrdiff_t first, int threads) {
        const ptrdiff_t by_row =
            std::clamp<ptrdiff_t>(kRowTasks * threads, 1, (rows + kLeastTaskRows - 1) / kLeastTaskRows);
        const ptrdiff_t inputs = net_.panels(net_.plan().layers[l].n_in) - first;
        const ptrdiff_t by_panel = by_row < threads ? inputs : 1;
        parallel_for(static_cast<int>(by_panel * by_row), threads, [&](int t, int worker) {
            Laps* laps = this->profile_.begin(worker);
            const ptrdiff_t i = t % by_panel, r = t / by_panel;
            net_.input_error_rows(ws_, theta, l, first + inputs * i / by_panel, first + inputs * (i + 1) / by_panel,
                                  rows * r / by_row, rows * (r + 1) / by_row, this->worker_of(worker).scratch);
            end_phase(laps, Phase::input_gradient);
        });
    }

    // Cut by output panels, and by input panels where those are too few.
    void weight_gradients(int64_t rows, std::size_t l, const GradientSink<T>& sink, int threads) {
        const ptrdiff_t inputs = net_.panels(net_.plan().layers[l].n_in);
        const ptrdiff_t outputs = net_.panels(net_.plan().layers[l].n_out);
        const ptrdiff_t wanted = kTasksPerThread * threads, by_output = std::min(wanted, outputs);
        const ptrdiff_t by_input = std::clamp<ptrdiff_t>((wanted + by_output - 1) / by_output, 1, inputs);
        parallel_for(static_cast<int>(by_output * by_input), threads, [&](int t, int worker) {
            GradientSink<T> to = sink;
            to.laps = this->profile_.begin(worker);
            const ptrdiff_t o = t % by_output, i = t / by_output;
            net_.weight_gradients(ws_, x_, l, inputs * i / by_input, inputs * (i + 1) / by_input,
                                  outputs * o / by_output, outputs * (o + 1) / by_output, rows, to,
                                  this->worker_of(worker).scratch);
        });
    }
};

}  // namespace gradstep
