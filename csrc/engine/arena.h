// Memory that is planned first and allocated once: a plan is a function that takes every array it
// wants, run once to measure and once to hand out.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#include <utility>

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

// Zeroed memory. Large blocks are pages that the system gives when they are first touched, from a huge page's
// boundary on, so that the moments of a network that only predicts cost nothing.
class Memory {
public:
    Memory() = default;
    explicit Memory(std::size_t bytes) {
#if defined(__linux__)
        if (bytes >= kHugePage) {
            mapped_ = bytes + kHugePage;
            void* pages = mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (pages == MAP_FAILED) throw std::bad_alloc();
            block_ = pages;
            const auto address = reinterpret_cast<std::uintptr_t>(pages);
            data_ = static_cast<std::byte*>(pages) + (kHugePage - address % kHugePage) % kHugePage;
            madvise(data_, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);  // not the rest: it would be rounded up
            return;
        }
#endif
        bytes = (bytes + kPage) / kPage * kPage;
        block_ = std::aligned_alloc(kPage, bytes);
        if (!block_) throw std::bad_alloc();
        data_ = static_cast<std::byte*>(block_);
        std::memset(data_, 0, bytes);
    }
    Memory(const Memory&) = delete;
    Memory& operator=(Memory&& other) noexcept {
        std::swap(block_, other.block_);
        std::swap(data_, other.data_);
        std::swap(mapped_, other.mapped_);
        return *this;
    }
    ~Memory() {
#if defined(__linux__)
        if (mapped_) {
            munmap(block_, mapped_);
            return;
        }
#endif
        std::free(block_);
    }

    std::byte* data() const { return data_; }

private:
    static constexpr std::size_t kPage = 4096, kHugePage = std::size_t{2} << 20;
    void* block_ = nullptr;
    std::byte* data_ = nullptr;
    std::size_t mapped_ = 0;  // bytes; 0: on the heap
};

class Arena {
public:
    // Replaces what the arena held; plan(Taker&) is called twice. Throws std::bad_alloc, and then leaves the
    // plan's pointers null.
    template <class Plan>
    void allocate(Plan&& plan) {
        Taker measure(nullptr);
        plan(measure);
        memory_ = Memory(measure.used());
        Taker take(memory_.data());
        plan(take);
    }

private:
    Memory memory_;
};

}  // namespace gradstep
