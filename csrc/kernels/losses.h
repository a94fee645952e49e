// Losses on outputs before their link, samples in the lanes. To add one, write its struct (or its two
// functions) and name it in kLosses. A sample of weight zero adds nothing, whatever its outputs are.
#pragma once
#include "kernels/elementary.h"
#include "kernels/table.h"

namespace {

using gradstep::LossBatch;

template <class T>
struct ValueAndSlope {
    Vec<T> value, slope;
};

// (z - y)^2
struct SquaredError {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, T) {
        const Vec<T> d = z - y;
        return {d * d, d + d};
    }
};

// |z - y|, slope 0 where they meet
struct AbsoluteError {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, T) {
        const Vec<T> d = z - y;
        const Vec<T> sign = d > T(0) ? splat(T(1)) : d < T(0) ? splat(T(-1)) : d;
        return {absolute<T>(d), sign};
    }
};

// Huber 1964: quadratic up to the option delta, linear beyond
struct HuberError {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, T delta) {
        const Vec<T> d = z - y;
        const Vec<T> slope = minimum(maximum(d, splat(-delta)), splat(delta));
        return {slope * (d - T(0.5) * slope), slope};
    }
};

// Koenker and Bassett 1978: y above the prediction costs `quantile`, y below it the rest; slope 0 where they meet
struct QuantileError {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, T quantile) {
        const Vec<T> d = z - y;
        const Vec<T> slope = d > T(0) ? splat(T(1) - quantile) : d < T(0) ? splat(-quantile) : d;
        return {d * slope, slope};
    }
};

// Half the deviance of counts y with the rate exp(z): exp(z) - y z + y log(y) - y
struct PoissonDeviance {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, T) {
        const Vec<T> rate = exp<T>(z);
        const Vec<T> least = y > T(0) ? y * (log<T>(y) - T(1)) : Vec<T>{};
        return {rate - y * z + least, rate - y};
    }
};

// -y log p - (1 - y) log(1 - p) for p = sigmoid(z), from z: max(z, 0) - z y + log(1 + exp(-|z|))
struct BinaryCrossEntropy {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, T) {
        const Vec<T> e = exp<T>(-absolute<T>(z));
        const Vec<T> p = (z < T(0) ? e : splat(T(1))) / (e + T(1));
        return {maximum(z, Vec<T>{}) - z * y + log1p_unit<T>(e), p - y};
    }
};

template <class T>
inline Vec<T> weighted(Vec<T> weight, Vec<T> x) {
    return weight == T(0) ? Vec<T>{} : weight * x;
}

template <class T, class L>
double elementwise_loss(const LossBatch<T>& batch) noexcept {
    const LossBatch<T> s = batch;
    double total = 0;
    for (ptrdiff_t o = 0; o < s.outputs; ++o) {
        Vec<T> sum{};
        for (ptrdiff_t b = 0; b < s.lanes; b += kLanes<T>) {
            const ptrdiff_t at = o * s.stride + b;
            const Vec<T> w = load(s.weight + b);
            const ValueAndSlope<T> r = L::template at<T>(load(s.z + at), load(s.y + at), s.option[o]);
            sum += weighted<T>(w, r.value);
            if (s.delta) store(s.delta + at, weighted<T>(w, r.slope) * s.scale);
        }
        total += static_cast<double>(sum_lanes<T>(sum));
    }
    return total;
}

template <class T>
void sigmoid_link(const LossBatch<T>& batch) noexcept {
    const LossBatch<T> s = batch;
    for (ptrdiff_t o = 0; o < s.outputs; ++o)
        for (ptrdiff_t b = 0; b < s.lanes; b += kLanes<T>)
            store(s.link + o * s.stride + b, sigmoid<T>(load(s.z + o * s.stride + b)));
}

template <class T>
void exp_link(const LossBatch<T>& batch) noexcept {
    const LossBatch<T> s = batch;
    for (ptrdiff_t o = 0; o < s.outputs; ++o)
        for (ptrdiff_t b = 0; b < s.lanes; b += kLanes<T>)
            store(s.link + o * s.stride + b, exp<T>(load(s.z + o * s.stride + b)));
}

template <class T>
inline Vec<T> largest_output(const LossBatch<T>& s, ptrdiff_t b) {
    Vec<T> most = load(s.z + b);
    for (ptrdiff_t o = 1; o < s.outputs; ++o) most = maximum(most, load(s.z + o * s.stride + b));
    return most;
}

// log(sum exp z) - z[y], with the largest output taken out first; delta = softmax(z) - onehot(y)
template <class T>
double cross_entropy(const LossBatch<T>& batch) noexcept {
    const LossBatch<T> s = batch;
    Vec<T> total{};
    for (ptrdiff_t b = 0; b < s.lanes; b += kLanes<T>) {
        const Vec<T> w = load(s.weight + b), label = load(s.y + b), most = largest_output(s, b);
        Vec<T> sum{}, chosen{};
        for (ptrdiff_t o = 0; o < s.outputs; ++o) {
            const Vec<T> z = load(s.z + o * s.stride + b) - most;
            const Vec<T> e = exp<T>(z);
            sum += e;
            chosen = label == T(o) ? z : chosen;
            if (s.delta) store(s.delta + o * s.stride + b, e);
        }
        total += weighted<T>(w, log<T>(sum) - chosen);
        if (!s.delta) continue;
        const Vec<T> inverse = T(1) / sum;
        for (ptrdiff_t o = 0; o < s.outputs; ++o) {
            T* at = s.delta + o * s.stride + b;
            const Vec<T> hit = label == T(o) ? splat(T(1)) : Vec<T>{};
            store(at, weighted<T>(w, load(at) * inverse - hit) * s.scale);
        }
    }
    return static_cast<double>(sum_lanes<T>(total));
}

template <class T>
void softmax_link(const LossBatch<T>& batch) noexcept {
    const LossBatch<T> s = batch;
    for (ptrdiff_t b = 0; b < s.lanes; b += kLanes<T>) {
        const Vec<T> most = largest_output(s, b);
        Vec<T> sum{};
        for (ptrdiff_t o = 0; o < s.outputs; ++o) {
            const Vec<T> e = exp<T>(load(s.z + o * s.stride + b) - most);
            sum += e;
            store(s.link + o * s.stride + b, e);
        }
        const Vec<T> inverse = T(1) / sum;
        for (ptrdiff_t o = 0; o < s.outputs; ++o) {
            T* at = s.link + o * s.stride + b;
            store(at, load(at) * inverse);
        }
    }
}

template <class T>
constexpr gradstep::Loss<T> kLosses[] = {
    // name, takes labels, mean over outputs, value, link
    {"mse", false, true, &elementwise_loss<T, SquaredError>, nullptr},
    {"mae", false, true, &elementwise_loss<T, AbsoluteError>, nullptr},
    {"huber", false, true, &elementwise_loss<T, HuberError>, nullptr},
    {"quantile", false, true, &elementwise_loss<T, QuantileError>, nullptr},
    {"poisson", false, false, &elementwise_loss<T, PoissonDeviance>, &exp_link<T>},
    {"binary_cross_entropy", false, false, &elementwise_loss<T, BinaryCrossEntropy>, &sigmoid_link<T>},
    {"cross_entropy", true, false, &cross_entropy<T>, &softmax_link<T>},
};

}  // namespace
