#include "engine/dispatch.h"

#include <cstdlib>
#include <stdexcept>

namespace gradstep {

namespace {

struct Candidate {
    const KernelTable* table;
    bool (*supported)();
};

// Best first. To add an instruction set: its header in simd/, its line in CMakeLists.txt, its line here.
const Candidate candidates[] = {
#if defined(__x86_64__)
    {&kernels_avx512, [] { return __builtin_cpu_supports("x86-64-v4") != 0; }},
    {&kernels_avx2, [] { return __builtin_cpu_supports("x86-64-v3") != 0; }},
    {&kernels_baseline, [] { return __builtin_cpu_supports("x86-64-v2") != 0; }},
#else
    {&kernels_baseline, [] { return true; }},
#endif
};

std::string joined(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

const KernelTable& named(const std::string& isa, const char* argument) {
    for (const Candidate& c : candidates)
        if (isa == c.table->isa && c.supported()) return *c.table;
    throw std::invalid_argument(std::string(argument) + " must be one of " + joined(instruction_sets()) +
                                " on this machine, not '" + isa + "'");
}

const KernelTable& choose() {
    const char* forced = std::getenv("GRADSTEP_ISA");
    if (forced && *forced) return named(forced, "GRADSTEP_ISA");
    for (const Candidate& c : candidates)
        if (c.supported()) return *c.table;
    throw std::invalid_argument("this processor lacks SSE4.2, which the compiled backend needs");
}

}  // namespace

std::vector<std::string> instruction_sets() {
    std::vector<std::string> names;
    for (const Candidate& c : candidates)
        if (c.supported()) names.emplace_back(c.table->isa);
    return names;
}

const KernelTable& kernels(const std::string& isa) {
    return named(isa, "isa");
}

const KernelTable& kernels() {
    static const KernelTable& chosen = choose();
    return chosen;
}

}  // namespace gradstep
