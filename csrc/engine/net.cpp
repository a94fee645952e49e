#include "engine/net.h"

#include "engine/lanes_net.h"
#include "engine/panel_net.h"

namespace gradstep {

template <class T>
Net<T>::Net(const Kernels<T>& kernels, const Plan& plan)
    : k_(kernels), plan_(plan), loss_(find(kernels.losses, kernels.n_losses, plan.loss)) {
    for (const DensePlan& layer : plan.layers)
        activations_.push_back(&find(kernels.activations, kernels.n_activations, layer.activation));
}

template <class T>
std::unique_ptr<Net<T>> make_net(const Kernels<T>& kernels, const Plan& plan) {
    // Samples in lanes win while a panel of one vector would be mostly padding and the vectors of partial sums, one
    // a weight, are few.
    const bool narrow = plan.widest() <= 16 || (plan.widest() <= 32 && plan.weights() <= 1024);
    if (narrow && fits_cache<T>(plan)) return std::make_unique<LanesNet<T>>(kernels, plan);
    return std::make_unique<PanelNet<T>>(kernels, plan, fits_cache<T>(plan) ? 1 : 2);
}

template class Net<float>;
template class Net<double>;
template std::unique_ptr<Net<float>> make_net(const Kernels<float>&, const Plan&);
template std::unique_ptr<Net<double>> make_net(const Kernels<double>&, const Plan&);

}  // namespace gradstep
