// Plain passes over arrays that few trainings need: the compiler's own vectors do.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstddef>

namespace gradstep {

// gradient += l1 sign(theta)
template <class T>
void add_signs(const T* theta, T l1, T* gradient, ptrdiff_t n) {
    for (ptrdiff_t i = 0; i < n; ++i) gradient[i] += theta[i] > 0 ? l1 : theta[i] < 0 ? -l1 : T(0);
}

template <class T>
double sum_absolute(const T* from, ptrdiff_t n) {
    constexpr ptrdiff_t kSums = 8;
    double sums[kSums] = {};
    ptrdiff_t i = 0;
    for (; i + kSums <= n; i += kSums)
        for (ptrdiff_t s = 0; s < kSums; ++s) sums[s] += std::abs(static_cast<double>(from[i + s]));
    for (; i < n; ++i) sums[0] += std::abs(static_cast<double>(from[i]));
    double sum = 0;
    for (const double part : sums) sum += part;
    return sum;
}

// average += gain (theta - average); a gain of 1 copies
template <class T>
void follow(const T* theta, T gain, T* average, ptrdiff_t n) {
    if (gain == T(1))
        std::copy(theta, theta + n, average);
    else
        for (ptrdiff_t i = 0; i < n; ++i) average[i] += gain * (theta[i] - average[i]);
}

}  // namespace gradstep
