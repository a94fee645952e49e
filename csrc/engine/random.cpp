#include "engine/random.h"

#include <algorithm>
#include <bit>
#include <limits>
#include <stdexcept>

namespace gradstep {

namespace {

constexpr uint32_t kShuffleStream = 0;

inline void philox_round(Philox& c, uint32_t k0, uint32_t k1) {
    const uint64_t p0 = uint64_t{0xD2511F53} * c.word[0];
    const uint64_t p1 = uint64_t{0xCD9E8D57} * c.word[2];
    c = {{static_cast<uint32_t>(p1 >> 32) ^ c.word[1] ^ k0, static_cast<uint32_t>(p1),
          static_cast<uint32_t>(p0 >> 32) ^ c.word[3] ^ k1, static_cast<uint32_t>(p0)}};
}

}  // namespace

Philox philox(uint64_t seed, uint64_t index, uint32_t epoch, uint32_t stream) {
    Philox c = {{static_cast<uint32_t>(index), static_cast<uint32_t>(index >> 32), epoch, stream}};
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        philox_round(c, k0, k1);
        k0 += 0x9E3779B9;
        k1 += 0xBB67AE85;
    }
    return c;
}

// The keys are uniform, so their top bits spread the rows over buckets of about one row each; a stable
// insertion sort finishes the buckets.
void Permutation::fill(uint64_t seed, uint32_t epoch, int64_t n, int64_t* order) {
    if (n > std::numeric_limits<uint32_t>::max()) throw std::length_error("more than 2^32 rows cannot be shuffled");
    const auto count = static_cast<std::size_t>(n);
    keys_.resize(count + 1);
    for (int64_t i = 0; i < n; i += 2) {
        const Philox r = philox(seed, static_cast<uint64_t>(i) / 2, epoch, kShuffleStream);
        keys_[i] = r.word[0] | uint64_t{r.word[1]} << 32;
        keys_[i + 1] = r.word[2] | uint64_t{r.word[3]} << 32;
    }
    const int bits = std::clamp(static_cast<int>(std::bit_width(count)), 1, 22);
    const int shift = 64 - bits;
    starts_.assign((std::size_t{1} << bits) + 1, 0);
    for (std::size_t i = 0; i < count; ++i) ++starts_[(keys_[i] >> shift) + 1];
    for (std::size_t b = 1; b < starts_.size(); ++b) starts_[b] += starts_[b - 1];
    sorted_.resize(count);
    for (std::size_t i = 0; i < count; ++i) {
        const uint32_t at = starts_[keys_[i] >> shift]++;
        sorted_[at] = keys_[i];
        order[at] = static_cast<int64_t>(i);
    }
    for (std::size_t i = 1; i < count; ++i) {
        const uint64_t key = sorted_[i];
        const int64_t row = order[i];
        std::size_t j = i;
        for (; j > 0 && sorted_[j - 1] > key; --j) {
            sorted_[j] = sorted_[j - 1];
            order[j] = order[j - 1];
        }
        sorted_[j] = key;
        order[j] = row;
    }
}

}  // namespace gradstep
