// Small arrays that can be used as they are: found out here at a fraction of what the same checks cost in Python.
#pragma once
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <optional>

namespace gradstep {

template <class T>
using Matrix = pybind11::array_t<T, pybind11::array::c_style>;

// The checks run with the GIL. Python checks larger arrays, where they do not count.
constexpr pybind11::ssize_t kMostReadyElements = 8192;

// A numpy array itself, no subclass, of dtype T, C-contiguous and aligned, neither empty nor large.
template <class T>
std::optional<Matrix<T>> ready_array(pybind11::handle given) {
    static PyTypeObject* const plain = Py_TYPE(pybind11::array_t<char>(0).ptr());
    if (Py_TYPE(given.ptr()) != plain || !pybind11::isinstance<Matrix<T>>(given)) return std::nullopt;
    auto array = pybind11::reinterpret_borrow<Matrix<T>>(given);
    const bool is_aligned = reinterpret_cast<std::uintptr_t>(array.data()) % alignof(T) == 0;
    if (!is_aligned || array.size() == 0 || array.size() > kMostReadyElements) return std::nullopt;
    return array;
}

// Such an array of finite numbers, (rows, columns).
template <class T>
std::optional<Matrix<T>> ready_rows(pybind11::handle given, int64_t columns) {
    auto array = ready_array<T>(given);
    if (!array || array->ndim() != 2 || array->shape(1) != columns) return std::nullopt;
    bool finite = true;
    const T* values = array->data();
    for (pybind11::ssize_t i = 0; i < array->size(); ++i) finite &= values[i] - values[i] == T(0);
    return finite ? array : std::nullopt;
}

// Such an array of labels, 0 to classes - 1.
inline std::optional<Matrix<int32_t>> ready_labels(pybind11::handle given, int64_t classes) {
    auto array = ready_array<int32_t>(given);
    if (!array || array->ndim() != 1) return std::nullopt;
    const bool known = std::all_of(array->data(), array->data() + array->size(),
                                   [classes](int32_t label) { return label >= 0 && label < classes; });
    return known ? array : std::nullopt;
}

}  // namespace gradstep
