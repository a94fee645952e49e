// What an optimizer works on, and the numbers it needs in the next step.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "engine/optimizer_state.h"
#include "engine/passes.h"
#include "engine/plan.h"
#include "kernels/table.h"

namespace gradstep {

// Parameters and states in the net's layout, and behind them their average if there is one. Hyperparameters are the
// same for weights and biases but for l2, l1 and the decoupled decay, which spare the biases.
template <class T>
struct Update {
    const Optimizer<T>& optimizer;
    Hypers<T> hypers;
    std::vector<Hypers<T>> by_layer;  // empty: all layers learn alike
    T* theta = nullptr;
    ptrdiff_t state_stride = 0;  // from the parameters to the first state, and from state to state
    std::size_t weights = 0;     // that many parameters are weights; biases follow

    Update(const Optimizer<T>& optimizer, const Plan& plan)
        : optimizer(optimizer),
          hypers{constants(plan, plan.weight_decay), constants(plan, 0)},
          by_layer(plan.factored() ? plan.layers.size() : 0, hypers),
          plan_(plan),
          epsilon_(hypers.weights.epsilon),
          epsilon_hat_(plan.epsilon_hat != 0),
          l1_(plan.clips() ? T(0) : static_cast<T>(plan.l1)),
          rare_(plan.factored() || plan.ema_decay > 0) {}

    // What changes from step to step.
    void set_step(const StepCount& count, double learning_rate, double l2) {
        if (rare_) set_rare_step(count, learning_rate, l2);
        set_step(hypers, count, learning_rate, l2);
    }

    // The penalty is in the gradient already.
    void forget_l2() {
        hypers.weights.l2 = 0;
        for (Hypers<T>& h : by_layer) h.weights.l2 = 0;
    }

    // The n parameters from offset on; their gradient is the sum of `parts`.
    void operator()(std::size_t offset, ptrdiff_t n, T* gradient, ptrdiff_t part_stride, int parts,
                    const Hyper<T>& hyper) const {
        if (l1_ > 0 && offset < weights) add_signs(theta + offset, l1_, gradient, n);
        plain(offset, n, gradient, part_stride, parts, hyper);
        if (gain_ > 0) follow(theta + offset, gain_, average() + offset, n);
    }

    // The same for an update without l1 and average.
    void plain(std::size_t offset, ptrdiff_t n, const T* gradient, ptrdiff_t part_stride, int parts,
               const Hyper<T>& hyper) const {
        optimizer.update({theta + offset, state_stride, gradient, part_stride, parts, n}, hyper);
    }

    const Hyper<T>& hyper(std::size_t layer, Hyper<T> Hypers<T>::*which) const {
        const Hypers<T>* of = by_layer.empty() ? &hypers : &by_layer[layer];
        return of->*which;
    }
    bool frozen(std::size_t layer) const { return !by_layer.empty() && plan_.layers[layer].rate_factor == 0; }

    T* state(int s) const { return theta + (s + 1) * state_stride; }
    T* average() const { return state(optimizer.states); }
    T average_gain() const { return gain_; }  // with which it follows the update at work; 0: not after every update

private:
    [[gnu::noinline]] void set_rare_step(const StepCount& count, double learning_rate, double l2) {
        for (std::size_t l = 0; l < by_layer.size(); ++l)
            set_step(by_layer[l], count, learning_rate * plan_.layers[l].rate_factor, l2);
        if (plan_.ema_decay > 0) gain_ = static_cast<T>(1 - ema_decay(static_cast<double>(count.value())));
    }

    [[gnu::always_inline]] void set_step(Hypers<T>& to, const StepCount& count, double learning_rate, double l2) const {
        Hyper<T>&w = to.weights, &b = to.biases;
        w.l2 = static_cast<T>(l2);
        w.learning_rate = b.learning_rate = static_cast<T>(learning_rate);
        if (optimizer.states < 2) return;
        w.step_size = b.step_size = static_cast<T>(learning_rate / count.correction1());
        w.second_correction = b.second_correction = static_cast<T>(1 / std::sqrt(count.correction2()));
        if (count.is_nesterov()) set_nesterov_step(to, count, learning_rate);
        if (epsilon_hat_) w.epsilon = b.epsilon = epsilon_ * w.second_correction;
    }

    [[gnu::noinline]] static void set_nesterov_step(Hypers<T>& to, const StepCount& count, double learning_rate) {
        for (Hyper<T>* h : {&to.weights, &to.biases}) {
            h->step_size = static_cast<T>(learning_rate * count.moment_size());
            h->gradient_size = static_cast<T>(learning_rate * count.gradient_size());
        }
    }

    // After the t-th update; the first one begins the average.
    double ema_decay(double t) const {
        if (t <= 1) return 0;
        return plan_.ema_warmup != 0 ? std::min(plan_.ema_decay, (1 + t) / (10 + t)) : plan_.ema_decay;
    }

    static Hyper<T> constants(const Plan& plan, double weight_decay) {
        Hyper<T> h{};
        h.momentum = static_cast<T>(plan.momentum);
        h.nesterov = static_cast<T>(plan.nesterov);
        h.beta1 = static_cast<T>(plan.beta1);
        h.beta2 = static_cast<T>(plan.beta2);
        // Zero would divide the zero moments of pads by zero.
        h.epsilon = std::max(static_cast<T>(plan.epsilon), std::numeric_limits<T>::min());
        h.weight_decay = static_cast<T>(weight_decay);
        return h;
    }

    const Plan plan_;
    T epsilon_;
    bool epsilon_hat_;
    T l1_, gain_ = 0;
    bool rare_;  // layers learn at rates of their own, or an average follows every update
};

}  // namespace gradstep
