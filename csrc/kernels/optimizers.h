// Optimizers, elementwise on packed parameters: one pass adds up the gradient's parts and updates. Pads
// have zero gradients and stay zero. To add one, write its struct and name it in kOptimizers.
#pragma once
#include "kernels/table.h"
#include "simd/vec.h"

namespace {

using gradstep::Hyper;
using gradstep::UpdateSlice;

// theta -= lr g
struct GradientDescent {
    template <class T>
    static void update(Vec<T>& theta, Vec<T> g, Vec<T>&, Vec<T>&, const Hyper<T>& h) {
        theta -= h.learning_rate * g;
    }
    static constexpr int states = 0;
};

// Polyak 1964; Nesterov in the form of Sutskever et al. 2013:
// v = mu v - lr g; theta += v, or theta += mu v - lr g
struct Sgd {
    template <class T>
    static void update(Vec<T>& theta, Vec<T> g, Vec<T>& v, Vec<T>&, const Hyper<T>& h) {
        const Vec<T> move = h.learning_rate * g;
        v = h.momentum * v - move;
        theta += h.nesterov != T(0) ? h.momentum * v - move : v;
    }
    static constexpr int states = 1;
};

// Kingma and Ba 2015, epsilon outside the root; weight_decay is the decoupled one of Loshchilov and
// Hutter 2019 (zero for Adam itself and for biases).
struct Adam {
    template <class T>
    static void update(Vec<T>& theta, Vec<T> g, Vec<T>& m, Vec<T>& v, const Hyper<T>& h) {
        m = fma(g - m, splat(T(1) - h.beta1), m);
        v = fma(g * g - v, splat(T(1) - h.beta2), v);
        theta -= h.learning_rate * h.weight_decay * theta;
        theta -= h.step_size * m / fma(square_root(v), splat(h.second_correction), splat(h.epsilon));
    }
    static constexpr int states = 2;
};

template <class T, class O>
void update_slice(const UpdateSlice<T>& slice, const Hyper<T>& hyper) noexcept {
    const UpdateSlice<T> s = slice;
    const Hyper<T> h = hyper;
    for (ptrdiff_t i = 0; i < s.n; i += kLanes<T>) {
        Vec<T> g = load(s.gradient + i);
        for (int part = 1; part < s.parts; ++part) g += load(s.gradient + part * s.part_stride + i);
        Vec<T> theta = load(s.theta + i);
        Vec<T> first{}, second{};
        if constexpr (O::states > 0) first = load(s.state[0] + i);
        if constexpr (O::states > 1) second = load(s.state[1] + i);
        O::template update<T>(theta, fma(splat(h.l2), theta, g), first, second, h);
        store(s.theta + i, theta);
        if constexpr (O::states > 0) store(s.state[0] + i, first);
        if constexpr (O::states > 1) store(s.state[1] + i, second);
    }
}

template <class T>
constexpr gradstep::Optimizer<T> kOptimizers[] = {
    {"gradient_descent", 0, {nullptr, nullptr}, &update_slice<T, GradientDescent>},
    {"sgd", 1, {"momentum", nullptr}, &update_slice<T, Sgd>},
    {"adam", 2, {"m", "v"}, &update_slice<T, Adam>},
    {"adamw", 2, {"m", "v"}, &update_slice<T, Adam>},
};

}  // namespace
