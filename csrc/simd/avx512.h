// AVX-512 (F, BW, DQ, VL): 64-byte vectors, 32 registers.
#pragma once
#include <immintrin.h>

namespace {

constexpr int kVectorBytes = 64;
// Rows of a product tile, by vectors a row: 16 x 1 is the whole of a block of dW, 14 x 2 accumulators leave
// room for operands.
constexpr int kTileRows[3] = {0, 16, 14};
constexpr int kLaneRows = 4, kLaneAccumulators = 16;
constexpr int kDotRows = 4, kDotColumns = 4;

inline __m512 fma(__m512 a, __m512 b, __m512 c) {
    return _mm512_fmadd_ps(a, b, c);
}
inline __m512d fma(__m512d a, __m512d b, __m512d c) {
    return _mm512_fmadd_pd(a, b, c);
}
inline __m512 square_root(__m512 a) {
    return _mm512_sqrt_ps(a);
}
inline __m512d square_root(__m512d a) {
    return _mm512_sqrt_pd(a);
}

// Divisions and roots wait for one unit: where a division follows, the root is better made of multiply-adds, from an
// estimate of 14 bits by one step of Newton's method.
inline __m512 root(__m512 a) {
    const __m512 half = _mm512_set1_ps(0.5f), estimate = _mm512_rsqrt14_ps(a);
    const __m512 near = _mm512_mul_ps(a, estimate);
    const __m512 rest = _mm512_fnmadd_ps(near, _mm512_mul_ps(estimate, half), half);
    constexpr int zero_or_infinite = 0x02 | 0x04 | 0x08;
    return _mm512_mask_mov_ps(fma(near, rest, near), _mm512_fpclass_ps_mask(a, zero_or_infinite), a);
}
inline __m512d root(__m512d a) {
    return _mm512_sqrt_pd(a);
}

inline __m512 load_first(const float* p, ptrdiff_t n) {
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_maskz_loadu_ps(_mm512_cmplt_epi32_mask(lanes, _mm512_set1_epi32(static_cast<int>(n))), p);
}
inline __m512d load_first(const double* p, ptrdiff_t n) {
    const __m512i lanes = _mm512_setr_epi64(0, 1, 2, 3, 4, 5, 6, 7);
    return _mm512_maskz_loadu_pd(_mm512_cmplt_epi64_mask(lanes, _mm512_set1_epi64(n)), p);
}

// NaN in the first argument stays NaN: the instruction gives its second operand then.
inline __m512 minimum(__m512 a, __m512 b) {
    return _mm512_min_ps(b, a);
}
inline __m512d minimum(__m512d a, __m512d b) {
    return _mm512_min_pd(b, a);
}
inline __m512 maximum(__m512 a, __m512 b) {
    return _mm512_max_ps(b, a);
}
inline __m512d maximum(__m512d a, __m512d b) {
    return _mm512_max_pd(b, a);
}

}  // namespace
