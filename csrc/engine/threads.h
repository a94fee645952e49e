// The process's own pool of threads. Tasks are claimed from one atomic counter, by the workers and by the
// caller alike: the caller never waits for a worker that has not started a task.
#pragma once
#include <cstdint>
#include <type_traits>

namespace gradstep {

// Threads that a call may use: set_num_threads, else GRADSTEP_NUM_THREADS, else OMP_NUM_THREADS, else the
// processors that affinity and the cgroup's quota allow.
int num_threads();
void set_num_threads(int n);  // at most 1024; 0: back to the default
int default_num_threads();

// Forks of this process and its ancestors: a lock that was taken before one may belong to nobody now.
int fork_generation();

// Floating-point operations of a step that is worth a second thread.
constexpr int64_t kSharedOperations = 500'000;

using TaskFunction = void (*)(void* context, int task, int worker);

// Runs tasks 0..n-1 on up to max_threads threads and returns when all are done. worker is below
// max_threads and never shared by two running tasks of one call. Without free workers the caller
// does everything: results must not depend on who runs a task.
void run_tasks(int n, int max_threads, TaskFunction function, void* context);

template <class F>
void parallel_for(int n, int max_threads, F&& f) {
    if (max_threads <= 1 || n <= 1) {
        for (int i = 0; i < n; ++i) f(i, 0);
        return;
    }
    using Body = std::remove_reference_t<F>;
    run_tasks(
        n, max_threads, [](void* context, int task, int worker) { (*static_cast<Body*>(context))(task, worker); },
        const_cast<void*>(static_cast<const void*>(&f)));
}

}  // namespace gradstep
