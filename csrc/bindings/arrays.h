// The arrays that the engines take and give.
#pragma once
#include <pybind11/numpy.h>

namespace gradstep {

// C-contiguous, of any number of dimensions.
template <class T>
using Matrix = pybind11::array_t<T, pybind11::array::c_style>;

}  // namespace gradstep
