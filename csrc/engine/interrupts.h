// Asks a slow question in a fast loop.
#pragma once
#include <algorithm>
#include <chrono>
#include <functional>

namespace gradstep {

// Asks should_stop about every 20 ms without reading the clock in every step.
class Interrupts {
public:
    explicit Interrupts(const std::function<bool()>& should_stop) : should_stop_(should_stop) {}

    bool stop() {
        if (--countdown_ > 0) return stopped_;
        const auto now = Clock::now();
        const double elapsed = std::chrono::duration<double>(now - last_).count();
        interval_ = elapsed < 0.01 ? std::min(interval_ * 2, 1 << 20) : std::max(interval_ / 2, 1);
        countdown_ = interval_;
        last_ = now;
        return stopped_ = stopped_ || should_stop_();
    }

private:
    using Clock = std::chrono::steady_clock;
    const std::function<bool()>& should_stop_;
    Clock::time_point last_ = Clock::now();
    int interval_ = 1, countdown_ = 1;
    bool stopped_ = false;
};

}  // namespace gradstep
