// Where the time of a step goes: by phase and thread. Off unless asked for, and then all it costs a step is the
// question.
#pragma once
#include <array>
#include <cstdint>
#include <vector>

#include "engine/clock.h"
#include "kernels/table.h"

namespace gradstep {

constexpr const char* kPhaseNames[kPhases] = {"gather", "forward", "loss", "dX", "dW", "update"};

// The laps of one thread, on a cache line of its own.
struct alignas(64) Stopwatch final : Laps {
    Stopwatch() : Laps{&Stopwatch::add} {}
    std::array<int64_t, kPhases> spent{};
    int64_t last = 0;

private:
    static void add(Laps* laps, Phase phase) noexcept {
        auto* self = static_cast<Stopwatch*>(laps);
        const int64_t now = ticks();
        self->spent[static_cast<std::size_t>(phase)] += now - self->last;
        self->last = now;
    }
};

inline void end_phase(Laps* laps, Phase phase) {
    if (laps) laps->end(laps, phase);
}

class Profile {
public:
    // Before anything is measured: a stopwatch for each thread. 0 threads end the measurement.
    void start(int threads) {
        watches_.assign(static_cast<std::size_t>(threads), Stopwatch());
        started_ = ticks();
    }

    // The thread begins a task: its laps count from here. Null while nothing is measured.
    Laps* begin(int worker) {
        const auto index = static_cast<std::size_t>(worker);
        if (index >= watches_.size()) return nullptr;
        Stopwatch& watch = watches_[index];
        watch.last = ticks();
        return &watch;
    }

    // Shares of the threads' time since start; what is missing to one was spent between tasks.
    std::array<double, kPhases> shares() const {
        const double all = static_cast<double>(ticks() - started_) * static_cast<double>(watches_.size());
        std::array<double, kPhases> shares{};
        for (const Stopwatch& watch : watches_)
            for (std::size_t p = 0; p < kPhases; ++p) shares[p] += static_cast<double>(watch.spent[p]) / all;
        return shares;
    }

private:
    std::vector<Stopwatch> watches_;
    int64_t started_ = 0;
};

}  // namespace gradstep
