// Memory that is planned first and allocated once: a plan is a function that takes every array it
// wants, run once to measure and once to hand out.
#pragma once
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace gradstep {

class Taker {
public:
    explicit Taker(std::byte* base) : base_(base) {}

    // n zeroed elements at a cache line's start; null while measuring.
    template <class T>
    T* take(std::size_t n) {
        T* at = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
        used_ += (n * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
        return at;
    }
    std::size_t used() const { return used_; }

    static constexpr std::size_t kAlignment = 64;

private:
    std::byte* base_;
    std::size_t used_ = 0;
};

class Arena {
public:
    Arena() = default;
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    ~Arena() { std::free(memory_); }

    // Replaces what the arena held; plan(Taker&) is called twice. Throws std::bad_alloc, and then leaves the
    // plan's pointers null.
    template <class Plan>
    void allocate(Plan&& plan) {
        Taker measure(nullptr);
        plan(measure);
        // Large arenas start at a huge page, which the kernel then may use.
        const std::size_t alignment = measure.used() >= kHugePage ? kHugePage : 4096;
        const std::size_t bytes = (measure.used() + alignment) / alignment * alignment;
        void* memory = std::aligned_alloc(alignment, bytes);
        if (!memory) throw std::bad_alloc();
#if defined(__linux__)
        if (bytes >= kHugePage) madvise(memory, bytes, MADV_HUGEPAGE);
#endif
        std::memset(memory, 0, bytes);
        std::free(memory_);
        memory_ = memory;
        Taker take(static_cast<std::byte*>(memory));
        plan(take);
    }

private:
    static constexpr std::size_t kHugePage = std::size_t{2} << 20;
    void* memory_ = nullptr;
};

}  // namespace gradstep
