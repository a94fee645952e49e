// 16-byte vectors in the compiler's own extension: x86-64-v2 (SSE4.2) and, unchanged, any other
// processor (AArch64's NEON). Where the target has a fused multiply-add the compiler contracts to it.
#pragma once

namespace {

constexpr int kVectorBytes = 16;
#if defined(__aarch64__)
constexpr int kTileRows[3] = {0, 14, 12};  // 32 registers
#else
constexpr int kTileRows[3] = {0, 10, 5};  // 16 registers
#endif
constexpr int kLaneRows = 4, kLaneAccumulators = 8;  // for 16 registers; more was not measured
constexpr int kDotRows = 4, kDotColumns = 2;

typedef float Float4 __attribute__((vector_size(kVectorBytes)));
typedef double Double2 __attribute__((vector_size(kVectorBytes)));

inline Float4 fma(Float4 a, Float4 b, Float4 c) {
    return a * b + c;
}
inline Double2 fma(Double2 a, Double2 b, Double2 c) {
    return a * b + c;
}

template <class V>
inline V square_root_by_lane(V a) {
    constexpr int lanes = sizeof(V) / sizeof(a[0]);
    for (int i = 0; i < lanes; ++i) a[i] = sizeof(a[0]) == 4 ? __builtin_sqrtf(a[i]) : __builtin_sqrt(a[i]);
    return a;
}
inline Float4 square_root(Float4 a) {
    return square_root_by_lane(a);
}
inline Double2 square_root(Double2 a) {
    return square_root_by_lane(a);
}

template <class V>
inline V root(V a) {
    return square_root(a);
}

template <class V, class T>
inline V load_first_by_lane(const T* p, ptrdiff_t n) {
    V v{};
    for (ptrdiff_t i = 0; i < n; ++i) v[i] = p[i];
    return v;
}
inline Float4 load_first(const float* p, ptrdiff_t n) {
    return load_first_by_lane<Float4>(p, n);
}
inline Double2 load_first(const double* p, ptrdiff_t n) {
    return load_first_by_lane<Double2>(p, n);
}

// NaN in the first argument stays NaN.
template <class V>
inline V minimum(V a, V b) {
    return a > b ? b : a;
}
template <class V>
inline V maximum(V a, V b) {
    return a < b ? b : a;
}

}  // namespace
