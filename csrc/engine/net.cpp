#include "engine/net.h"

#include "engine/lanes_net.h"
#include "engine/panel_net.h"

namespace gradstep {

template <class T>
constexpr Loss<T> kCustom = {kCustomLoss, false, false, 1, nullptr, nullptr, {}, nullptr};

template <class T>
const Loss<T>& loss_of(const Kernels<T>& kernels, const Plan& plan) {
    return plan.custom_loss() ? kCustom<T> : find(kernels.losses, kernels.n_losses, plan.loss);
}

template <class T>
Net<T>::Net(const Kernels<T>& kernels, const Plan& plan)
    : k_(kernels), plan_(plan), loss_(loss_of(kernels, plan)), targets_(plan.n_out() / loss_.outputs_per_target) {
    for (const LayerPlan& layer : plan.layers)
        activations_.push_back(&find(kernels.activations, kernels.n_activations, layer.activation));
    for (const double option : plan.loss_option) loss_option_.push_back(static_cast<T>(option));
}

template <class T>
double Net<T>::gradient(const Workspace<T>& ws, const TileInputs<T>& in, const T* theta, ptrdiff_t rows,
                        const TileGradient<T>& wanted) const {
    forward(ws, in.x, theta, rows);
    end_phase(ws.laps, Phase::forward);
    LossBatch<T> batch = loss_batch(rows, tile_stride(rows, ws.rows));
    batch.z = outputs_in_lanes(ws, rows);
    batch.y = in.y;
    batch.weight = in.weight;
    batch.delta = ws.lanes_delta;
    batch.scale = wanted.scale;
    const double loss = loss_.value(batch);
    end_phase(ws.laps, Phase::loss);
    backward(ws, in.x, theta, rows, wanted);
    return loss;
}

// Weights with all layers padded to whole panels.
int64_t padded_weights(const Plan& plan, int64_t panel) {
    const auto padded = [panel](int64_t width) { return (width + panel - 1) / panel * panel; };
    int64_t sum = 0;
    for (const LayerPlan& layer : plan.layers)
        if (layer.is_dense()) sum += padded(layer.n_in) * padded(layer.n_out);
    return sum;
}

// Panels of one vector pad less, and multiply some 10 to 20 % slower: a scalar is broadcast for one vector instead
// of two.
template <class T>
bool prefers_narrow(const Kernels<T>& kernels, const Plan& plan) {
    if (!fits_cache<T>(plan)) return false;
    return 4 * padded_weights(plan, 2 * kernels.lanes) > 5 * padded_weights(plan, kernels.lanes);
}

template <class T>
std::unique_ptr<Net<T>> make_net(const Kernels<T>& kernels, const Plan& plan) {
    if (plan.custom_loss()) return std::make_unique<PanelNet<T>>(kernels, plan, 2);
    // Dropout, updates by layer and layers that are not dense are for panels, whose layers begin at whole vectors.
    // Samples in lanes win while a panel of one vector would be mostly padding and the vectors of partial sums, one a
    // weight, are few.
    const bool narrow = plan.widest() <= 16 || (plan.widest() <= 32 && plan.weights() <= 1024);
    if (narrow && fits_cache<T>(plan) && !plan.drops() && !plan.factored() && plan.is_chain())
        return std::make_unique<LanesNet<T>>(kernels, plan);
    return std::make_unique<PanelNet<T>>(kernels, plan, prefers_narrow<T>(kernels, plan) ? 1 : 2);
}

template class Net<float>;
template class Net<double>;
template std::unique_ptr<Net<float>> make_net(const Kernels<float>&, const Plan&);
template std::unique_ptr<Net<double>> make_net(const Kernels<double>&, const Plan&);

}  // namespace gradstep
