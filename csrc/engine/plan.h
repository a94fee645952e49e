// What a network is, in plain values; made by the bindings, trusted by the engine.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace gradstep {

// What a layer does before its activation. affine is what predictions make of batch_norm; the bindings make none.
enum class Kind { dense, layer_norm, batch_norm, sum, scale, embedding, affine };

struct LayerPlan {
    int64_t n_in, n_out;
    std::string activation;
    double dropout = 0;      // share of the outputs that an update drops
    double rate_factor = 1;  // of the learning rate; zero: frozen
    Kind kind = Kind::dense;
    int64_t input = -1;                  // the layer whose outputs it takes; -1: those of the network
    int64_t other = -1;                  // of a sum: the second summand's
    double epsilon = 0;                  // of the normalisations
    double momentum = 0;                 // of the running statistics
    int64_t column = 0, categories = 0;  // of an embedding

    bool is_dense() const { return kind == Kind::dense; }
    bool has_shift() const { return kind == Kind::layer_norm || kind == Kind::batch_norm || kind == Kind::affine; }
    bool has_gain() const { return has_shift() || kind == Kind::scale; }
    // Shapes of the two arrays that the engine has of a layer: W and b of a dense one, gain and shift of others.
    int64_t weight_rows() const {
        return kind == Kind::dense ? n_in : kind == Kind::embedding ? categories : has_gain();
    }
    int64_t weight_columns() const { return kind == Kind::embedding ? n_out - n_in + 1 : n_out; }
    int64_t biases() const { return is_dense() || has_shift() ? n_out : 0; }
};

// The caller computes the loss and its gradient, batch by batch.
inline constexpr const char* kCustomLoss = "custom";

struct Plan {
    std::vector<LayerPlan> layers;
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
        for (const LayerPlan& layer : layers) most = layer.n_out > most ? layer.n_out : most;
        return most;
    }
    // Multiply-adds of forward, dX and dW for one sample.
    int64_t products_per_row() const {
        int64_t sum = 0;
        for (std::size_t l = 0; l < layers.size(); ++l)
            if (layers[l].is_dense()) sum += layers[l].n_in * layers[l].n_out * (l ? 3 : 2);
        return sum;
    }
    // Floating-point operations of a step, with rows that are not sparse.
    int64_t operations(int64_t rows) const { return 2 * products_per_row() * rows; }
    bool custom_loss() const { return loss == kCustomLoss; }
    bool drops() const {
        for (const LayerPlan& layer : layers)
            if (layer.dropout > 0) return true;
        return false;
    }
    bool factored() const {
        for (const LayerPlan& layer : layers)
            if (layer.rate_factor != 1) return true;
        return false;
    }
    bool clips() const { return clip_value > 0 || clip_norm > 0; }
    bool averages() const { return ema_decay > 0 || swa_start > 0; }
    // Dense layers, each behind the one before: what every schedule and layout can do.
    bool is_chain() const {
        for (const LayerPlan& layer : layers)
            if (!layer.is_dense()) return false;
        return true;
    }
    // Whether a layer's outputs are products and nothing else, and only column normalisation takes them. It takes out
    // again what the biases add: they have no gradient, and that of rounding alone must not reach an optimizer that
    // looks at its sign.
    bool is_only_normalised(int64_t layer) const {
        if (layer < 0) return false;
        const LayerPlan& products = layers[static_cast<std::size_t>(layer)];
        int takers = 0;
        bool normalised = false;
        for (const LayerPlan& taker : layers) {
            takers += (taker.input == layer) + (taker.kind == Kind::sum && taker.other == layer);
            normalised |= taker.input == layer && taker.kind == Kind::batch_norm;
        }
        return products.is_dense() && products.activation == "identity" && products.dropout == 0 && takers == 1 &&
               normalised;
    }
    bool normalises_batches() const {
        for (const LayerPlan& layer : layers)
            if (layer.kind == Kind::batch_norm) return true;
        return false;
    }
    int64_t weights() const {
        int64_t sum = 0;
        for (const LayerPlan& layer : layers)
            if (!layer.has_gain()) sum += layer.weight_rows() * layer.weight_columns();
        return sum;
    }
};

}  // namespace gradstep
