// Which instruction set runs: the best that this processor has, or the one that GRADSTEP_ISA names.
#pragma once
#include <string>
#include <vector>

#include "kernels/table.h"

namespace gradstep {

// Names of the instruction sets that were built and that this processor has, best first.
std::vector<std::string> instruction_sets();

// The table in use, chosen at the first call. Throws std::invalid_argument for a bad GRADSTEP_ISA.
const KernelTable& kernels();

// The table of one of instruction_sets().
const KernelTable& kernels(const std::string& isa);

template <class T>
const Kernels<T>& of_type(const KernelTable& table) {
    if constexpr (sizeof(T) == 4)
        return table.f32;
    else
        return table.f64;
}

}  // namespace gradstep
