// Vectors that start on a cache line: a tile or vector whose rows straddle two lines loads half as fast.
//
// Their code belongs to the file that uses them. The linker keeps one copy of what several files instantiate, such as
// std::vector<float>, and it might be the one compiled for instructions that this processor lacks.
#pragma once

#include <cstddef>
#include <new>
#include <vector>

namespace hr {

namespace {
struct ThisFile {};
}  // namespace

template <typename T, typename = ThisFile>
struct LineAllocator {
    typedef T value_type;
    static constexpr std::align_val_t kLine{64};

    LineAllocator() = default;
    template <typename U>
    LineAllocator(const LineAllocator<U>&) {}
    T* allocate(size_t count) { return static_cast<T*>(::operator new(count * sizeof(T), kLine)); }
    void deallocate(T* p, size_t) { ::operator delete(p, kLine); }
    template <typename U>
    bool operator==(const LineAllocator<U>&) const {
        return true;
    }
    template <typename U>
    bool operator!=(const LineAllocator<U>&) const {
        return false;
    }
};

// Without the zeros that a vector fills new memory with: for what is overwritten as a whole.
template <typename T, typename = ThisFile>
struct UninitialisedAllocator : LineAllocator<T> {
    typedef T value_type;
    template <typename U>
    struct rebind {
        typedef UninitialisedAllocator<U> other;
    };
    void construct(T*) {}
};

template <typename T>
using Uninitialised = std::vector<T, UninitialisedAllocator<T>>;

template <typename T>
using Aligned = std::vector<T, LineAllocator<T>>;

}  // namespace hr
