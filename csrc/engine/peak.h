// The most that this machine can do, for "percent of peak".
#pragma once
#include <optional>
#include <string>

namespace gradstep {

// Fused multiply-adds in registers on so many threads, GFLOP/s: the best of five rounds that take `seconds`
// together. isa: one of instruction_sets(), by default the one in use.
double fma_peak(int threads, double seconds, const std::optional<std::string>& isa, bool float64);

}  // namespace gradstep
