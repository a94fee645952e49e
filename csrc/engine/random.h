// Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011), a pure function of seed, epoch,
// stream and index. gradstep/random.py is the same in Python.
#pragma once
#include <cstdint>
#include <vector>

namespace gradstep {

struct Philox {
    uint32_t word[4];
};

Philox philox(uint64_t seed, uint64_t index, uint32_t epoch, uint32_t stream);

// The order of rows in an epoch: the stable argsort of one 64-bit key a row. Keeps its memory.
class Permutation {
public:
    // order: n row numbers
    void fill(uint64_t seed, uint32_t epoch, int64_t n, int64_t* order);

private:
    std::vector<uint64_t> keys_, sorted_;
    std::vector<uint32_t> starts_;
};

}  // namespace gradstep
