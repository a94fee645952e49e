// What an optimizer works on, and the numbers it needs in the next step.
#pragma once
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/optimizer_state.h"
#include "engine/plan.h"
#include "kernels/table.h"

namespace gradstep {

// Parameters and states in the net's layout. Hyperparameters are the same for weights and biases but for l2 and
// the decoupled decay, which spare the biases.
template <class T>
struct Update {
    const Optimizer<T>& optimizer;
    Hypers<T> hypers;
    T* theta = nullptr;
    ptrdiff_t state_stride = 0;  // from the parameters to the first state, and from state to state

    Update(const Optimizer<T>& optimizer, const Plan& plan)
        : optimizer(optimizer),
          hypers{constants(plan, plan.weight_decay), constants(plan, 0)},
          epsilon_(hypers.weights.epsilon),
          epsilon_hat_(plan.epsilon_hat != 0) {}

    // What changes from step to step.
    void set_step(const StepCount& count, double learning_rate, double l2) {
        Hyper<T>&w = hypers.weights, &b = hypers.biases;
        w.l2 = static_cast<T>(l2);
        w.learning_rate = b.learning_rate = static_cast<T>(learning_rate);
        if (optimizer.states < 2) return;
        w.step_size = b.step_size = static_cast<T>(learning_rate / count.correction1());
        w.second_correction = b.second_correction = static_cast<T>(1 / std::sqrt(count.correction2()));
        if (count.is_nesterov()) set_nesterov_step(count, learning_rate);
        if (epsilon_hat_) w.epsilon = b.epsilon = epsilon_ * w.second_correction;
    }

    // The n parameters from offset on; their gradient is the sum of `parts`.
    void operator()(std::size_t offset, ptrdiff_t n, const T* gradient, ptrdiff_t part_stride, int parts,
                    const Hyper<T>& hyper) const {
        optimizer.update({theta + offset, state_stride, gradient, part_stride, parts, n}, hyper);
    }

    T* state(int s) const { return theta + (s + 1) * state_stride; }

private:
    [[gnu::noinline]] void set_nesterov_step(const StepCount& count, double learning_rate) {
        for (Hyper<T>* h : {&hypers.weights, &hypers.biases}) {
            h->step_size = static_cast<T>(learning_rate * count.moment_size());
            h->gradient_size = static_cast<T>(learning_rate * count.gradient_size());
        }
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

    T epsilon_;
    bool epsilon_hat_;
};

}  // namespace gradstep
