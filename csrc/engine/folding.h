// Predictions know the statistics of column normalisation beforehand: gain and shift take them in, and where they stand
// right behind the products of a dense layer, its weights and biases take in both.
#pragma once
#include <cmath>
#include <memory>
#include <vector>

#include "engine/arena.h"
#include "engine/net.h"

namespace gradstep {

// The plan for predictions, and which of its layers each layer became.
struct FoldedPlan {
    Plan plan;
    std::vector<std::size_t> at;

    explicit FoldedPlan(const Plan& from) : plan(from) {
        plan.layers.clear();
        for (const LayerPlan& layer : from.layers) {
            if (layer.kind == Kind::batch_norm && from.is_only_normalised(layer.input)) {
                at.push_back(at[static_cast<std::size_t>(layer.input)]);
                plan.layers[at.back()].activation = layer.activation;
                continue;
            }
            LayerPlan kept = layer;
            if (kept.kind == Kind::batch_norm) kept.kind = Kind::affine;
            for (int64_t* input : {&kept.input, &kept.other})
                if (*input >= 0) *input = static_cast<int64_t>(at[static_cast<std::size_t>(*input)]);
            at.push_back(plan.layers.size());
            plan.layers.push_back(kept);
        }
    }
};

template <class T>
class Folded {
public:
    Folded(const Kernels<T>& kernels, const Net<T>& net)
        : from_(net), folded_(net.plan()), net_(make_net<T>(kernels, folded_.plan)) {}

    const Net<T>& net() const { return *net_; }
    void forget() { is_ready_ = false; }

    // Parameters for net(), made anew when forgotten. statistics(l): mean and variance of layer l, [n_out] each.
    template <class Statistics>
    const T* parameters(const T* theta, const Statistics& statistics) {
        if (is_ready_) return theta_;
        if (!theta_) arena_.allocate([&](Taker& take) { theta_ = take.template take<T>(net_->parameters().total); });
        std::vector<std::vector<T>> W(net_->plan().layers.size()), b(W.size());
        for (std::size_t l = 0; l < folded_.at.size(); ++l) {
            const LayerPlan& d = from_.plan().layers[l];
            std::vector<T> weights(static_cast<std::size_t>(d.weight_rows() * d.weight_columns()));
            std::vector<T> biases(static_cast<std::size_t>(d.biases()));
            from_.unpack(l, theta, weights.data(), biases.data());
            if (d.kind == Kind::batch_norm) take_in(d, statistics(l).first, statistics(l).second, weights, biases);
            const std::size_t to = folded_.at[l];
            if (W[to].empty()) {
                W[to] = std::move(weights);
                b[to] = std::move(biases);
            } else {
                put_behind(W[to], b[to], weights, biases);
            }
        }
        for (std::size_t l = 0; l < W.size(); ++l) net_->pack(l, W[l].data(), b[l].data(), theta_);
        is_ready_ = true;
        return theta_;
    }

private:
    static void take_in(const LayerPlan& d, const T* mean, const T* variance, std::vector<T>& gain,
                        std::vector<T>& shift) {
        for (std::size_t o = 0; o < gain.size(); ++o) {
            const double factor = gain[o] / std::sqrt(static_cast<double>(variance[o]) + d.epsilon);
            shift[o] = static_cast<T>(shift[o] - mean[o] * factor);
            gain[o] = static_cast<T>(factor);
        }
    }

    static void put_behind(std::vector<T>& W, std::vector<T>& b, const std::vector<T>& gain,
                           const std::vector<T>& shift) {
        for (std::size_t row = 0; row < W.size(); row += gain.size())
            for (std::size_t o = 0; o < gain.size(); ++o) W[row + o] *= gain[o];
        for (std::size_t o = 0; o < b.size(); ++o) b[o] = b[o] * gain[o] + shift[o];
    }

    const Net<T>& from_;
    const FoldedPlan folded_;
    std::unique_ptr<Net<T>> net_;
    Arena arena_;
    T* theta_ = nullptr;
    bool is_ready_ = false;
};

}  // namespace gradstep
