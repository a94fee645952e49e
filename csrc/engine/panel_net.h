// Networks in panels of P columns: weights in P x P blocks [I/P][O/P][P][P], activations [F/P][stride][P].
// Every product reads vectors from a contiguous panel and broadcasts scalars; the only copy a step
// makes is the gather of its rows.
#pragma once
#include <algorithm>
#include <atomic>

#include "engine/net.h"
#include "engine/panel_layers.h"
#include "engine/update.h"

namespace gradstep {

// The fused end of a weight gradient: the optimizer on the block that was just computed. When guarded, a block
// that would make parameters or moments overflow is left out, and said.
template <class T>
struct FusedUpdate {
    const Update<T>& update;
    bool (*guard)(const T* gradient, ptrdiff_t n) noexcept;  // null: the caller has a checkpoint
    std::atomic<bool>& overflow;

    void operator()(std::size_t offset, T* gradient, ptrdiff_t n, const Hyper<T>& hyper) const {
        if (guard && !guard(gradient, n))
            overflow.store(true, std::memory_order_relaxed);
        else
            update(offset, n, gradient, 0, 1, hyper);
    }
};

// Where gradients go: into a buffer, or straight into the update.
template <class T>
struct GradientSink {
    T* gradient = nullptr;
    bool keep = false;
    const FusedUpdate<T>* update = nullptr;
    Laps* laps = nullptr;  // of the thread at work

    // Whether nobody asks for the gradient of the layer.
    bool skips(std::size_t layer) const { return update && update->update.frozen(layer); }
    // What the update will need.
    const T* state(int s, std::size_t offset) const {
        return update && s < update->update.optimizer.states ? update->update.state(s) + offset : nullptr;
    }
};

template <class T>
class PanelNet final : public Net<T> {
public:
    static constexpr ptrdiff_t kRowBlock = 192;  // of products

    PanelNet(const Kernels<T>& kernels, const Plan& plan, int vectors)
        : Net<T>(kernels, plan),
          v_(vectors - 1),
          P_(static_cast<ptrdiff_t>(vectors) * kernels.lanes),
          others_(kernels, this->plan_, this->layout_, v_) {
        for (std::size_t l = 0; l < plan.layers.size(); ++l)
            loses_bias_.push_back(plan.is_only_normalised(static_cast<int64_t>(l)));
        std::size_t at = 0;
        for (const LayerPlan& d : plan.layers) {
            const auto n_weights = static_cast<std::size_t>(d.has_gain() ? padded(d.n_out) : weight_size(d));
            this->layout_.layers.push_back({at, 0, n_weights, static_cast<std::size_t>(padded(d.biases()))});
            if (!d.has_gain()) at += n_weights;
        }
        this->layout_.weights = at;
        for (std::size_t l = 0; l < plan.layers.size(); ++l) {
            LayerParameters& layer = this->layout_.layers[l];
            if (plan.layers[l].has_gain()) {
                layer.weights = at;
                at += layer.n_weights;
            }
            layer.biases = at;
            at += layer.n_biases;
        }
        this->layout_.total = at;
    }

    ptrdiff_t panel_width() const { return P_; }
    ptrdiff_t panels(ptrdiff_t width) const { return (width + P_ - 1) / P_; }
    ptrdiff_t padded(ptrdiff_t width) const { return panels(width) * P_; }

    // Pads become zero again, too: training that was interrupted after an overflow may have left NaN there.
    void pack(std::size_t l, const T* W, const T* b, T* to) const override {
        const LayerPlan& d = this->plan_.layers[l];
        T* weights = to + this->layout_.layers[l].weights;
        if (W) std::fill(weights, weights + weight_size(d), T(0));
        if (W && !d.is_dense()) std::copy_n(W, d.weight_rows() * d.weight_columns(), weights);
        if (W && d.is_dense()) {
            for (ptrdiff_t i = 0; i < d.n_in; ++i)
                for (ptrdiff_t o = 0; o < d.n_out; o += P_)
                    std::copy_n(W + i * d.n_out + o, std::min(P_, d.n_out - o), to + weight_at(l, i, o));
        }
        if (b) {
            T* biases = to + this->layout_.layers[l].biases;
            std::fill(biases, biases + padded(d.biases()), T(0));
            std::copy_n(b, d.biases(), biases);
        }
    }

    void unpack(std::size_t l, const T* from, T* W, T* b) const override {
        const LayerPlan& d = this->plan_.layers[l];
        if (!d.is_dense()) std::copy_n(from + this->layout_.layers[l].weights, d.weight_rows() * d.weight_columns(), W);
        for (ptrdiff_t i = 0; d.is_dense() && i < d.n_in; ++i)
            for (ptrdiff_t o = 0; o < d.n_out; o += P_)
                std::copy_n(from + weight_at(l, i, o), std::min(P_, d.n_out - o), W + i * d.n_out + o);
        std::copy_n(from + this->layout_.layers[l].biases, d.biases(), b);
    }

    ptrdiff_t tile_stride(ptrdiff_t, ptrdiff_t capacity) const override { return capacity; }

    ptrdiff_t tile_rows() const override { return 128; }

    int64_t least_chunk() const override { return 32; }

    std::size_t x_size(ptrdiff_t rows) const override {
        return static_cast<std::size_t>(padded(this->plan_.n_in()) * rows);
    }

    void take_workspace(Taker& take, Workspace<T>& ws, ptrdiff_t rows, bool training) const override {
        const auto n = static_cast<std::size_t>(rows);
        const auto outputs = static_cast<std::size_t>(padded(this->plan_.n_out()));
        ws.inputs = {take.take<T>(x_size(rows)), take.take<T>(this->y_size(rows)), take.take<T>(n)};
        take_activations(take, ws, rows, training, !this->plan_.is_chain());
        ws.lanes_z = take.take<T>(outputs * n);
        if (!training) return;
        ws.lanes_delta = take.take<T>(outputs * n);
        ws.scratch = take.take<T>(scratch_size());
    }

    // Everything but the gathered inputs and the loss's lanes. The errors of all layers may be wanted at once, as the
    // outputs of those that are no chain; else those of a layer and of the one below. Those of the outputs may take
    // their place.
    void take_activations(Taker& take, Workspace<T>& ws, ptrdiff_t rows, bool training, bool all_errors) const {
        const auto n = static_cast<std::size_t>(rows);
        const std::size_t widest = static_cast<std::size_t>(padded(this->plan_.widest())) * n;
        ws.rows = rows;
        ws.z.assign(this->depth(), nullptr);
        ws.a.assign(this->depth(), nullptr);
        T* alternate[2] = {};
        if (!training && !all_errors)
            for (T*& buffer : alternate) buffer = take.take<T>(widest);
        for (std::size_t l = 0; l < this->depth(); ++l) {
            const auto size = static_cast<std::size_t>(padded(this->plan_.layers[l].n_out)) * n;
            ws.a[l] = training || all_errors ? take.take<T>(size) : alternate[l % 2];
            ws.z[l] = training && this->activation(l).needs_z ? take.take<T>(size) : ws.a[l];
        }
        if (!this->plan_.is_chain()) take_normalised(take, ws, rows, training);
        if (!training) return;
        const std::size_t widest_errors = outputs_become_errors() ? widest_input() * n : widest;
        ws.errors.assign(this->depth() + 1, nullptr);
        for (std::size_t l = 0; l < ws.errors.size(); ++l) {
            const ptrdiff_t width = l ? this->plan_.layers[l - 1].n_out : this->plan_.n_in();
            if (l == this->depth() && outputs_become_errors())
                ws.errors[l] = ws.a.back();
            else if (all_errors)
                ws.errors[l] = take.take<T>(static_cast<std::size_t>(padded(width)) * n);
            else
                ws.errors[l] = l < 2 ? take.take<T>(widest_errors) : ws.errors[l - 2];
        }
    }

    // Predictions normalise in the place of the outputs.
    void take_normalised(Taker& take, Workspace<T>& ws, ptrdiff_t rows, bool training) const {
        for (auto* buffers : {&ws.hat, &ws.inverse, &ws.mean, &ws.variance}) buffers->assign(this->depth(), nullptr);
        for (std::size_t l = 0; l < this->depth(); ++l) {
            const LayerPlan& d = this->plan_.layers[l];
            const auto width = static_cast<std::size_t>(padded(d.n_out)), n = static_cast<std::size_t>(rows);
            if (d.kind == Kind::layer_norm) ws.inverse[l] = take.take<T>(n);
            if (d.kind == Kind::batch_norm)
                for (auto* buffers : {&ws.inverse, &ws.mean, &ws.variance}) (*buffers)[l] = take.take<T>(width);
            if (d.kind == Kind::layer_norm || d.kind == Kind::batch_norm)
                ws.hat[l] = training ? take.take<T>(width * n) : ws.z[l];
        }
        if (this->plan_.normalises_batches()) ws.share = take.take<T>(static_cast<std::size_t>(rows));
    }

    std::size_t scratch_size() const { return static_cast<std::size_t>((kGroup + 1) * P_ * P_); }

    void gather_x(const Gather<T>& rows) const override { this->k_.gather_panels[v_](rows); }

    void forward(const Workspace<T>& ws, const T* x, const T* theta, ptrdiff_t rows) const override {
        for (std::size_t l = 0; l < this->depth(); ++l)
            forward_panels(ws, x, theta, l, 0, panels(this->plan_.layers[l].n_out), 0, rows);
    }

    // Rows [r0, r1) of output panels [o0, o1) of one layer, activation included.
    void forward_panels(const Workspace<T>& ws, const T* x, const T* theta, std::size_t l, ptrdiff_t o0, ptrdiff_t o1,
                        ptrdiff_t r0, ptrdiff_t r1) const {
        if (!this->plan_.layers[l].is_dense()) return other_panels(ws, x, theta, l, o0, o1, r0, r1);
        dense_panels(ws, x, theta, l, o0, o1, r0, r1, [](ptrdiff_t, ptrdiff_t, ptrdiff_t) {});
    }

    // The same of a dense layer; done(o, r, rows) is called with rows of a panel that are still in the cache. Blocks of
    // rows and depth keep a block of the input in the second-level cache while weights stream by.
    template <class Done>
    void dense_panels(const Workspace<T>& ws, const T* x, const T* theta, std::size_t l, ptrdiff_t o0, ptrdiff_t o1,
                      ptrdiff_t r0, ptrdiff_t r1, const Done& done) const {
        if (r1 - r0 <= kFewRows) return few_rows(ws, x, theta, l, o0, o1, r0, r1 - r0, done);
        const LayerPlan& d = this->plan_.layers[l];
        const LayerParameters& at = this->layout_.layers[l];
        const T* in = input(ws, x, l);
        const ptrdiff_t block = P_ * P_, row_panels = panels(d.n_out);
        for (ptrdiff_t r = r0; r < r1; r += kRowBlock) {
            const ptrdiff_t rows = std::min(kRowBlock, r1 - r);
            for (ptrdiff_t k = 0; k < d.n_in; k += kDepthBlock)
                for (ptrdiff_t o = o0; o < o1; ++o) {
                    T* to = ws.z[l] + o * ws.rows * P_ + r * P_;
                    const T* weights = theta + at.weights + (k / P_ * row_panels + o) * block;
                    this->k_.product[v_]({.rows = rows,
                                          .depth = std::min(kDepthBlock, d.n_in - k),
                                          .a = in + k * ws.rows + r * P_,
                                          .a_segment = ws.rows * P_,
                                          .b = weights,
                                          .b_segment = row_panels * block,
                                          .c = to,
                                          .init = k ? Init::keep : Init::bias,
                                          .bias = theta + at.biases + o * P_,
                                          .ahead = {o + 1 < o1 ? weights + block : nullptr},
                                          .ahead_segment = row_panels * block,
                                          .half = is_half(d.n_out, o)});
                    if (k + kDepthBlock < d.n_in) continue;
                    activate(ws, l, o, r, rows);
                    done(o, r, rows);
                }
        }
    }

    const T* outputs_in_lanes(const Workspace<T>& ws, ptrdiff_t rows) const override {
        outputs_to_lanes(ws, 0, rows, ws.lanes_z, ws.rows);
        return ws.lanes_z;
    }

    // Of a layer without products: the parameters' gradients of output panel o, and with column normalisation the
    // errors below.
    void other_gradients(const Workspace<T>& ws, const T* x, const T* theta, std::size_t l, ptrdiff_t o, ptrdiff_t rows,
                         const GradientSink<T>& sink) const {
        others_.parameter_gradients(ws, x, l, o, rows, sink.gradient, sink.keep);
        end_phase(sink.laps, Phase::weight_gradient);
        const LayerPlan& d = this->plan_.layers[l];
        if (d.kind != Kind::batch_norm) return;
        others_.column_errors(ws, theta, sink.gradient, l, o, rows);
        if (others_.links(l).last) through_activation(ws, d.input, o, 0, rows);
        end_phase(sink.laps, Phase::input_gradient);
    }

    // Of any other layer without products: rows [r0, r1) of the errors below.
    void other_errors(const Workspace<T>& ws, const T* theta, std::size_t l, ptrdiff_t r0, ptrdiff_t r1, Laps* laps,
                      bool input_gradient) const {
        const LayerPlan& d = this->plan_.layers[l];
        if (d.kind == Kind::batch_norm) return;
        others_.row_errors(ws, theta, l, r0, r1, input_gradient);
        const Links& links = others_.links(l);
        for (ptrdiff_t i = 0; links.last && i < panels(d.n_in); ++i) through_activation(ws, d.input, i, r0, r1);
        for (ptrdiff_t i = 0; d.kind == Kind::sum && links.last_other && i < panels(d.n_in); ++i)
            through_activation(ws, d.other, i, r0, r1);
        end_phase(laps, Phase::input_gradient);
    }

    // The first input panel of a dense layer whose errors somebody needs.
    ptrdiff_t first_input_error(std::size_t l, bool input_gradient) const {
        const LayerPlan& d = this->plan_.layers[l];
        if (input_gradient) return 0;
        return d.input < 0 ? panels(d.n_in) : others_.untrained_inputs(l) / P_;
    }

    // One input panel of one layer against output panels [o0, o1): its dX (which needs them all), its
    // blocks of dW, and with input panel 0 the bias gradients. Weights are read before they are updated.
    void backward_panel(const Workspace<T>& ws, const T* x, const T* theta, std::size_t l, ptrdiff_t i, ptrdiff_t o0,
                        ptrdiff_t o1, ptrdiff_t rows, const GradientSink<T>& sink, T* scratch, bool need_dx) const {
        for (ptrdiff_t o = o0; o < o1; o += kGroup) {
            const ptrdiff_t end = std::min(o + kGroup, o1);
            if (need_dx) input_error(ws, theta, l, i, o, end, 0, rows, theta + weight_at(l, i * P_, end * P_), scratch);
            end_phase(sink.laps, Phase::input_gradient);
            for (ptrdiff_t column = o; column < end; ++column)
                weight_gradient(ws, x, l, i, column, rows, sink, scratch + kGroup * P_ * P_);
        }
        if (i == 0)
            for (ptrdiff_t o = o0; o < o1; ++o) bias_gradient(ws, l, o, rows, sink, scratch + kGroup * P_ * P_);
        if (need_dx && others_.links(l).last) through_activation(ws, this->plan_.layers[l].input, i, 0, rows);
        end_phase(sink.laps, Phase::input_gradient);
    }

    // Blocks of dW of input panels [i0, i1) and output panels [o0, o1), and with input panel 0 the bias gradients: for
    // layers with few input panels, whose errors are then read once.
    void weight_gradients(const Workspace<T>& ws, const T* x, std::size_t l, ptrdiff_t i0, ptrdiff_t i1, ptrdiff_t o0,
                          ptrdiff_t o1, ptrdiff_t rows, const GradientSink<T>& sink, T* scratch) const {
        for (ptrdiff_t o = o0; o < o1; ++o) {
            for (ptrdiff_t i = i0; i < i1; ++i) weight_gradient(ws, x, l, i, o, rows, sink, scratch);
            if (i0 == 0) bias_gradient(ws, l, o, rows, sink, scratch);
        }
    }

    // Rows [r0, r1) of the first layer for sparse rows, activation included. row_of(r) gives row r of the batch.
    template <class RowOf>
    void sparse_forward_rows(const Workspace<T>& ws, const T* theta, ptrdiff_t r0, ptrdiff_t r1,
                             const RowOf& row_of) const {
        const LayerParameters& at = this->layout_.layers[0];
        const ptrdiff_t all = panels(this->plan_.layers[0].n_out);
        for (ptrdiff_t r = r0; r < r1; ++r) {
            SparseRow<T> row = row_of(r);
            row.weights = theta + at.weights;
            row.panels = all;
            row.bias = theta + at.biases;
            row.z = ws.z[0] + r * P_;
            row.stride = ws.rows;
            this->k_.sparse_forward[v_](row);
        }
        for (ptrdiff_t o = 0; o < all; ++o) activate(ws, 0, o, r0, r1 - r0);
    }

    // Input panel i of the first layer against output panels [o0, o1): its blocks of dW from a sparse batch's entries.
    void sparse_backward_panel(const Workspace<T>& ws, ptrdiff_t i, ptrdiff_t o0, ptrdiff_t o1, ptrdiff_t rows,
                               const SparseEntry<T>* entries, int64_t n, const GradientSink<T>& sink,
                               T* scratch) const {
        const ptrdiff_t inputs = std::min(P_, this->plan_.layers[0].n_in - i * P_);
        for (ptrdiff_t o = o0; o < o1 && !sink.skips(0); ++o) {
            const std::size_t at = weight_at(0, i * P_, o * P_);
            T* to = sink.update ? scratch : sink.gradient + at;
            this->k_.sparse_gradient[v_](entries, n, ws.errors[1] + o * ws.rows * P_, to, sink.keep);
            finish_gradient(sink, 0, at, inputs * P_, to, &Hypers<T>::weights);
            if (i == 0) bias_gradient(ws, 0, o, rows, sink, scratch);
        }
    }

    // Rows [r0, r1) of input panels [i0, i1) of dX, without dW.
    void input_error_rows(const Workspace<T>& ws, const T* theta, std::size_t l, ptrdiff_t i0, ptrdiff_t i1,
                          ptrdiff_t r0, ptrdiff_t r1, T* scratch) const {
        const ptrdiff_t all = panels(this->plan_.layers[l].n_out);
        for (ptrdiff_t o = 0; o < all; o += kGroup)
            for (ptrdiff_t i = i0; i < i1; ++i) {
                const bool last = i + 1 == i1;
                const T* next = theta + weight_at(l, (last ? i0 : i + 1) * P_, (last ? o + kGroup : o) * P_);
                input_error(ws, theta, l, i, o, std::min(o + kGroup, all), r0, r1, next, scratch);
            }
        for (ptrdiff_t i = i0; i < i1 && others_.links(l).last; ++i)
            through_activation(ws, this->plan_.layers[l].input, i, r0, r1);
    }

    // The errors of the outputs, rows [r0, r1): lanes (a block of their own) to panels, times the derivative
    // of the last activation. Also writes the pad rows of the last square.
    void output_error(const Workspace<T>& ws, const T* lanes_delta, ptrdiff_t lane_stride, ptrdiff_t r0,
                      ptrdiff_t r1) const {
        this->k_.lanes_to_panels[v_](lanes_delta, lane_stride, r1 - r0, this->plan_.n_out(),
                                     ws.errors[this->depth()] + r0 * P_, ws.rows);
        for (ptrdiff_t o = 0; o < panels(this->plan_.n_out()); ++o) output_error_through_activation(ws, o, r0, r1);
    }

    // Whether loss_of_panel may be asked: its vectors are of columns, which should be outputs for the most part.
    bool takes_loss_of_panels() const {
        const ptrdiff_t outputs = this->plan_.n_out();
        return this->loss_.panel[v_] && 2 * outputs >= padded(outputs);
    }

    // The sum of weight * loss of output panel o, rows from r0 on; leaves the errors of the outputs. The caller says
    // where the rows' targets and weights are, and the scale.
    double loss_of_panel(const Workspace<T>& ws, ptrdiff_t o, ptrdiff_t r0, LossPanel<T> panel) const {
        const ptrdiff_t at = (o * ws.rows + r0) * P_, outputs = this->plan_.n_out();
        panel.z = ws.a.back() + at;
        panel.delta = ws.errors[this->depth()] + at;
        panel.y += o * P_;
        panel.y_stride = outputs;
        panel.columns = std::min(P_, outputs - o * P_);
        panel.option = this->loss_option() + o * P_;
        const double loss = this->loss_.panel[v_](panel);
        output_error_through_activation(ws, o, r0, r0 + panel.rows);
        return loss;
    }

    // Rows [r0, r1) of the outputs, into lanes of their own.
    void outputs_to_lanes(const Workspace<T>& ws, ptrdiff_t r0, ptrdiff_t r1, T* lanes, ptrdiff_t lane_stride) const {
        this->k_.panels_to_lanes[v_](ws.a.back() + r0 * P_, ws.rows, r1 - r0, this->plan_.n_out(), lanes, lane_stride);
    }

    void finish_gradient(const Workspace<T>&, T*) const override {}

    void copy_predictions(const Workspace<T>& ws, ptrdiff_t rows, T* to) const override {
        const ptrdiff_t width = this->plan_.n_out();
        if (this->loss_.link) link_outputs(ws, rows);
        for (ptrdiff_t r = 0; r < rows; ++r)
            for (ptrdiff_t o = 0; o < width; o += P_)
                std::copy_n(ws.a.back() + o * ws.rows + r * P_, std::min(P_, width - o), to + r * width + o);
    }

    void copy_input_gradient(const Workspace<T>& ws, ptrdiff_t rows, T* to) const override {
        const ptrdiff_t width = this->plan_.n_in();
        for (ptrdiff_t r = 0; r < rows; ++r)
            for (ptrdiff_t c = 0; c < width; ++c)
                to[r * width + c] = ws.errors[0][c / P_ * ws.rows * P_ + r * P_ + c % P_];
    }

protected:
    void backward(const Workspace<T>& ws, const T* x, const T* theta, ptrdiff_t rows,
                  const TileGradient<T>& wanted) const override {
        output_error(ws, ws.lanes_delta, ws.rows, 0, rows);
        const GradientSink<T> sink{wanted.to, wanted.keep, nullptr, ws.laps};
        for (std::size_t l = this->depth(); l-- > 0;) {
            const LayerPlan& d = this->plan_.layers[l];
            if (!d.is_dense()) {
                for (ptrdiff_t o = 0; o < panels(d.n_out); ++o) other_gradients(ws, x, theta, l, o, rows, sink);
                other_errors(ws, theta, l, 0, rows, sink.laps, wanted.inputs);
                continue;
            }
            const ptrdiff_t first = first_input_error(l, wanted.inputs);
            for (ptrdiff_t i = 0; i < panels(d.n_in); ++i)
                backward_panel(ws, x, theta, l, i, 0, panels(d.n_out), rows, sink, ws.scratch, i >= first);
        }
    }

private:
    static constexpr ptrdiff_t kGroup = 4;         // output panels whose transposed weights fit the first-level cache
    static constexpr ptrdiff_t kDepthBlock = 512;  // with kRowBlock 384 KB of float inputs

    void output_error_through_activation(const Workspace<T>& ws, ptrdiff_t o, ptrdiff_t r0, ptrdiff_t r1) const {
        const std::size_t last = this->depth() - 1;
        const ptrdiff_t at = (o * ws.rows + r0) * P_;
        if (const auto backward = this->activation(last).backward)
            backward(ws.z[last] + at, ws.a[last] + at, ws.errors[last + 1] + at, (r1 - r0) * P_);
    }

    // In place. Where the loss takes each output by itself, so does the link, to which a panel then is one output.
    void link_outputs(const Workspace<T>& ws, ptrdiff_t rows) const {
        const ptrdiff_t outputs = this->plan_.n_out(), lanes = this->whole_lanes(rows);
        T* a = ws.a.back();
        if (this->loss_.panel[v_]) {
            for (ptrdiff_t o = 0; o < panels(outputs); ++o, a += ws.rows * P_) this->link(a, a, 1, rows * P_, 0);
            return;
        }
        outputs_to_lanes(ws, 0, rows, ws.lanes_z, ws.rows);
        this->link(ws.lanes_z, ws.lanes_z, outputs, lanes, ws.rows);
        this->k_.lanes_to_panels[v_](ws.lanes_z, ws.rows, rows, outputs, a, ws.rows);
    }

    // In whole panels.
    std::size_t widest_input() const {
        ptrdiff_t widest = 0;
        for (const LayerPlan& d : this->plan_.layers) widest = std::max(widest, padded(d.n_in));
        return static_cast<std::size_t>(widest);
    }

    // Whether nobody wants the outputs once their errors are known.
    bool outputs_become_errors() const {
        return this->plan_.is_chain() && !this->activation(this->depth() - 1).backward;
    }

    const T* input(const Workspace<T>& ws, const T* x, std::size_t l) const {
        const int64_t from = this->plan_.layers[l].input;
        return from < 0 ? x : ws.a[static_cast<std::size_t>(from)];
    }
    T* errors_below(const Workspace<T>& ws, std::size_t l) const {
        return ws.errors[static_cast<std::size_t>(this->plan_.layers[l].input + 1)];
    }

    // The elements of a layer's weights, gain or table.
    ptrdiff_t weight_size(const LayerPlan& d) const {
        return d.is_dense() ? padded(d.n_in) * padded(d.n_out) : padded(d.weight_rows() * d.weight_columns());
    }

    void other_panels(const Workspace<T>& ws, const T* x, const T* theta, std::size_t l, ptrdiff_t o0, ptrdiff_t o1,
                      ptrdiff_t r0, ptrdiff_t r1) const {
        others_.forward(ws, x, theta, l, o0, o1, r0, r1);
        for (ptrdiff_t o = o0; o < o1; ++o) activate(ws, l, o, r0, r1 - r0);
    }

    // Activation and dropout of `rows` rows from r on, in one panel.
    void activate(const Workspace<T>& ws, std::size_t l, ptrdiff_t o, ptrdiff_t r, ptrdiff_t rows) const {
        const ptrdiff_t at = (o * ws.rows + r) * P_;
        T* a = ws.a[l] + at;
        if (this->activation(l).forward) this->activation(l).forward(ws.z[l] + at, a, rows * P_);
        if (drops(ws, l)) this->k_.drop[v_]({a, rows, ws.drop.row + r, static_cast<uint32_t>(o * P_), drop_key(ws, l)});
    }

    bool drops(const Workspace<T>& ws, std::size_t l) const {
        return ws.drop.active && this->plan_.layers[l].dropout > 0;
    }

    DropKey drop_key(const Workspace<T>& ws, std::size_t l) const {
        constexpr uint32_t kDropoutStream = 1;  // of the first layer; 0 shuffles
        const double rate = this->plan_.layers[l].dropout;
        return {this->plan_.seed, ws.drop.step, kDropoutStream + static_cast<uint32_t>(l),
                static_cast<uint32_t>(rate * 4294967296.0), 1 / (1 - rate)};
    }

    // Whether the last panel of a layer fits one of its two vectors.
    bool is_half(ptrdiff_t width, ptrdiff_t panel) const { return v_ == 1 && 2 * (width - panel * P_) <= P_; }

    std::size_t weight_at(std::size_t l, ptrdiff_t i, ptrdiff_t o) const {
        const ptrdiff_t blocks = i / P_ * panels(this->plan_.layers[l].n_out) + o / P_;
        return this->layout_.layers[l].weights + static_cast<std::size_t>((blocks * P_ + i % P_) * P_ + o % P_);
    }

    // delta below (rows [r0, r1), input panel i) (+)= delta[:, o..end) W[i, o..end)^T. Fetches the weights at `next`.
    void input_error(const Workspace<T>& ws, const T* theta, std::size_t l, ptrdiff_t i, ptrdiff_t o, ptrdiff_t end,
                     ptrdiff_t r0, ptrdiff_t r1, const T* next, T* scratch) const {
        for (ptrdiff_t column = o; column < end; ++column)
            this->k_.transpose_block[v_](theta + weight_at(l, i * P_, column * P_), scratch + (column - o) * P_ * P_);
        const ptrdiff_t depth = std::min(this->plan_.layers[l].n_out, end * P_) - o * P_;
        this->k_.product[v_]({.rows = r1 - r0,
                              .depth = depth,
                              .a = ws.errors[l + 1] + (o * ws.rows + r0) * P_,
                              .a_segment = ws.rows * P_,
                              .b = scratch,
                              .b_segment = P_ * P_,
                              .c = errors_below(ws, l) + (i * ws.rows + r0) * P_,
                              .init = o || others_.links(l).keep ? Init::keep : Init::zero,
                              .bias = nullptr,
                              .ahead = {next},
                              .ahead_segment = P_ * P_,
                              .half = is_half(this->plan_.layers[l].n_in, i)});
    }

    // Panel i of the errors of a layer's outputs, back through what is behind its products.
    void through_activation(const Workspace<T>& ws, int64_t layer, ptrdiff_t i, ptrdiff_t r0, ptrdiff_t r1) const {
        if (layer < 0) return;
        const auto l = static_cast<std::size_t>(layer);
        const ptrdiff_t at = (i * ws.rows + r0) * P_, n = (r1 - r0) * P_;
        T* delta = ws.errors[l + 1] + at;
        if (drops(ws, l))
            return this->k_.drop_backward(drop_key(ws, l), this->activation(l), ws.z[l] + at, ws.a[l] + at, delta, n);
        if (this->activation(l).backward) this->activation(l).backward(ws.z[l] + at, ws.a[l] + at, delta, n);
    }

    // dense_panels of at most kFewRows rows from r on.
    template <class Done>
    void few_rows(const Workspace<T>& ws, const T* x, const T* theta, std::size_t l, ptrdiff_t o0, ptrdiff_t o1,
                  ptrdiff_t r, ptrdiff_t rows, const Done& done) const {
        const LayerPlan& d = this->plan_.layers[l];
        const LayerParameters& at = this->layout_.layers[l];
        this->k_.product_few_rows[v_]({.rows = rows,
                                       .depth = d.n_in,
                                       .a = input(ws, x, l) + r * P_,
                                       .a_segment = ws.rows * P_,
                                       .b = theta + at.weights + o0 * P_ * P_,
                                       .b_segment = panels(d.n_out) * P_ * P_,
                                       .c = ws.z[l] + (o0 * ws.rows + r) * P_,
                                       .c_panel = ws.rows * P_,
                                       .bias = theta + at.biases + o0 * P_,
                                       .panels = o1 - o0});
        for (ptrdiff_t o = o0; o < o1; ++o) {
            activate(ws, l, o, r, rows);
            done(o, r, rows);
        }
    }

    void weight_gradient(const Workspace<T>& ws, const T* x, std::size_t l, ptrdiff_t i, ptrdiff_t o, ptrdiff_t rows,
                         const GradientSink<T>& sink, T* scratch) const {
        if (sink.skips(l)) return;
        const std::size_t at = weight_at(l, i * P_, o * P_);
        const ptrdiff_t inputs = std::min(P_, this->plan_.layers[l].n_in - i * P_);
        T* to = sink.update ? scratch : sink.gradient + at;
        this->k_.product_transposed[v_]({.rows = inputs,
                                         .depth = rows,
                                         .a = input(ws, x, l) + i * ws.rows * P_,
                                         .a_segment = 0,
                                         .b = ws.errors[l + 1] + o * ws.rows * P_,
                                         .b_segment = 0,
                                         .c = to,
                                         .init = sink.keep ? Init::keep : Init::zero,
                                         .bias = nullptr,
                                         .ahead = {sink.state(0, at), sink.state(1, at)},
                                         .ahead_segment = 0,
                                         .half = is_half(this->plan_.layers[l].n_out, o)});
        finish_gradient(sink, l, at, inputs * P_, scratch, &Hypers<T>::weights);
    }

    void bias_gradient(const Workspace<T>& ws, std::size_t l, ptrdiff_t o, ptrdiff_t rows, const GradientSink<T>& sink,
                       T* scratch) const {
        if (sink.skips(l)) return;
        const std::size_t at = this->layout_.layers[l].biases + static_cast<std::size_t>(o * P_);
        T* to = sink.update ? scratch : sink.gradient + at;
        if (loses_bias_[l])
            std::fill_n(to, P_, T(0));
        else
            this->k_.column_sums[v_](ws.errors[l + 1] + o * ws.rows * P_, rows, to, sink.keep);
        finish_gradient(sink, l, at, P_, scratch, &Hypers<T>::biases);
    }

    // After a block's gradient: its update, if the sink has one.
    static void finish_gradient(const GradientSink<T>& sink, std::size_t l, std::size_t at, ptrdiff_t n, T* gradient,
                                Hyper<T> Hypers<T>::*which) {
        end_phase(sink.laps, Phase::weight_gradient);
        if (!sink.update) return;
        (*sink.update)(at, gradient, n, sink.update->update.hyper(l, which));
        end_phase(sink.laps, Phase::update);
    }

    const int v_;
    const ptrdiff_t P_;
    const PanelLayers<T> others_;
    std::vector<bool> loses_bias_;  // by layer
};

}  // namespace gradstep
