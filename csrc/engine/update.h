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
    T* state[kMostStates] = {};

    Update(const Optimizer<T>& optimizer, const Plan& plan)
        : optimizer(optimizer),
          hypers{constants(plan, plan.weight_decay), constants(plan, 0)},
          epsilon_(hypers.weights.epsilon),
          epsilon_hat_(plan.epsilon_hat != 0) {}

    // What changes from step to step.
    void set_step(const StepCount& count, double learning_rate, double l2) {
        hypers.weights.l2 = static_cast<T>(l2);
        for (Hyper<T>* h : {&hypers.weights, &hypers.biases}) {
            h->learning_rate = static_cast<T>(learning_rate);
            if (optimizer.states < 2) continue;
            h->step_size = static_cast<T>(learning_rate * count.moment_size());
            h->gradient_size = static_cast<T>(learning_rate * count.gradient_size());
            h->second_correction = static_cast<T>(1 / std::sqrt(count.correction2()));
            if (epsilon_hat_) h->epsilon = epsilon_ * h->second_correction;
        }
    }

    // The n parameters from offset on; their gradient is the sum of `parts`.
    void operator()(std::size_t offset, ptrdiff_t n, const T* gradient, ptrdiff_t part_stride, int parts,
                    const Hyper<T>& hyper) const {
        UpdateSlice<T> slice{theta + offset, {}, gradient, part_stride, parts, n};
        for (int s = 0; s < optimizer.states; ++s) slice.state[s] = state[s] + offset;
        optimizer.update(slice, hyper);
    }

private:
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
