// Optimizers, elementwise on packed parameters: one pass adds up the gradient's parts and updates. Pads
// have zero gradients and stay zero. To add one, write its struct and name it in kOptimizers.
#pragma once
#include "kernels/table.h"
#include "simd/vec.h"

namespace {

using gradstep::Hyper;
using gradstep::UpdateSlice;

// What an optimizer keeps of a parameter.
template <class T>
using States = Vec<T>[gradstep::kMostStates];

// theta -= lr g
struct GradientDescent {
    static constexpr int states = 0;
    template <class T>
    static void update(Vec<T>& theta, Vec<T> g, States<T>&, const Hyper<T>& h) {
        theta -= h.learning_rate * g;
    }
};

// Polyak 1964; Nesterov in the form of Sutskever et al. 2013:
// v = mu v - lr g; theta += v, or theta += mu v - lr g
struct Sgd {
    static constexpr int states = 1;
    template <class T>
    static void update(Vec<T>& theta, Vec<T> g, States<T>& s, const Hyper<T>& h) {
        const Vec<T> move = h.learning_rate * g;
        s[0] = h.momentum * s[0] - move;
        theta += h.nesterov != T(0) ? h.momentum * s[0] - move : s[0];
    }
};

// Exponential means of the gradient and of its square.
template <class T>
inline void adam_moments(Vec<T> g, States<T>& s, const Hyper<T>& h) {
    s[0] = fma(g - s[0], splat(T(1) - h.beta1), s[0]);
    s[1] = fma(g * g - s[1], splat(T(1) - h.beta2), s[1]);
}

// sqrt(v_hat) + epsilon
template <class T>
inline Vec<T> adam_root(Vec<T> v, const Hyper<T>& h) {
    return fma(root(v), splat(h.second_correction), splat(h.epsilon));
}

// Kingma and Ba 2015, epsilon outside the root; weight_decay is the decoupled one of Loshchilov and
// Hutter 2019 (zero for Adam itself and for biases).
struct Adam {
    static constexpr int states = 2;
    template <class T>
    static void update(Vec<T>& theta, Vec<T> g, States<T>& s, const Hyper<T>& h) {
        adam_moments<T>(g, s, h);
        theta -= h.learning_rate * h.weight_decay * theta;
        theta -= h.step_size * s[0] / adam_root<T>(s[1], h);
    }
};

// Reddi, Kale and Kumar 2018: the largest second moment so far
struct AmsGrad {
    static constexpr int states = 3;
    template <class T>
    static void update(Vec<T>& theta, Vec<T> g, States<T>& s, const Hyper<T>& h) {
        adam_moments<T>(g, s, h);
        s[2] = maximum(s[2], s[1]);
        theta -= h.step_size * s[0] / adam_root<T>(s[2], h);
    }
};

// Dozat 2016: the next step's momentum is applied at once
struct NAdam {
    static constexpr int states = 2;
    template <class T>
    static void update(Vec<T>& theta, Vec<T> g, States<T>& s, const Hyper<T>& h) {
        adam_moments<T>(g, s, h);
        theta -= (h.gradient_size * g + h.step_size * s[0]) / adam_root<T>(s[1], h);
    }
};

// Hinton 2012: v = decay v + (1 - decay) g^2; m = mu m + g / (sqrt(v) + epsilon); theta -= lr m
struct RmsProp {
    static constexpr int states = 2;
    template <class T>
    static void update(Vec<T>& theta, Vec<T> g, States<T>& s, const Hyper<T>& h) {
        s[0] = fma(g * g - s[0], splat(T(1) - h.beta2), s[0]);
        s[1] = fma(s[1], splat(h.momentum), g / (root(s[0]) + h.epsilon));
        theta -= h.learning_rate * s[1];
    }
};

// Duchi, Hazan and Singer 2011: v += g^2; theta -= lr g / (sqrt(v) + epsilon)
struct AdaGrad {
    static constexpr int states = 1;
    template <class T>
    static void update(Vec<T>& theta, Vec<T> g, States<T>& s, const Hyper<T>& h) {
        s[0] = fma(g, g, s[0]);
        theta -= h.learning_rate * g / (root(s[0]) + h.epsilon);
    }
};

// Chen et al. 2023: theta -= lr (sign(beta1 m + (1 - beta1) g) + weight_decay theta); m follows with beta2
struct Lion {
    static constexpr int states = 1;
    template <class T>
    static void update(Vec<T>& theta, Vec<T> g, States<T>& s, const Hyper<T>& h) {
        const Vec<T> c = fma(g - s[0], splat(T(1) - h.beta1), s[0]);
        const Vec<T> sign = c > T(0) ? splat(T(1)) : c < T(0) ? splat(T(-1)) : c;
        s[0] = fma(g - s[0], splat(T(1) - h.beta2), s[0]);
        theta -= h.learning_rate * h.weight_decay * theta;
        theta -= h.learning_rate * sign;
    }
};

template <class T, class O>
void update_slice(const UpdateSlice<T>& slice, const Hyper<T>& hyper) noexcept {
    const UpdateSlice<T> s = slice;
    const Hyper<T> h = hyper;
    for (ptrdiff_t i = 0; i < s.n; i += kLanes<T>) {
        Vec<T> g = load(s.gradient + i);
        for (int part = 1; part < s.parts; ++part) g += load(s.gradient + part * s.part_stride + i);
        Vec<T> theta = load(s.theta + i);
        T* at = s.theta + i;
        States<T> states;  // unrolled: registers
#pragma GCC unroll 4
        for (int k = 0; k < O::states; ++k) states[k] = load(at + (k + 1) * s.state_stride);
        O::template update<T>(theta, fma(splat(h.l2), theta, g), states, h);
        store(at, theta);
#pragma GCC unroll 4
        for (int k = 0; k < O::states; ++k) store(at + (k + 1) * s.state_stride, states[k]);
    }
}

template <class T>
constexpr gradstep::Optimizer<T> kOptimizers[] = {
    // name, states, whether they hold squares of gradients, names of the states, update
    {"gradient_descent", 0, false, {}, &update_slice<T, GradientDescent>},
    {"sgd", 1, false, {"momentum"}, &update_slice<T, Sgd>},
    {"adam", 2, true, {"m", "v"}, &update_slice<T, Adam>},
    {"adamw", 2, true, {"m", "v"}, &update_slice<T, Adam>},
    {"amsgrad", 3, true, {"m", "v", "v_max"}, &update_slice<T, AmsGrad>},
    {"nadam", 2, true, {"m", "v"}, &update_slice<T, NAdam>},
    {"rmsprop", 2, true, {"v", "momentum"}, &update_slice<T, RmsProp>},
    {"adagrad", 1, true, {"v"}, &update_slice<T, AdaGrad>},
    {"lion", 1, false, {"m"}, &update_slice<T, Lion>},
};

}  // namespace
