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
        for (const DensePlan& d : plan.layers) {
            this->layout_.layers.push_back({at, 0});
            at += static_cast<std::size_t>(d.n_in * d.n_out);
        }
        n_weights_ = at;
        at = this->layout_.weights = static_cast<std::size_t>(this->whole_lanes(static_cast<ptrdiff_t>(at)));
        for (std::size_t l = 0; l < plan.layers.size(); ++l) {
            this->layout_.layers[l].biases = at;
            at += static_cast<std::size_t>(plan.layers[l].n_out);
        }
        n_biases_ = at - this->layout_.weights;
        this->layout_.total = static_cast<std::size_t>(this->whole_lanes(static_cast<ptrdiff_t>(at)));
    }

    void pack(std::size_t l, const T* W, const T* b, T* to) const override {
        const DensePlan& d = this->plan_.layers[l];
        std::copy(W, W + d.n_in * d.n_out, to + this->layout_.layers[l].weights);
        std::copy(b, b + d.n_out, to + this->layout_.layers[l].biases);
    }

    void unpack(std::size_t l, const T* from, T* W, T* b) const override {
        const DensePlan& d = this->plan_.layers[l];
        const LayerParameters& at = this->layout_.layers[l];
        std::copy(from + at.weights, from + at.weights + d.n_in * d.n_out, W);
        std::copy(from + at.biases, from + at.biases + d.n_out, b);
    }

    ptrdiff_t tile_stride(ptrdiff_t rows, ptrdiff_t) const override { return this->whole_lanes(rows); }

    std::size_t x_size(ptrdiff_t rows) const override { return static_cast<std::size_t>(this->plan_.n_in() * rows); }

    void take_workspace(Taker& take, Workspace<T>& ws, ptrdiff_t rows, bool training) const override {
        const auto n = static_cast<std::size_t>(rows);
        const auto widest = static_cast<std::size_t>(this->plan_.widest());
        ws.rows = rows;
        ws.inputs = {take.take<T>(x_size(rows)), take.take<T>(this->y_size(rows)), take.take<T>(n)};
        ws.z.assign(this->depth(), nullptr);
        ws.a.assign(this->depth(), nullptr);
        for (std::size_t l = 0; l < this->depth(); ++l) {
            const auto size = static_cast<std::size_t>(this->plan_.layers[l].n_out) * n;
            ws.a[l] = take.take<T>(size);
            ws.z[l] = training && this->activation(l).needs_z ? take.take<T>(size) : ws.a[l];
        }
        ws.lanes_delta = take.take<T>(static_cast<std::size_t>(this->plan_.n_out()) * n);
        if (!training) return;
        ws.delta[0] = take.take<T>(widest * n);
        ws.delta[1] = take.take<T>(widest * n);
        ws.sums = take.take<T>((this->layout_.total) * static_cast<std::size_t>(this->k_.lanes));
    }

    void gather_x(const Gather<T>& rows) const override { this->k_.gather_lanes(rows); }

    void forward(const Workspace<T>& ws, const T* x, const T* theta, ptrdiff_t rows) const override {
        const ptrdiff_t lanes = this->whole_lanes(rows);
        for (std::size_t l = 0; l < this->depth(); ++l) {
            const DensePlan& d = this->plan_.layers[l];
            const LayerParameters& at = this->layout_.layers[l];
            this->k_.product_lanes({.rows = d.n_out,
                                    .depth = d.n_in,
                                    .segment = d.n_in,
                                    .a = theta + at.weights,
                                    .a_segment = 0,
                                    .b = x,
                                    .b_segment = 0,
                                    .c = ws.z[l],
                                    .init = Init::rows,
                                    .bias = theta + at.biases,
                                    .a_row = 1,
                                    .a_depth = d.n_out,
                                    .b_depth = lanes,
                                    .c_row = lanes,
                                    .columns = lanes});
            if (this->activation(l).forward) this->activation(l).forward(ws.z[l], ws.a[l], d.n_out * lanes);
            x = ws.a[l];
        }
    }

    const T* outputs_in_lanes(const Workspace<T>& ws, ptrdiff_t) const override { return ws.a.back(); }

    void backward(const Workspace<T>& ws, const T* x, const T* theta, ptrdiff_t rows, T*, bool keep,
                  bool input_gradient) const override {
        const ptrdiff_t lanes = this->whole_lanes(rows);
        T* delta = ws.lanes_delta;
        if (const auto backward = this->activation(this->depth() - 1).backward)
            backward(ws.z.back(), ws.a.back(), delta, this->plan_.n_out() * lanes);
        for (std::size_t l = this->depth(); l-- > 0;) {
            const DensePlan& d = this->plan_.layers[l];
            const LayerParameters& at = this->layout_.layers[l];
            this->k_.lane_sums({.x = l ? ws.a[l - 1] : x,
                                .dy = delta,
                                .inputs = d.n_in,
                                .outputs = d.n_out,
                                .lanes = lanes,
                                .stride = lanes,
                                .weights = ws.sums + at.weights * this->k_.lanes,
                                .biases = ws.sums + at.biases * this->k_.lanes,
                                .keep = keep});
            if (l == 0 && !input_gradient) return;
            T* below = ws.delta[l % 2];
            this->k_.product_lanes({.rows = d.n_in,
                                    .depth = d.n_out,
                                    .segment = d.n_out,
                                    .a = theta + at.weights,
                                    .a_segment = 0,
                                    .b = delta,
                                    .b_segment = 0,
                                    .c = below,
                                    .init = Init::zero,
                                    .bias = nullptr,
                                    .a_row = d.n_out,
                                    .a_depth = 1,
                                    .b_depth = lanes,
                                    .c_row = lanes,
                                    .columns = lanes});
            if (l > 0 && this->activation(l - 1).backward)
                this->activation(l - 1).backward(ws.z[l - 1], ws.a[l - 1], below, d.n_in * lanes);
            delta = below;
        }
    }

    void finish_gradient(const Workspace<T>& ws, T* gradient) const override {
        const auto L = static_cast<std::size_t>(this->k_.lanes);
        this->k_.sum_vectors(ws.sums, static_cast<ptrdiff_t>(n_weights_), gradient);
        this->k_.sum_vectors(ws.sums + this->layout_.weights * L, static_cast<ptrdiff_t>(n_biases_),
                             gradient + this->layout_.weights);
    }

    void copy_input_gradient(const Workspace<T>& ws, ptrdiff_t rows, T* to) const override {
        const ptrdiff_t lanes = this->whole_lanes(rows), width = this->plan_.n_in();
        for (ptrdiff_t r = 0; r < rows; ++r)
            for (ptrdiff_t c = 0; c < width; ++c) to[r * width + c] = ws.delta[0][c * lanes + r];
    }

private:
    std::size_t n_weights_, n_biases_;
};

}  // namespace gradstep
