// Whether short steps take all threads or one. Threads that meet in every step exchange parameters and gradients, which
// takes longer than sharing saves where cores are far from each other, or busy with something else: nothing but a
// measurement tells. Results do not depend on it, as they do not depend on the number of threads.
#pragma once
#include <algorithm>
#include <cstdint>

#include "engine/profile.h"

namespace gradstep {

class ThreadChoice {
public:
    // Steps of so many floating-point operations follow, with so many threads at hand. What is known of them is kept.
    void begin(int64_t operations, int threads) {
        if (operations == operations_ && threads == threads_) return;
        *this = ThreadChoice();
        operations_ = operations;
        threads_ = threads;
        measures_ = threads > 1 && operations > kLeastWork && operations < kMostWork;
        slice_ = std::clamp<int64_t>(kSliceWork / std::max<int64_t>(operations, 1), kLeastSlice, kMostSlice);
        warm_up();
    }

    // Of the next step.
    int threads() const { return trying_ == Way::alone ? 1 : threads_; }

    // The time of what lies between steps and no step needs does not count.
    void resume() {
        if (measures_) since_ = ticks();
    }
    void pause() {
        if (measures_) spent_ += ticks() - since_;
    }
    void end_step() {
        if (measures_ && --steps_left_ <= 0) end_slice();
    }

private:
    enum Way { shared, alone };

    // Operations of a step: with fewer it is not shared, with more the threads seldom meet. The work of a slice takes
    // some tenths of a millisecond.
    static constexpr int64_t kLeastWork = 500'000, kMostWork = 20'000'000, kSliceWork = 40'000'000;
    static constexpr int64_t kLeastSlice = 4, kMostSlice = 64, kWarmUp = 3;  // steps
    static constexpr int kFirstTrials = 4;                                   // of each way, by turns
    static constexpr double kGain = 0.2;                                     // with which a mean follows the slices
    static constexpr double kMostOutlier = 1.5;  // of the mean: a slice in which the system took the processor away
    static constexpr double kMargin = 0.98;      // the other way must be faster than so much of this one

    void end_slice() {
        const int64_t now = ticks();
        if (!warming_) note(static_cast<double>(spent_ + now - since_));
        spent_ = 0;
        since_ = now;
        steps_left_ = slice_;
        const Way next = warming_ ? trying_ : next_way();
        warming_ = false;
        if (next == trying_) return;
        trying_ = next;
        warm_up();
    }

    // Steps that do not count: others sleep, and what they had in their caches is far away.
    void warm_up() {
        warming_ = true;
        steps_left_ = kWarmUp;
    }

    // The mean of slices; of the first ones the fastest.
    void note(double time) {
        double& mean = time_[trying_];
        const int64_t before = slices_[trying_]++;
        if (before < kFirstTrials)
            mean = before == 0 ? time : std::min(mean, time);
        else
            mean += kGain * (std::min(time, kMostOutlier * mean) - mean);
    }

    Way next_way() {
        if (slices_[alone] < kFirstTrials) return other(trying_);
        if (time_[other(preferred_)] < kMargin * time_[preferred_]) preferred_ = other(preferred_);
        if (--until_trial_ > 0) return preferred_;
        until_trial_ = slices_between_trials();
        return other(preferred_);
    }

    static Way other(Way way) { return way == shared ? alone : shared; }

    // The slower the other way, the rarer: trials take less than a hundredth of the time.
    int slices_between_trials() const {
        const double loss = std::max(time_[shared], time_[alone]) / std::min(time_[shared], time_[alone]) - 1;
        return loss < 0.1 ? 16 : loss < 0.4 ? 64 : 256;
    }

    int64_t operations_ = -1, slice_ = 1, steps_left_ = 1;
    int threads_ = 1;
    bool measures_ = false, warming_ = false;
    Way preferred_ = shared, trying_ = shared;
    int until_trial_ = 16;
    int64_t slices_[2] = {}, since_ = 0, spent_ = 0;
    double time_[2] = {};  // of a slice, in ticks
};

}  // namespace gradstep
