#include "engine/peak.h"

#include <algorithm>
#include <chrono>
#include <mutex>
#include <utility>

#include "engine/dispatch.h"
#include "engine/threads.h"

namespace gradstep {

namespace {

// Operations of all threads, and the seconds they took.
template <class F>
std::pair<double, double> timed(int threads, F&& run) {
    using Clock = std::chrono::steady_clock;
    const auto start = Clock::now();
    double operations = 0;
    std::mutex mutex;
    parallel_for(threads, threads, [&](int, int) {
        const double done = run();
        const std::lock_guard<std::mutex> lock(mutex);
        operations += done;
    });
    return {operations, std::chrono::duration<double>(Clock::now() - start).count()};
}

}  // namespace

double fma_peak(int threads, double seconds, const std::optional<std::string>& isa, bool float64) {
    const KernelTable& table = isa ? kernels(*isa) : kernels();
    const auto run = float64 ? table.f64.fma_peak : table.f32.fma_peak;
    constexpr int64_t probe = 200'000;
    constexpr int rounds = 5;
    const double probe_seconds = timed(threads, [&] { return run(probe); }).second;
    const auto repeats = std::max<int64_t>(1, static_cast<int64_t>(probe * seconds / rounds / probe_seconds));
    double best = 0;
    for (int round = 0; round < rounds; ++round) {
        const auto [operations, elapsed] = timed(threads, [&] { return run(repeats); });
        best = std::max(best, operations / elapsed);
    }
    return best / 1e9;
}

}  // namespace gradstep
