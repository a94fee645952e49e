// Losses on outputs before their link, samples in the lanes; those that take each output by itself also on panels. To
// add one, write its struct (or its two functions) and name it in kLosses. A sample of weight zero adds nothing,
// whatever its outputs are.
#pragma once
#include "kernels/elementary.h"
#include "kernels/lanes_output.h"
#include "kernels/loss_terms.h"
#include "kernels/table.h"

namespace {

using gradstep::LossBatch;
using gradstep::LossPanel;

// (z - y)^2
struct SquaredError {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, Vec<T>) {
        const Vec<T> d = z - y;
        return {d * d, d + d};
    }
};

// |z - y|, slope 0 where they meet
struct AbsoluteError {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, Vec<T>) {
        const Vec<T> d = z - y;
        const Vec<T> sign = d > T(0) ? splat(T(1)) : d < T(0) ? splat(T(-1)) : d;
        return {absolute<T>(d), sign};
    }
};

// Huber 1964: quadratic up to the option delta, linear beyond
struct HuberError {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, Vec<T> delta) {
        const Vec<T> d = z - y;
        const Vec<T> slope = minimum(maximum(d, -delta), delta);
        return {slope * (d - T(0.5) * slope), slope};
    }
};

// Koenker and Bassett 1978: y above the prediction costs `quantile`, y below it the rest; slope 0 where they meet
struct QuantileError {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, Vec<T> quantile) {
        const Vec<T> d = z - y;
        const Vec<T> slope = d > T(0) ? T(1) - quantile : d < T(0) ? -quantile : d;
        return {d * slope, slope};
    }
};

// Half the deviance of counts y with the rate exp(z): exp(z) - y z + y log(y) - y
struct PoissonDeviance {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, Vec<T>) {
        const Vec<T> rate = exp<T>(z);
        const Vec<T> least = y > T(0) ? y * (log<T>(y) - T(1)) : Vec<T>{};
        return {rate - y * z + least, rate - y};
    }
};

// Half the deviance of positive y with the mean exp(z): z - log(y) + y exp(-z) - 1
struct GammaDeviance {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, Vec<T>) {
        const Vec<T> ratio = y * exp<T>(-z);
        return {z - log<T>(y) + ratio - T(1), T(1) - ratio};
    }
};

// -y log p - (1 - y) log(1 - p) for p = sigmoid(z), from z: max(z, 0) - z y + log(1 + exp(-|z|)); y moves towards
// 1/2 by the option
struct BinaryCrossEntropy {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> target, Vec<T> smoothing) {
        const Vec<T> y = target + smoothing * (T(0.5) - target);
        const Vec<T> e = exp<T>(-absolute<T>(z));
        const Vec<T> p = (z < T(0) ? e : splat(T(1))) / (e + T(1));
        return {maximum(z, Vec<T>{}) - z * y + log1p_unit<T>(e), p - y};
    }
};

// Lin et al. 2017: -y q^gamma log p - (1 - y) p^gamma log q for p = sigmoid(z) and q = 1 - p. The logarithms are
// softplus of -z and z, and the powers follow from them.
struct BinaryFocal {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, Vec<T> gamma) {
        const Vec<T> e = exp<T>(-absolute<T>(z));
        const Vec<T> tail = log1p_unit<T>(e), inverse = T(1) / (e + T(1));
        const Vec<T> log_p = minimum(z, Vec<T>{}) - tail, log_q = minimum(-z, Vec<T>{}) - tail;
        const Vec<T> p = (z < T(0) ? e : splat(T(1))) * inverse, q = (z < T(0) ? splat(T(1)) : e) * inverse;
        const Vec<T> of_one = y * exp<T>(gamma * log_q), of_zero = (T(1) - y) * exp<T>(gamma * log_p);
        return {-of_one * log_p - of_zero * log_q,
                of_zero * (p - gamma * q * log_q) - of_one * (q - gamma * p * log_p)};
    }
};

// max(0, 1 - y z) for y = -1 or 1, slope 0 where the margin is 1
struct BinaryHinge {
    template <class T>
    static ValueAndSlope<T> at(Vec<T> z, Vec<T> y, Vec<T>) {
        const Vec<T> lack = T(1) - y * z;
        return {maximum(lack, Vec<T>{}), lack > T(0) ? -y : Vec<T>{}};
    }
};

template <class T, class L>
double elementwise_loss(const LossBatch<T>& batch) noexcept {
    const LossBatch<T> s = batch;
    double total = 0;
    for (ptrdiff_t o = 0; o < s.outputs; ++o) {
        const Vec<T> option = splat(s.option[o]);
        Vec<T> sum{};
        for (ptrdiff_t b = 0; b < s.lanes; b += kLanes<T>) {
            const ptrdiff_t at = o * s.stride + b;
            const Vec<T> w = load(s.weight + b);
            const ValueAndSlope<T> r = L::template at<T>(load(s.z + at), load(s.y + at), option);
            sum += weighted<T>(w, r.value);
            if (s.delta) store(s.delta + at, weighted<T>(w, r.slope) * s.scale);
        }
        total += static_cast<double>(sum_lanes<T>(sum));
    }
    return total;
}

// The vector of columns from c on, of which `left` are outputs.
template <class T, class L, ptrdiff_t P>
double elementwise_columns(const LossPanel<T> s, ptrdiff_t c, ptrdiff_t left) {
    const Vec<T> option = load_first(s.option + c, left);
    Vec<T> sum{}, used{};
    for (ptrdiff_t i = 0; i < left; ++i) used[i] = T(1);
    for (ptrdiff_t r = 0; r < s.rows; ++r) {
        const ptrdiff_t row = s.index ? s.index[r] : r;
        const T* from = s.y + row * s.y_stride + c;
        // The end of this vector in the next panel, as rows are too many streams for the processor to follow.
        __builtin_prefetch(from + P + kLanes<T> - 1);
        const Vec<T> y = left < kLanes<T> ? load_first(from, left) : load(from);
        const Vec<T> w = s.weight ? used * s.weight[row] : used;
        const ValueAndSlope<T> result = L::template at<T>(load(s.z + r * P + c), y, option);
        sum += weighted<T>(w, result.value);
        store(s.delta + r * P + c, weighted<T>(w, result.slope) * s.scale);
    }
    return static_cast<double>(sum_lanes<T>(sum));
}

template <class T, class L, int NV>
double elementwise_panel(const LossPanel<T>& panel) noexcept {
    constexpr ptrdiff_t lanes = kLanes<T>, P = NV * lanes;
    const LossPanel<T> s = panel;
    double total = 0;
    for (ptrdiff_t c = 0; c < P; c += lanes) {
        const ptrdiff_t left = s.columns - c;
        total += elementwise_columns<T, L, P>(s, c, left < 0 ? 0 : left < lanes ? left : lanes);
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

// log(sum exp z) - sum q z, with the largest output taken out first; delta = softmax(z) - q. q is one at the label,
// less the option, which all outputs share.
template <class T>
double cross_entropy(const LossBatch<T>& batch) noexcept {
    const LossBatch<T> s = batch;
    const Vec<T> off = splat(s.option[0] / static_cast<T>(s.outputs)), on = off + (T(1) - s.option[0]);
    Vec<T> total{};
    for (ptrdiff_t b = 0; b < s.lanes; b += kLanes<T>) {
        const Vec<T> w = load(s.weight + b), label = load(s.y + b), most = largest_output(s, b);
        Vec<T> sum{}, chosen{};
        for (ptrdiff_t o = 0; o < s.outputs; ++o) {
            const Vec<T> z = load(s.z + o * s.stride + b) - most;
            const Vec<T> e = exp<T>(z);
            sum += e;
            chosen += (label == T(o) ? on : off) * z;
            if (s.delta) store(s.delta + o * s.stride + b, e);
        }
        total += weighted<T>(w, log<T>(sum) - chosen);
        if (!s.delta) continue;
        const Vec<T> inverse = T(1) / sum;
        for (ptrdiff_t o = 0; o < s.outputs; ++o) {
            T* at = s.delta + o * s.stride + b;
            store(at, weighted<T>(w, load(at) * inverse - (label == T(o) ? on : off)) * s.scale);
        }
    }
    return static_cast<double>(sum_lanes<T>(total));
}

// Lin et al. 2017: -u^gamma log p for the label's softmax p and u = 1 - p, which is summed up from the other outputs.
// delta is -g at the label, and shares g among the others, for g = u^gamma (u - gamma p log p).
template <class T>
double focal(const LossBatch<T>& batch) noexcept {
    const LossBatch<T> s = batch;
    const Vec<T> least = splat(Constants<T>::kSmallestNormal);
    Vec<T> total{};
    for (ptrdiff_t b = 0; b < s.lanes; b += kLanes<T>) {
        const Vec<T> w = load(s.weight + b), label = load(s.y + b), most = largest_output(s, b);
        Vec<T> others{}, mine{}, chosen{};
        for (ptrdiff_t o = 0; o < s.outputs; ++o) {
            const Vec<T> z = load(s.z + o * s.stride + b) - most;
            const Vec<T> e = exp<T>(z);
            others += label == T(o) ? Vec<T>{} : e;
            mine = label == T(o) ? e : mine;
            chosen = label == T(o) ? z : chosen;
            if (s.delta) store(s.delta + o * s.stride + b, e);
        }
        const Vec<T> sum = others + mine, p = mine / sum, u = others / sum;
        // The logarithm of a p near 1 is as accurate as u.
        const Vec<T> cost = others <= mine ? log1p_unit<T>(others / mine) : log<T>(sum) - chosen;
        const Vec<T> power = exp<T>(s.option[0] * log<T>(maximum(u, least)));
        total += weighted<T>(w, power * cost);
        if (!s.delta) continue;
        const Vec<T> slope = power * (u + s.option[0] * p * cost), share = slope / maximum(others, least);
        for (ptrdiff_t o = 0; o < s.outputs; ++o) {
            T* at = s.delta + o * s.stride + b;
            store(at, weighted<T>(w, label == T(o) ? -slope : share * load(at)) * s.scale);
        }
    }
    return static_cast<double>(sum_lanes<T>(total));
}

// Crammer and Singer 2001: max(0, 1 + the best other output - the label's), of equally good others the first. Slope 0
// where the margin is 1.
template <class T>
double hinge(const LossBatch<T>& batch) noexcept {
    const LossBatch<T> s = batch;
    Vec<T> total{};
    for (ptrdiff_t b = 0; b < s.lanes; b += kLanes<T>) {
        const Vec<T> w = load(s.weight + b), label = load(s.y + b);
        Vec<T> mine{}, best = splat(-T(__builtin_inf())), number{}, bad{};
        for (ptrdiff_t o = 0; o < s.outputs; ++o) {
            const Vec<T> z = load(s.z + o * s.stride + b), rival = label == T(o) ? splat(-T(__builtin_inf())) : z;
            bad += z - z;  // NaN, which comparisons lose
            mine = label == T(o) ? z : mine;
            number = rival > best ? splat(T(o)) : number;
            best = maximum(best, rival);
        }
        const Vec<T> lack = T(1) + (best - mine) + bad;
        total += weighted<T>(w, maximum(lack, Vec<T>{}));
        if (!s.delta) continue;
        const Vec<T> slope = lack > T(0) ? w * s.scale : Vec<T>{};
        for (ptrdiff_t o = 0; o < s.outputs; ++o)
            store(s.delta + o * s.stride + b, label == T(o) ? -slope : number == T(o) ? slope : Vec<T>{});
    }
    return static_cast<double>(sum_lanes<T>(total));
}

// A variance from its logarithm before the floor was added: log(exp(z) + floor).
template <class T>
inline Vec<T> log_variance(Vec<T> z, Vec<T> log_floor) {
    return maximum(z, log_floor) + log1p_unit<T>(exp<T>(-absolute<T>(z - log_floor)));
}

// Means in the first half of the outputs, logarithms of variances in the second: (log v + (m - y)^2 / v) / 2 for
// v = exp(z) + the option
template <class T>
double gaussian_nll(const LossBatch<T>& batch) noexcept {
    const LossBatch<T> s = batch;
    const ptrdiff_t targets = s.outputs / 2;
    const Vec<T> log_floor = log<T>(splat(s.option[0]));
    double total = 0;
    for (ptrdiff_t t = 0; t < targets; ++t) {
        Vec<T> sum{};
        for (ptrdiff_t b = 0; b < s.lanes; b += kLanes<T>) {
            const ptrdiff_t at = t * s.stride + b, second = at + targets * s.stride;
            const Vec<T> w = load(s.weight + b), z = load(s.z + second), d = load(s.z + at) - load(s.y + at);
            const Vec<T> log_v = log_variance<T>(z, log_floor), precision = exp<T>(-log_v), square = d * d * precision;
            sum += weighted<T>(w, T(0.5) * (log_v + square));
            if (!s.delta) continue;
            const Vec<T> slope = T(0.5) * (T(1) - square) * sigmoid<T>(z - log_floor);
            store(s.delta + at, weighted<T>(w, d * precision) * s.scale);
            store(s.delta + second, weighted<T>(w, slope) * s.scale);
        }
        total += static_cast<double>(sum_lanes<T>(sum));
    }
    return total;
}

// Means and variances.
template <class T>
void gaussian_link(const LossBatch<T>& batch) noexcept {
    const LossBatch<T> s = batch;
    for (ptrdiff_t o = 0; o < s.outputs; ++o)
        for (ptrdiff_t b = 0; b < s.lanes; b += kLanes<T>) {
            const Vec<T> z = load(s.z + o * s.stride + b);
            store(s.link + o * s.stride + b, o < s.outputs / 2 ? z : exp<T>(z) + s.option[0]);
        }
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

// A loss that takes each output by itself; its link is a function of z alone.
template <class T, class L>
constexpr gradstep::Loss<T> each_output(const char* name, bool mean, void (*link)(const LossBatch<T>&) noexcept) {
    return {name,
            false,
            mean,
            1,
            &elementwise_loss<T, L>,
            link,
            {&elementwise_panel<T, L, 1>, &elementwise_panel<T, L, 2>},
            &lanes_output<T, L>};
}

template <class T>
constexpr gradstep::Loss<T> kLosses[] = {
    // In the reference's order. Of each_output: name, mean over outputs, link. Of others: name, takes labels, mean over
    // outputs, outputs a target, value, link, no passes of their own.
    each_output<T, SquaredError>("mse", true, nullptr),
    each_output<T, AbsoluteError>("mae", true, nullptr),
    each_output<T, HuberError>("huber", true, nullptr),
    each_output<T, QuantileError>("quantile", true, nullptr),
    each_output<T, PoissonDeviance>("poisson", false, &exp_link<T>),
    each_output<T, GammaDeviance>("gamma", false, &exp_link<T>),
    {"gaussian_nll", false, false, 2, &gaussian_nll<T>, &gaussian_link<T>, {}, nullptr},
    each_output<T, BinaryCrossEntropy>("binary_cross_entropy", false, &sigmoid_link<T>),
    each_output<T, BinaryFocal>("binary_focal", false, &sigmoid_link<T>),
    each_output<T, BinaryHinge>("binary_hinge", false, nullptr),
    {"cross_entropy", true, false, 1, &cross_entropy<T>, &softmax_link<T>, {}, nullptr},
    {"focal", true, false, 1, &focal<T>, &softmax_link<T>, {}, nullptr},
    {"hinge", true, false, 1, &hinge<T>, nullptr, {}, nullptr},
};

}  // namespace
