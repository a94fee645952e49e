// Whether short steps take all threads or one. Threads that meet in every step exchange parameters and gradients, which
// takes longer than sharing saves on some machines, or while cores are busy with something else: nothing but a
// measurement tells. Results do not depend on it, as they do not depend on the number of threads.
#pragma once
#include <algorithm>
#include <cstdint>

#include "engine/clock.h"
#include "engine/threads.h"

namespace gradstep {

// Times the usual steps of an engine, most of them in the way that is faster, and the other way now and then.
class ThreadChoice {
public:
    explicit ThreadChoice(int64_t (*clock)() = &ticks) : clock_(clock) {}

    // The threads for a step of so many operations, of those at hand.
    int begin_step(int64_t operations, int threads) {
        is_timed_ = false;
        if (threads <= 1 || operations <= kSharedOperations || operations >= kLongStep) return threads;
        if (!is_usual(operations, threads)) return operations < operations_ && preferred_ == alone ? 1 : threads;
        is_timed_ = true;
        started_ = clock_();
        return way_ == alone ? 1 : threads;
    }

    void end_step() {
        if (!is_timed_) return;
        const int64_t time = clock_() - started_;
        if (time <= 0) return;  // another processor's clock
        if (warm_up_ > 0) {
            --warm_up_;
            return;
        }
        spent_ += time;
        if (++steps_ < slice_) return;
        const double mean = static_cast<double>(spent_) / static_cast<double>(slice_);
        spent_ = steps_ = 0;
        const Way next = rounds_ < kRounds ? compare(mean) : follow(mean);
        if (next == way_) return;
        way_ = next;
        warm_up_ = kWarmUp;
    }

private:
    enum Way { shared, alone };

    static constexpr int64_t kLongStep = 20'000'000;  // operations of a step whose threads meet seldom
    static constexpr int64_t kSlice = 20'000'000;     // operations of the steps that are compared as one
    static constexpr int64_t kLeastSlice = 4, kMostSlice = 32, kFirstWarmUp = 8, kWarmUp = 2;  // steps
    static constexpr int kHabit = 64;  // steps without the usual size after which another one is usual
    // At first both ways are compared, by turns; less often if one is far behind.
    static constexpr int kRounds = 3, kLeastRounds = 2;
    static constexpr double kFarBehind = 1.4;
    // Then the mean of one follows its slices, of which the system may have taken the processor away from some.
    static constexpr double kGain = 0.2, kMostOutlier = 1.5;
    static constexpr double kMargin = 0.98;  // the other way must be faster than so much of this one
    // What trials of the other way may cost, and how rare they are at least.
    static constexpr double kTrialShare = 0.01, kWorstTrial = 8;  // in preferred steps: an interrupted one is worse
    static constexpr int kLeastBetween = 16;                      // slices

    static Way other(Way way) { return way == shared ? alone : shared; }

    // The first size that is seen, until it is not seen any more. Batches of other sizes now and then change nothing.
    bool is_usual(int64_t operations, int threads) {
        if (operations == operations_ && threads == threads_) {
            absent_ = 0;
            return true;
        }
        if (operations_ > 0 && ++absent_ < kHabit) return false;
        *this = ThreadChoice(clock_);
        operations_ = operations;
        threads_ = threads;
        slice_ = std::clamp(kSlice / operations, kLeastSlice, kMostSlice);
        return true;
    }

    // The fastest slices count: the first ones find caches empty.
    Way compare(double time) {
        double& fastest = time_[way_];
        fastest = fastest > 0 ? std::min(fastest, time) : time;
        if (way_ == shared) return alone;
        const double ratio = time_[alone] / time_[shared];
        const bool far_behind = ratio > kFarBehind || ratio * kFarBehind < 1;
        rounds_ = ++rounds_ >= kLeastRounds && far_behind ? kRounds : rounds_;
        if (rounds_ < kRounds) return shared;
        return preferred_ = time_[alone] < kMargin * time_[shared] ? alone : shared;
    }

    Way follow(double time) {
        double& mean = time_[way_];
        const bool is_trial = way_ != preferred_;
        mean = is_trial ? std::min(time, kWorstTrial * time_[preferred_])
                        : mean + kGain * (std::min(time, kMostOutlier * mean) - mean);
        if (time_[other(preferred_)] < kMargin * time_[preferred_]) preferred_ = other(preferred_);
        if (is_trial || way_ != preferred_) {
            since_trial_ = 0;
            return preferred_;
        }
        const double excess = time_[other(way_)] - time_[way_];
        const double trial = static_cast<double>(kWarmUp + slice_) * excess;
        const bool is_paid = kTrialShare * static_cast<double>(slice_ * ++since_trial_) * time_[way_] >= trial;
        return is_paid && since_trial_ >= kLeastBetween ? other(way_) : way_;
    }

    int64_t (*clock_)();
    int64_t operations_ = 0, slice_ = 1;
    int threads_ = 1, absent_ = 0, rounds_ = 0;
    Way preferred_ = shared, way_ = shared;
    bool is_timed_ = false;
    int64_t started_ = 0, spent_ = 0, steps_ = 0, warm_up_ = kFirstWarmUp, since_trial_ = 0;
    double time_[2] = {};  // of a step, in ticks
};

}  // namespace gradstep
