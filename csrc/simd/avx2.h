// AVX2 with FMA: 32-byte vectors, 16 registers.
#pragma once
#include <immintrin.h>

namespace {

constexpr int kVectorBytes = 32;
// Rows of a product tile, by vectors a row: 12 x 1 and 6 x 2 accumulators leave room for operands.
constexpr int kTileRows[3] = {0, 12, 6};
// Samples in lanes. Two multiply-add units with a latency of 4 cycles want 8 accumulators; dot products have those of
// the biases beside theirs.
constexpr int kLaneRows = 4, kLaneAccumulators = 12;
constexpr int kDotRows = 4, kDotColumns = 2;

inline __m256 fma(__m256 a, __m256 b, __m256 c) {
    return _mm256_fmadd_ps(a, b, c);
}
inline __m256d fma(__m256d a, __m256d b, __m256d c) {
    return _mm256_fmadd_pd(a, b, c);
}
inline __m256 square_root(__m256 a) {
    return _mm256_sqrt_ps(a);
}
inline __m256d square_root(__m256d a) {
    return _mm256_sqrt_pd(a);
}

inline __m256 root(__m256 a) {
    return square_root(a);
}
inline __m256d root(__m256d a) {
    return square_root(a);
}

inline __m256 load_first(const float* p, ptrdiff_t n) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm256_maskload_ps(p, _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), lanes));
}
inline __m256d load_first(const double* p, ptrdiff_t n) {
    return _mm256_maskload_pd(p, _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3)));
}

// NaN in the first argument stays NaN: the instruction gives its second operand then.
inline __m256 minimum(__m256 a, __m256 b) {
    return _mm256_min_ps(b, a);
}
inline __m256d minimum(__m256d a, __m256d b) {
    return _mm256_min_pd(b, a);
}
inline __m256 maximum(__m256 a, __m256 b) {
    return _mm256_max_ps(b, a);
}
inline __m256d maximum(__m256d a, __m256d b) {
    return _mm256_max_pd(b, a);
}

}  // namespace
