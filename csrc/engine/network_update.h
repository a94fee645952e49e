// The penalty on a network's weights, and the update of its parameters by a gradient in memory.
#pragma once
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "engine/net.h"
#include "engine/panel_net.h"
#include "engine/passes.h"
#include "engine/plan.h"
#include "engine/profile.h"
#include "engine/threads.h"
#include "engine/update.h"
#include "kernels/table.h"

namespace gradstep {

template <class T>
class NetworkUpdate {
public:
    NetworkUpdate(const Kernels<T>& kernels, const Net<T>& net, Update<T>& update, Profile& profile)
        : k_(kernels), net_(net), plan_(net.plan()), update_(update), profile_(profile), clips_(plan_.clips()) {
        sums_.resize(static_cast<std::size_t>(slices(parameters())));
        one_slice_ = parameters() <= kLeastSlice && plan_.l2 == 0 && plan_.l1 == 0 && plan_.weight_decay == 0 &&
                     !plan_.factored() && !clips_ && plan_.ema_decay == 0;
        penalised_ = plan_.l2 != 0 || plan_.l1 != 0;
    }

    double penalty(double l2, int threads) {
        if (!penalised_) return 0;
        return sum_of_slices(weights(), threads, [&](ptrdiff_t from, ptrdiff_t n) {
            const T* W = update_.theta + from;
            const double absolute = plan_.l1 == 0 ? 0 : plan_.l1 * sum_absolute(W, n);
            return absolute + (l2 == 0 ? 0 : l2 / 2 * k_.sum_squares(W, n));
        });
    }

    // The gradient of the penalty.
    void add_penalties(T* gradient, T l2, int threads) const {
        if (l2 == 0 && plan_.l1 == 0) return;
        for_slices(weights(), threads, [&](int, ptrdiff_t from, ptrdiff_t n, int) {
            T* g = gradient + from;
            const T* W = update_.theta + from;
            for (ptrdiff_t i = 0; l2 != 0 && i < n; ++i) g[i] += l2 * W[i];
            if (plan_.l1 > 0) add_signs(W, static_cast<T>(plan_.l1), g, n);
        });
    }

    // Whether a gradient can enter the optimizer, squared where that is what the states hold.
    bool (*guard() const)(const T*, ptrdiff_t) noexcept {
        return update_.optimizer.squares ? k_.squares_finite : k_.all_finite;
    }

    // The update of all parameters. False if it is guarded and they would overflow: then nothing changed.
    bool operator()(const GradientParts<T>& g, int threads, bool guarded) {
        for (int part = 0; guarded && part < g.parts; ++part)
            if (!guard()(g.first + part * g.stride, parameters())) return false;
        if (!one_slice_) {
            apply_in_slices(g, threads);
            return true;
        }
        Laps* laps = profile_.begin(0);
        update_.plain(0, parameters(), g.first, g.stride, g.parts, update_.hypers.biases);
        end_phase(laps, Phase::update);
        return true;
    }

    // The update of layers without products.
    void apply_to_others(const FusedUpdate<T>& update, T* gradient, int threads) {
        for (std::size_t l = 0; l < plan_.layers.size(); ++l) {
            const LayerPlan& d = plan_.layers[l];
            if (d.is_dense() || update_.frozen(l)) continue;
            const LayerParameters& at = net_.parameters().layers[l];
            const Hyper<T>& hyper = update_.hyper(l, d.has_gain() ? &Hypers<T>::biases : &Hypers<T>::weights);
            for_slices(static_cast<ptrdiff_t>(at.n_weights), threads,
                       [&](int, ptrdiff_t from, ptrdiff_t n, int worker) {
                           Laps* laps = profile_.begin(worker);
                           const std::size_t first = at.weights + static_cast<std::size_t>(from);
                           update(first, gradient + first, n, hyper);
                           end_phase(laps, Phase::update);
                       });
            Laps* laps = profile_.begin(0);
            update(at.biases, gradient + at.biases, static_cast<ptrdiff_t>(at.n_biases),
                   update_.hyper(l, &Hypers<T>::biases));
            end_phase(laps, Phase::update);
        }
    }

private:
    static constexpr ptrdiff_t kSlice = 16 * 1024;  // elements that one task takes, at most
    static constexpr ptrdiff_t kLeastSlice = 2 * 1024;
    static constexpr int kSharedSlices = 4;  // more of them are worth a second thread

    ptrdiff_t parameters() const { return static_cast<ptrdiff_t>(net_.parameters().total); }
    ptrdiff_t weights() const { return static_cast<ptrdiff_t>(net_.parameters().weights); }

    static int slices(ptrdiff_t n) { return static_cast<int>((n + kSlice - 1) / kSlice); }

    // n elements in slices, on several threads where there are enough of them.
    template <class F>
    static void for_slices(ptrdiff_t n, int threads, F&& f) {
        const int tasks = slices(n);
        parallel_for(tasks, tasks > kSharedSlices ? threads : 1, [&](int slice, int worker) {
            const ptrdiff_t from = slice * kSlice;
            f(slice, from, std::min(kSlice, n - from), worker);
        });
    }

    // Slices have sums of their own, which are added in turn: the same, whatever the number of threads.
    template <class F>
    double sum_of_slices(ptrdiff_t n, int threads, F&& sum_of) {
        for_slices(n, threads, [&](int slice, ptrdiff_t from, ptrdiff_t size, int) {
            sums_[static_cast<std::size_t>(slice)] = sum_of(from, size);
        });
        return std::accumulate(sums_.begin(), sums_.begin() + slices(n), 0.0);
    }

    void apply_in_slices(GradientParts<T> g, int threads) {
        if (clips_) {
            clip(g, threads);
            g.parts = 1;
        }
        if (!update_.by_layer.empty()) return apply_by_layer(g, threads);
        // Parts come from several threads, which are awake: even small slices are worth sharing.
        const ptrdiff_t share = net_.whole_lanes((weights() + threads - 1) / threads);
        const ptrdiff_t slice = std::clamp(share, kLeastSlice, kSlice);
        const int tasks = static_cast<int>((weights() + slice - 1) / slice);
        parallel_for(tasks, g.parts > 1 || tasks > kSharedSlices ? threads : 1, [&](int t, int worker) {
            Laps* laps = profile_.begin(worker);
            const ptrdiff_t from = t * slice;
            apply_part(g, static_cast<std::size_t>(from), std::min(slice, weights() - from), update_.hypers.weights);
            if (t == 0) apply_part(g, net_.parameters().weights, parameters() - weights(), update_.hypers.biases);
            end_phase(laps, Phase::update);
        });
    }

    // The update of layers that learn at different rates, or not at all.
    void apply_by_layer(const GradientParts<T>& g, int threads) {
        for (std::size_t l = 0; l < plan_.layers.size(); ++l) {
            if (update_.frozen(l)) continue;
            const LayerParameters& at = net_.parameters().layers[l];
            const Hypers<T>& hypers = update_.by_layer[l];
            const Hyper<T>& hyper = plan_.layers[l].has_gain() ? hypers.biases : hypers.weights;
            for_slices(static_cast<ptrdiff_t>(at.n_weights), threads,
                       [&](int, ptrdiff_t from, ptrdiff_t n, int worker) {
                           Laps* laps = profile_.begin(worker);
                           apply_part(g, at.weights + static_cast<std::size_t>(from), n, hyper);
                           end_phase(laps, Phase::update);
                       });
            Laps* laps = profile_.begin(0);
            apply_part(g, at.biases, static_cast<ptrdiff_t>(at.n_biases), hypers.biases);
            end_phase(laps, Phase::update);
        }
    }

    void apply_part(const GradientParts<T>& g, std::size_t from, ptrdiff_t n, const Hyper<T>& hyper) const {
        update_(from, n, g.first + from, g.stride, g.parts, hyper);
    }

    // Leaves the mean gradient with its penalties, without what is frozen, in the first part: cut to clip_value, then
    // to clip_norm as PyTorch's clip_grad_norm_ does.
    void clip(const GradientParts<T>& g, int threads) {
        T* gradient = g.first;
        if (g.parts > 1)
            for_slices(parameters(), threads, [&](int, ptrdiff_t from, ptrdiff_t n, int) {
                for (int part = 1; part < g.parts; ++part)
                    for (ptrdiff_t i = from; i < from + n; ++i) gradient[i] += gradient[part * g.stride + i];
            });
        add_penalties(gradient, update_.hypers.weights.l2, threads);
        update_.forget_l2();
        for (std::size_t l = 0; l < plan_.layers.size(); ++l) {
            if (!update_.frozen(l)) continue;
            const LayerParameters& at = net_.parameters().layers[l];
            std::fill_n(gradient + at.weights, at.n_weights, T(0));
            std::fill_n(gradient + at.biases, at.n_biases, T(0));
        }
        if (const auto most = static_cast<T>(plan_.clip_value); most > 0)
            for_slices(parameters(), threads, [&](int, ptrdiff_t from, ptrdiff_t n, int) {
                for (ptrdiff_t i = from; i < from + n; ++i) gradient[i] = std::clamp(gradient[i], -most, most);
            });
        if (plan_.clip_norm != 0) clip_norm(gradient, threads);
    }

    void clip_norm(T* gradient, int threads) {
        const double squares = sum_of_slices(
            parameters(), threads, [&](ptrdiff_t from, ptrdiff_t n) { return k_.sum_squares(gradient + from, n); });
        const double factor = plan_.clip_norm / (std::sqrt(squares) + 1e-6);
        if (!(factor < 1)) return;
        for_slices(parameters(), threads, [&](int, ptrdiff_t from, ptrdiff_t n, int) {
            for (ptrdiff_t i = from; i < from + n; ++i) gradient[i] *= static_cast<T>(factor);
        });
    }

    const Kernels<T>& k_;
    const Net<T>& net_;
    const Plan& plan_;
    Update<T>& update_;
    Profile& profile_;
    const bool clips_;
    bool penalised_ = false;    // l1 or l2
    bool one_slice_ = false;    // a tiny network: one call updates weights and biases
    std::vector<double> sums_;  // of slices of the parameters
};

}  // namespace gradstep
