// Whether small arrays can be used as they are: a fraction of what the same checks cost in Python, where they took
// longer than the prediction of a row.
#pragma once
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <optional>

#include "bindings/arrays.h"

namespace gradstep {

// Larger arrays are left to gradstep.validation, in which READY_ELEMENTS is the same: there the checks are a small part
// of the call, and would hold the GIL for long.
constexpr pybind11::ssize_t kMostReadyElements = 8192;

// A numpy array itself (masked arrays and other subclasses may mean something else), of dtype T, C-contiguous and
// aligned, neither empty nor large.
template <class T>
std::optional<Matrix<T>> ready_array(pybind11::handle given) {
    const auto* plain = pybind11::detail::npy_api::get().PyArray_Type_;
    if (Py_TYPE(given.ptr()) != plain || !pybind11::isinstance<Matrix<T>>(given)) return std::nullopt;
    auto array = pybind11::reinterpret_borrow<Matrix<T>>(given);
    const bool is_aligned = reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) == 0;
    if (!is_aligned || array.size() == 0 || array.size() > kMostReadyElements) return std::nullopt;
    return array;
}

// Such an array of (rows, columns).
template <class T>
std::optional<Matrix<T>> ready_rows(pybind11::handle given, int64_t columns) {
    auto array = ready_array<T>(given);
    return array && array->ndim() == 2 && array->shape(1) == columns ? array : std::nullopt;
}

// x - x is 0 unless x is NaN or infinite. Without a branch, so that it is vector code.
template <class T>
bool all_finite(const Matrix<T>& array) {
    bool finite = true;
    const T* values = array.data();
    for (pybind11::ssize_t i = 0; i < array.size(); ++i) finite &= values[i] - values[i] == T(0);
    return finite;
}

// Such an array of (rows,) labels, 0 to classes - 1.
inline bool are_ready_labels(pybind11::handle given, pybind11::ssize_t rows, int64_t classes) {
    const auto array = ready_array<int32_t>(given);
    return array && array->ndim() == 1 && array->shape(0) == rows &&
           std::all_of(array->data(), array->data() + rows,
                       [classes](int32_t label) { return label >= 0 && label < classes; });
}

}  // namespace gradstep
