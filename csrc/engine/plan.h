// What a network is, in plain values; made by the bindings, trusted by the engine.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace gradstep {

struct DensePlan {
    int64_t n_in, n_out;
    std::string activation;
    double dropout = 0;      // share of the outputs that an update drops
    double rate_factor = 1;  // of the learning rate; zero: frozen
};

// The caller computes the loss and its gradient, batch by batch.
inline constexpr const char* kCustomLoss = "custom";

struct Plan {
    std::vector<DensePlan> layers;
    std::string loss;                 // a kernel's name, or kCustomLoss
    std::vector<double> loss_option;  // one an output, or none
    std::string optimizer;
    double momentum = 0, nesterov = 0, beta1 = 0, beta2 = 0, epsilon = 0, weight_decay = 0;
    double momentum_decay = 0;  // of nadam; zero for all others
    double epsilon_hat = 0;     // not zero: epsilon is added before the second moment's bias is corrected
    double l2 = 0, l1 = 0;
    double clip_value = 0, clip_norm = 0;  // of a batch's gradient; zero: as it is
    double ema_decay = 0, ema_warmup = 0;  // zero: no exponential mean of the parameters
    double swa_start = 0;                  // first epoch, from 1, of the equal mean; zero: none
    bool l2_per_batch = false;             // l2 is divided by a batch's summed weights
    uint64_t seed = 0;                     // of the dropout masks

    int64_t n_in() const { return layers.front().n_in; }
    int64_t n_out() const { return layers.back().n_out; }
    int64_t widest() const {
        int64_t most = n_in();
        for (const DensePlan& layer : layers) most = layer.n_out > most ? layer.n_out : most;
        return most;
    }
    // Multiply-adds of forward, dX and dW for one sample.
    int64_t products_per_row() const {
        int64_t sum = 0;
        for (std::size_t l = 0; l < layers.size(); ++l) sum += layers[l].n_in * layers[l].n_out * (l ? 3 : 2);
        return sum;
    }
    bool custom_loss() const { return loss == kCustomLoss; }
    bool drops() const {
        for (const DensePlan& layer : layers)
            if (layer.dropout > 0) return true;
        return false;
    }
    bool factored() const {
        for (const DensePlan& layer : layers)
            if (layer.rate_factor != 1) return true;
        return false;
    }
    bool clips() const { return clip_value > 0 || clip_norm > 0; }
    bool averages() const { return ema_decay > 0 || swa_start > 0; }
    int64_t weights() const {
        int64_t sum = 0;
        for (const DensePlan& layer : layers) sum += layer.n_in * layer.n_out;
        return sum;
    }
};

}  // namespace gradstep
