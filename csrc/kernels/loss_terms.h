// What losses consist of, sample by sample.
#pragma once
#include "simd/vec.h"

namespace {

template <class T>
struct ValueAndSlope {
    Vec<T> value, slope;
};

// A sample of weight zero adds nothing, whatever x is.
template <class T>
inline Vec<T> weighted(Vec<T> weight, Vec<T> x) {
    return weight == T(0) ? Vec<T>{} : weight * x;
}

}  // namespace
