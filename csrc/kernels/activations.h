// Activations: value(z) and the derivative from z and a = value(z). To add one, write its struct and
// name it in kActivations.
#pragma once
#include "kernels/elementary.h"
#include "kernels/table.h"

namespace {

struct Relu {
    static constexpr bool needs_z = false;
    template <class T>
    static Vec<T> value(Vec<T> z) {
        return maximum(z, Vec<T>{});
    }
    template <class T>
    static Vec<T> derivative(Vec<T>, Vec<T> a) {
        return a > T(0) ? splat(T(1)) : Vec<T>{};
    }
};

struct LeakyRelu {
    static constexpr bool needs_z = false;
    template <class T>
    static Vec<T> value(Vec<T> z) {
        return z > T(0) ? z : z * T(0.01);
    }
    template <class T>
    static Vec<T> derivative(Vec<T>, Vec<T> a) {
        return a > T(0) ? splat(T(1)) : splat(T(0.01));
    }
};

// Largest float error 6 ULP.
struct Tanh {
    static constexpr bool needs_z = false;
    template <class T>
    static Vec<T> value(Vec<T> z) {
        return tanh<T>(z);
    }
    template <class T>
    static Vec<T> derivative(Vec<T>, Vec<T> a) {
        return T(1) - a * a;
    }
};

struct Sigmoid {
    static constexpr bool needs_z = false;
    template <class T>
    static Vec<T> value(Vec<T> z) {
        return sigmoid<T>(z);
    }
    template <class T>
    static Vec<T> derivative(Vec<T>, Vec<T> a) {
        return a * (T(1) - a);
    }
};

// log(1 + exp(z)); the derivative sigmoid(z) = 1 - exp(-a).
struct Softplus {
    static constexpr bool needs_z = false;
    template <class T>
    static Vec<T> value(Vec<T> z) {
        return softplus<T>(z);
    }
    template <class T>
    static Vec<T> derivative(Vec<T>, Vec<T> a) {
        return -expm1<T>(-a);
    }
};

// Clevert et al. 2015, alpha = 1.
struct Elu {
    static constexpr bool needs_z = false;
    template <class T>
    static Vec<T> value(Vec<T> z) {
        return z > T(0) ? z : expm1<T>(z);
    }
    template <class T>
    static Vec<T> derivative(Vec<T>, Vec<T> a) {
        return a > T(0) ? splat(T(1)) : a + T(1);
    }
};

// Klambauer et al. 2017.
struct Selu {
    static constexpr bool needs_z = false;
    static constexpr double kScale = 1.0507009873554804934193349852946;
    static constexpr double kScaleAlpha = 1.7580993408473768599402175208123;
    template <class T>
    static Vec<T> value(Vec<T> z) {
        return z > T(0) ? z * T(kScale) : expm1<T>(z) * T(kScaleAlpha);
    }
    template <class T>
    static Vec<T> derivative(Vec<T>, Vec<T> a) {
        return a > T(0) ? splat(T(kScale)) : a + T(kScaleAlpha);
    }
};

// z Phi(z), Hendrycks and Gimpel 2016, exact. The clamp makes -inf give -0 instead of NaN.
struct Gelu {
    static constexpr bool needs_z = true;
    template <class T>
    static Vec<T> value(Vec<T> z) {
        return maximum(z, splat(T(-1e30))) * normal_cdf<T>(z);
    }
    template <class T>
    static Vec<T> derivative(Vec<T> z, Vec<T>) {
        const Vec<T> bounded = minimum(maximum(z, splat(T(-1e30))), splat(T(1e30)));
        return fma(bounded, normal_pdf<T>(z), normal_cdf<T>(z));
    }
};

// z sigmoid(z), also called swish.
struct Silu {
    static constexpr bool needs_z = true;
    template <class T>
    static Vec<T> value(Vec<T> z) {
        const ScaledExp<T> e = scaled_exp<T>(-absolute<T>(z));
        const Vec<T> sum = e.value * e.factor + T(1);
        const Vec<T> bounded = maximum(z, splat(Constants<T>::kExpLeast));
        return z < T(0) ? bounded * e.value / sum * e.factor : z / sum;
    }
    template <class T>
    static Vec<T> derivative(Vec<T> z, Vec<T>) {
        const Vec<T> s = sigmoid<T>(z);
        const Vec<T> bounded = minimum(maximum(z, splat(T(-1e30))), splat(T(1e30)));
        return s * fma(bounded, T(1) - s, splat(T(1)));
    }
};

// z tanh(softplus(z)), Misra 2019. With e = exp(z): tanh(softplus(z)) = e (e + 2) / (e (e + 2) + 2).
struct Mish {
    static constexpr bool needs_z = true;
    template <class T>
    static ScaledExp<T> bounded_exp(Vec<T> z) {
        return scaled_exp<T>(minimum(z, splat(T(30))));  // beyond 30 mish(z) is z
    }
    template <class T>
    static Vec<T> value(Vec<T> z) {
        const ScaledExp<T> scaled = bounded_exp<T>(z);
        const Vec<T> e = scaled.value * scaled.factor;
        const Vec<T> quotient = (e + T(2)) / fma(e, e + T(2), splat(T(2)));
        const Vec<T> gated = maximum(z, splat(Constants<T>::kExpLeast)) * scaled.value * quotient * scaled.factor;
        return z > T(30) ? z : gated;
    }
    template <class T>
    static Vec<T> derivative(Vec<T> z, Vec<T>) {
        const ScaledExp<T> scaled = bounded_exp<T>(z);
        const Vec<T> e = scaled.value * scaled.factor;
        const Vec<T> w = fma(e, e + T(2), splat(T(2)));
        const Vec<T> slope = T(4) * e * (e + T(1)) / (w * w);
        return fma(minimum(maximum(z, splat(T(-1e30))), splat(T(30))), slope, e * (e + T(2)) / w);
    }
};

template <class T, class A>
void activation_forward(const T* z, T* a, ptrdiff_t n) noexcept {
    for (ptrdiff_t i = 0; i < n; i += kLanes<T>) store(a + i, A::template value<T>(load(z + i)));
}

template <class T, class A>
void activation_backward(const T* z, const T* a, T* delta, ptrdiff_t n) noexcept {
    for (ptrdiff_t i = 0; i < n; i += kLanes<T>)
        store(delta + i, load(delta + i) * A::template derivative<T>(load(z + i), load(a + i)));
}

template <class T, class A>
constexpr gradstep::Activation<T> activation(const char* name) {
    return {name, A::needs_z, &activation_forward<T, A>, &activation_backward<T, A>};
}

template <class T>
constexpr gradstep::Activation<T> kActivations[] = {
    {"identity", false, nullptr, nullptr},
    activation<T, Relu>("relu"),
    activation<T, LeakyRelu>("leaky_relu"),
    activation<T, Tanh>("tanh"),
    activation<T, Sigmoid>("sigmoid"),
    activation<T, Softplus>("softplus"),
    activation<T, Elu>("elu"),
    activation<T, Selu>("selu"),
    activation<T, Gelu>("gelu"),
    activation<T, Silu>("silu"),
    activation<T, Mish>("mish"),
};

}  // namespace
