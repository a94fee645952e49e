// The step count of an optimizer and the numbers that follow from it.
#pragma once
#include <cstdint>

#include "engine/plan.h"
#include "kernels/table.h"

namespace gradstep {

class StepCount {
public:
    StepCount(double beta1, double beta2) : beta1_(beta1), beta2_(beta2) {}

    int64_t value() const { return step_; }

    // Products, not pow: a resumed run multiplies the same factors in the same order.
    void set(int64_t step) {
        step_ = 0;
        power1_ = power2_ = 1;
        while (step_ < step && (power1_ > 0 || power2_ > 0)) advance();
        step_ = step;
    }

    void advance() {
        ++step_;
        power1_ = next_power(power1_, beta1_);
        power2_ = next_power(power2_, beta2_);
    }

    double correction1() const { return 1 - power1_; }
    double correction2() const { return 1 - power2_; }

private:
    // A power that no longer changes 1 - power is zero: left alone it would become subnormal, and slow.
    static double next_power(double power, double beta) {
        constexpr double negligible = 1e-17;
        return power * beta < negligible ? 0.0 : power * beta;
    }

    double beta1_, beta2_;
    double power1_ = 1, power2_ = 1;
    int64_t step_ = 0;
};

}  // namespace gradstep
