// Dropout on panels. A dropped output becomes -0.0, which no kept one is: the products read it as zero, and the
// backward pass reads the mask from it.
#pragma once
#include "kernels/table.h"
#include "simd/vec.h"

namespace {

using gradstep::DropBlock;

// Philox4x32-10 for `P` columns at once: word w of column i belongs to row 4 group + w (random.py: dropout_mask).
template <ptrdiff_t P>
inline void mask_words(const gradstep::DropKey& key, uint32_t column, uint32_t group, uint32_t (&word)[4][P]) {
    uint32_t k0 = static_cast<uint32_t>(key.seed), k1 = static_cast<uint32_t>(key.seed >> 32);
    for (ptrdiff_t i = 0; i < P; ++i) {
        word[0][i] = column + static_cast<uint32_t>(i);
        word[1][i] = group;
        word[2][i] = key.step;
        word[3][i] = key.stream;
    }
    for (int round = 0; round < 10; ++round) {
        for (ptrdiff_t i = 0; i < P; ++i) {
            const uint64_t p0 = uint64_t{0xD2511F53} * word[0][i], p1 = uint64_t{0xCD9E8D57} * word[2][i];
            word[0][i] = static_cast<uint32_t>(p1 >> 32) ^ word[1][i] ^ k0;
            word[2][i] = static_cast<uint32_t>(p0 >> 32) ^ word[3][i] ^ k1;
            word[1][i] = static_cast<uint32_t>(p1);
            word[3][i] = static_cast<uint32_t>(p0);
        }
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
}

template <class T, int V>
void drop_panel(const DropBlock<T>& block) noexcept {
    constexpr ptrdiff_t P = kLanes<T> * V;
    const DropBlock<T> d = block;
    const int64_t end = d.row + d.rows;
    const T factor = static_cast<T>(d.key.factor);
    uint32_t word[4][P];
    for (int64_t group = d.row / 4; 4 * group < end; ++group) {
        mask_words<P>(d.key, d.column, static_cast<uint32_t>(group), word);
        for (int64_t w = 0; w < 4; ++w) {
            const int64_t row = 4 * group + w;
            if (row < d.row || row >= end) continue;
            T* a = d.a + (row - d.row) * P;
            for (ptrdiff_t i = 0; i < P; ++i)  // + 0 makes a kept -0.0 positive
                a[i] = word[w][i] >= d.key.threshold ? a[i] * factor + T(0) : -T(0);
        }
    }
}

// delta *= factor act'(z) where kept, 0 where dropped; a holds what drop_panel left.
template <class T>
void drop_backward(const gradstep::DropKey& key, const gradstep::Activation<T>& activation, const T* z, const T* a,
                   T* delta, ptrdiff_t n) noexcept {
    constexpr ptrdiff_t kBlock = 256;
    alignas(64) T kept[kBlock];
    const T factor = static_cast<T>(key.factor), inverse = static_cast<T>(1 / key.factor);
    for (ptrdiff_t from = 0; from < n; from += kBlock) {
        const ptrdiff_t size = n - from < kBlock ? n - from : kBlock;
        for (ptrdiff_t i = 0; i < size; i += kLanes<T>) {
            const Vec<T> value = load(a + from + i);
            const Bits<T> dropped = to_bits<T>(value) == to_bits<T>(splat(-T(0)));
            store(kept + i, value * inverse);
            store(delta + from + i, dropped ? Vec<T>{} : load(delta + from + i) * factor);
        }
        if (activation.backward) activation.backward(activation.needs_z ? z + from : kept, kept, delta + from, size);
    }
}

}  // namespace
