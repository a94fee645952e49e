// A clock that is read in a few nanoseconds; its unit is unknown.
#pragma once
#include <cstdint>

#if defined(__x86_64__)
#include <x86intrin.h>
#else
#include <chrono>
#endif

namespace gradstep {

inline int64_t ticks() {
#if defined(__x86_64__)
    return static_cast<int64_t>(__rdtsc());
#else
    return std::chrono::steady_clock::now().time_since_epoch().count();
#endif
}

}  // namespace gradstep
