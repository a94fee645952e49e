// The end of a tiny network in one pass over its samples: the last layer's output, the loss, and both gradients. With
// calls of their own they take longer than their arithmetic.
#pragma once
#include "kernels/loss_terms.h"
#include "kernels/table.h"
#include "simd/vec.h"

namespace {

using gradstep::LanesOutput;

// Sums run in the order of lanes_forward, the loss and lanes_backward.
template <class T, class L, int I>
double lanes_output_of(const LanesOutput<T>& pass) noexcept {
    constexpr ptrdiff_t lanes = kLanes<T>;
    const LanesOutput<T> s = pass;
    Vec<T> weights[I], sums[I];
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) {
        weights[i] = splat(s.weights[i]);
        sums[i] = s.keep ? load(s.weight_sums + i * lanes) : Vec<T>{};
    }
    const Vec<T> bias = splat(*s.bias), option = splat(*s.option);
    Vec<T> bias_sum = s.keep ? load(s.bias_sum) : Vec<T>{}, total{};
    for (ptrdiff_t b = 0; b < s.lanes; b += lanes) {
        Vec<T> x[I], z = bias;
#pragma GCC unroll 4
        for (int i = 0; i < I; ++i) {
            x[i] = load(s.x + i * s.lanes + b);
            z = fma(weights[i], x[i], z);
        }
        const Vec<T> w = load(s.weight + b);
        const ValueAndSlope<T> r = L::template at<T>(z, load(s.y + b), option);
        const Vec<T> delta = weighted<T>(w, r.slope) * s.scale;
        total += weighted<T>(w, r.value);
        bias_sum += delta;
#pragma GCC unroll 4
        for (int i = 0; i < I; ++i) {
            sums[i] = fma(x[i], delta, sums[i]);
            if (s.below) store(s.below + i * s.lanes + b, weights[i] * delta);
        }
    }
#pragma GCC unroll 4
    for (int i = 0; i < I; ++i) store(s.weight_sums + i * lanes, sums[i]);
    store(s.bias_sum, bias_sum);
    return static_cast<double>(sum_lanes<T>(total));
}

template <class T, class L, int I = static_cast<int>(gradstep::kFewInputs)>
double lanes_output(const LanesOutput<T>& pass) noexcept {
    if constexpr (I > 1)
        if (pass.inputs < I) return lanes_output<T, L, I - 1>(pass);
    return lanes_output_of<T, L, I>(pass);
}

}  // namespace
