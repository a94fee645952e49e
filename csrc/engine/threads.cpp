#include "engine/threads.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <system_error>
#include <thread>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace gradstep {

namespace {

inline void pause_briefly() {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

int positive_environment(const char* name) {
    const char* text = std::getenv(name);
    return text ? std::max(0, std::atoi(text)) : 0;
}

int processors_by_affinity() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
    return std::max(1u, std::thread::hardware_concurrency());
}

// cgroup v2: "quota period" in microseconds, or "max period".
int processors_by_quota() {
    std::FILE* file = std::fopen("/sys/fs/cgroup/cpu.max", "r");
    if (!file) return 0;
    double quota = 0, period = 0;
    const int fields = std::fscanf(file, "%lf %lf", &quota, &period);
    std::fclose(file);
    return fields == 2 && period > 0 ? std::max(1, static_cast<int>(std::ceil(quota / period))) : 0;
}

// Each thread has a workspace; more than this is a slip.
constexpr int kMostThreads = 1024;

std::atomic<int> chosen_threads{0};
std::atomic<int> forks{0};

// One job at a time. `ticket` is the job's generation and the number of its unclaimed tasks: whoever
// lowers the number by one owns a task, and the job's fields cannot change until that task is done.
class Pool {
public:
    void run(int n, int max_threads, TaskFunction function, void* context) {
        std::unique_lock<std::mutex> lock(busy_, std::try_to_lock);
        if (!lock.owns_lock()) {  // another Python thread is in the pool
            for (int i = 0; i < n; ++i) function(context, i, 0);
            return;
        }
        start_workers(max_threads - 1);
        function_.store(function, std::memory_order_relaxed);
        context_.store(context, std::memory_order_relaxed);
        tasks_.store(n, std::memory_order_relaxed);
        workers_.store(std::min(max_threads, n) - 1, std::memory_order_relaxed);
        done_.store(0, std::memory_order_relaxed);
        const uint64_t generation = (ticket_.load(std::memory_order_relaxed) >> 32) + 1;
        ticket_.store(generation << 32 | static_cast<uint32_t>(n), std::memory_order_release);
        wake_.fetch_add(1, std::memory_order_release);
        wake_.notify_all();
        work(generation, 0);
        wait_for_workers(n);
    }

private:
    // About 30 microseconds: longer than the gap between two phases of a step, shorter than what a
    // neighbour would notice.
    static constexpr int kSpins = 1000;

    // Where the system refuses another thread, fewer do the same work.
    void start_workers(int n) {
        try {
            for (; started_ < n; ++started_) std::thread(&Pool::serve, this, started_ + 1).detach();
        } catch (const std::system_error&) {
        }
    }

    void work(uint64_t generation, int worker) {
        uint64_t t = ticket_.load(std::memory_order_acquire);
        while (t >> 32 == generation && static_cast<uint32_t>(t) > 0) {
            if (!ticket_.compare_exchange_weak(t, t - 1, std::memory_order_acq_rel)) continue;
            const int n = tasks_.load(std::memory_order_relaxed);
            const int task = n - static_cast<int>(static_cast<uint32_t>(t));
            function_.load(std::memory_order_relaxed)(context_.load(std::memory_order_relaxed), task, worker);
            if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 == n) done_.notify_one();
            t = ticket_.load(std::memory_order_acquire);
        }
    }

    void wait_for_workers(int n) {
        for (int spin = 0; spin < kSpins; ++spin) {
            if (done_.load(std::memory_order_acquire) == n) return;
            pause_briefly();
        }
        for (int seen; (seen = done_.load(std::memory_order_acquire)) != n;) {
            pause_briefly();
            done_.wait(seen, std::memory_order_acquire);
        }
    }

    [[noreturn]] void serve(int worker) {
        int seen = 0;
        for (;;) {
            for (int spin = 0; spin < kSpins && wake_.load(std::memory_order_acquire) == seen; ++spin) pause_briefly();
            wake_.wait(seen, std::memory_order_acquire);
            seen = wake_.load(std::memory_order_acquire);
            const uint64_t t = ticket_.load(std::memory_order_acquire);
            if (worker <= workers_.load(std::memory_order_relaxed)) work(t >> 32, worker);
        }
    }

    std::mutex busy_;
    int started_ = 0;
    alignas(64) std::atomic<uint64_t> ticket_{0};
    std::atomic<TaskFunction> function_{nullptr};
    std::atomic<void*> context_{nullptr};
    std::atomic<int> tasks_{0}, workers_{0};
    alignas(64) std::atomic<int> done_{0};
    alignas(64) std::atomic<int> wake_{0};
};

// Never destroyed: detached workers may outlive static destruction. A forked child has none of the
// threads, so it starts over with a pool of its own and leaves the old one behind.
Pool* pool = nullptr;
std::once_flag pool_once;

Pool& the_pool() {
    std::call_once(pool_once, [] { pool = new Pool; });
    return *pool;
}

#if defined(__unix__) || defined(__APPLE__)
[[maybe_unused]] const int fork_handler = pthread_atfork(nullptr, nullptr, [] {
    if (pool) pool = new Pool;
    forks.fetch_add(1, std::memory_order_relaxed);
});
#endif

}  // namespace

int default_num_threads() {
    for (const char* name : {"GRADSTEP_NUM_THREADS", "OMP_NUM_THREADS"})
        if (const int n = positive_environment(name)) return std::min(n, kMostThreads);
    const int quota = processors_by_quota();
    const int processors = processors_by_affinity();
    return quota ? std::min(quota, processors) : processors;
}

int num_threads() {
    const int chosen = chosen_threads.load(std::memory_order_relaxed);
    static const int fallback = default_num_threads();
    return chosen ? chosen : fallback;
}

void set_num_threads(int n) {
    chosen_threads.store(std::clamp(n, 0, kMostThreads), std::memory_order_relaxed);
}

int fork_generation() {
    return forks.load(std::memory_order_relaxed);
}

void run_tasks(int n, int max_threads, TaskFunction function, void* context) {
    the_pool().run(n, max_threads, function, context);
}

}  // namespace gradstep
