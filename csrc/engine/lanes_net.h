// Tiny networks: a sample a lane. Activations are [F][lanes], weights stay row-major (I, O) and are
// broadcast, so that a 2-4-1 net wastes no lanes.
#pragma once
#include <algorithm>

#include "engine/net.h"

namespace gradstep {

template <class T>
class LanesNet final : public Net<T> {
public:
    LanesNet(const Kernels<T>& kernels, const Plan& plan) : Net<T>(kernels, plan) {
        std::size_t at = 0;
        for (const LayerPlan& d : plan.layers) {
            const auto n_weights = static_cast<std::size_t>(d.n_in * d.n_out);
            this->layout_.layers.push_back({at, 0, n_weights, static_cast<std::size_t>(d.n_out)});
            at += n_weights;
        }
        n_weights_ = at;
        at = this->layout_.weights = static_cast<std::size_t>(this->whole_lanes(static_cast<ptrdiff_t>(at)));
        for (std::size_t l = 0; l < plan.layers.size(); ++l) {
            this->layout_.layers[l].biases = at;
            at += this->layout_.layers[l].n_biases;
        }
        n_biases_ = at - this->layout_.weights;
        this->layout_.total = static_cast<std::size_t>(this->whole_lanes(static_cast<ptrdiff_t>(at)));
        const LayerPlan& last = plan.layers.back();
        one_pass_ = last.n_out == 1 && last.n_in <= kFewInputs && !this->activation(this->depth() - 1).forward &&
                    this->loss_.lanes_output;
    }

    void pack(std::size_t l, const T* W, const T* b, T* to) const override {
        const LayerPlan& d = this->plan_.layers[l];
        if (W) std::copy(W, W + d.n_in * d.n_out, to + this->layout_.layers[l].weights);
        if (b) std::copy(b, b + d.n_out, to + this->layout_.layers[l].biases);
        // The pads, too: training that was interrupted after an overflow may have left NaN there.
        std::fill(to + n_weights_, to + this->layout_.weights, T(0));
        std::fill(to + this->layout_.weights + n_biases_, to + this->layout_.total, T(0));
    }

    void unpack(std::size_t l, const T* from, T* W, T* b) const override {
        const LayerPlan& d = this->plan_.layers[l];
        const LayerParameters& at = this->layout_.layers[l];
        std::copy(from + at.weights, from + at.weights + d.n_in * d.n_out, W);
        std::copy(from + at.biases, from + at.biases + d.n_out, b);
    }

    ptrdiff_t tile_stride(ptrdiff_t rows, ptrdiff_t) const override { return this->whole_lanes(rows); }

    // Every tile loads and stores a vector of partial sums a weight: with AVX2 and float32 256 rows took 0.93 to 0.98
    // of the time of 128, and 64 rows 1.04 to 1.11 (4-32-16-4 and 16-16-1).
    ptrdiff_t tile_rows() const override { return 256; }

    // Every chunk ends with sums over the lanes of each weight.
    int64_t least_chunk() const override { return 8 * this->k_.lanes; }

    std::size_t x_size(ptrdiff_t rows) const override { return static_cast<std::size_t>(this->plan_.n_in() * rows); }

    void take_workspace(Taker& take, Workspace<T>& ws, ptrdiff_t rows, bool training) const override {
        const auto n = static_cast<std::size_t>(rows);
        const auto widest = static_cast<std::size_t>(this->plan_.widest());
        ws.rows = rows;
        ws.inputs = {take.take<T>(x_size(rows)), take.take<T>(this->y_size(rows)), take.take<T>(n)};
        ws.lanes_layers.clear();
        for (std::size_t l = 0; l < this->depth(); ++l) {
            const LayerPlan& d = this->plan_.layers[l];
            const LayerParameters& at = this->layout_.layers[l];
            const Activation<T>& activation = this->activation(l);
            T* a = take.take<T>(static_cast<std::size_t>(d.n_out) * n);
            T* z = training && activation.needs_z ? take.take<T>(static_cast<std::size_t>(d.n_out) * n) : a;
            ws.lanes_layers.push_back({d.n_in, d.n_out, static_cast<ptrdiff_t>(at.weights),
                                       static_cast<ptrdiff_t>(at.biases), &activation, z, a});
        }
        if (!training) return;
        ws.lanes_delta = take.take<T>(static_cast<std::size_t>(this->plan_.n_out()) * n);
        ws.errors = {take.take<T>(widest * n), take.take<T>(widest * n)};
        ws.sums = take.take<T>(this->layout_.total * static_cast<std::size_t>(this->k_.lanes));
    }

    void gather_x(const Gather<T>& rows) const override { this->k_.gather_lanes(rows); }

    void forward(const Workspace<T>& ws, const T* x, const T* theta, ptrdiff_t rows) const override {
        this->k_.lanes_forward(pass(ws, x, theta, rows));
    }

    const T* outputs_in_lanes(const Workspace<T>& ws, ptrdiff_t) const override { return ws.lanes_layers.back().a; }

    double gradient(const Workspace<T>& ws, const TileInputs<T>& in, const T* theta, ptrdiff_t rows,
                    const TileGradient<T>& wanted) const override {
        if (!one_pass_) return Net<T>::gradient(ws, in, theta, rows, wanted);
        const bool has_hidden = this->depth() > 1;
        LanesPass<T> hidden{};
        if (has_hidden) {
            hidden = backward_pass(ws, in.x, theta, rows, wanted);
            hidden.depth -= 1;
            hidden.delta = last_input_error(ws);
            this->k_.lanes_forward(hidden);
        }
        end_phase(ws.laps, Phase::forward);
        const double loss = this->loss_.lanes_output(output_pass(ws, in, theta, rows, wanted));
        end_phase(ws.laps, Phase::loss);
        if (has_hidden) this->k_.lanes_backward(hidden);
        return loss;
    }

    void finish_gradient(const Workspace<T>& ws, T* gradient) const override {
        const auto L = static_cast<std::size_t>(this->k_.lanes);
        this->k_.sum_vectors(ws.sums, static_cast<ptrdiff_t>(n_weights_), gradient);
        this->k_.sum_vectors(ws.sums + this->layout_.weights * L, static_cast<ptrdiff_t>(n_biases_),
                             gradient + this->layout_.weights);
        end_phase(ws.laps, Phase::weight_gradient);
    }

    void copy_predictions(const Workspace<T>& ws, ptrdiff_t rows, T* to) const override {
        const ptrdiff_t lanes = this->whole_lanes(rows), width = this->plan_.n_out();
        T* outputs = ws.lanes_layers.back().a;
        if (this->loss_.link) this->link(outputs, outputs, width, lanes, lanes);
        for (ptrdiff_t r = 0; r < rows; ++r)
            for (ptrdiff_t o = 0; o < width; ++o) to[r * width + o] = outputs[o * lanes + r];
    }

    void copy_input_gradient(const Workspace<T>& ws, ptrdiff_t rows, T* to) const override {
        const ptrdiff_t lanes = this->whole_lanes(rows), width = this->plan_.n_in();
        for (ptrdiff_t r = 0; r < rows; ++r)
            for (ptrdiff_t c = 0; c < width; ++c) to[r * width + c] = ws.errors[0][c * lanes + r];
    }

protected:
    void backward(const Workspace<T>& ws, const T* x, const T* theta, ptrdiff_t rows,
                  const TileGradient<T>& wanted) const override {
        this->k_.lanes_backward(backward_pass(ws, x, theta, rows, wanted));
    }

private:
    LanesPass<T> pass(const Workspace<T>& ws, const T* x, const T* theta, ptrdiff_t rows) const {
        return {.layers = ws.lanes_layers.data(),
                .depth = static_cast<ptrdiff_t>(this->depth()),
                .x = x,
                .theta = theta,
                .lanes = this->whole_lanes(rows)};
    }

    LanesPass<T> backward_pass(const Workspace<T>& ws, const T* x, const T* theta, ptrdiff_t rows,
                               const TileGradient<T>& wanted) const {
        LanesPass<T> p = pass(ws, x, theta, rows);
        p.delta = ws.lanes_delta;
        p.below[0] = ws.errors[0];
        p.below[1] = ws.errors[1];
        p.sums = ws.sums;
        p.keep = wanted.keep;
        p.input_gradient = wanted.inputs;
        p.laps = ws.laps;
        return p;
    }

    // dJ/d(inputs of the last layer).
    T* last_input_error(const Workspace<T>& ws) const { return ws.errors[(this->depth() - 1) % 2]; }

    LanesOutput<T> output_pass(const Workspace<T>& ws, const TileInputs<T>& in, const T* theta, ptrdiff_t rows,
                               const TileGradient<T>& wanted) const {
        const std::size_t hidden = this->depth() - 1;
        const LanesLayer<T>& last = ws.lanes_layers[hidden];
        const ptrdiff_t lanes = this->k_.lanes;
        return {.inputs = last.inputs,
                .lanes = this->whole_lanes(rows),
                .x = hidden > 0 ? ws.lanes_layers[hidden - 1].a : in.x,
                .weights = theta + last.weights,
                .bias = theta + last.biases,
                .y = in.y,
                .weight = in.weight,
                .scale = wanted.scale,
                .option = this->loss_option(),
                .below = hidden > 0 || wanted.inputs ? last_input_error(ws) : nullptr,
                .weight_sums = ws.sums + last.weights * lanes,
                .bias_sum = ws.sums + last.biases * lanes,
                .keep = wanted.keep};
    }

    std::size_t n_weights_, n_biases_;
    bool one_pass_;  // the last layer and the loss
};

}  // namespace gradstep
