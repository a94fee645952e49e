// The step count of an optimizer and the numbers that follow from it.
#pragma once
#include <cstdint>

#include <cmath>

#include "engine/plan.h"
#include "kernels/table.h"

namespace gradstep {

class StepCount {
public:
    explicit StepCount(const Plan& plan)
        : beta1_(plan.beta1), beta2_(plan.beta2), momentum_decay_(plan.momentum_decay), product_(is_nesterov()) {}

    int64_t value() const { return step_; }

    // Products, not pow: a resumed run multiplies the same factors in the same order.
    void set(int64_t step) {
        step_ = 0;
        power1_ = power2_ = 1;
        product_ = is_nesterov();
        while (step_ < step && (power1_ > 0 || power2_ > 0 || product_ > 0)) advance();
        step_ = step;
    }

    void advance() {
        ++step_;
        power1_ = next_power(power1_, beta1_);
        power2_ = next_power(power2_, beta2_);
        if (product_ > 0) advance_momentum();
    }

    double correction1() const { return 1 - power1_; }
    double correction2() const { return 1 - power2_; }

    // Of nadam: what multiplies the learning rate in front of the first moment, and of the gradient beside it.
    bool is_nesterov() const { return momentum_decay_ > 0; }
    double moment_size() const {
        const double next = momentum(step_ + 1);
        return next / (1 - product_ * next);
    }
    double gradient_size() const { return (1 - momentum(step_)) / (1 - product_); }

private:
    // A power that no longer changes 1 - power is zero: left alone it would become subnormal, and slow.
    static double next_power(double power, double beta) {
        constexpr double negligible = 1e-17;
        return power * beta < negligible ? 0.0 : power * beta;
    }

    // Apart, as steps of other optimizers would feel a call of pow in their midst.
    [[gnu::noinline]] void advance_momentum() { product_ = next_power(product_, momentum(step_)); }

    // Dozat 2016: the momentum of nadam's step t.
    double momentum(int64_t t) const {
        return beta1_ * (1 - 0.5 * std::pow(0.96, static_cast<double>(t) * momentum_decay_));
    }

    double beta1_, beta2_, momentum_decay_;
    double power1_ = 1, power2_ = 1;
    double product_;  // of nadam's momenta; zero for all others
    int64_t step_ = 0;
};

}  // namespace gradstep
