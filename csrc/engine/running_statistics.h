// The running means and variances of batch normalisation. Where predictions use an average of the parameters there are
// two sets of them, as of the parameters: what the user sees, and what training moves, exchanged during training.
#pragma once
#include <algorithm>
#include <utility>
#include <vector>

#include "engine/batch.h"
#include "engine/panel_step.h"
#include "engine/passes.h"

namespace gradstep {

// In use are the average's between calls, and during training those that it moves.
enum class StatisticsSet { in_use, other };

template <class T>
class RunningStatistics {
public:
    // Keeps a reference to the plan.
    RunningStatistics(const Plan& plan, const Net<T>& net) : layers_(plan.layers), sets_(plan.averages() ? 2 : 1) {
        for (const LayerPlan& d : layers_) {
            at_.push_back(size_);
            lanes_.push_back(d.kind == Kind::batch_norm ? net.whole_lanes(d.n_out) : 0);
            size_ += 2 * static_cast<std::size_t>(lanes_.back());
        }
    }

    std::size_t total() const { return size_ * sets_; }
    void lie_at(T* memory) { memory_ = memory; }

    // Mean and variance of a layer.
    std::pair<T*, T*> of(std::size_t layer, StatisticsSet set = StatisticsSet::in_use) const {
        T* mean = memory_ + at_[layer] + (set == StatisticsSet::other ? size_ : 0);
        return {mean, mean + lanes_[layer]};
    }

    void get(std::size_t layer, StatisticsSet set, T* mean, T* variance) const {
        const auto [from_mean, from_variance] = of(layer, set);
        std::copy_n(from_mean, width(layer), mean);
        std::copy_n(from_variance, width(layer), variance);
    }

    // Null: stays as it is.
    void set(std::size_t layer, StatisticsSet set, const T* mean, const T* variance) {
        const auto [to_mean, to_variance] = of(layer, set);
        if (mean) std::copy_n(mean, width(layer), to_mean);
        if (variance) std::copy_n(variance, width(layer), to_variance);
    }

    // After a step: what the batch had for means and variances, of which the running ones take a part. The variances
    // are corrected as those of a sample, n / (n - 1) with equal weights; one row says nothing of them.
    void move(const Batch<T>& b, const PanelStep<T>& step) {
        const double sum = b.weight_sum();
        if (!(sum > 0)) return;
        const double squares = sum_of_squared_shares(b, sum);
        for (std::size_t l = 0; l < layers_.size(); ++l) {
            const auto [mean, variance] = of(l);
            const T part = static_cast<T>(layers_[l].momentum);
            for (int64_t o = 0; o < width(l); ++o) mean[o] += part * (step.mean(l)[o] - mean[o]);
            if (squares >= 1) continue;
            const T correction = static_cast<T>(1 / (1 - squares));
            for (int64_t o = 0; o < width(l); ++o)
                variance[o] += part * (step.variance(l)[o] * correction - variance[o]);
        }
    }

    // Lets the other set, the average, follow the one that training has just moved.
    void average(T gain) { follow(memory_, gain, memory_ + size_, static_cast<ptrdiff_t>(size_)); }
    void exchange() { std::swap_ranges(memory_, memory_ + size_, memory_ + size_); }

private:
    int64_t width(std::size_t layer) const { return lanes_[layer] > 0 ? layers_[layer].n_out : 0; }

    static double sum_of_squared_shares(const Batch<T>& b, double sum) {
        if (!b.data->weight) return 1 / sum;
        double squares = 0;
        for (int64_t r = 0; r < b.rows; ++r) {
            const double share = static_cast<double>(b.data->weight[b.row(r)]) / sum;
            squares += share * share;
        }
        return squares;
    }

    const std::vector<LayerPlan>& layers_;
    const std::size_t sets_;
    std::vector<std::size_t> at_;   // by layer
    std::vector<ptrdiff_t> lanes_;  // by layer; 0: it has none
    std::size_t size_ = 0;          // of one set
    T* memory_ = nullptr;
};

}  // namespace gradstep
