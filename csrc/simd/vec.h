// One vector type for every instruction set: the compiler's vector extension under a few operations.
// Arithmetic, comparisons and `mask ? a : b` are the extension's own operators.
//
// Everything is in an anonymous namespace, here and in all headers that kernels.cpp includes: the
// objects of several instruction sets are linked together, and a shared inline function would leave
// one copy, compiled for the newest set, to crash the oldest machine.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>

// Each header has
//   kVectorBytes        of a vector
//   kTileRows[NV]       rows of a product's tile whose rows are NV vectors
//   kLaneRows, kLaneAccumulators, kDotRows, kDotColumns   tiles of kernels/lanes.h
//   fma, square_root, minimum, maximum                    by lane
//   root                the square root to a unit in the last place, by what is fastest beside a division
//   load_first(p, n)    the first n elements and zeros, none for n <= 0; nothing behind them is read
#if defined(__AVX512F__)
#include "simd/avx512.h"
#elif defined(__AVX2__)
#include "simd/avx2.h"
#else
#include "simd/baseline.h"
#endif

namespace {

template <class T>
struct VecOf;
template <>
struct VecOf<float> {
    typedef float Type __attribute__((vector_size(kVectorBytes)));
    typedef int32_t Bits __attribute__((vector_size(kVectorBytes)));
};
template <>
struct VecOf<double> {
    typedef double Type __attribute__((vector_size(kVectorBytes)));
    typedef int64_t Bits __attribute__((vector_size(kVectorBytes)));
};

template <class T>
using Vec = typename VecOf<T>::Type;
template <class T>
using Bits = typename VecOf<T>::Bits;

template <class T>
constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(T));

// memcpy compiles to one unaligned move, which costs nothing on aligned data. To the compiler it may write
// anywhere: loops that store read their arguments from a local copy.
template <class T>
inline Vec<T> load(const T* p) {
    Vec<T> v;
    memcpy(&v, p, sizeof v);
    return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
    memcpy(p, &v, sizeof v);
}

template <class T>
inline Vec<T> splat(T x) {
    return x - Vec<T>{};  // x - 0 keeps every x, also -0; compiles to a broadcast
}

template <class T>
inline Bits<T> to_bits(Vec<T> v) {
    return __builtin_bit_cast(Bits<T>, v);
}

template <class T>
inline Vec<T> from_bits(Bits<T> b) {
    return __builtin_bit_cast(Vec<T>, b);
}

// All bits but the sign.
template <class T>
inline Bits<T> magnitude_mask() {
    return ~to_bits<T>(splat(T(-0.0)));
}

template <class T>
inline Vec<T> absolute(Vec<T> a) {
    return from_bits<T>(to_bits<T>(a) & magnitude_mask<T>());
}

// Compile-time lists of lane numbers, for shuffles.
template <int... I>
struct Indices {};
template <int N, int... I>
struct MakeIndices : MakeIndices<N - 1, N - 1, I...> {};
template <int... I>
struct MakeIndices<0, I...> {
    using Type = Indices<I...>;
};

template <class T, int N>
struct SizedVec {
    typedef T Type __attribute__((vector_size(N * sizeof(T))));
};

template <class T, int N, int... I>
inline typename SizedVec<T, N / 2>::Type add_halves(typename SizedVec<T, N>::Type v, Indices<I...>) {
    return __builtin_shufflevector(v, v, I...) + __builtin_shufflevector(v, v, (I + N / 2)...);
}

template <class T, int N>
inline T sum_of(typename SizedVec<T, N>::Type v) {
    if constexpr (N == 2)
        return v[0] + v[1];
    else
        return sum_of<T, N / 2>(add_halves<T, N>(v, typename MakeIndices<N / 2>::Type{}));
}

template <class T>
inline T sum_lanes(Vec<T> v) {
    return sum_of<T, kLanes<T>>(v);
}

// One stage of a transposition: rows a and b, D apart, exchange their off-diagonal D x D squares.
template <class T, int D, int... I>
inline void exchange(Vec<T>& a, Vec<T>& b, Indices<I...>) {
    constexpr int n = kLanes<T>;
    const Vec<T> low = __builtin_shufflevector(a, b, ((I & D) ? n + I - D : I)...);
    b = __builtin_shufflevector(a, b, ((I & D) ? n + I : I + D)...);
    a = low;
}

template <class T, int D = 1>
inline void transpose_in_registers(Vec<T> (&v)[kLanes<T>]) {
    if constexpr (D < kLanes<T>) {
#pragma GCC unroll 16
        for (int i = 0; i < kLanes<T>; ++i)
            if (!(i & D)) exchange<T, D>(v[i], v[i + D], typename MakeIndices<kLanes<T>>::Type{});
        transpose_in_registers<T, D * 2>(v);
    }
}

// to[j][i] = from[i][j] for one square of as many rows as a vector has lanes.
template <class T>
inline void transpose_square(const T* from, ptrdiff_t from_row, T* to, ptrdiff_t to_row) {
    Vec<T> v[kLanes<T>];
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) v[i] = load(from + i * from_row);
    transpose_in_registers<T>(v);
#pragma GCC unroll 16
    for (int i = 0; i < kLanes<T>; ++i) store(to + i * to_row, v[i]);
}

}  // namespace
